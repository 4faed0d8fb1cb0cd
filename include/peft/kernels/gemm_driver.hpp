#pragma once
/// The loops around the tile (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008):
///   for each block of rows: pack A once, [k block][panel of MR rows][k][MR], shared by all tasks;
///   tasks = slices of columns: for each block of K: pack (or decode) the slice's B panels once, [k][NR]; then every
///   panel of B, which stays in L1, meets every panel of A, which streams from L2.
/// Low-rank columns are packed as one more block of K that opens the accumulators. All cuts follow from (m, n, k) and
/// the tile alone, so the bits do not depend on the threads.

#include <algorithm>

#include "peft/core/rounded.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// A panel of B is kBlockK·NR·4 = 32 KiB at NR = 32: it fits in an L1 of 48 KiB beside the 14 KiB panel of A (on
// smaller L1s A's panel streams, which costs one load per MR·NR multiplications).
inline constexpr Index kBlockK = 256;
// Rows packed at once: bounds the packed A (1008·K floats); a multiple of every MR (14, 6, 4).
inline constexpr Index kBlockRows = 1008;
// At most so many rows are read straight from the weight's storage: below, packing costs more than it saves.
inline constexpr Index kThinRows = 8;

constexpr Index ceil_div(Index a, Index b) noexcept { return (a + b - 1) / b; }
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
  if (nc < nr) std::fill_n(panel, kc * nr, 0.0f);
  b.fill(b.context, n0, nc, k0, kc, panel, nr);
}

/// The products of one slice of columns with one block of rows.
struct SliceJob {
  const GemmProblem& p;
  const KernelTable& table;
  Index first_row, rows, rank, panels_per_slice;
  const float* packed_a;         ///< [k block][row panel][k][mr]
  const float* packed_low_rank;  ///< [row panel][rank][mr]

