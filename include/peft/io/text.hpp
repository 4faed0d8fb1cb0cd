#pragma once
/// Text that comes out of files: is it UTF-8, and how an error message shows it.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// Whether `text` is UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const std::size_t size = text.size();
  std::size_t i = 0;
  while (i < size) {
    const unsigned char lead = bytes[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    std::size_t more;
    unsigned low = 0x80;   // bounds of the second byte
    unsigned high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      more = 1;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      more = 2;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      more = 3;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return false;
    }
    if (size - i <= more || bytes[i + 1] < low || bytes[i + 1] > high) return false;
    for (std::size_t k = 2; k <= more; ++k) {
      if ((bytes[i + k] & 0xC0) != 0x80) return false;
    }
    i += more + 1;
  }
  return true;
}

/// `text` between quotation marks for an error message: bytes that a terminal might not show as \xNN, long text cut.
inline std::string quote_text(std::string_view text) {
  constexpr std::size_t kMost = 120;
  constexpr char kDigits[] = "0123456789abcdef";
  const bool readable = is_utf8(text);
  std::string result = "\"";
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (i >= kMost && (byte & 0xC0) != 0x80) break;  // not inside a character
    if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !readable)) {
      result += "\\x";
      result += kDigits[byte >> 4];
      result += kDigits[byte & 15];
    } else {
      result += text[i];
    }
    if (i > kMost + 8) break;
  }
  return result + (i < text.size() ? "…\"" : "\"");
}

PEFT_END_NAMESPACE
