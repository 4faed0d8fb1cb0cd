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
  static Index floats(Index rows, Index blocks) noexcept { return kMap + rows * (blocks + kBehind); }

  /// Of rows [first, first + rows) of the n rows of w. `memory` is aligned to 64 bytes.
  static RowScales read(const FourBitOperand& w, const KernelTable& table, Index k, Index n, Index first, Index rows,
                        float* memory) noexcept {
    const Index blocks = k / w.block;
    // Rows of whole groups meet no scale behind their own: the next row's may stand there.
    if (w.scales.absmax != nullptr && k % kInt8Group == 0 && first + rows < n) return {w.scales.absmax + first * blocks, blocks};
    float* const map = memory;
    float* const own = memory + kMap;
    const Index stride = blocks + kBehind;
    if (w.scales.absmax == nullptr) copy_floats(w.scales.map, kMap, map);
    for (Index j = 0; j < rows; ++j) {
      float* const out = own + j * stride;
      const Index from = (first + j) * blocks;
      if (w.scales.absmax != nullptr) {
        copy_floats(w.scales.absmax + from, blocks, out);
      } else {
        for (Index b = 0, count = 0; b < blocks; b += count) {
          count = smaller(blocks - b, kNestedBlock - (from + b) % kNestedBlock);
          table.expand_scales(count, w.scales.code + from + b, map, w.scales.nested_absmax[(from + b) / kNestedBlock],
                              w.scales.offset, out + b);
        }
      }
      fill_floats(out + blocks, kBehind, 0.0f);
    }
    return {own, stride};
  }

 private:
  static constexpr Index kMap = 256, kBehind = 4;
};

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
