#pragma once
/// BLEU of a corpus (Papineni et al. 2002), as sacreBLEU computes it by default (Post 2018): n-grams up to 4, one
/// reference per hypothesis, case kept, exponential smoothing (a corpus without any match of order n counts 1/2, then
/// 1/4, … of one), no effective order (a corpus without any 4-gram scores 0).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/eval/ngrams.hpp"
#include "peft/eval/unicode.hpp"

PEFT_BEGIN_NAMESPACE

/// How a text becomes tokens:
///   k13a   for European languages, the tokenisation of WMT's mteval-v13a script: ASCII punctuation and symbols stand
///          alone, except apostrophe and hyphen; '.' and ',' stay between digits; a hyphen after a digit stands alone
///   kZh    for Chinese: every ideograph and every Chinese punctuation mark stands alone, the rest as in 13a
///   kChar  every character; for Japanese or Korean without a morphological analyser
///   kNone  split at whitespace; for text that is tokenised already
enum class BleuTokenizer : std::uint8_t { k13a, kZh, kChar, kNone };

/// sacreBLEU's spelling: 13a, zh, char, none.
inline constexpr std::string_view bleu_tokenizer_name(BleuTokenizer tokenizer) noexcept {
  switch (tokenizer) {
    case BleuTokenizer::k13a: return "13a";
    case BleuTokenizer::kZh: return "zh";
    case BleuTokenizer::kChar: return "char";
    case BleuTokenizer::kNone: break;
  }
  return "none";
}

/// Throws ConfigError for an unknown name.
inline BleuTokenizer parse_bleu_tokenizer(std::string_view name) {
  for (const BleuTokenizer one : {BleuTokenizer::k13a, BleuTokenizer::kZh, BleuTokenizer::kChar, BleuTokenizer::kNone}) {
    if (name == bleu_tokenizer_name(one)) return one;
  }
  fail<ConfigError>("BLEU tokenizer: got \"{}\"; expected 13a, zh, char or none", name);
}

