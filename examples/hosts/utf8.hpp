#pragma once
/// UTF-8 as a tokenizer meets it: characters, and bytes that are none.

#include <cstddef>
#include <string>
#include <string_view>

namespace peft_examples {

/// Bytes of the well-formed character that `text` begins with (RFC 3629); 0 where it begins with none.
inline std::size_t character_at(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = at(0);
  const std::size_t length = first < 0x80 ? 1 : first >= 0xC2 && first < 0xE0 ? 2 : first >= 0xE0 && first < 0xF0 ? 3
                             : first >= 0xF0 && first < 0xF5 ? 4 : 0;
  if (length > text.size()) return 0;
  for (std::size_t j = 1; j < length; ++j) {
    if ((at(j) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = length > 1 ? at(1) : 0;
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second > 0x9F, too_high = first == 0xF4 && second > 0x8F;
  return overlong || surrogate || too_high ? 0 : length;
}

/// Bytes at the start of `text` that are well-formed UTF-8.
inline std::size_t valid_prefix(std::string_view text) noexcept {
  std::size_t i = 0;
  while (const std::size_t length = character_at(text.substr(i))) i += length;
  return i;
}

/// Calls run(part, is_valid) for the longest well-formed parts of `text` and for each byte between them.
template <class Run>
void for_each_valid_part(std::string_view text, Run&& run) {
  while (!text.empty()) {
    const std::size_t valid = valid_prefix(text);
    if (valid > 0) run(text.substr(0, valid), true);
    text.remove_prefix(valid);
    if (text.empty()) break;
    run(text.substr(0, 1), false);
    text.remove_prefix(1);
  }
}

inline void append_utf8(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

}  // namespace peft_examples
