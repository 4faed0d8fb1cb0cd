#pragma once
/// Products of a few rows (decoding) over a weight that is not plain memory: what its formats share. The weight's kernel gives
/// sums of a few rows over a few columns; low-rank terms, bias and what stands in the result are added behind it.


#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/thin_gemm.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// Rows that a format may have multiplied here, at most.
inline constexpr Index kThinPackedRows = 24;

/// Whether `p` is a product of at most `most` rows whose terms lie as thin kernels read them.
inline bool is_thin_packed(const GemmProblem& p, Index most) noexcept {
  bool thin = p.m <= most && p.k > 0 && !p.a.transposed && p.low_rank_mask.bits == nullptr;
  for (Index t = 0; t < p.low_rank_count; ++t) thin = thin && p.low_rank[t].l_transposed;
  return thin;
}

/// s = of each term [m, rank], the scale in it: m·total_rank(p) floats.
inline void scale_terms(const GemmProblem& p, float* s) noexcept {
  for (Index t = 0; t < p.low_rank_count; ++t) {
    const LowRankColumns& term = p.low_rank[t];
    for (Index i = 0; i < p.m; ++i) {
      for (Index q = 0; q < term.rank; ++q) *s++ = term.scale * term.s[i * term.s_stride + q];
    }
  }
}

/// Runs `p`, of at most kThinPackedRows rows. `s` as scale_terms writes it. multiply(first, count, y) writes x·Wᵀ of columns
/// [first, first + count), at most kWideColumns, to rows of y that are kWideColumns apart. Same bits for any number of threads.
template <class Multiply>
void thin_packed(const GemmProblem& p, const KernelTable& table, const float* s, ExecutorRef executor,
                 const Multiply& multiply) {
  parallel_for_ranges(executor, p.n, thin_grain(p.n), [&](Index first, Index last) {
    const Index count = last - first;
    float y[kThinPackedRows * kWideColumns], extra[4 * kWideColumns];
    multiply(first, count, y);
    for (Index i = 0; i < p.m; i += 4) {
      const Index rows = smaller(4, p.m - i);
      const float* of_term = s;
      for (Index t = 0; t < p.low_rank_count; of_term += p.m * p.low_rank[t].rank, ++t) {
        const LowRankColumns& term = p.low_rank[t];
        table.dots(of_term + i * term.rank, term.rank, rows, term.l + first * term.l_stride, term.l_stride, DType::kF32,
                   count, term.rank, extra, kWideColumns);
        for (Index r = 0; r < rows; ++r) table.add(count, extra + r * kWideColumns, y + (i + r) * kWideColumns);
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
