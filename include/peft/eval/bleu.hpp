#pragma once
/// BLEU of a corpus (Papineni et al., 2002) as sacreBLEU defines it (Post, 2018): n-grams up to 4, clipped counts and
/// lengths summed over the corpus, brevity penalty, exponential smoothing of orders without a match (Chen & Cherry, 2014,
/// method 3), one reference per hypothesis, upper and lower case told apart. Equal to sacreBLEU's corpus_bleu.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/eval/characters.hpp"
#include "peft/eval/token_numbers.hpp"

PEFT_BEGIN_NAMESPACE

/// How a text becomes tokens, by sacreBLEU's names: mteval-v13a for languages with spaces; the same with every Chinese
/// character apart; every character apart; as it is.
enum class BleuTokenizer : std::uint8_t { k13a, kZh, kChar, kNone };

constexpr std::string_view name_of(BleuTokenizer tokenizer) noexcept {
  constexpr std::string_view kNames[] = {"13a", "zh", "char", "none"};
  return kNames[static_cast<std::size_t>(tokenizer)];
}

/// Throws ConfigError for another name.
inline BleuTokenizer bleu_tokenizer_from(std::string_view name) {
  for (const auto one : {BleuTokenizer::k13a, BleuTokenizer::kZh, BleuTokenizer::kChar, BleuTokenizer::kNone}) {
    if (name == name_of(one)) return one;
  }
  fail<ConfigError>("BLEU: the tokenizer is \"{}\"; expected 13a, zh, char or none", name);
}

/// Sums over a corpus and what follows from them.
struct BleuScore {
  double score = 0.0;  ///< 0 to 100
  std::array<double, 4> precisions{};  ///< in percent, smoothed
  std::array<Index, 4> counts{};       ///< n-grams of the hypotheses that the references have, clipped
  std::array<Index, 4> totals{};       ///< n-grams of the hypotheses
  double brevity_penalty = 1.0;
  Index sys_len = 0;  ///< tokens of the hypotheses
  Index ref_len = 0;  ///< tokens of the references
};

