#pragma once
/// Codes of 8 bits over a dynamic map: a block of 256 numbers shares its absolute maximum,
///   x ≈ value[code]·absmax
/// and a code is the nearest one, halfway the lower one, found by one look-up. Sign, exponent and the first bits of the mantissa
/// of x/absmax name a bucket so narrow that at most one threshold lies in it; the bucket's word holds the code at its lower
/// end above `shift` bits, and below them such a number that adding the mantissa's other bits carries into the code where
/// they are past the threshold.

#include <cstdint>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Numbers that share a maximum, as bitsandbytes' optimizers have it.
inline constexpr Index kEightBitBlock = 256;

/// A map, ready for both directions; eight_bit_tables.hpp makes the two that there are.
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
