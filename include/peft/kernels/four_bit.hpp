#pragma once
/// Four bits per weight: sixteen values between -1 and 1, scaled by the absolute maximum of a block of weights.
///   w ≈ value[code]·absmax
/// NF4's values are quantiles of the normal distribution (Dettmers et al., "QLoRA", 2023, appendix E), FP4's a sign, two
/// exponent bits and one of mantissa. A weight takes the nearest value; halfway it takes the lower one.

#include <bit>
#include <cstdint>
#include <string_view>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// Which sixteen values the codes mean.
enum class FourBitCode : std::uint8_t { kNf4, kFp4 };

/// As files and options write it.
constexpr std::string_view name_of(FourBitCode code) noexcept { return code == FourBitCode::kNf4 ? "nf4" : "fp4"; }

namespace kernels {

/// A code's values, and how a number between -1 and 1 finds its own: the thresholds below it are counted, and the count
/// names a code.
struct FourBitTable {
  float value[16];               ///< by code
  float threshold[16];           ///< the fifteen middles of neighbours, ascending; the last is not used
  std::uint32_t code_of_rank[16];
};

namespace detail {

constexpr FourBitTable four_bit_table(const float (&value)[16], const std::uint32_t (&code_of_rank)[16]) {
  FourBitTable table{};
  for (int i = 0; i < 16; ++i) {
    table.value[i] = value[i];
    table.code_of_rank[i] = code_of_rank[i];
    if (i < 15) table.threshold[i] = (value[code_of_rank[i]] + value[code_of_rank[i + 1]]) / 2.0f;
  }
  table.threshold[15] = 2.0f;
  return table;
}

inline constexpr FourBitTable kNf4Table = four_bit_table(
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});

// Zero has two codes: 0, and 8 for what is above zero by less than half of the next value.
inline constexpr FourBitTable kFp4Table = four_bit_table(
    {0.0f, 0.0625f / 12.0f, 8.0f / 12.0f, 1.0f, 4.0f / 12.0f, 0.5f, 2.0f / 12.0f, 0.25f,
     0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -0.5f, -2.0f / 12.0f, -0.25f},
    {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3});

}  // namespace detail

constexpr const FourBitTable& table_of(FourBitCode code) noexcept {
  return code == FourBitCode::kNf4 ? detail::kNf4Table : detail::kFp4Table;
}

}  // namespace kernels
PEFT_END_NAMESPACE
