#pragma once
/// The classes of characters that BERT's tokenizer goes by, as Hugging Face's tokenizers have them. Their tables are those
/// of Unicode 8: some six hundred characters of rare scripts that came or changed class since then are classed here as
/// utf8proc's Unicode does.

#include <utf8proc.h>

#include <cstdint>
#include <string_view>

namespace peft_examples {

/// Unicode's White_Space.
constexpr bool is_bert_space(std::int32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// ASCII's signs, letters and digits apart, and what Unicode calls punctuation.
inline bool is_bert_punctuation(std::int32_t c) noexcept {
  if (c < 0x80) {
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
  }
  const utf8proc_category_t category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

/// What clean_text takes away: NUL, U+FFFD, control and format characters, but for tab and line ends.
inline bool is_bert_control(std::int32_t c) noexcept {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  if (c == 0 || c == 0xFFFD) return true;
  const utf8proc_category_t category = utf8proc_category(c);
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO ||
         category == UTF8PROC_CATEGORY_CS;
}

/// The ideographs around which spaces are put (not kana, not hangul).
constexpr bool is_bert_ideograph(std::int32_t c) noexcept {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

/// Calls run(code point, its bytes) for every character of well-formed UTF-8.
template <class Run>
void for_each_code_point(std::string_view text, Run&& run) {
  while (!text.empty()) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                                     static_cast<utf8proc_ssize_t>(text.size()), &c);
    if (length < 1) return;
    run(static_cast<std::int32_t>(c), text.substr(0, static_cast<std::size_t>(length)));
    text.remove_prefix(static_cast<std::size_t>(length));
  }
}

}  // namespace peft_examples