namespace detail {

inline void replace_all(std::u32string& text, std::u32string_view from, std::u32string_view to) {
  std::size_t at = text.find(from);
  if (at == std::u32string::npos) return;
  std::u32string out;
  std::size_t done = 0;
  for (; at != std::u32string::npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  text = out.append(text, done);
}

/// ASCII punctuation and symbols, and the space, that 13a always sets apart: all but apostrophe, comma, hyphen, point.
inline constexpr bool stands_alone_13a(char32_t c) noexcept {
  if (c == U'\'' || c == U',' || c == U'-' || c == U'.') return false;
  return (c >= 0x20 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
}

/// The zh tokenizer's characters. Two pairs of its table were meant as planes 2 and 2F8 of ideographs, but, written
/// with four hexadecimal digits, they take in U+2001 … U+2A6D: quotation marks, dashes, currency, arrows, mathematics.
/// Scores are compared with sacreBLEU's, hence the same here; ideographs outside the basic plane stay in their run.
inline bool stands_alone_zh(char32_t c) noexcept {
  static constexpr CodeRange kRanges[] = {{0x2001, 0x2A6D}, {0x2E80, 0x2FDF}, {0x2FF0, 0x303F}, {0x3100, 0x312F},
                                          {0x31A0, 0x31BF}, {0x31C0, 0x31EF}, {0x3200, 0x33FF}, {0x3400, 0x4DB5},
                                          {0x4E00, 0x9FBB}, {0xF900, 0xFA2D}, {0xFA30, 0xFA6A}, {0xFA70, 0xFAD9},
                                          {0xFE10, 0xFE1F}, {0xFE30, 0xFE4F}, {0xFF00, 0xFFEF}};
  return c >= 0x2001 && in_ranges(kRanges, c);
}

/// Sets spaces where first(a) and second(b) hold for neighbours a, b; a pair's second character begins no other pair.
template <class First, class Second>
std::u32string space_pairs(std::u32string_view text, First first, Second second, std::u32string_view before,
                           std::u32string_view between, std::u32string_view after) {
  std::u32string out;
  out.reserve(text.size() + text.size() / 4);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (i + 1 < text.size() && first(text[i]) && second(text[i + 1])) {
      out.append(before).push_back(text[i]);
      out.append(between).push_back(text[++i]);
      out.append(after);
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

/// The part that 13a and zh share.
inline std::u32string space_13a(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size() + text.size() / 4);
  for (const char32_t c : text) {
    if (stands_alone_13a(c)) {
      out.append({U' ', c, U' '});
    } else {
      out.push_back(c);
    }
  }
  const auto mark = [](char32_t c) { return c == U'.' || c == U','; };
  const auto digit = [](char32_t c) { return is_ascii_digit(c); };
  const auto other = [](char32_t c) { return !is_ascii_digit(c); };
  out = space_pairs(out, other, mark, U"", U" ", U" ");
  out = space_pairs(out, mark, other, U" ", U" ", U"");
  return space_pairs(out, digit, [](char32_t c) { return c == U'-'; }, U"", U" ", U" ");
}

}  // namespace detail

/// The tokens whose n-grams are counted. Bytes that are not UTF-8 count as U+FFFD.
inline std::vector<std::string> bleu_tokens(std::string_view text, BleuTokenizer tokenizer = BleuTokenizer::k13a) {
  std::u32string line = decode_utf8(text);
  while (!line.empty() && is_space(line.back())) line.pop_back();
  if (tokenizer == BleuTokenizer::k13a) {
    detail::replace_all(line, U"<skipped>", U"");
    detail::replace_all(line, U"-\n", U"");
    detail::replace_all(line, U"\n", U" ");
    detail::replace_all(line, U"&quot;", U"\"");
    detail::replace_all(line, U"&amp;", U"&");
    detail::replace_all(line, U"&lt;", U"<");
    detail::replace_all(line, U"&gt;", U">");
    line = detail::space_13a(U' ' + line + U' ');
  } else if (tokenizer == BleuTokenizer::kZh) {
    std::u32string apart;
    // Leading whitespace would give the first '.' or ',' a neighbour that it does not have.
    const auto begin = std::find_if_not(line.begin(), line.end(), [](char32_t c) { return is_space(c); });
    for (auto c = begin; c != line.end(); ++c) {
      if (detail::stands_alone_zh(*c)) {
        apart.append({U' ', *c, U' '});
      } else {
        apart.push_back(*c);
      }
    }
    line = detail::space_13a(apart);
  }
  std::vector<std::string> tokens;
  const std::u32string_view view = line;
  for (std::size_t i = 0; i < view.size();) {
    if (is_space(view[i])) {
      ++i;
      continue;
    }
    std::size_t end = i + 1;
    while (tokenizer != BleuTokenizer::kChar && end < view.size() && !is_space(view[end])) ++end;
    tokens.push_back(encode_utf8(view.substr(i, end - i)));
    i = end;
  }
  return tokens;
}

/// BLEU and what it is made of; index n-1 is order n.
struct BleuScore {
  double score = 0.0;                  ///< 0 … 100
  std::array<double, 4> precisions{};  ///< 0 … 100, smoothed; all 0 where no n-gram of any order matches
  std::array<Index, 4> counts{};       ///< n-grams of the hypotheses that their reference has too
  std::array<Index, 4> totals{};       ///< n-grams of the hypotheses
  double bp = 1.0;                     ///< brevity penalty, 0 … 1
  Index sys_len = 0;                   ///< tokens of the hypotheses
  Index ref_len = 0;                   ///< tokens of the references
};

/// BLEU of `hypotheses` against the reference of the same index: one score over the sums of all pairs, not a mean.
/// Empty texts count as texts without tokens. Throws ConfigError for lists of different sizes and for empty lists.
inline BleuScore corpus_bleu(std::span<const std::string> hypotheses, std::span<const std::string> references,
                             BleuTokenizer tokenizer = BleuTokenizer::k13a) {
  if (hypotheses.size() != references.size()) {
    fail<ConfigError>("corpus_bleu: {} hypotheses and {} references; expected as many of one as of the other",
                      hypotheses.size(), references.size());
  }
  if (hypotheses.empty()) fail<ConfigError>("corpus_bleu: no hypothesis; expected at least one pair");
  BleuScore result;
  for (std::size_t i = 0; i < hypotheses.size(); ++i) {
    const auto hypothesis = bleu_tokens(hypotheses[i], tokenizer);
    const auto reference = bleu_tokens(references[i], tokenizer);
    result.sys_len += static_cast<Index>(hypothesis.size());
    result.ref_len += static_cast<Index>(reference.size());
    NgramPair pair(hypothesis, reference);
    for (std::size_t n = 0; n < 4; ++n) {
      if (n > 0) pair.grow();
      const NgramMatches matches = pair.matches();
      result.counts[n] += matches.matches;
      result.totals[n] += matches.hypothesis;
    }
  }
  if (result.sys_len < result.ref_len) {
    result.bp = result.sys_len > 0
                    ? std::exp(1.0 - static_cast<double>(result.ref_len) / static_cast<double>(result.sys_len))
                    : 0.0;
  }
  if (result.counts[0] == 0) return result;  // no longer n-gram matches either
  double smoothing = 1.0;
  double log_sum = 0.0;
  for (std::size_t n = 0; n < 4; ++n) {
    if (result.totals[n] == 0) return result;  // a precision of 0, hence a score of 0
    double matches = static_cast<double>(result.counts[n]);
    if (result.counts[n] == 0) matches = smoothing *= 0.5;
    result.precisions[n] = 100.0 * matches / static_cast<double>(result.totals[n]);
    log_sum += std::log(result.precisions[n]);
  }
  result.score = std::min(100.0, result.bp * std::exp(log_sum / 4.0));
  return result;
}

PEFT_END_NAMESPACE
