#pragma once
/// Metadata values for a GGUF file to be written, in their order.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/error.hpp"
#include "peft/io/gguf_value.hpp"
#include "peft/io/text.hpp"

PEFT_BEGIN_NAMESPACE

/// A key that is set again keeps its place and gets the new value.
class GgufMetadata {
 public:
  /// A number or a boolean, stored as exactly its type. Throws FormatError for a key that is no UTF-8 of 1 to 65535 bytes.
  template <class T>
    requires std::is_arithmetic_v<T>
  void set(std::string_view key, T value) {
    std::string bytes = number(static_cast<std::uint32_t>(gguf_type_of<T>()));
    bytes += number(value);
    put(key, std::move(bytes));
  }
  /// A text. Throws FormatError where it is not UTF-8.
  void set(std::string_view key, std::string_view text) {
    if (!is_utf8(text)) fail<FormatError>("GGUF metadata {}: {} is not UTF-8", quote_text(key), quote_text(text));
    put(key, number(static_cast<std::uint32_t>(GgufType::kString)) + counted(text));
  }
  void set(std::string_view key, const char* text) { set(key, std::string_view(text)); }
  /// An array of numbers, each stored as T.
  template <class T>
    requires std::is_arithmetic_v<T>
  void set_array(std::string_view key, std::span<const T> values) {
    std::string bytes = array_head(gguf_type_of<T>(), values.size());
    for (const T value : values) bytes += number(value);
    put(key, std::move(bytes));
  }
  /// An array of texts, which may be any bytes: a tokenizer's pieces may be parts of characters.
  void set_array(std::string_view key, std::span<const std::string> texts) {
    std::string bytes = array_head(GgufType::kString, texts.size());
    for (const std::string& text : texts) bytes += counted(text);
    put(key, std::move(bytes));
  }
  /// A value of another file, as it stands there.
  void copy(const GgufValue& value) {
    const std::string_view content(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
    std::string bytes;
    if (value.type == GgufType::kArray) {
      bytes = array_head(value.element, value.count);
      bytes += content;
    } else {
      bytes = number(static_cast<std::uint32_t>(value.type));
      bytes += value.type == GgufType::kString ? counted(content) : std::string(content);
    }
    put(value.key, std::move(bytes));
  }
  void remove(std::string_view key) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.key == key; });
  }

  std::size_t size() const noexcept { return entries_.size(); }
  /// All keys and values as a file has them.
  std::string bytes() const {
    std::string result;
    for (const Entry& entry : entries_) result += counted(entry.key) + entry.bytes;
    return result;
  }

 private:
  struct Entry {
    std::string key;
    std::string bytes;  ///< type and value
  };

  template <class T>
  static std::string number(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(T)};
  }
  static std::string counted(std::string_view text) {
    return number(static_cast<std::uint64_t>(text.size())) + std::string(text);
  }
  static std::string array_head(GgufType element, std::uint64_t count) {
    return number(static_cast<std::uint32_t>(GgufType::kArray)) + number(static_cast<std::uint32_t>(element)) + number(count);
  }
  void put(std::string_view key, std::string bytes) {
    if (key.empty() || key.size() > 65535 || !is_utf8(key)) {
      fail<FormatError>("GGUF metadata: the key {} has {} bytes; expected 1 to 65535 bytes of UTF-8", quote_text(key), key.size());
    }
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
    if (found != entries_.end()) {
      found->bytes = std::move(bytes);
    } else {
      entries_.push_back({std::string(key), std::move(bytes)});
    }
  }

  std::vector<Entry> entries_;
};

PEFT_END_NAMESPACE
