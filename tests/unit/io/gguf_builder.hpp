#pragma once
/// GGUF files byte by byte, right or wrong, for tests.

#include <cstdint>
#include <string>
#include <string_view>

#include "scratch.hpp"

namespace io_test {

class GgufBuilder {
 public:
  GgufBuilder& magic(std::string_view text = "GGUF") { return raw(text); }
  GgufBuilder& raw(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  template <class T>
  GgufBuilder& number(T value) {
    return raw(bytes_of(value));
  }
  GgufBuilder& text(std::string_view value) { return number<std::uint64_t>(value.size()).raw(value); }
  GgufBuilder& head(std::uint64_t tensors, std::uint64_t values, std::uint32_t version = 3) {
    return magic().number(version).number(tensors).number(values);
  }
  template <class T>
  GgufBuilder& value(std::string_view key, std::uint32_t type, T number_value) {
    return text(key).number(type).number(number_value);
  }
  GgufBuilder& text_value(std::string_view key, std::string_view content) {
    return text(key).number<std::uint32_t>(8).text(content);
  }
  GgufBuilder& array(std::string_view key, std::uint32_t element, std::uint64_t count) {
    return text(key).number<std::uint32_t>(9).number(element).number(count);
  }
  /// Innermost dimension first, as the file has it.
  GgufBuilder& tensor(std::string_view name, std::initializer_list<std::uint64_t> sizes, std::uint32_t type,
                      std::uint64_t offset) {
    text(name).number(static_cast<std::uint32_t>(sizes.size()));
    for (const std::uint64_t size : sizes) number(size);
    return number(type).number(offset);
  }
  GgufBuilder& align(std::size_t alignment = 32) {
    bytes_.append((alignment - bytes_.size() % alignment) % alignment, '\0');
    return *this;
  }
  GgufBuilder& zeros(std::size_t count) {
    bytes_.append(count, '\0');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace io_test
