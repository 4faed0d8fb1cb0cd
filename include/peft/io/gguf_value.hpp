#pragma once
/// One metadata value of a GGUF file where it stands: a scalar, a text or an array.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "peft/core/scalar.hpp"
#include "peft/io/dequantize.hpp"

PEFT_BEGIN_NAMESPACE

/// Numbers as the format has them.
enum class GgufType : std::uint32_t {
  kUint8, kInt8, kUint16, kInt16, kUint32, kInt32, kFloat32, kBool, kString, kArray, kUint64, kInt64, kFloat64,
};

/// "UINT32", …
constexpr std::string_view name_of(GgufType type) noexcept {
  constexpr std::string_view kNames[] = {"UINT8",  "INT8",   "UINT16", "INT16",  "UINT32", "INT32",  "FLOAT32",
                                         "BOOL",   "STRING", "ARRAY",  "UINT64", "INT64",  "FLOAT64"};
  return kNames[static_cast<std::uint32_t>(type)];
}

/// Bytes of a scalar; 0 for texts and arrays.
constexpr std::size_t size_of(GgufType type) noexcept {
  constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[static_cast<std::uint32_t>(type)];
}

template <class T>
constexpr GgufType gguf_type_of() noexcept {
  if constexpr (std::is_same_v<T, std::uint8_t>) return GgufType::kUint8;
  if constexpr (std::is_same_v<T, std::int8_t>) return GgufType::kInt8;
  if constexpr (std::is_same_v<T, std::uint16_t>) return GgufType::kUint16;
  if constexpr (std::is_same_v<T, std::int16_t>) return GgufType::kInt16;
  if constexpr (std::is_same_v<T, std::uint32_t>) return GgufType::kUint32;
  if constexpr (std::is_same_v<T, std::int32_t>) return GgufType::kInt32;
  if constexpr (std::is_same_v<T, float>) return GgufType::kFloat32;
  if constexpr (std::is_same_v<T, bool>) return GgufType::kBool;
  if constexpr (std::is_same_v<T, std::string_view>) return GgufType::kString;
  if constexpr (std::is_same_v<T, std::uint64_t>) return GgufType::kUint64;
  if constexpr (std::is_same_v<T, std::int64_t>) return GgufType::kInt64;
  if constexpr (std::is_same_v<T, double>) return GgufType::kFloat64;
}

/// A key and its value. The bytes belong to the mapped file.
struct GgufValue {
  std::string_view key;
  GgufType type = GgufType::kUint8;
  GgufType element = GgufType::kUint8;  ///< of an array
  std::uint64_t count = 1;              ///< elements of an array
  std::span<const std::byte> bytes;     ///< a scalar's or text's own; an array's, one element after the other
};

/// The numbers of an array, in place; not necessarily aligned.
template <class T>
class GgufArray {
 public:
  GgufArray() = default;
  explicit GgufArray(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  Index size() const noexcept { return static_cast<Index>(bytes_.size() / sizeof(T)); }
  T operator[](Index i) const noexcept {
    const std::byte* at = bytes_.data() + static_cast<std::size_t>(i) * sizeof(T);
    if constexpr (std::is_same_v<T, bool>) {
      return *at != std::byte{0};
    } else {
      return detail::load<T>(at);
    }
  }

 private:
  std::span<const std::byte> bytes_;
};

PEFT_END_NAMESPACE
