#pragma once
/// GPT-2's printable stand-ins for bytes: a visible Latin-1 character is itself, the others follow from U+0100 on.

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "hosts/utf8.hpp"

namespace peft_examples {

class ByteCharacters {
 public:
  static const ByteCharacters& get() {
    static const ByteCharacters table;
    return table;
  }
  const std::string& character(std::uint8_t byte) const noexcept { return characters_[byte]; }
  std::optional<std::uint8_t> byte(std::string_view character) const {
    const auto found = bytes_.find(std::string(character));
    return found != bytes_.end() ? std::optional(found->second) : std::nullopt;
  }

  /// The bytes that a token stands for; a character that stands for none is itself.
  std::string bytes_of(std::string_view token) const {
    std::string bytes;
    while (!token.empty()) {
      const std::size_t length = std::max<std::size_t>(1, character_at(token));
      const auto found = byte(token.substr(0, length));
      if (found) {
        bytes += static_cast<char>(*found);
      } else {
        bytes += token.substr(0, length);
      }
      token.remove_prefix(length);
    }
    return bytes;
  }

 private:
  ByteCharacters() {
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      append_utf8(characters_[byte], visible ? static_cast<char32_t>(byte) : next++);
      bytes_.emplace(characters_[byte], static_cast<std::uint8_t>(byte));
    }
  }

  std::array<std::string, 256> characters_;
  std::unordered_map<std::string, std::uint8_t> bytes_;
};

/// "<0x0A>" as a byte.
inline std::optional<std::uint8_t> byte_token(std::string_view token) noexcept {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + static_cast<unsigned>(digit);
  }
  return static_cast<std::uint8_t>(value);
}

}  // namespace peft_examples
