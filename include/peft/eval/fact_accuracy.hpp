#pragma once
/// Fact accuracy: the share of the facts (codes, numbers, names of parts) that an answer contains. A fact counts where it
/// stands as a whole: "E1" is not in "E12", "5" neither in "15" nor in "5.5" nor in "2.5".

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/eval/characters.hpp"

PEFT_BEGIN_NAMESPACE

/// Sums over records; mean() is the share.
struct FactCount {
  Index found = 0;
  Index facts = 0;
  double mean() const noexcept { return facts > 0 ? static_cast<double>(found) / static_cast<double>(facts) : 0.0; }
};

namespace detail {

/// ASCII letters in lower case, every run of spaces as one, none at the ends.
inline std::u32string fact_text(std::string_view text) {
  std::u32string result;
  for (const char32_t c : decode_utf8(text)) {
    if (!is_space(c)) {
      result += ascii_lower(c);
    } else if (!result.empty() && result.back() != U' ') {
      result += U' ';
    }
  }
  if (!result.empty() && result.back() == U' ') result.pop_back();
  return result;
}

/// Punctuation that stands amid the letters of U+00C0 … U+10FF: Greek, Armenian, Hebrew, Arabic, Devanagari.
constexpr bool is_script_punctuation(char32_t c) noexcept {
  return c == 0x37E || c == 0x387 || (c >= 0x55A && c <= 0x55F) || c == 0x589 || c == 0x58A || c == 0x5BE || c == 0x5C3 ||
         c == 0x5F3 || c == 0x5F4 || c == 0x60C || (c >= 0x61B && c <= 0x61F) || (c >= 0x66A && c <= 0x66D) ||
         c == 0x6D4 || c == 0x964 || c == 0x965;
}

/// Part of a word of an alphabet: '_', digits (full-width and raised ones too), Latin, Greek, Cyrillic… letters; CJK
/// does not count.
constexpr bool is_word_character(char32_t c) noexcept {
  if (is_digit(c) || is_ascii_letter(c) || c == U'_' || c == 0xB2 || c == 0xB3 || c == 0xB9) return true;
  return (c >= 0xC0 && c < 0x1100 && c != 0xD7 && c != 0xF7 && !is_script_punctuation(c)) ||
         (c >= 0x1E00 && c <= 0x1FFE) || (c >= 0x2070 && c <= 0x209C) || (c >= 0xFF10 && c <= 0xFF19) ||
         (c >= 0xFF21 && c <= 0xFF3A) || (c >= 0xFF41 && c <= 0xFF5A);
}

/// Whether text[begin, end) stands as a whole: no word or number goes on beyond its edges.
inline bool stands_alone(std::u32string_view text, std::size_t begin, std::size_t end) noexcept {
  const auto at = [text](std::size_t i) { return i < text.size() ? text[i] : U'\0'; };  // also before 0, by wrapping
  if (is_word_character(text[begin]) && is_word_character(at(begin - 1))) return false;
  if (is_word_character(text[end - 1]) && is_word_character(at(end))) return false;
  const auto is_point = [](char32_t c) { return c == U'.' || c == U','; };
  const auto is_minus = [](char32_t c) { return c == U'-' || c == 0x2212; };
  // "5" is not in "-5", but in "1-5"; ".5" is not in "1.5".
  if (is_digit(text[begin]) && is_minus(at(begin - 1)) && !is_word_character(at(begin - 2))) return false;
  if (is_point(text[begin]) && is_digit(at(begin + 1)) && is_digit(at(begin - 1))) return false;
  if (is_digit(text[begin]) && is_point(at(begin - 1)) && is_digit(at(begin - 2))) return false;
  return !(is_digit(text[end - 1]) && is_point(at(end)) && is_digit(at(end + 1)));
}

}  // namespace detail

/// Whether `answer` contains `fact`, case of ASCII letters and kind of spaces aside. An empty fact is in no answer.
inline bool contains_fact(std::string_view answer, std::string_view fact) {
  const std::u32string text = detail::fact_text(answer), wanted = detail::fact_text(fact);
  if (wanted.empty()) return false;
  for (std::size_t i = text.find(wanted); i != std::u32string::npos; i = text.find(wanted, i + 1)) {
    if (detail::stands_alone(text, i, i + wanted.size())) return true;
  }
  return false;
}

inline FactCount count_facts(std::string_view answer, std::span<const std::string> facts) {
  FactCount count;
  for (const std::string& fact : facts) {
    ++count.facts;
    count.found += contains_fact(answer, fact) ? 1 : 0;
  }
  return count;
}

PEFT_END_NAMESPACE
