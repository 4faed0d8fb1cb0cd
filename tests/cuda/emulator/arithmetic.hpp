#pragma once
/// The device's arithmetic on the host, bit for bit where the PTX ISA defines the bits: conversions, pairs of 16-bit numbers,
/// byte permutation. mma: the products and their sum exact in double, one rounding to float at the end; a tensor core's own
/// order and truncation of that sum are not documented, and not modelled.

#include <bit>
#include <cmath>
#include <cstdint>

#include "peft/core/scalar.hpp"

namespace peft_emulator {

using peft::bf16;
using peft::f16;

template <class T>
inline T rounded(float x) {
  T r;
  if (std::isnan(x)) {
    r.bits = 0x7FFF;  // the canonical NaN of cvt.rn
  } else {
    r = T(x);
  }
  return r;
}

template <class T>
inline T from_bits(std::uint32_t bits) {
  T r;
  r.bits = static_cast<std::uint16_t>(bits);
  return r;
}

/// a·b + c rounded once. The sum's error is folded into the last bit of a float (rounding to odd), so that the second
/// rounding, to fewer than 23 bits, is that of the exact sum.
template <class T>
inline T fused(T a, T b, T c) {
  const double product = static_cast<double>(static_cast<float>(a)) * static_cast<double>(static_cast<float>(b));
  const double addend = static_cast<double>(static_cast<float>(c));
  const double sum = product + addend;
  if (!std::isfinite(sum)) return rounded<T>(static_cast<float>(sum));
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);
  auto narrow = static_cast<float>(sum);
  if (std::isinf(narrow)) return rounded<T>(narrow);  // beyond every 16-bit type as well
  const double rest = (sum - static_cast<double>(narrow)) + error;
  if (rest != 0) {
    auto bits = std::bit_cast<std::uint32_t>(narrow);
    const bool away = narrow == 0 ? false : (narrow > 0) == (rest < 0);
    if (narrow == 0) {
      bits = rest < 0 ? 0x80000001u : 1u;
    } else {
      if (away) --bits;  // toward zero
      bits |= 1u;
    }
    narrow = std::bit_cast<float>(bits);
  }
  return rounded<T>(narrow);
}

template <class T>
inline std::uint32_t fused2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const auto low = fused<T>(from_bits<T>(a), from_bits<T>(b), from_bits<T>(c)).bits;
  const auto high = fused<T>(from_bits<T>(a >> 16), from_bits<T>(b >> 16), from_bits<T>(c >> 16)).bits;
  return static_cast<std::uint32_t>(low) | (static_cast<std::uint32_t>(high) << 16);
}

/// Products of two f16 are exact in float; sums are rounded there, but to 24 bits, twice 11 and two: to round twice is to
/// round once.
template <class Operation>
inline std::uint32_t pairwise_f16(std::uint32_t a, std::uint32_t b, Operation&& operation) {
  const auto one = [&](std::uint32_t x, std::uint32_t y) {
    return static_cast<std::uint32_t>(
        rounded<f16>(operation(static_cast<float>(from_bits<f16>(x)), static_cast<float>(from_bits<f16>(y)))).bits);
  };
  return one(a, b) | (one(a >> 16, b >> 16) << 16);
}

inline std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = (static_cast<std::uint64_t>(b) << 32) | a;
  std::uint32_t r = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t nibble = (selector >> (4 * i)) & 0xFu;
    auto byte = static_cast<std::uint32_t>(bytes >> (8 * (nibble & 7u))) & 0xFFu;
    if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xFFu : 0u;
    r |= byte << (8 * i);
  }
  return r;
}

inline std::uint32_t logic3(std::uint32_t table, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r = 0;
  for (std::uint32_t i = 0; i < 8; ++i) {
    if ((table >> i & 1u) != 0) r |= ((i & 4u) != 0 ? a : ~a) & ((i & 2u) != 0 ? b : ~b) & ((i & 1u) != 0 ? c : ~c);
  }
  return r;
}

/// What a fragment holds, quickly: f16 is float with 5 bits of exponent, once scaled.
inline double element(f16, std::uint32_t bits) {
  if ((bits & 0x7C00u) == 0x7C00u) return static_cast<double>(static_cast<float>(from_bits<f16>(bits)));
  const float size = std::bit_cast<float>((bits & 0x7FFFu) << 13) * 0x1p112f;
  return static_cast<double>((bits & 0x8000u) != 0 ? -size : size);
}
inline double element(bf16, std::uint32_t bits) { return static_cast<double>(std::bit_cast<float>((bits & 0xFFFFu) << 16)); }

/// d [16,8] += a [16,kDepth] · b [kDepth,8], out of and into the fragments of 32 lanes.
template <class T, int kDepth>
struct Mma {
  float* d[32];
  const std::uint32_t* a[32];
  const std::uint32_t* b[32];

  void run() const {
    using Two = double __attribute__((vector_size(16)));
    double left[16][kDepth];
    Two right[kDepth][4];  // 8 columns
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4;
      const int t = lane % 4;
      for (int part = 0; part < kDepth / 8; ++part) {
        for (int half = 0; half < 2; ++half) {
          const int k = 8 * part + 2 * t + half;
          right[k][g / 2][g % 2] = element(T(), b[lane][part] >> (16 * half));
          left[g][k] = element(T(), a[lane][2 * part] >> (16 * half));
          left[g + 8][k] = element(T(), a[lane][2 * part + 1] >> (16 * half));
        }
      }
    }
    for (int row = 0; row < 16; ++row) {
      float* const* lanes = d + 4 * (row % 8);
      const int first = 2 * (row / 8);
      const auto start = [&](int t) {
        return Two{static_cast<double>(lanes[t][first]), static_cast<double>(lanes[t][first + 1])};
      };
      Two sum0 = start(0);
      Two sum1 = start(1);
      Two sum2 = start(2);
      Two sum3 = start(3);
      for (int k = 0; k < kDepth; ++k) {
        const Two x = {left[row][k], left[row][k]};
        sum0 += x * right[k][0];
        sum1 += x * right[k][1];
        sum2 += x * right[k][2];
        sum3 += x * right[k][3];
      }
      const auto keep = [&](int t, Two sum) {
        lanes[t][first] = static_cast<float>(sum[0]);
        lanes[t][first + 1] = static_cast<float>(sum[1]);
      };
      keep(0, sum0);
      keep(1, sum1);
      keep(2, sum2);
      keep(3, sum3);
    }
  }
};

}  // namespace peft_emulator
