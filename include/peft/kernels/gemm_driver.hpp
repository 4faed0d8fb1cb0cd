#pragma once
/// The loops around the tile (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008):
///   for each stretch of K, tasks = (block of rows, slice of columns), the block outermost:
///     pack A's block, [k block][panel of MR rows][k][MR], which stays in L2: once per thread, not once for all, since
///     what one processor writes and another reads costs more than packing twice;
///     for each block of K, each panel of the slice: pack (or decode) B's panel, [k][NR], which stays in L1 and meets
///     every panel of A.
/// Low-rank columns are packed as one more block of K that opens the accumulators. All cuts follow from (m, n, k) and
/// the tile alone, so the bits do not depend on the threads.

#include <atomic>
#include <cstdint>

#include "peft/core/rounded.hpp"
#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/int8_four_bit.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"
#include "peft/kernels/thin_blocks.hpp"
#include "peft/kernels/thin_four_bit.hpp"
#include "peft/kernels/thin_gemm.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// A panel of B is kBlockK·NR·4 = 32 KiB at NR = 32: it fits in an L1 of 48 KiB beside the 14 KiB panel of A (on
// smaller L1s A's panel streams, which costs one load per MR·NR multiplications).
inline constexpr Index kBlockK = 256;
// Rows of a block, about: enough of them to pay for packing B's panels once per block, few enough that the threads of a
// small machine get blocks of their own.
inline constexpr Index kBlockRows = 256;
// Floats of A packed at once, about: 640 KiB of an L2 of at least 1 MiB.
inline constexpr Index kPackedFloats = 160 * 1024;

/// Packs rows [row, row + rows) of S, scaled: dst[q*mr + i].
inline void pack_low_rank_rows(const GemmProblem& p, Index row, Index rows, Index mr, float* dst) noexcept {
  for (Index t = 0; t < p.low_rank_count; ++t) {
    const LowRankColumns& term = p.low_rank[t];
    for (Index q = 0; q < term.rank; ++q, dst += mr) {
      for (Index i = 0; i < mr; ++i) dst[i] = i < rows ? term.scale * term.s[(row + i) * term.s_stride + q] : 0.0f;
    }
  }
}

/// Packs columns [n0, n0 + nc) of L: dst[q*nr + j].
inline void pack_low_rank_columns(const KernelTable& t, const GemmProblem& p, Index n0, Index nc, float* dst) noexcept {
  const Index nr = t.tile_columns;
  for (Index i = 0; i < p.low_rank_count; ++i) {
    const LowRankColumns& term = p.low_rank[i];
    if (term.l_transposed) {
      t.pack_transposed(term.l + n0 * term.l_stride, term.l_stride, DType::kF32, nc, nr, term.rank, dst, nr);
    } else {
      t.pack_straight(term.l + n0, term.l_stride, DType::kF32, nc, nr, term.rank, dst, nr);
    }
    dst += term.rank * nr;
  }
}

/// Packs B[k0, k0+kc) × [n0, n0+nc) as one panel.
inline void pack_b(const KernelTable& t, const PanelFill& b, Index n0, Index nc, Index k0, Index kc, float* panel) {
  const Index nr = t.tile_columns;
  const Operand& dense = b.dense;
  if (dense.data != nullptr) {
    if (dense.transposed) {
      t.pack_transposed(element(dense.data, n0 * dense.stride + k0, dense.type), dense.stride, dense.type, nc, nr, kc,
                        panel, nr);
    } else {
      t.pack_straight(element(dense.data, k0 * dense.stride + n0, dense.type), dense.stride, dense.type, nc, nr, kc,
                      panel, nr);
    }
    return;
  }
  if (nc < nr) fill_floats(panel, kc * nr, 0.0f);
  b.fill(b.context, n0, nc, k0, kc, panel, nr);
}

/// Depth of the blocks of K, a multiple of 16: as even as they come.
inline Index block_depth(Index k) noexcept {
  const Index blocks = larger(1, ceil_div(k, kBlockK));
  return clamped(ceil_div(ceil_div(k, blocks), 16) * 16, 16, kBlockK);
}

/// Which block of rows stands packed in a thread's scratch.
struct PackedBlock {
  std::uint64_t job = 0;
  Index block = -1;
};

/// One stretch of K of a product; a task is one slice of columns of one block of rows.
struct GemmJob {
  const GemmProblem& p;
  const KernelTable& table;
  Index rank, block_rows, slices, panels_per_slice;
  Index k_first, k_last, depth;  ///< the stretch, a number of blocks (the last may be short)
  std::uint64_t id;              ///< no other job in this process has it

