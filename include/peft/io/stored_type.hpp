#pragma once
/// Element types as files store them: those of safetensors and those of GGUF, with their sizes.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// Up to kU64 in the order of the safetensors reference implementation, whose writer sorts tensors by it (last first);
/// then GGUF's block formats.
enum class StoredType : std::uint8_t {
  kBool, kF4, kF6E2M3, kF6E3M2, kU8, kI8, kF8E5M2, kF8E4M3, kF8E8M0, kF8E4M3FNUZ, kF8E5M2FNUZ, kI16, kU16, kF16, kBF16,
  kI32, kU32, kF32, kC64, kF64, kI64, kU64,
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ8_1, kQ2K, kQ3K, kQ4K, kQ5K, kQ6K, kQ8K, kIQ2XXS, kIQ2XS, kIQ3XXS, kIQ1S, kIQ4NL,
  kIQ3S, kIQ2S, kIQ4XS, kIQ1M, kTQ1_0, kTQ2_0, kMXFP4, kNVFP4, kQ1_0,
};

/// What is known of a type. Elements are stored in blocks: `block_elements` of them in `block_bytes` bytes.
struct StoredTypeInfo {
  StoredType type;
  std::string_view name;
  int block_elements;
  int block_bytes;
  bool in_safetensors;
  int ggml_type;  ///< GGUF's number; -1: not in GGUF
  bool readable;  ///< TensorRef::read_f32 knows it
};

namespace detail {

inline constexpr std::array kStoredTypes{
    StoredTypeInfo{StoredType::kBool, "BOOL", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF4, "F4", 2, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF6E2M3, "F6_E2M3", 4, 3, true, -1, false},
    StoredTypeInfo{StoredType::kF6E3M2, "F6_E3M2", 4, 3, true, -1, false},
    StoredTypeInfo{StoredType::kU8, "U8", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kI8, "I8", 1, 1, true, 24, false},
    StoredTypeInfo{StoredType::kF8E5M2, "F8_E5M2", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF8E4M3, "F8_E4M3", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF8E8M0, "F8_E8M0", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF8E4M3FNUZ, "F8_E4M3FNUZ", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kF8E5M2FNUZ, "F8_E5M2FNUZ", 1, 1, true, -1, false},
    StoredTypeInfo{StoredType::kI16, "I16", 1, 2, true, 25, false},
    StoredTypeInfo{StoredType::kU16, "U16", 1, 2, true, -1, false},
    StoredTypeInfo{StoredType::kF16, "F16", 1, 2, true, 1, true},
    StoredTypeInfo{StoredType::kBF16, "BF16", 1, 2, true, 30, true},
    StoredTypeInfo{StoredType::kI32, "I32", 1, 4, true, 26, false},
    StoredTypeInfo{StoredType::kU32, "U32", 1, 4, true, -1, false},
    StoredTypeInfo{StoredType::kF32, "F32", 1, 4, true, 0, true},
    StoredTypeInfo{StoredType::kC64, "C64", 1, 8, true, -1, false},
    StoredTypeInfo{StoredType::kF64, "F64", 1, 8, true, 28, true},
    StoredTypeInfo{StoredType::kI64, "I64", 1, 8, true, 27, false},
    StoredTypeInfo{StoredType::kU64, "U64", 1, 8, true, -1, false},
    StoredTypeInfo{StoredType::kQ4_0, "Q4_0", 32, 18, false, 2, true},
    StoredTypeInfo{StoredType::kQ4_1, "Q4_1", 32, 20, false, 3, true},
    StoredTypeInfo{StoredType::kQ5_0, "Q5_0", 32, 22, false, 6, true},
    StoredTypeInfo{StoredType::kQ5_1, "Q5_1", 32, 24, false, 7, true},
    StoredTypeInfo{StoredType::kQ8_0, "Q8_0", 32, 34, false, 8, true},
    StoredTypeInfo{StoredType::kQ8_1, "Q8_1", 32, 40, false, 9, false},
    StoredTypeInfo{StoredType::kQ2K, "Q2_K", 256, 84, false, 10, false},
    StoredTypeInfo{StoredType::kQ3K, "Q3_K", 256, 110, false, 11, false},
    StoredTypeInfo{StoredType::kQ4K, "Q4_K", 256, 144, false, 12, true},
    StoredTypeInfo{StoredType::kQ5K, "Q5_K", 256, 176, false, 13, true},
    StoredTypeInfo{StoredType::kQ6K, "Q6_K", 256, 210, false, 14, true},
    StoredTypeInfo{StoredType::kQ8K, "Q8_K", 256, 292, false, 15, false},
    StoredTypeInfo{StoredType::kIQ2XXS, "IQ2_XXS", 256, 66, false, 16, false},
    StoredTypeInfo{StoredType::kIQ2XS, "IQ2_XS", 256, 74, false, 17, false},
    StoredTypeInfo{StoredType::kIQ3XXS, "IQ3_XXS", 256, 98, false, 18, false},
    StoredTypeInfo{StoredType::kIQ1S, "IQ1_S", 256, 50, false, 19, false},
    StoredTypeInfo{StoredType::kIQ4NL, "IQ4_NL", 32, 18, false, 20, false},
    StoredTypeInfo{StoredType::kIQ3S, "IQ3_S", 256, 110, false, 21, false},
    StoredTypeInfo{StoredType::kIQ2S, "IQ2_S", 256, 82, false, 22, false},
    StoredTypeInfo{StoredType::kIQ4XS, "IQ4_XS", 256, 136, false, 23, false},
    StoredTypeInfo{StoredType::kIQ1M, "IQ1_M", 256, 56, false, 29, false},
    StoredTypeInfo{StoredType::kTQ1_0, "TQ1_0", 256, 54, false, 34, false},
    StoredTypeInfo{StoredType::kTQ2_0, "TQ2_0", 256, 66, false, 35, false},
    StoredTypeInfo{StoredType::kMXFP4, "MXFP4", 32, 17, false, 39, false},
    StoredTypeInfo{StoredType::kNVFP4, "NVFP4", 64, 36, false, 40, false},
    StoredTypeInfo{StoredType::kQ1_0, "Q1_0", 128, 18, false, 41, false},
};

constexpr bool stored_types_in_order() {
  for (std::size_t i = 0; i < kStoredTypes.size(); ++i) {
    if (static_cast<std::size_t>(kStoredTypes[i].type) != i) return false;
  }
  return true;
}
static_assert(stored_types_in_order());

}  // namespace detail

