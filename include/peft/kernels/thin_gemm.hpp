#pragma once
/// Products of a few rows (decoding): the weight's rows are read once, straight from their storage, as fast as memory
/// gives them. The low-rank terms go through the same accumulators, before x·Wᵀ.

#include <new>

#include "peft/core/executor.hpp"
#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// At most so many rows are read straight from the weight's storage: above, packing saves more than it costs.
inline constexpr Index kThinRows = 8;
// Columns of one task: 32 rows of a weight are some 40 to 200 KB, so that a layer's few hundred columns come out even on a
// few threads while each of the kernel's streams is long enough to be fetched ahead. Wide products (a head) take longer
// runs, narrow ones (projections to a rank) are cut finer.
inline constexpr Index kWideColumns = 64, kThinColumns = 32, kNarrowColumns = 4;

constexpr Index bytes_of(DType type) noexcept { return size_of(type); }

inline const void* element(const void* data, Index offset, DType type) noexcept {
  return static_cast<const char*>(data) + offset * bytes_of(type);
}
inline void* element(void* data, Index offset, DType type) noexcept {
  return static_cast<char*>(data) + offset * bytes_of(type);
}

/// Σ ranks of the terms.
inline Index total_rank(const GemmProblem& p) noexcept {
  Index rank = 0;
  for (Index t = 0; t < p.low_rank_count; ++t) rank += p.low_rank[t].rank;
  return rank;
}

/// Whether thin_gemm() can run `p`, and should.
inline bool is_thin(const GemmProblem& p) noexcept {
  const Operand& w = p.b.dense;
  bool thin = p.m <= kThinRows && p.k > 0 && w.data != nullptr && w.transposed && !p.a.transposed &&
              p.low_rank_mask.bits == nullptr;
  for (Index t = 0; t < p.low_rank_count; ++t) thin = thin && p.low_rank[t].l_transposed;
  return thin;
}

constexpr Index thin_grain(Index n) noexcept {
  return n < 4 * kThinColumns ? kNarrowColumns : n < 64 * kWideColumns ? kThinColumns : kWideColumns;
}

/// Columns [first, first + count) of row i, at most kWideColumns: sums and the bias, over what C has or added to it.
inline void store_columns(const GemmProblem& p, const KernelTable& table, Index i, Index first, Index count, float* sums) noexcept {
  if (p.bias != nullptr) table.add(count, p.bias + first, sums);
  void* const c = element(p.c, i * p.c_stride + first, p.c_type);
  if (p.accumulate) {
    float before[kWideColumns];
    table.widen(count, c, p.c_type, before);
    table.add(count, before, sums);
  }
  table.narrow(count, sums, p.c_type, c);
}

/// The low-rank terms of a product of a few rows, their scales in them, as kernels take them.
struct ThinTerms {
  static_assert(sizeof(ThinColumns) % sizeof(float) == 0 && alignof(ThinColumns) <= kAlignment);

  /// Of memory, which is aligned to kAlignment.
  static Index floats(const GemmProblem& p) noexcept {
    return p.low_rank_count * static_cast<Index>(sizeof(ThinColumns) / sizeof(float)) + p.m * total_rank(p);
  }
  static const ThinColumns* make(const GemmProblem& p, float* memory) noexcept {
    ThinColumns* const terms = reinterpret_cast<ThinColumns*>(memory);
    float* s = memory + floats(p) - p.m * total_rank(p);
    for (Index t = 0; t < p.low_rank_count; ++t) {
      const LowRankColumns& term = p.low_rank[t];
      new (terms + t) ThinColumns{s, term.rank, term.l, term.l_stride, term.rank};
      for (Index i = 0; i < p.m; ++i, s += term.rank) {
        for (Index q = 0; q < term.rank; ++q) s[q] = term.scale * term.s[i * term.s_stride + q];
      }
    }
    return terms;
  }
};

/// A product with its rows in float and its terms with their scales in them.
struct ThinJob {
  const GemmProblem& p;
  const KernelTable& table;
  const float* x;
  Index x_stride;
  const ThinColumns* terms;

  /// Columns [first, last), at most kWideColumns.
  void operator()(Index first, Index last) const noexcept {
    const Operand& w = p.b.dense;
    float y[kThinRows * kWideColumns];
    ThinCall call;
    call.n = last - first;
    call.k = p.k;
    call.x_stride = x_stride;
    call.w = element(w.data, first * w.stride, w.type);
    call.w_stride = w.stride;
    call.w_type = w.type;
    call.terms = terms;
    call.term_count = p.low_rank_count;
    call.column = first;
    call.stream = true;
    call.y_stride = kWideColumns;
    for (Index i = 0; i < p.m; i += 4) {
      call.m = smaller(4, p.m - i);
      call.row = i;
      call.x = x + i * x_stride;
      call.y = y + i * kWideColumns;
      table.thin(call);
    }
    for (Index i = 0; i < p.m; ++i) store_columns(p, table, i, first, call.n, y + i * kWideColumns);
  }
};

/// Runs `p`, which is_thin(). Same bits for any number of threads.
inline void thin_gemm(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  const bool direct = p.a.type == DType::kF32;
  float* const memory = scratch(ScratchSlot::kThin, ThinTerms::floats(p) + (direct ? 0 : p.m * p.k));
  const ThinColumns* const terms = ThinTerms::make(p, memory);
  float* const widened = memory + ThinTerms::floats(p);
  for (Index i = 0; i < p.m && !direct; ++i) {
    table.widen(p.k, element(p.a.data, i * p.a.stride, p.a.type), p.a.type, widened + i * p.k);
  }
  const float* const x = direct ? static_cast<const float*>(p.a.data) : widened;
  parallel_for_ranges(executor, p.n, thin_grain(p.n), ThinJob{p, table, x, direct ? p.a.stride : p.k, terms});
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