namespace detail {

/// sacreBLEU's `_is_chinese_char`. Two of its ranges are written '\u20000'…'\u2a6d6' and '\u2f800'…'\u2fa1d', which
/// Python reads as four digits and a character: as strings they mean U+2001…U+2A6D and U+2F81…U+2FA1. Scores that are
/// to be compared with published ones need the same.
constexpr bool is_bleu_chinese(char32_t c) noexcept {
  return (c >= 0x3400 && c <= 0x4DB5) || (c >= 0x4E00 && c <= 0x9FBB) || (c >= 0xF900 && c <= 0xFA2D) ||
         (c >= 0xFA30 && c <= 0xFA6A) || (c >= 0xFA70 && c <= 0xFAD9) || (c >= 0x2001 && c <= 0x2A6D) ||
         (c >= 0xFF00 && c <= 0xFFEF) || (c >= 0x2E80 && c <= 0x2EFF) || (c >= 0x3000 && c <= 0x303F) ||
         (c >= 0x31C0 && c <= 0x31EF) || (c >= 0x2F00 && c <= 0x2FDF) || (c >= 0x2FF0 && c <= 0x2FFF) ||
         (c >= 0x3100 && c <= 0x312F) || (c >= 0x31A0 && c <= 0x31BF) || (c >= 0xFE10 && c <= 0xFE1F) ||
         (c >= 0xFE30 && c <= 0xFE4F) || (c >= 0x3200 && c <= 0x33FF);
}

/// Punctuation that always stands alone: ASCII's without ' - . , and what belongs to words and numbers.
constexpr bool is_bleu_punctuation(char32_t c) noexcept {
  return (c >= U'{' && c <= U'~') || (c >= U'[' && c <= U'`') || (c >= U' ' && c <= U'&') || (c >= U'(' && c <= U'+') ||
         (c >= U':' && c <= U'@') || c == U'/';
}

inline void replace_all(std::u32string& text, std::u32string_view from, std::u32string_view to) {
  for (std::size_t at = text.find(from); at != std::u32string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

/// The language-independent part of mteval-v13a, pass by pass: a pass sees what the one before it wrote, and what a match
/// took is not looked at again in the same pass.
inline std::u32string bleu_split_punctuation(const std::u32string& text) {
  std::u32string apart;
  for (const char32_t c : text) {
    if (is_bleu_punctuation(c)) {
      apart += {U' ', c, U' '};
    } else {
      apart += c;
    }
  }
  const auto pass = [](const std::u32string& in, auto&& matches, bool before, bool after) {
    std::u32string out;
    std::size_t i = 0;
    for (; i + 1 < in.size();) {
      if (!matches(in[i], in[i + 1])) {
        out += in[i++];
        continue;
      }
      if (before) out += U' ';
      out += {in[i], U' ', in[i + 1]};
      if (after) out += U' ';
      i += 2;
    }
    if (i < in.size()) out += in[i];
    return out;
  };
  const auto is_stop = [](char32_t c) { return c == U'.' || c == U','; };
  // A period or comma stands alone unless digits stand on both sides; a dash after a digit stands alone.
  apart = pass(apart, [&](char32_t a, char32_t b) { return !is_digit(a) && is_stop(b); }, false, true);
  apart = pass(apart, [&](char32_t a, char32_t b) { return is_stop(a) && !is_digit(b); }, true, false);
  return pass(apart, [](char32_t a, char32_t b) { return is_digit(a) && b == U'-'; }, false, true);
}

inline std::vector<std::u32string> bleu_tokens(std::string_view text, BleuTokenizer tokenizer) {
  std::u32string line = decode_utf8(text);
  while (!line.empty() && is_space(line.back())) line.pop_back();
  if (tokenizer == BleuTokenizer::k13a) {
    replace_all(line, U"<skipped>", U"");
    replace_all(line, U"-\n", U"");
    replace_all(line, U"\n", U" ");
    replace_all(line, U"&quot;", U"\"");
    replace_all(line, U"&amp;", U"&");
    replace_all(line, U"&lt;", U"<");
    replace_all(line, U"&gt;", U">");
    line = bleu_split_punctuation(U" " + line + U" ");
  } else if (tokenizer == BleuTokenizer::kZh) {
    line.erase(0, static_cast<std::size_t>(std::find_if_not(line.begin(), line.end(), is_space) - line.begin()));
    std::u32string apart;
    for (const char32_t c : line) {
      if (is_bleu_chinese(c)) {
        apart += {U' ', c, U' '};
      } else {
        apart += c;
      }
    }
    line = bleu_split_punctuation(apart);
  }
  std::vector<std::u32string> tokens;
  bool inside = false;
  for (const char32_t c : line) {
    if (is_space(c)) {
      inside = false;
      continue;
    }
    if (!inside || tokenizer == BleuTokenizer::kChar) tokens.emplace_back();
    tokens.back() += c;
    inside = true;
  }
  return tokens;
}

/// Adds a pair's clipped matches, n-grams and lengths.
inline void add_bleu_counts(const std::vector<std::u32string>& hypothesis, const std::vector<std::u32string>& reference,
                            BleuScore& sums) {
  sums.sys_len += static_cast<Index>(hypothesis.size());
  sums.ref_len += static_cast<Index>(reference.size());
  TokenNumbers number;
  const std::vector<std::uint32_t> sys = number(hypothesis), ref = number(reference);
  for (std::size_t n = 1; n <= 4; ++n) {
    using Gram = std::array<std::uint32_t, 4>;
    std::map<Gram, std::pair<Index, Index>> grams;  // in the hypothesis, in the reference
    const auto each = [n](const std::vector<std::uint32_t>& tokens, auto&& visit) {
      for (std::size_t i = 0; i + n <= tokens.size(); ++i) {
        Gram gram{};
        std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(i), n, gram.begin());
        visit(gram);
      }
    };
    each(sys, [&](const Gram& gram) { ++grams[gram].first; });
    each(ref, [&](const Gram& gram) { ++grams[gram].second; });
    for (const auto& [gram, counts] : grams) {
      sums.totals[n - 1] += counts.first;
      sums.counts[n - 1] += std::min(counts.first, counts.second);
    }
  }
}

/// Score and precisions from the sums. effective_order: only orders of which the hypotheses have n-grams.
inline void finish_bleu(BleuScore& sums, bool effective_order) {
  if (sums.sys_len < sums.ref_len) {
    sums.brevity_penalty =
        sums.sys_len > 0 ? std::exp(1.0 - static_cast<double>(sums.ref_len) / static_cast<double>(sums.sys_len)) : 0.0;
  }
  if (std::all_of(sums.counts.begin(), sums.counts.end(), [](Index count) { return count == 0; })) return;
  double halving = 1.0;
  std::size_t orders = 4;
  for (std::size_t n = 0; n < 4; ++n) {
    const auto total = static_cast<double>(sums.totals[n]);
    if (sums.totals[n] == 0) break;
    if (effective_order) orders = n + 1;
    if (sums.counts[n] == 0) halving *= 2.0;
    sums.precisions[n] = sums.counts[n] == 0 ? 100.0 / (halving * total)
                                             : 100.0 * static_cast<double>(sums.counts[n]) / total;
  }
  double log_sum = 0.0;
  for (std::size_t n = 0; n < orders; ++n) {
    if (sums.precisions[n] == 0.0) return;  // an order without n-grams: the geometric mean is 0
    log_sum += std::log(sums.precisions[n]);
  }
  sums.score = sums.brevity_penalty * std::exp(log_sum / static_cast<double>(orders));
}

}  // namespace detail

/// BLEU of a corpus. Throws ConfigError for empty lists or lists of different lengths.
inline BleuScore corpus_bleu(std::span<const std::string> hypotheses, std::span<const std::string> references,
                             BleuTokenizer tokenizer = BleuTokenizer::k13a) {
  if (hypotheses.empty() || hypotheses.size() != references.size()) {
    fail<ConfigError>("corpus_bleu: {} hypotheses and {} references; expected one reference for each of at least one "
                      "hypothesis",
                      hypotheses.size(), references.size());
  }
  BleuScore result;
  for (std::size_t i = 0; i < hypotheses.size(); ++i) {
    detail::add_bleu_counts(detail::bleu_tokens(hypotheses[i], tokenizer), detail::bleu_tokens(references[i], tokenizer),
                            result);
  }
  detail::finish_bleu(result, false);
  return result;
}

/// BLEU of one sentence, over the orders that it has (sacreBLEU's sentence_bleu). Sentences' scores do not average to the
/// corpus's.
inline BleuScore sentence_bleu(std::string_view hypothesis, std::string_view reference,
                               BleuTokenizer tokenizer = BleuTokenizer::k13a) {
  BleuScore result;
  detail::add_bleu_counts(detail::bleu_tokens(hypothesis, tokenizer), detail::bleu_tokens(reference, tokenizer), result);
  detail::finish_bleu(result, true);
  return result;
}

PEFT_END_NAMESPACE
