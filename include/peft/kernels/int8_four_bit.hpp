#pragma once
/// Products over a weight in four bits that take their activations in 8 (int8_activations.hpp), for any number of rows.

#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/row_scales.hpp"
#include "peft/kernels/thin_packed.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// Rows of x that meet a panel of decoded weights: enough to pay for decoding it, few enough that their sums of a task's columns
// stay in L2.
inline constexpr Index kInt8Rows = 256;

/// Whether int8_four_bit() shall run `p`.
inline bool takes_int8(const GemmProblem& p) noexcept {
  bool takes = p.b.four_bit != nullptr && p.b.four_bit->int8 != nullptr && p.k > 0 && !p.a.transposed &&
               p.low_rank_mask.bits == nullptr;
  for (Index t = 0; t < p.low_rank_count; ++t) takes = takes && p.low_rank[t].l_transposed;
  return takes;
}

// At most so many rows have groups of eight neighbours as lanes: for more, decoding once pays for turning codes round.
inline constexpr Index kInt8LaneRows = 2;

/// m rows of activations, quantised.
struct Int8Rows {
  const GemmProblem& p;
  const KernelTable& table;
  Index m, run;
  bool lanes;
  Index numbers, parts;  ///< of a row: q, and scales or offsets
  unsigned char* q = nullptr;
  float* scales = nullptr;
  std::int32_t* offsets = nullptr;

  Int8Rows(const GemmProblem& problem, const KernelTable& kernels, Index rows) noexcept
      : p(problem),
        table(kernels),
        m(rows),
        run(int8_run(p.b.four_bit->block)),
        lanes(m <= kInt8LaneRows),
        numbers(lanes ? ceil_div(p.k, kInt8Group) * kInt8Group : p.k),
        parts(lanes ? numbers / 8 : p.k / run) {}

  /// Floats of memory, which place() is given.
  Index floats() const noexcept { return number_floats() + 2 * m * parts; }
  void place(float* memory) noexcept {
    q = reinterpret_cast<unsigned char*>(memory);
    scales = memory + number_floats();
    offsets = reinterpret_cast<std::int32_t*>(scales + m * parts);
  }
  /// Row `row` of p as row i of these.
  void quantize(Index row, Index i) const {
    const void* from = element(p.a.data, row * p.a.stride, p.a.type);
    if (p.a.type != DType::kF32) {
      float* const wide = scratch(ScratchSlot::kTile, p.k);
      table.widen(p.k, from, p.a.type, wide);
      from = wide;
    }
    table.quantize_int8({p.k, run, lanes, p.b.four_bit->int8->divisor, static_cast<const float*>(from),
                         q + i * numbers * table.int8_bytes, scales + i * parts, offsets + i * parts});
  }
  /// y [m, kWideColumns] = x·Wᵀ of columns [first, first + count).
  void multiply(Index first, Index count, float* y) const {
    const FourBitOperand& w = *p.b.four_bit;
    const Index runs = p.k / run, per_block = w.block / run, read_floats = ceil_div(RowScales::floats(count, runs), 16) * 16;
    const Index width = ceil_div(count, kInt8Lanes) * kInt8Lanes;
    float* const memory = scratch(ScratchSlot::kTile, read_floats + (lanes ? count * (runs + 4) : runs * width));
    float* const own = memory + read_floats;
    const RowScales read = RowScales::read(w, table, p.k, p.n, first, count, memory);
    Int8FourBitCall call{m, count, p.k, run, lanes, q, scales, offsets, w.codes + first * (p.k / 2), w.int8, own, width, y,
                         kWideColumns};
    if (!lanes) {
      fill_floats(own, runs * width, 0.0f);
      for (Index j = 0; j < count; ++j) {
        for (Index u = 0; u < runs; ++u) own[u * width + j] = read.data[j * read.stride + u / per_block];
      }
    } else if (per_block == 1) {
      call.scales = read.data, call.scale_stride = read.stride;
    } else {
      call.scale_stride = runs + 4;
      for (Index j = 0; j < count; ++j) {
        float* const out = own + j * call.scale_stride;
        for (Index u = 0; u < runs; ++u) out[u] = read.data[j * read.stride + u / per_block];
        fill_floats(out + runs, 4, 0.0f);
      }
    }
    table.four_bit_int8(call);
  }

 private:
  Index number_floats() const noexcept { return ceil_div(m * numbers * table.int8_bytes, 64) * 16; }
};

/// Rows [first_row, first_row + m) without the low-rank terms.
inline void int8_rows(const GemmProblem& p, const KernelTable& table, Index first_row, Index m, ExecutorRef executor) {
  Int8Rows rows(p, table, m);
  rows.place(scratch(ScratchSlot::kThin, rows.floats()));
  parallel_for_ranges(executor, m, 8, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) rows.quantize(first_row + i, i);
  });
  parallel_for_ranges(executor, p.n, p.n < 32 * kWideColumns ? kWideColumns / 2 : kWideColumns, [&](Index first, Index last) {
    const Index count = last - first;
    float* const y = scratch(ScratchSlot::kRows, m * kWideColumns);
    rows.multiply(first, count, y);
    for (Index i = 0; i < m; ++i) store_columns(p, table, first_row + i, first, count, y + i * kWideColumns);
  });
}

/// Runs `p`, which takes_int8(). Same bits for any number of threads. What is left to add, the low-rank terms of many rows, is
/// the result; of few rows a problem without any.
inline GemmProblem int8_four_bit(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  if (is_thin_packed(p, kThinRows)) {
    Int8Rows rows(p, table, p.m);
    float* const memory = scratch(ScratchSlot::kThin, rows.floats() + p.m * total_rank(p));
    rows.place(memory);
    for (Index i = 0; i < p.m; ++i) rows.quantize(i, i);
    float* const s = memory + rows.floats();
    scale_terms(p, s);
    thin_packed(p, table, s, executor, [&](Index first, Index count, float* y) { rows.multiply(first, count, y); });
    return {};
  }
  for (Index i = 0; i < p.m; i += kInt8Rows) int8_rows(p, table, i, smaller(kInt8Rows, p.m - i), executor);
  if (total_rank(p) == 0) return {};
  GemmProblem terms = p;
  terms.k = 0;
  terms.b = {};
  terms.bias = nullptr;
  terms.accumulate = true;
  return terms;
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
