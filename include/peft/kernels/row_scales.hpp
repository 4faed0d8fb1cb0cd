#pragma once
/// The scales of some rows of four-bit codes, as kernels of few rows read them: where they stand, or, from 8 bits, in memory of
/// their own.

#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

struct RowScales {
  const float* data = nullptr;  ///< [rows][stride]; three more floats behind a row's last one may be read
  Index stride = 0;

  /// Floats that read() is given for `rows` rows.
  static Index floats(Index rows, Index blocks) noexcept { return kMap + rows * blocks + kBehind; }

  /// Of rows [first, first + rows) of the n rows of w. `memory` is aligned to 64 bytes.
  static RowScales read(const FourBitOperand& w, const KernelTable& table, Index k, Index n, Index first, Index rows,
                        float* memory) noexcept {
    const Index blocks = k / w.block, begin = first * blocks, count = rows * blocks;
    // Where what kernels may read behind the rows is still the weight's.
    if (w.scales.absmax != nullptr && begin + count + kBehind <= n * blocks) return {w.scales.absmax + begin, blocks};
    float* const map = memory;
    float* const own = memory + kMap;
    if (w.scales.absmax != nullptr) {
      copy_floats(w.scales.absmax + begin, count, own);
    } else {
      copy_floats(w.scales.map, kMap, map);
      for (Index b = 0, part = 0; b < count; b += part) {
        part = smaller(count - b, kNestedBlock - (begin + b) % kNestedBlock);
        table.expand_scales(part, w.scales.code + begin + b, map, w.scales.nested_absmax[(begin + b) / kNestedBlock],
                            w.scales.offset, own + b);
      }
    }
    fill_floats(own + count, kBehind, 0.0f);
    return {own, blocks};
  }

 private:
  static constexpr Index kMap = 256, kBehind = 4;
};

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