  void operator()(Index task) const;
  void pack_rows(Index first_row, Index rows, float* packed_a, float* packed_low_rank) const {
    const Index mr = table.tile_rows;
    const Index row_panels = ceil_div(rows, mr);
    const Operand& a = p.a;
    for (Index i = 0; i < row_panels; ++i) {
      const Index row = first_row + i * mr, have = smaller(mr, rows - i * mr);
      for (Index k0 = k_first; k0 < k_last; k0 += depth) {
        const Index kc = smaller(depth, k_last - k0);
        float* dst = packed_a + row_panels * mr * (k0 - k_first) + i * mr * kc;
        if (a.transposed) {
          table.pack_straight(element(a.data, k0 * a.stride + row, a.type), a.stride, a.type, have, mr, kc, dst, mr);
        } else {
          table.pack_transposed(element(a.data, row * a.stride + k0, a.type), a.stride, a.type, have, mr, kc, dst, mr);
        }
      }
      if (rank > 0 && k_first == 0) pack_low_rank_rows(p, row, have, mr, packed_low_rank + i * mr * rank);
    }
  }

  struct RowBlock;
};

/// A packed block of rows.
struct GemmJob::RowBlock {
  const GemmJob& job;
  Index first_row, rows;
  const float* packed_a;         ///< [k block][row panel][k][mr]
  const float* packed_low_rank;  ///< [row panel][rank][mr]
  const GemmProblem& p = job.p;
  const KernelTable& table = job.table;
  Index rank = job.rank, k_first = job.k_first, k_last = job.k_last, depth = job.depth;

  void multiply(Index slice) const {
    const Index mr = table.tile_rows, nr = table.tile_columns;
    const Index n0 = slice * job.panels_per_slice * nr;
    const Index n1 = smaller(p.n, n0 + job.panels_per_slice * nr);
    const Index panels = ceil_div(n1 - n0, nr);
    const Index row_panels = ceil_div(rows, mr);
    const bool wide = p.c_type != DType::kF32;
    const Index width = panels * nr;
    // 16-bit results are summed in float and rounded once.
    float* sums = wide ? scratch(ScratchSlot::kRows, row_panels * mr * width) : nullptr;
    const Index opening_rank = k_first == 0 ? rank : 0;
    float* panel = scratch(ScratchSlot::kPanel, nr * (kBlockK + panels * opening_rank) + 64);
    float* low_rank_panels = panel + nr * kBlockK;
    if (wide) load_sums(n0, n1, width, sums);
    for (Index j = 0; j < panels && opening_rank > 0; ++j) {
      pack_low_rank_columns(table, p, n0 + j * nr, smaller(nr, n1 - n0 - j * nr), low_rank_panels + j * nr * rank);
    }
    const Index blocks = larger(1, ceil_div(k_last - k_first, depth));
    for (Index block = 0; block < blocks; ++block) {
      const Index k0 = k_first + block * depth;
      const Index kc = smaller(depth, k_last - k0);
      const bool opening = k0 == 0;
      for (Index j = 0; j < panels; ++j) {
        if (kc > 0) pack_b(table, p.b, n0 + j * nr, smaller(nr, n1 - n0 - j * nr), k0, kc, panel);
        for (Index i = 0; i < row_panels; ++i) {
          TileCall call;
          call.rows = smaller(mr, rows - i * mr);
          call.k = kc;
          call.a = packed_a + row_panels * mr * (k0 - k_first) + i * mr * kc;
          call.b = panel;
          if (opening) open(call, i, j, n0, low_rank_panels);
          call.load_c = !opening || p.accumulate;
          if (wide) {
            call.c = sums + i * mr * width + j * nr;
            call.c_stride = width;
            bias_of(call, opening, n0 + j * nr, [&](const TileCall& ready) { table.tile(ready); });
          } else {
            run_float(call, opening, i, n0 + j * nr);
          }
        }
      }
    }
    if (wide) {
      for (Index i = 0; i < rows; ++i) {
        table.narrow(n1 - n0, sums + i * width, p.c_type, element(p.c, (first_row + i) * p.c_stride + n0, p.c_type));
      }
    }
  }

 private:
  void load_sums(Index n0, Index n1, Index width, float* sums) const {
    if (!p.accumulate) return;
    for (Index i = 0; i < rows; ++i) {
      table.widen(n1 - n0, element(p.c, (first_row + i) * p.c_stride + n0, p.c_type), p.c_type, sums + i * width);
    }
  }

  /// The low-rank columns and their mask, which open the accumulators.
  void open(TileCall& call, Index i, Index j, Index n0, const float* low_rank_panels) const {
    const Index mr = table.tile_rows, nr = table.tile_columns;
    if (rank == 0) return;
    call.low_rank_k = rank;
    call.low_rank_a = packed_low_rank + i * mr * rank;
    call.low_rank_b = low_rank_panels + j * nr * rank;
    if (p.low_rank_mask.bits == nullptr) return;
    call.mask = p.low_rank_mask.bits + (first_row + i * mr) * p.low_rank_mask.stride_bytes;
    call.mask_stride = p.low_rank_mask.stride_bytes;
    call.mask_column = n0 + j * nr;
    call.mask_columns = p.n;
    call.mask_rows = smaller(mr, rows - i * mr);
    call.mask_scale = p.low_rank_mask.scale;
  }

