#pragma once
/// Products of a few rows (decoding) over a weight in four bits: its codes are read once for four rows, as four streams, and
/// decoded in registers. The scales of a task's rows are laid out first, from 8 bits where they are quantised too.

#include <algorithm>

#include "peft/kernels/thin_gemm.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

/// Whether thin_four_bit() can run `p`, and should.
inline bool is_thin_four_bit(const GemmProblem& p) noexcept {
  bool thin = p.m <= kThinRows && p.k > 0 && p.b.four_bit != nullptr && !p.a.transposed && p.low_rank_mask.bits == nullptr;
  for (Index t = 0; t < p.low_rank_count; ++t) thin = thin && p.low_rank[t].l_transposed;
  return thin;
}

/// Runs `p`, which is_thin_four_bit(). Same bits for any number of threads.
inline void thin_four_bit(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  const FourBitOperand& w = *p.b.four_bit;
  // Whole groups of the widest kernel.
  const Index x_stride = ceil_div(p.k, 128) * 128, blocks = p.k / w.block, scale_stride = blocks + 4;
  const Index rank = total_rank(p);
  float* const x = scratch(ScratchSlot::kThin, p.m * x_stride + p.k + p.m * rank);
  float* const row = x + p.m * x_stride;
  for (Index i = 0; i < p.m; ++i) {
    table.widen(p.k, element(p.a.data, i * p.a.stride, p.a.type), p.a.type, row);
    table.arrange_4bit(p.k, row, x + i * x_stride);
  }
  float* const s = row + p.k;  // of each term [m, rank], the scale in it
  float* next = s;
  for (Index t = 0; t < p.low_rank_count; ++t) {
    const LowRankColumns& term = p.low_rank[t];
    for (Index i = 0; i < p.m; ++i) {
      for (Index q = 0; q < term.rank; ++q) *next++ = term.scale * term.s[i * term.s_stride + q];
    }
  }
  parallel_for_ranges(executor, p.n, thin_grain(p.n), [&](Index first, Index last) {
    const Index count = last - first;
    float* const scales = scratch(ScratchSlot::kTile, count * scale_stride);
    for (Index j = 0; j < count; ++j) {
      float* const own = scales + j * scale_stride;
      for (Index b = 0; b < blocks; ++b) own[b] = w.scales[(first + j) * blocks + b];
      std::fill_n(own + blocks, 4, 0.0f);
    }
    float y[kThinRows * kWideColumns], extra[4 * kWideColumns];
    for (Index i = 0; i < p.m; i += 4) {
      ThinFourBitCall call;
      call.m = std::min<Index>(4, p.m - i), call.n = count, call.k = p.k, call.block = w.block;
      call.x = x + i * x_stride, call.x_stride = x_stride;
      call.codes = w.codes + first * (p.k / 2), call.value = w.value;
      call.scales = scales, call.scale_stride = scale_stride;
      call.y = y + i * kWideColumns, call.y_stride = kWideColumns;
      table.thin_4bit(call);
      const float* of_term = s;
      for (Index t = 0; t < p.low_rank_count; of_term += p.m * p.low_rank[t].rank, ++t) {
        const LowRankColumns& term = p.low_rank[t];
        table.dots(of_term + i * term.rank, term.rank, call.m, term.l + first * term.l_stride, term.l_stride, DType::kF32,
                   count, term.rank, extra, kWideColumns);
        for (Index r = 0; r < call.m; ++r) table.add(count, extra + r * kWideColumns, y + (i + r) * kWideColumns);
      }
    }
    for (Index i = 0; i < p.m; ++i) {
      float* const sums = y + i * kWideColumns;
      if (p.bias != nullptr) table.add(count, p.bias + first, sums);
      void* const c = element(p.c, i * p.c_stride + first, p.c_type);
      if (p.accumulate) {
        table.widen(count, c, p.c_type, extra);
        table.add(count, extra, sums);
      }
      table.narrow(count, sums, p.c_type, c);
    }
  });
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