/// The types that TensorRef::read_f32 knows, for messages.
inline constexpr std::string_view kReadableTypes = "F32, F64, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K";

constexpr const StoredTypeInfo& info_of(StoredType type) noexcept {
  return detail::kStoredTypes[static_cast<std::size_t>(type)];
}

/// As files and tools write it: "F32", "BF16", "Q4_1", …
constexpr std::string_view name_of(StoredType type) noexcept { return info_of(type).name; }

/// The type that a safetensors header means by `name`.
constexpr std::optional<StoredType> safetensors_type(std::string_view name) noexcept {
  for (const StoredTypeInfo& info : detail::kStoredTypes) {
    if (info.in_safetensors && info.name == name) return info.type;
  }
  return std::nullopt;
}

/// The type that GGUF means by `number`.
constexpr std::optional<StoredType> gguf_tensor_type(std::uint32_t number) noexcept {
  for (const StoredTypeInfo& info : detail::kStoredTypes) {
    if (info.ggml_type >= 0 && static_cast<std::uint32_t>(info.ggml_type) == number) return info.type;
  }
  return std::nullopt;
}

template <Scalar T>
constexpr StoredType stored_type_of() noexcept {
  if constexpr (std::same_as<T, float>) return StoredType::kF32;
  if constexpr (std::same_as<T, double>) return StoredType::kF64;
  if constexpr (std::same_as<T, f16>) return StoredType::kF16;
  return StoredType::kBF16;
}

PEFT_END_NAMESPACE