  /// Calls run with the bias of columns [n, n + nr) in place on the first block, padded where the matrix ends.
  template <class Run>
  void bias_of(TileCall& call, bool opening, Index n, Run&& run) const {
    float padded[kMaxTileColumns];
    if (opening && p.bias != nullptr) {
      const Index have = smaller(table.tile_columns, p.n - n);
      if (have == table.tile_columns) {
        call.bias = p.bias + n;
      } else {
        fill_floats(padded, table.tile_columns, 0.0f);
        copy_floats(p.bias + n, have, padded);
        call.bias = padded;
      }
    }
    run(call);
  }

  /// A tile of a float C: in place where it is whole, through a copy at the edges.
  void run_float(TileCall& call, bool opening, Index i, Index n) const {
    const Index mr = table.tile_rows, nr = table.tile_columns;
    const Index have_rows = smaller(mr, rows - i * mr), have_columns = smaller(nr, p.n - n);
    float* c = static_cast<float*>(p.c) + (first_row + i * mr) * p.c_stride + n;
    bias_of(call, opening, n, [&](TileCall& ready) {
      if (have_rows == mr && have_columns == nr) {
        ready.c = c;
        ready.c_stride = p.c_stride;
        table.tile(ready);
        return;
      }
      float edge[kMaxTileRows * kMaxTileColumns];
      fill_floats(edge, mr * nr, 0.0f);
      for (Index r = 0; ready.load_c && r < have_rows; ++r) {
        copy_floats(c + r * p.c_stride, have_columns, edge + r * nr);
      }
      ready.c = edge;
      ready.c_stride = nr;
      table.tile(ready);
      for (Index r = 0; r < have_rows; ++r) copy_floats(edge + r * nr, have_columns, c + r * p.c_stride);
    });
  }
};

inline void GemmJob::operator()(Index task) const {
  const Index block = task / slices, first_row = block * block_rows;
  const Index rows = smaller(block_rows, p.m - first_row);
  const Index packed_rows = ceil_div(rows, table.tile_rows) * table.tile_rows;
  float* packed_a = scratch(ScratchSlot::kPackedRows, packed_rows * (k_last - k_first) + 64);
  float* packed_low_rank = scratch(ScratchSlot::kPackedLowRank, packed_rows * rank + 64);
  static thread_local PackedBlock packed;
  if (packed.job != id || packed.block != block) {
    pack_rows(first_row, rows, packed_a, packed_low_rank);
    packed = {id, block};
  }
  RowBlock{*this, first_row, rows, packed_a, packed_low_rank}.multiply(task % slices);
}

}  // namespace detail

inline void gemm(const GemmProblem& p, ExecutorRef executor) {
  if (p.m <= 0 || p.n <= 0) return;
  const KernelTable& table = kernels::table();
  if (detail::is_thin(p)) {
    detail::thin_gemm(p, table, executor);
    return;
  }
  if (detail::takes_int8(p)) {
    gemm(detail::int8_four_bit(p, table, executor), executor);
    return;
  }
  if (detail::is_thin_four_bit(p)) {
    detail::thin_four_bit(p, table, executor);
    return;
  }
  if (detail::is_thin_blocks(p)) {
    detail::thin_blocks(p, table, executor);
    return;
  }
  const Index mr = table.tile_rows, nr = table.tile_columns;
  const Index rank = detail::total_rank(p);
  const Index panels = detail::ceil_div(p.n, nr);
  // Enough slices to share out evenly, few enough calls.
  const Index per_slice = detail::clamped(panels / 16, 1, 8);
  const Index row_blocks = detail::larger(1, (p.m + detail::kBlockRows / 2) / detail::kBlockRows);
  const Index block_rows = detail::ceil_div(detail::ceil_div(p.m, row_blocks), mr) * mr;
  const Index slices = detail::ceil_div(panels, per_slice);
  const Index depth = detail::block_depth(p.k);
  // 16-bit results are rounded once: their sums may not leave a task, so all of K is one stretch.
  const bool whole = p.c_type != DType::kF32;
  const Index stretch = whole ? p.k : detail::larger(1, detail::kPackedFloats / (block_rows * depth)) * depth;
  static std::atomic<std::uint64_t> jobs{0};
  Index k_first = 0;
  do {
    const Index k_last = detail::smaller(p.k, k_first + stretch);
    const detail::GemmJob job{p,       table,  rank,  block_rows, slices, per_slice,
                              k_first, k_last, depth, 1 + jobs.fetch_add(1, std::memory_order_relaxed)};
    parallel_for(executor, detail::ceil_div(p.m, block_rows) * slices, job);
    k_first = k_last;
  } while (k_first < p.k);
}

}  // namespace kernels
PEFT_END_NAMESPACE
