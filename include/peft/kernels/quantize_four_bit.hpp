#pragma once
/// Block-wise quantisation to four bits and back, as bitsandbytes does it on a CPU, bit for bit:
///   whole block   absmax = max|w|; code of w·(1/max(absmax, 1e-38))
///   short block   at the end: absmax = max(max|w|, 1e-38); code of w/absmax
/// Blocks run flat over the rows; the first code of a byte stands in its upper half; after an odd number the code of 0.

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/core/view.hpp"
#include "peft/kernels/block_scales.hpp"
#include "peft/kernels/four_bit.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

inline constexpr Index kSmallestFourBitBlock = 32, kLargestFourBitBlock = 4096;

/// Whether blocks may have that size: a power of two from 32 to 4096.
constexpr bool is_four_bit_block(Index size) noexcept {
  return size >= kSmallestFourBitBlock && size <= kLargestFourBitBlock && (size & (size - 1)) == 0;
}

namespace detail {

// Elements of one task.
inline constexpr Index kQuantizeGrain = 32768;
inline constexpr float kLeastAbsmax = 1e-38f;

/// Elements [first, first + count) of the rows of w, read one after the other, as floats at dst.
inline void gather_flat(const KernelTable& t, const void* data, Index cols, Index stride, DType type, Index first,
                        Index count, float* dst) noexcept {
  while (count > 0) {
    const Index row = first / cols, column = first % cols, part = std::min(count, cols - column);
    t.widen(part, static_cast<const char*>(data) + (row * stride + column) * size_of(type), type, dst);
    first += part, count -= part, dst += part;
  }
}

}  // namespace detail

/// Quantises w [rows, cols] (kF32, kF16 or kBF16). codes: ⌈n/2⌉ bytes; absmax: ⌈n/block⌉ floats. Returns the position (row-
/// major) of the first element that is not finite, where codes and absmax have no meaning, or -1.
inline Index quantize_four_bit(const FourBitTable& table, const void* data, Index rows, Index cols, Index stride,
                               DType type, Index block, std::uint8_t* codes, float* absmax, ExecutorRef executor) {
  const Index n = rows * cols;
  const KernelTable& t = kernels::table();
  const bool direct = type == DType::kF32 && (stride == cols || rows <= 1);
  std::atomic<Index> wrong{n};
  parallel_for_ranges(executor, n, std::max(detail::kQuantizeGrain, block), [&](Index first, Index last) {
    float memory[kLargestFourBitBlock];
    for (Index i = first; i < last; i += block) {
      const Index count = std::min(block, last - i);
      const float* x = static_cast<const float*>(data) + i;
      if (!direct) {
        detail::gather_flat(t, data, cols, stride, type, i, count, memory);
        x = memory;
      }
      if (t.any_non_finite(count, x)) {
        Index place = i;
        while (is_finite(x[place - i])) ++place;
        Index seen = wrong.load(std::memory_order_relaxed);
        while (place < seen && !wrong.compare_exchange_weak(seen, place, std::memory_order_relaxed)) {
        }
        return;
      }
      const float most = t.abs_max(count, x), least = std::max(most, detail::kLeastAbsmax);
      const bool whole = count == block;
      absmax[i / block] = whole ? most : least;
      t.quantize_4bit(count, x, whole ? quotient(1.0f, least) : least, !whole, table, codes + i / 2);
    }
  });
  const Index place = wrong.load(std::memory_order_relaxed);
  return place < n ? place : -1;
}

/// out[j] = value[code of first + j]·scale of its block, j < count.
inline void dequantize_four_bit_range(const KernelTable& t, const FourBitTable& table, const std::uint8_t* codes,
                                      const BlockScales& scales, Index block, Index first, Index count,
                                      float* out) noexcept {
  if (count > 0 && first % 2 != 0) {
    *out++ = rounded(table.value[codes[first / 2] & 15u] * scales[first / block]);
    ++first, --count;
  }
  while (count > 0) {
    const Index part = std::min(count, block - first % block);
    t.dequantize_4bit(part, codes + first / 2, table.value, scales[first / block], out);
    first += part, count -= part, out += part;
  }
}

}  // namespace kernels
PEFT_END_NAMESPACE
