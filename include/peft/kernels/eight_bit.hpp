#pragma once
/// Codes of 8 bits over a dynamic map: a block of 256 numbers shares its absolute maximum,
///   x ≈ value[code]·absmax
/// and a code is the nearest one, halfway the lower one, found by one look-up. Sign, exponent and the first bits of the mantissa
/// of x/absmax name a bucket so narrow that at most one threshold lies in it; the bucket's word holds the code at its lower
/// end above `shift` bits, and below them such a number that adding the mantissa's other bits carries into the code where
/// they are past the threshold.

#include <bit>
#include <cstdint>

#include "peft/kernels/dynamic_map.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Numbers that share a maximum, as bitsandbytes' optimizers have it.
inline constexpr Index kEightBitBlock = 256;

/// A map, ready for both directions.
struct EightBitTable {
  /// 2^-23, below the smallest threshold of both maps, and 1: the first and the last bucket begin there.
  static constexpr std::uint32_t kFirst = 0x34000000u, kLast = 0x3F800000u;
  /// Bits of a float below those that name a bucket. Half a bucket suffices for the unsigned map, whose values are twice as
  /// dense.
  static constexpr int kSignedShift = 17, kUnsignedShift = 16;
  static constexpr std::uint32_t kBuckets = ((kLast - kFirst) >> kUnsignedShift) + 1;
  /// Of one sign; the negative numbers' buckets follow.
  static constexpr std::uint32_t kSignedBuckets = ((kLast - kFirst) >> kSignedShift) + 1;

  alignas(64) float value[256];
  std::uint32_t word[2 * kSignedBuckets > kBuckets ? 2 * kSignedBuckets : kBuckets];
};

namespace detail {

inline std::uint32_t eight_bit_word(const DynamicMap& map, std::uint32_t first, int shift, bool negative) noexcept {
  const std::uint32_t rest = (1u << shift) - 1;
  const auto number = [negative](std::uint32_t bits) {
    const float size = std::bit_cast<float>(bits);
    return negative ? -size : size;
  };
  const std::uint32_t lower = negative ? first + rest : first;
  const std::uint32_t code = nearest_in(map, number(lower));
  std::uint32_t missing = 0;  // a threshold beyond the bucket: no sum carries
  if (nearest_in(map, number(first + rest - (lower - first))) != code) {
    const std::uint32_t threshold = std::bit_cast<std::uint32_t>(threshold_above(map, static_cast<int>(code))) & 0x7FFFFFFFu;
    // Past it is what is larger by one; negative numbers are counted from the bucket's far end.
    missing = negative ? threshold - first : rest - (threshold - first);
  }
  return code << shift | missing;
}

inline EightBitTable make_eight_bit_table(const DynamicMap& map, bool has_sign) noexcept {
  EightBitTable table{};
  for (std::size_t i = 0; i < map.size(); ++i) table.value[i] = map[i];
  const int shift = has_sign ? EightBitTable::kSignedShift : EightBitTable::kUnsignedShift;
  const std::uint32_t buckets = has_sign ? EightBitTable::kSignedBuckets : EightBitTable::kBuckets;
  for (std::uint32_t i = 0; i < buckets; ++i) {
    const std::uint32_t first = EightBitTable::kFirst + (i << shift);
    table.word[i] = eight_bit_word(map, first, shift, false);
    if (has_sign) table.word[buckets + i] = eight_bit_word(map, first, shift, true);
  }
  return table;
}

}  // namespace detail

inline const EightBitTable& signed_eight_bit_table() noexcept {
  static const EightBitTable table = detail::make_eight_bit_table(dynamic_map(), true);
  return table;
}
inline const EightBitTable& unsigned_eight_bit_table() noexcept {
  static const EightBitTable table = detail::make_eight_bit_table(unsigned_dynamic_map(), false);
  return table;
}

/// AdamW's moments in 8 bits: a code per element and a maximum per block, m on the signed map and v on the unsigned one.
/// Zeroed memory means moments of zero.
struct EightBitMoments {
  std::uint8_t* m = nullptr;
  std::uint8_t* v = nullptr;
  float* m_absmax = nullptr;
  float* v_absmax = nullptr;

  /// From element `first` on, a block's first.
  EightBitMoments from(Index first) const noexcept {
    const Index block = first / kEightBitBlock;
    return {m + first, v + first, m_absmax + block, v_absmax + block};
  }
};

}  // namespace kernels
PEFT_END_NAMESPACE
