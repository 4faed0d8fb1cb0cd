#pragma once
/// Stored elements to float: plain loops that a compiler vectorises. GGUF's blocks of 32 hold, little-endian:
///   Q4_0 (18 bytes): d f16, 16 bytes q;            x[j] = d·(q[j] & 15 − 8),  x[j+16] = d·(q[j]>>4 − 8)
///   Q4_1 (20 bytes): d f16, m f16, 16 bytes q;     x[j] = d·(q[j] & 15) + m,  x[j+16] = d·(q[j]>>4) + m
///   Q8_0 (34 bytes): d f16, 32 signed bytes q;     x[j] = d·q[j]
/// d has 11 significant bits and q at most 8, so the products are exact: the sum rounds once, fused or not, and every
/// compiler gives the same bits.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "peft/core/scalar.hpp"
#include "peft/io/stored_type.hpp"

PEFT_BEGIN_NAMESPACE

// Files are little-endian; so is every processor that this library knows.
static_assert(std::endian::native == std::endian::little);

namespace detail {

/// The value at `source`, which need not be aligned.
template <class T>
T load(const std::byte* source) noexcept {
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}

/// float(f16), without branches.
inline float half_to_float(std::uint16_t half) noexcept {
  const std::uint32_t magnitude = half & 0x7FFFu;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);  // rebias by 127 − 15
  const std::uint32_t special = (normal + (112u << 23)) | (magnitude > 0x7C00u ? 0x400000u : 0u);
  const auto subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  const std::uint32_t bits = magnitude >= 0x7C00u ? special : (magnitude >= 0x0400u ? normal : subnormal);
  return std::bit_cast<float>(bits | (static_cast<std::uint32_t>(half & 0x8000u) << 16));
}

inline void dequantize_q4_0(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  std::uint8_t q[16];
  std::memcpy(q, source + 2, sizeof(q));
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((q[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

inline void dequantize_q4_1(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  const float m = half_to_float(load<std::uint16_t>(source + 2));
  std::uint8_t q[16];
  std::memcpy(q, source + 4, sizeof(q));
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(q[j] & 15) + m;
    out[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
  }
}

inline void dequantize_q8_0(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  std::int8_t q[32];
  std::memcpy(q, source + 2, sizeof(q));
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q[j]);
}

}  // namespace detail

/// Writes `count` elements of a readable type to `out`. `source` need not be aligned; it stands at the start of a block
/// and `count` is a multiple of the type's block. f64 is rounded to the nearest float.
inline void dequantize(StoredType type, const std::byte* source, Index count, float* out) noexcept {
  switch (type) {
    case StoredType::kF32:
      if (count > 0) std::memcpy(out, source, static_cast<std::size_t>(count) * sizeof(float));
      break;
    case StoredType::kF64:
      for (Index i = 0; i < count; ++i) out[i] = static_cast<float>(detail::load<double>(source + 8 * i));
      break;
    case StoredType::kF16:
      for (Index i = 0; i < count; ++i) out[i] = detail::half_to_float(detail::load<std::uint16_t>(source + 2 * i));
      break;
    case StoredType::kBF16:
      for (Index i = 0; i < count; ++i) {
        out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(detail::load<std::uint16_t>(source + 2 * i)) << 16);
      }
      break;
    case StoredType::kQ4_0:
      for (Index i = 0; i < count; i += 32) detail::dequantize_q4_0(source + i / 32 * 18, out + i);
      break;
    case StoredType::kQ4_1:
      for (Index i = 0; i < count; i += 32) detail::dequantize_q4_1(source + i / 32 * 20, out + i);
      break;
    case StoredType::kQ8_0:
      for (Index i = 0; i < count; i += 32) detail::dequantize_q8_0(source + i / 32 * 34, out + i);
      break;
    default:
      break;  // not readable: TensorRef has refused it
  }
}

PEFT_END_NAMESPACE
