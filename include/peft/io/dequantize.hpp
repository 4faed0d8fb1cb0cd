#pragma once
/// Stored elements to float: plain loops that a compiler vectorises. GGUF's blocks of 32 hold, little-endian:
///   Q4_0 (18 bytes): d f16, 16 bytes q;                   x[j] = d·(q[j] & 15 − 8),  x[j+16] = d·(q[j]>>4 − 8)
///   Q4_1 (20 bytes): d f16, m f16, 16 bytes q;            x[j] = d·(q[j] & 15) + m,  x[j+16] = d·(q[j]>>4) + m
///   Q5_0 (22 bytes): d f16, 32 bits h, 16 bytes q;        as Q4_0 with 16·h[j] added to code j, and − 16
///   Q5_1 (24 bytes): d f16, m f16, 32 bits h, 16 bytes q; as Q4_1 with 16·h[j] added to code j
///   Q8_0 (34 bytes): d f16, 32 signed bytes q;            x[j] = d·q[j]
/// and its blocks of 256:
///   Q4_K (144 bytes): d f16, m f16, 12 bytes, 128 bytes q;  x = (d·s_g)·code − m·t_g for each group g of 32: s_g and t_g of
///       six bits are packed into the 12 bytes (six_bits_of), groups 2i and 2i+1 are the halves of bytes [32i, 32i + 32) of q
///   Q5_K (176 bytes): d f16, m f16, 12 bytes, 32 bytes h, 128 bytes q; as Q4_K, code j of group g has bit g of h[j] above it
///   Q6_K (210 bytes): 128 bytes q, 64 bytes h, 16 signed bytes s, d f16; x = (d·s_g)·(code − 32) for each group g of 16
/// d has 11 significant bits, scales at most 7 and codes at most 6 more (8 without scales), so the products are exact: the sum
/// rounds once, fused or not, and every compiler gives the same bits.

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

inline void dequantize_q5_0(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  const auto high = load<std::uint32_t>(source + 2);
  std::uint8_t q[16];
  std::memcpy(q, source + 6, sizeof(q));
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(static_cast<int>((q[j] & 15u) | (high >> j & 1u) << 4) - 16);
    out[j + 16] = d * static_cast<float>(static_cast<int>((q[j] >> 4) | (high >> (j + 16) & 1u) << 4) - 16);
  }
}

inline void dequantize_q5_1(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  const float m = half_to_float(load<std::uint16_t>(source + 2));
  const auto high = load<std::uint32_t>(source + 4);
  std::uint8_t q[16];
  std::memcpy(q, source + 8, sizeof(q));
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((q[j] & 15u) | (high >> j & 1u) << 4) + m;
    out[j + 16] = d * static_cast<float>((q[j] >> 4) | (high >> (j + 16) & 1u) << 4) + m;
  }
}

inline void dequantize_q8_0(const std::byte* source, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  std::int8_t q[32];
  std::memcpy(q, source + 2, sizeof(q));
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q[j]);
}

/// Q4_K's and Q5_K's eight scales s and eight t: of the first four the low six bits of a byte each; of the others four bits in
/// the last four bytes, below them t's above s's, and the upper two in the first eight bytes' own upper two.
inline void six_bits_of(const std::uint8_t* packed, int g, std::uint8_t& s, std::uint8_t& t) noexcept {
  if (g < 4) {
    s = packed[g] & 63, t = packed[g + 4] & 63;
    return;
  }
  s = static_cast<std::uint8_t>((packed[g + 4] & 15) | packed[g - 4] >> 6 << 4);
  t = static_cast<std::uint8_t>(packed[g + 4] >> 4 | packed[g] >> 6 << 4);
}

/// Q4_K, and Q5_K where `has_fifth`.
inline void dequantize_q45_k(const std::byte* source, bool has_fifth, float* out) noexcept {
  const float d = half_to_float(load<std::uint16_t>(source));
  const float m = half_to_float(load<std::uint16_t>(source + 2));
  std::uint8_t packed[12], high[32] = {}, q[128];
  std::memcpy(packed, source + 4, sizeof(packed));
  if (has_fifth) std::memcpy(high, source + 16, sizeof(high));
  std::memcpy(q, source + (has_fifth ? 48 : 16), sizeof(q));
  for (int g = 0; g < 8; ++g, out += 32) {
    std::uint8_t s, t;
    six_bits_of(packed, g, s, t);
    const float scale = d * static_cast<float>(s), least = m * static_cast<float>(t);
    const std::uint8_t* const codes = q + g / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const unsigned code = (g % 2 == 0 ? codes[j] & 15u : codes[j] >> 4u) | (high[j] >> g & 1u) << 4;
      out[j] = scale * static_cast<float>(code) - least;
    }
  }
}

inline void dequantize_q6_k(const std::byte* source, float* out) noexcept {
  std::uint8_t q[128], high[64];
  std::int8_t scales[16];
  std::memcpy(q, source, sizeof(q));
  std::memcpy(high, source + 128, sizeof(high));
  std::memcpy(scales, source + 192, sizeof(scales));
  const float d = half_to_float(load<std::uint16_t>(source + 208));
  // Of each half's 128 elements, quarter r has the lower (r < 2) or upper four bits of 32 bytes and two bits of others.
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < 4; ++r) {
      for (int j = 0; j < 32; ++j) {
        const unsigned low = q[64 * half + r % 2 * 32 + j];
        const unsigned code = (r < 2 ? low & 15u : low >> 4u) | (high[32 * half + j] >> (2 * r) & 3u) << 4;
        const float scale = d * static_cast<float>(scales[8 * half + 2 * r + j / 16]);
        *out++ = scale * static_cast<float>(static_cast<int>(code) - 32);
      }
    }
  }
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
    case StoredType::kQ5_0:
      for (Index i = 0; i < count; i += 32) detail::dequantize_q5_0(source + i / 32 * 22, out + i);
      break;
    case StoredType::kQ5_1:
      for (Index i = 0; i < count; i += 32) detail::dequantize_q5_1(source + i / 32 * 24, out + i);
      break;
    case StoredType::kQ4K:
      for (Index i = 0; i < count; i += 256) detail::dequantize_q45_k(source + i / 256 * 144, false, out + i);
      break;
    case StoredType::kQ5K:
      for (Index i = 0; i < count; i += 256) detail::dequantize_q45_k(source + i / 256 * 176, true, out + i);
      break;
    case StoredType::kQ6K:
      for (Index i = 0; i < count; i += 256) detail::dequantize_q6_k(source + i / 256 * 210, out + i);
      break;
    default:
      break;  // not readable: TensorRef has refused it
  }
}

PEFT_END_NAMESPACE
