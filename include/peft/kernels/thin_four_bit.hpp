#pragma once
/// Products of a few rows (decoding) over a weight in four bits: its codes are read once for four rows, from end to end, and
/// decoded in registers. The scales of a task's rows are made first where they are quantised too. The low-rank terms go through
/// the same accumulators, before x·Wᵀ.

#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/row_scales.hpp"
#include "peft/kernels/thin_packed.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

/// Whether thin_four_bit() can run `p`, and should.
inline bool is_thin_four_bit(const GemmProblem& p) noexcept {
  return p.b.four_bit != nullptr && is_thin_packed(p, kThinPackedRows);
}

/// Runs `p`, which is_thin_four_bit(). Same bits for any number of threads.
inline void thin_four_bit(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  const FourBitOperand& w = *p.b.four_bit;
  // Whole groups of the widest kernel.
  const Index x_stride = ceil_div(p.k, 128) * 128;
  float* const x = scratch(ScratchSlot::kThin, p.m * x_stride + ceil_div(p.k, 16) * 16 + ThinTerms::floats(p));
  float* const row = x + p.m * x_stride;
  for (Index i = 0; i < p.m; ++i) {
    table.widen(p.k, element(p.a.data, i * p.a.stride, p.a.type), p.a.type, row);
    table.arrange_4bit(p.k, row, x + i * x_stride);
  }
  const ThinColumns* const terms = ThinTerms::make(p, row + ceil_div(p.k, 16) * 16);
  GemmProblem rest = p;
  rest.low_rank_count = 0;
  thin_packed(rest, table, nullptr, executor, [&](Index first, Index count, float* y) {
    const RowScales scales = RowScales::read(w, table, p.k, p.n, first, count,
                                             scratch(ScratchSlot::kTile, RowScales::floats(count, p.k / w.block)));
    for (Index i = 0; i < p.m; i += 4) {
      ThinFourBitCall call;
      call.m = smaller(4, p.m - i), call.n = count, call.k = p.k, call.block = w.block;
      call.x = x + i * x_stride, call.x_stride = x_stride;
      call.codes = w.codes + first * (p.k / 2), call.value = w.value;
      call.scales = scales.data, call.scale_stride = scales.stride;
      call.y = y + i * kWideColumns, call.y_stride = kWideColumns;
      call.terms = terms, call.term_count = p.low_rank_count;
      call.row = i, call.column = first;
      table.thin_4bit(call);
    }
  });
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