  void operator()(Index slice) const {
    const Index mr = table.tile_rows, nr = table.tile_columns;
    const Index n0 = slice * panels_per_slice * nr;
    const Index n1 = std::min(p.n, n0 + panels_per_slice * nr);
    const Index panels = ceil_div(n1 - n0, nr);
    const Index row_panels = ceil_div(rows, mr);
    const bool wide = p.c_type != DType::kF32;
    const Index width = panels * nr;
    // 16-bit results are summed in float and rounded once.
    float* sums = wide ? scratch(ScratchSlot::kRows, row_panels * mr * width) : nullptr;
    float* panel_memory = scratch(ScratchSlot::kPanel, panels * nr * (kBlockK + rank) + 64);
    float* low_rank_panels = panel_memory + panels * nr * kBlockK;
    if (wide) load_sums(n0, n1, width, sums);
    for (Index j = 0; j < panels && rank > 0; ++j) {
      pack_low_rank_columns(table, p, n0 + j * nr, std::min(nr, n1 - n0 - j * nr), low_rank_panels + j * nr * rank);
    }
    const Index k_blocks = std::max<Index>(1, ceil_div(p.k, kBlockK));
    for (Index block = 0; block < k_blocks; ++block) {
      const Index k0 = block * kBlockK;
      const Index kc = std::min(kBlockK, p.k - k0);
      for (Index j = 0; j < panels && kc > 0; ++j) {
        pack_b(table, p.b, n0 + j * nr, std::min(nr, n1 - n0 - j * nr), k0, kc, panel_memory + j * nr * kBlockK);
      }
      for (Index j = 0; j < panels; ++j) {
        for (Index i = 0; i < row_panels; ++i) {
          TileCall call;
          call.k = kc;
          call.a = packed_a + row_panels * mr * k0 + i * mr * kc;
          call.b = panel_memory + j * nr * kBlockK;
          if (block == 0) open(call, i, j, n0, low_rank_panels);
          call.load_c = block > 0 || p.accumulate;
          if (wide) {
            call.c = sums + i * mr * width + j * nr;
            call.c_stride = width;
            bias_of(call, block, n0 + j * nr, [&](const TileCall& ready) { table.tile(ready); });
          } else {
            run_float(call, block, i, n0 + j * nr);
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
    call.mask_rows = std::min(mr, rows - i * mr);
    call.mask_scale = p.low_rank_mask.scale;
  }

  /// Calls run with the bias of columns [n, n + nr) in place on the first block, padded where the matrix ends.
  template <class Run>
  void bias_of(TileCall& call, Index block, Index n, Run&& run) const {
    float padded[kMaxTileColumns];
    if (block == 0 && p.bias != nullptr) {
      const Index have = std::min(table.tile_columns, p.n - n);
      if (have == table.tile_columns) {
        call.bias = p.bias + n;
      } else {
        std::fill_n(padded, table.tile_columns, 0.0f);
        std::copy_n(p.bias + n, have, padded);
        call.bias = padded;
      }
    }
    run(call);
  }

  /// A tile of a float C: in place where it is whole, through a copy at the edges.
  void run_float(TileCall& call, Index block, Index i, Index n) const {
    const Index mr = table.tile_rows, nr = table.tile_columns;
    const Index have_rows = std::min(mr, rows - i * mr), have_columns = std::min(nr, p.n - n);
    float* c = static_cast<float*>(p.c) + (first_row + i * mr) * p.c_stride + n;
    bias_of(call, block, n, [&](TileCall& ready) {
      if (have_rows == mr && have_columns == nr) {
        ready.c = c;
        ready.c_stride = p.c_stride;
        table.tile(ready);
        return;
      }
      float edge[kMaxTileRows * kMaxTileColumns];
      std::fill_n(edge, mr * nr, 0.0f);
      for (Index r = 0; ready.load_c && r < have_rows; ++r) {
        std::copy_n(c + r * p.c_stride, have_columns, edge + r * nr);
      }
      ready.c = edge;
      ready.c_stride = nr;
      table.tile(ready);
      for (Index r = 0; r < have_rows; ++r) std::copy_n(edge + r * nr, have_columns, c + r * p.c_stride);
    });
  }
};

/// Few rows: the weight's rows are read once, straight from their storage.
inline void thin_gemm(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  float* x = scratch(ScratchSlot::kShared, p.m * p.k + 64);
  for (Index i = 0; i < p.m; ++i) {
    table.widen(p.k, element(p.a.data, i * p.a.stride, p.a.type), p.a.type, x + i * p.k);
  }
  constexpr Index kColumns = 64;
  parallel_for_ranges(executor, p.n, kColumns, [&](Index first, Index last) {
    float y[kThinRows * kColumns];
    const Operand& w = p.b.dense;
    const Index count = last - first;
    for (Index i = 0; i < p.m; i += 4) {
      table.dots(x + i * p.k, p.k, std::min<Index>(4, p.m - i), element(w.data, first * w.stride, w.type), w.stride,
                 w.type, count, p.k, y + i * kColumns, kColumns);
    }
    for (Index i = 0; i < p.m; ++i) {
      float* row = y + i * kColumns;
      for (Index t = 0; t < p.low_rank_count; ++t) {
        const LowRankColumns& term = p.low_rank[t];
        const float* s = term.s + i * term.s_stride;
        for (Index j = 0; j < count; ++j) {
          float sum = 0.0f;
          for (Index q = 0; q < term.rank; ++q) {
            sum = rounded(sum + rounded(s[q] * (term.l_transposed ? term.l[(first + j) * term.l_stride + q]
                                                                  : term.l[q * term.l_stride + first + j])));
          }
          row[j] += rounded(term.scale * sum);
        }
      }
      for (Index j = 0; j < count && p.bias != nullptr; ++j) row[j] += p.bias[first + j];
      void* c = element(p.c, i * p.c_stride + first, p.c_type);
      if (p.accumulate) {
        float before[kColumns];
        table.widen(count, c, p.c_type, before);
        table.add(count, before, row);
      }
      table.narrow(count, row, p.c_type, c);
    }
  });
}

}  // namespace detail

inline void gemm(const GemmProblem& p, ExecutorRef executor) {
  if (p.m <= 0 || p.n <= 0) return;
  const KernelTable& table = kernels::table();
  if (p.m <= detail::kThinRows && p.k > 0 && p.b.dense.data != nullptr && p.b.dense.transposed && !p.a.transposed &&
      p.low_rank_mask.bits == nullptr) {
    detail::thin_gemm(p, table, executor);
    return;
  }
  const Index mr = table.tile_rows, nr = table.tile_columns;
  const Index rank = detail::total_rank(p);
  const Index panels = detail::ceil_div(p.n, nr);
  // Enough slices to share out evenly, enough columns in each to read A's panels seldom.
  const Index per_slice = std::clamp<Index>(panels / 16, 1, 8);
  for (Index first = 0; first < p.m; first += detail::kBlockRows) {
    const Index rows = std::min(detail::kBlockRows, p.m - first);
    const Index row_panels = detail::ceil_div(rows, mr);
    float* packed_a = scratch(ScratchSlot::kShared, row_panels * mr * p.k + 64);
    float* packed_low_rank = scratch(ScratchSlot::kSharedLowRank, row_panels * mr * rank + 64);
    parallel_for(executor, row_panels, [&](Index i) {
      const Index row = first + i * mr, have = std::min(mr, first + rows - row);
      for (Index k0 = 0; k0 < p.k; k0 += detail::kBlockK) {
        const Index kc = std::min(detail::kBlockK, p.k - k0);
        float* dst = packed_a + row_panels * mr * k0 + i * mr * kc;
        const Operand& a = p.a;
        if (a.transposed) {
          table.pack_straight(detail::element(a.data, k0 * a.stride + row, a.type), a.stride, a.type, have, mr, kc, dst,
                              mr);
        } else {
          table.pack_transposed(detail::element(a.data, row * a.stride + k0, a.type), a.stride, a.type, have, mr, kc,
                                dst, mr);
        }
      }
      if (rank > 0) detail::pack_low_rank_rows(p, row, have, mr, packed_low_rank + i * mr * rank);
    });
    const detail::SliceJob job{p, table, first, rows, rank, per_slice, packed_a, packed_low_rank};
    parallel_for(executor, detail::ceil_div(panels, per_slice), job);
  }
}

}  // namespace kernels
PEFT_END_NAMESPACE
