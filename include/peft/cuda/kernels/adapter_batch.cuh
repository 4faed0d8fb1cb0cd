#pragma once
/// A batch whose rows belong to different adapters of one layer: for each adapter, with the rows i of its segment,
///   S[i] = x[rows[i]]·Aᵀ;   y[rows[i]] += scale·S[i]·Bᵀ
/// `rows` lists the batch's rows sorted by adapter, a segment is one adapter's stretch of it; ranks may differ. Rows
/// without an adapter are in no segment and cost nothing. Pointers, ranks and scales are in a table in device memory, so
/// that one launch serves all adapters and a captured graph can be run with others.
/// What an adapter's row gets does not depend, in any bit, on what else is in the batch.

#include "peft/cuda/kernels/tile_product.cuh"
#include "peft/cuda/kernels/tile_reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// One adapter's rows.
template <class T>
struct AdapterSegment {
  const T* a;  ///< [rank, in]
  Index lda;
  const T* b;  ///< [out, rank]
  Index ldb;
  float scale;
  std::int32_t rank;       ///< at most most_rank
  std::int32_t first_row;  ///< in `rows` and S
  std::int32_t count;      ///< at most most_rows
};

template <class T>
struct AdapterBatchArgs {
  const AdapterSegment<T>* segments;  ///< on the device
  Index segment_count;
  const std::int32_t* rows;  ///< [row_count], on the device
  Index row_count;           ///< of all segments together
  Index most_rows;           ///< of one segment
  Index most_rank;
  T* s;  ///< [row_count, most_rank]; columns past an adapter's rank become 0
  Index lds;
  float* workspace = nullptr;  ///< adapter_batch_workspace bytes for shrink, 16-byte aligned; null: k is not cut, which is slower
  int sm = 0;                  ///< compute capability; 0: the current device's
};
template <class T>
struct AdapterShrinkArgs {
  const T* x;  ///< [*, in]
  Index ldx;
  Index in;
  AdapterBatchArgs<T> batch;
};
template <class T>
struct AdapterExpandArgs {
  T* y;  ///< [*, out], added to
  Index ldy;
  Index out;
  AdapterBatchArgs<T> batch;
};

template <class T>
struct AdapterTask {
  const AdapterSegment<T>* segments;
  const std::int32_t* rows;
  const T* x;  ///< shrink
  Index ldx;
  T* s;
  Index lds;
  T* y;  ///< expand
  Index ldy;
  int width;                ///< in (shrink), out (expand)
  int row_count, most_rank;
  int steps, steps_a_part;  ///< of k, shrink
  float* parts;             ///< [parts, row_count, most_rank]; null: straight to s
  bool store_aligned;
};

/// Grid: columns of S and parts of k, rows of a segment, segments. Budgets: thin 128 threads, 104 registers, 60 KiB of
/// shared memory (sm_75: 20); middle 128 threads, 128 registers, 64 KiB (32).
/// Roofline: bound by memory: each adapter's A (expand: B) is read once for 16 (64) of its rows.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kResident) void adapter_shrink_kernel(AdapterTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
    const AdapterSegment<T>* segment = task.segments + block_z();
    const int count = load_const(&segment->count);
    const int row0 = block_y() * Shape::kBlockM;
    if (row0 >= count) return;
    const int first_row = load_const(&segment->first_row);
    const int rank = load_const(&segment->rank);
    const int column_blocks = ceil_div(task.most_rank, Shape::kBlockN);
    const int column0 = block_x() % column_blocks * Shape::kBlockN;
    const int part = block_x() / column_blocks;

    TileSegment<T> low;
    low.a = {task.x, task.ldx, task.rows + first_row, count, task.width, is_aligned(task.x, task.ldx, Index{task.width})};
    low.b = tile_source(load_const(&segment->a), load_const(&segment->lda), Index{rank}, Index{task.width});
    low.first = part * task.steps_a_part;
    low.tiles = column0 < rank ? min(task.steps_a_part, task.steps - low.first) : 0;
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, false, true>(tile, no_steps_of(low), low, row0, column0, TileMask{}, NothingBetween{});

    const int warp_row = first_row + row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    const int last_row = first_row + count;
    if (task.parts != nullptr) {
      float* sums = task.parts + static_cast<Index>(part) * task.row_count * task.most_rank;
      tile.for_each_run4([&](int row, int column, const auto& run) {
        store_run(sums, static_cast<Index>(task.most_rank), last_row, task.most_rank, task.most_rank % 4 == 0,
                  warp_row + row, warp_column + column, run);
      });
    } else {
      tile.for_each_run4([&](int row, int column, const auto& run) {
        store_run(task.s, task.lds, last_row, task.most_rank, task.store_aligned, warp_row + row, warp_column + column, run);
      });
    }
  } else {
    end_with_error();
  }
}

