#pragma once
/// Number types of weights and activations: float, double, and the two 16-bit storage types f16 (IEEE binary16) and
/// bf16 (the upper half of binary32). The 16-bit types are storage only: arithmetic is done in float.

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// Sizes, strides and positions. Signed, so that differences are safe.
using Index = std::ptrdiff_t;

/// bfloat16: sign, 8 exponent bits, 7 mantissa bits. Conversion from float rounds to nearest, ties to even.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  explicit bf16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x0040u);  // keep NaN a NaN, quiet
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE binary16: sign, 5 exponent bits, 10 mantissa bits. Conversion from float rounds to nearest, ties to even;
/// values above 65519.99 become infinity; subnormals are kept. Equal, bit for bit, to the F16C instructions.
struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  explicit f16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t magnitude = u & 0x7FFFFFFFu;
    std::uint32_t half;
    if (magnitude > 0x7F800000u) {
      half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);  // quiet NaN with the payload's upper bits
    } else if (magnitude >= 0x477FF000u) {
      half = 0x7C00u;  // rounds to 65536 or more
    } else if (magnitude >= 0x38800000u) {
      // normal: rebias by 127-15, round on bit 13
      half = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
    } else if (magnitude >= 0x33000000u) {
      // subnormal: value = mantissa * 2^-24 after the shift
      const std::uint32_t shift = 126u - (magnitude >> 23);
      const std::uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
      const std::uint32_t kept = mantissa >> shift;
      const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
      const std::uint32_t middle = 1u << (shift - 1u);
      half = kept + ((rest > middle || (rest == middle && (kept & 1u))) ? 1u : 0u);
    } else {
      half = 0;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  explicit operator float() const noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1Fu;
    const std::uint32_t mantissa = bits & 0x3FFu;
    if (exponent == 0x1Fu) {
      return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    }
    if (exponent == 0) {
      const float value = static_cast<float>(mantissa) * 0x1p-24f;
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
    }
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  }
};

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

/// A type in which activations or weights are stored.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bf16> || std::same_as<T, f16>;

/// The type in which sums over T are taken: float, and double for double.
template <Scalar T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

/// Stored element types by name, as files and options write them.
enum class DType : std::uint8_t { kF32, kF64, kF16, kBF16, kI8, kU8, kI16, kU16, kI32, kU32, kI64, kU64, kBool };

/// Bytes of one element.
constexpr Index size_of(DType type) noexcept {
  switch (type) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16:
      return 2;
    default:
      return 1;
  }
}

/// "f32", "bf16", …
constexpr std::string_view name_of(DType type) noexcept {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kF64:
      return "f64";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "i8";
    case DType::kU8:
      return "u8";
    case DType::kI16:
      return "i16";
    case DType::kU16:
      return "u16";
    case DType::kI32:
      return "i32";
    case DType::kU32:
      return "u32";
    case DType::kI64:
      return "i64";
    case DType::kU64:
      return "u64";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

template <Scalar T>
constexpr DType dtype_of() noexcept {
  if constexpr (std::same_as<T, float>) return DType::kF32;
  if constexpr (std::same_as<T, double>) return DType::kF64;
  if constexpr (std::same_as<T, f16>) return DType::kF16;
  return DType::kBF16;
}

/// True where the number is neither infinite nor NaN. Decided on the bits: -ffast-math removes std::isfinite.
inline bool is_finite(float value) noexcept {
  return (std::bit_cast<std::uint32_t>(value) & 0x7F800000u) != 0x7F800000u;
}
inline bool is_finite(double value) noexcept {
  return (std::bit_cast<std::uint64_t>(value) & 0x7FF0000000000000ull) != 0x7FF0000000000000ull;
}

PEFT_END_NAMESPACE
