#pragma once
/// Activations in 8 bits against weights in four, for inference: runs of a row share a scale, and so do a block's weights, whose
/// sixteen values are whole numbers of 1/c, so that products are sums of bytes.
///   x ≈ s·q,  s = max|x|/127 of a run of min(block, 64),  q = round(x/s)
///   y[i][j] = Σ_u s[i][u]·absmax[j][u]/c·Σ_{k in run u} q[i][k]·round(c·value[code[j][k]])
/// c ≤ 127 is where rounding moves the values of normal weights least: 124.1 for NF4 (0.47 % of a weight, 0.59 % at 127), 120 for
/// FP4 (0.33 %).
/// Sums of bytes are exact. What is added in float is rounded after every product and has one order: runs one after another, or,
/// for a row or two, sixteen sums of eight neighbours each, then those. So all instruction sets give the same bits.

#include <cstdint>

#include "peft/core/scalar.hpp"
#include "peft/kernels/four_bit.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Activations that share a scale, at most.
inline constexpr Index kInt8Run = 64;

constexpr Index int8_run(Index block) noexcept { return block < kInt8Run ? block : kInt8Run; }

/// round(c·value) of the sixteen codes, and 127·c.
struct ByteValues {
  std::int8_t of[16];
  float divisor;
};

namespace detail {

constexpr ByteValues byte_values(const FourBitTable& table, float c) {
  ByteValues result{};
  for (int i = 0; i < 16; ++i) {
    const float scaled = table.value[i] * c;
    result.of[i] = static_cast<std::int8_t>(scaled < 0.0f ? scaled - 0.5f : scaled + 0.5f);
  }
  result.divisor = 127.0f * c;
  return result;
}
inline constexpr ByteValues kNf4Bytes = byte_values(kNf4Table, 124.1f), kFp4Bytes = byte_values(kFp4Table, 120.0f);

}  // namespace detail

constexpr const ByteValues& bytes_of(FourBitCode code) noexcept {
  return code == FourBitCode::kNf4 ? detail::kNf4Bytes : detail::kFp4Bytes;
}

/// Rows of so many activations are laid out for lanes, which are groups of eight neighbours.
inline constexpr Index kInt8Lanes = 16, kInt8Group = 8 * kInt8Lanes;

/// A row of activations to be quantised: for columns of y as lanes, with a scale and an offset for each run, or, where `lanes`,
/// for eight neighbours as a lane, with a scale and an offset for each eight and zeros up to a multiple of kInt8Group.
struct Int8RowCall {
  Index k = 0, run = 0;
  bool lanes = false;
  float divisor = 0;  ///< of the ByteValues
  const float* x = nullptr;
  void* q = nullptr;                ///< of KernelTable::int8_bytes each, in the kernel's own order
  float* scales = nullptr;          ///< the maximum by `divisor`; NaN where the run is not finite
  std::int32_t* offsets = nullptr;  ///< −128·Σq
};

/// Rows of activations in 8 bits against rows of four-bit codes; see the head of this file.
struct Int8FourBitCall {
  Index m = 0, n = 0, k = 0, run = 0;
  bool lanes = false;
  const void* q = nullptr;  ///< rows as quantize_int8 writes them
  const float* x_scales = nullptr;
  const std::int32_t* offsets = nullptr;
  const std::uint8_t* codes = nullptr;    ///< rows of k/2 bytes
  const ByteValues* value = nullptr;
  /// [k/run][scale_stride]: of columns, n of them and zeros up to a multiple of 16. Where `lanes`, [n][scale_stride]: of runs, and
  /// as ThinFourBitCall has it behind the last.
  const float* scales = nullptr;
  Index scale_stride = 0;
  float* y = nullptr;  ///< [m][y_stride]; n columns rounded up to a multiple of 16 are written
  Index y_stride = 0;
};

}  // namespace kernels
PEFT_END_NAMESPACE