/// Grid: columns of y, rows of a segment, segments. Budgets as adapter_shrink_kernel's.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kResident) void adapter_expand_kernel(AdapterTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
    const AdapterSegment<T>* segment = task.segments + block_z();
    const int count = load_const(&segment->count);
    const int row0 = block_y() * Shape::kBlockM;
    if (row0 >= count) return;
    const int first_row = load_const(&segment->first_row);
    const int rank = load_const(&segment->rank);
    const float scale = load_const(&segment->scale);
    const int column0 = block_x() * Shape::kBlockN;

    TileSegment<T> low;
    low.a = tile_source<T>(task.s + static_cast<Index>(first_row) * task.lds, task.lds, Index{count}, Index{rank});
    low.b = tile_source(load_const(&segment->b), load_const(&segment->ldb), Index{task.width}, Index{rank});
    low.first = 0;
    low.tiles = ceil_div(rank, kPanel<T>);
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, false, false>(tile, no_steps_of(low), low, row0, column0, TileMask{}, NothingBetween{});

    const int warp_row = row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    constexpr int kRun = 4;
    tile.for_each_run4([&](int row, int column, auto run) {
      const int i = warp_row + row;
      const int at = warp_column + column;
      if (i >= count || at >= task.width) return;
      T* y = task.y + static_cast<Index>(load_const(task.rows + first_row + i)) * task.ldy;
      if (task.store_aligned && at + kRun <= task.width) {
        const Vec<T, kRun> before = load(reinterpret_cast<const Vec<T, kRun>*>(y + at));
        PEFT_UNROLL
        for (int e = 0; e < kRun; ++e) run[e] = fma(scale, run[e], to_float(before.v[e]));
      } else {
        PEFT_UNROLL
        for (int e = 0; e < kRun; ++e) {
          if (at + e < task.width) run[e] = fma(scale, run[e], to_float(load(y + at + e)));
        }
      }
      store_run(y, Index{0}, 1, task.width, task.store_aligned, 0, at, run);
    });
  } else {
    end_with_error();
  }
}

namespace detail {

/// Parts of k depend on k alone: not on the batch.
template <class T>
inline int adapter_shrink_parts(Index in) {
  const int parts = blocks_of(in, kPanel<T>) / 8;
  return parts < 1 ? 1 : parts > 8 ? 8 : parts;
}

template <class T, class Shape, bool kOld>
inline cudaError_t launch_adapter_shrink(const AdapterTask<T>& task, Grid grid, int parts, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
  grid.x = blocks_of(task.most_rank, Shape::kBlockN) * parts;
  grid.y = blocks_of(grid.y, Shape::kBlockM);
  return launch<adapter_shrink_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}
template <class T, class Shape, bool kOld>
inline cudaError_t launch_adapter_expand(const AdapterTask<T>& task, Grid grid, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
  grid.x = blocks_of(task.width, Shape::kBlockN);
  grid.y = blocks_of(grid.y, Shape::kBlockM);
  return launch<adapter_expand_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}

template <class T>
inline bool is_adapter_batch(const AdapterBatchArgs<T>& batch, Index width) {
  return is_size(width) && is_size(batch.row_count) && is_size(batch.most_rank) && is_size(batch.most_rows) &&
         batch.segment_count >= 0 && batch.segment_count <= kMostBlocksY && batch.most_rows <= batch.row_count;
}

/// Rows of a segment up to which the thin tile is taken.
inline constexpr Index kThinRows = 32;

}  // namespace detail

