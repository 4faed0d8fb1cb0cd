#pragma once
/// ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) as Google's rouge-score computes them without a stemmer: lower case, tokens
/// are runs of a–z and 0–9. For Chinese, Japanese and Korean, of which that leaves nothing, a character mode.

#include <algorithm>
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

/// What a token is: a run of a–z and 0–9; or that, and every Chinese, Japanese or Korean character by itself.
enum class RougeMode : std::uint8_t { kWords, kCharacters };

constexpr std::string_view name_of(RougeMode mode) noexcept {
  return mode == RougeMode::kWords ? "words" : "characters";
}

/// Of one pair or the mean over pairs; 0 to 1.
struct RougeValue {
  double precision = 0.0, recall = 0.0, fmeasure = 0.0;
};
struct RougeScore {
  RougeValue rouge1, rouge2, rougeL;
};
/// Means over pairs, and how many pairs were scored in which mode.
struct RougeMean {
  RougeScore mean;
  Index words = 0;
  Index characters = 0;
};

namespace detail {

inline std::vector<std::u32string> rouge_tokens(std::string_view text, RougeMode mode) {
  std::vector<std::u32string> tokens;
  bool inside = false;
  const auto letter = [&](char32_t c) {
    if (!inside) tokens.emplace_back();
    tokens.back() += c;
    inside = true;
  };
  for (const char32_t c : decode_utf8(text)) {
    if (is_digit(c) || is_ascii_letter(c)) {
      letter(ascii_lower(c));
    } else if (c == 0x212A) {  // the Kelvin sign: Python's lower() makes it k
      letter(U'k');
    } else if (c == 0x0130) {  // İ: its lower case is i and a combining dot, which ends the token
      letter(U'i');
      inside = false;
    } else {
      inside = false;
      if (mode == RougeMode::kCharacters && is_cjk(c)) tokens.emplace_back(1, c);
    }
  }
  return tokens;
}

inline RougeValue rouge_value(Index common, std::size_t of_target, std::size_t of_prediction) {
  RougeValue value;
  value.precision = static_cast<double>(common) / static_cast<double>(std::max<std::size_t>(of_prediction, 1));
  value.recall = static_cast<double>(common) / static_cast<double>(std::max<std::size_t>(of_target, 1));
  const double sum = value.precision + value.recall;
  value.fmeasure = sum > 0.0 ? 2.0 * value.precision * value.recall / sum : 0.0;
  return value;
}

inline RougeValue rouge_n(const std::vector<std::uint32_t>& target, const std::vector<std::uint32_t>& prediction,
                          std::size_t n) {
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<Index, Index>> grams;
  const auto count = [n](const std::vector<std::uint32_t>& tokens) {
    return tokens.size() >= n ? tokens.size() - n + 1 : 0;
  };
  const auto at = [n](const std::vector<std::uint32_t>& tokens, std::size_t i) {
    return std::pair(tokens[i], n == 2 ? tokens[i + 1] : 0u);
  };
  for (std::size_t i = 0; i < count(target); ++i) ++grams[at(target, i)].first;
  for (std::size_t i = 0; i < count(prediction); ++i) ++grams[at(prediction, i)].second;
  Index common = 0;
  for (const auto& [gram, counts] : grams) common += std::min(counts.first, counts.second);
  return rouge_value(common, count(target), count(prediction));
}

/// Longest common subsequence, one row of the table at a time.
inline RougeValue rouge_l(const std::vector<std::uint32_t>& target, const std::vector<std::uint32_t>& prediction) {
  std::vector<Index> row(prediction.size() + 1, 0);
  for (const std::uint32_t token : target) {
    Index diagonal = 0;
    for (std::size_t j = 1; j < row.size(); ++j) {
      const Index above = row[j];
      row[j] = token == prediction[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
      diagonal = above;
    }
  }
  return rouge_value(row.back(), target.size(), prediction.size());
}

}  // namespace detail

/// By script: characters where the reference has more Chinese, Japanese or Korean characters than words of a–z and 0–9.
inline RougeMode choose_rouge_mode(std::string_view reference) {
  Index characters = 0;
  for (const char32_t c : decode_utf8(reference)) characters += is_cjk(c) ? 1 : 0;
  const auto words = static_cast<Index>(detail::rouge_tokens(reference, RougeMode::kWords).size());
  return characters > words ? RougeMode::kCharacters : RougeMode::kWords;
}

/// One pair. In kWords equal to RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, hypothesis).
inline RougeScore rouge(std::string_view hypothesis, std::string_view reference, RougeMode mode) {
  const std::vector<std::u32string> target = detail::rouge_tokens(reference, mode);
  const std::vector<std::u32string> prediction = detail::rouge_tokens(hypothesis, mode);
  TokenNumbers number;
  const std::vector<std::uint32_t> a = number(target), b = number(prediction);
  return {detail::rouge_n(a, b, 1), detail::rouge_n(a, b, 2), detail::rouge_l(a, b)};
}

/// Means over pairs, each in the mode that its reference's script asks for. Throws ConfigError for empty lists or lists
/// of different lengths.
inline RougeMean mean_rouge(std::span<const std::string> hypotheses, std::span<const std::string> references) {
  if (hypotheses.empty() || hypotheses.size() != references.size()) {
    fail<ConfigError>("mean_rouge: {} hypotheses and {} references; expected one reference for each of at least one "
                      "hypothesis",
                      hypotheses.size(), references.size());
  }
  RougeMean result;
  const auto add = [share = 1.0 / static_cast<double>(hypotheses.size())](RougeValue& sum, const RougeValue& one) {
    sum.precision += one.precision * share;
    sum.recall += one.recall * share;
    sum.fmeasure += one.fmeasure * share;
  };
  for (std::size_t i = 0; i < hypotheses.size(); ++i) {
    const RougeMode mode = choose_rouge_mode(references[i]);
    ++(mode == RougeMode::kWords ? result.words : result.characters);
    const RougeScore one = rouge(hypotheses[i], references[i], mode);
    add(result.mean.rouge1, one.rouge1);
    add(result.mean.rouge2, one.rouge2);
    add(result.mean.rougeL, one.rougeL);
  }
  return result;
}

PEFT_END_NAMESPACE