/// Bytes of workspace for adapter_batch_shrink.
template <class T>
inline Index adapter_batch_workspace(Index row_count, Index in, Index most_rank) {
  const int parts = detail::adapter_shrink_parts<T>(in);
  return parts == 1 ? 0 : parts * row_count * most_rank * static_cast<Index>(sizeof(float));
}

/// S[i] = x[rows[i]]·Aᵀ for the rows of every segment.
template <class T>
inline cudaError_t adapter_batch_shrink(const AdapterShrinkArgs<T>& args, cudaStream_t stream) {
  const AdapterBatchArgs<T>& batch = args.batch;
  if (!detail::is_adapter_batch(batch, args.in)) return cudaErrorInvalidValue;
  if (batch.segment_count == 0 || batch.most_rows == 0 || batch.most_rank == 0) return cudaSuccess;
  const int sm = device_architecture(batch.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const int steps = blocks_of(args.in, kPanel<T>);
  const int wanted = batch.workspace == nullptr ? 1 : detail::adapter_shrink_parts<T>(args.in);
  const auto [steps_a_part, parts] = cut_steps(steps, wanted);
  AdapterTask<T> task{};
  task.segments = batch.segments;
  task.rows = batch.rows;
  task.x = args.x;
  task.ldx = args.ldx;
  task.s = batch.s;
  task.lds = batch.lds;
  task.width = static_cast<int>(args.in);
  task.row_count = static_cast<int>(batch.row_count);
  task.most_rank = static_cast<int>(batch.most_rank);
  task.steps = steps;
  task.steps_a_part = steps_a_part;
  task.parts = parts > 1 ? batch.workspace : nullptr;
  task.store_aligned = is_store_aligned(batch.s, batch.lds);
  const Grid grid{1, static_cast<int>(batch.most_rows), static_cast<int>(batch.segment_count)};
  const bool is_thin = batch.most_rows <= detail::kThinRows;
  const cudaError_t error = is_thin ? (sm < 80 ? detail::launch_adapter_shrink<T, ThinTile, true>(task, grid, parts, stream)
                                               : detail::launch_adapter_shrink<T, ThinTile, false>(task, grid, parts, stream))
                                    : (sm < 80 ? detail::launch_adapter_shrink<T, MiddleTile, true>(task, grid, parts, stream)
                                               : detail::launch_adapter_shrink<T, MiddleTile, false>(task, grid, parts, stream));
  if (error != cudaSuccess || parts == 1) return error;
  return tile_reduce(
      TileReduceArgs<T>{batch.workspace, parts, batch.s, batch.lds, task.row_count, task.most_rank, 1.0f, false}, stream);
}

/// y[rows[i]] += scale·S[i]·Bᵀ for the rows of every segment.
template <class T>
inline cudaError_t adapter_batch_expand(const AdapterExpandArgs<T>& args, cudaStream_t stream) {
  const AdapterBatchArgs<T>& batch = args.batch;
  if (!detail::is_adapter_batch(batch, args.out)) return cudaErrorInvalidValue;
  if (batch.segment_count == 0 || batch.most_rows == 0 || batch.most_rank == 0 || args.out == 0) return cudaSuccess;
  const int sm = device_architecture(batch.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  AdapterTask<T> task{};
  task.segments = batch.segments;
  task.rows = batch.rows;
  task.s = batch.s;
  task.lds = batch.lds;
  task.y = args.y;
  task.ldy = args.ldy;
  task.width = static_cast<int>(args.out);
  task.row_count = static_cast<int>(batch.row_count);
  task.most_rank = static_cast<int>(batch.most_rank);
  task.store_aligned = is_store_aligned(args.y, args.ldy);
  const Grid grid{1, static_cast<int>(batch.most_rows), static_cast<int>(batch.segment_count)};
  const bool is_thin = batch.most_rows <= detail::kThinRows;
  return is_thin ? (sm < 80 ? detail::launch_adapter_expand<T, ThinTile, true>(task, grid, stream)
                            : detail::launch_adapter_expand<T, ThinTile, false>(task, grid, stream))
                 : (sm < 80 ? detail::launch_adapter_expand<T, MiddleTile, true>(task, grid, stream)
                            : detail::launch_adapter_expand<T, MiddleTile, false>(task, grid, stream));
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
