#pragma once
/// The narrow product of a low-rank update: S = x̃·Aᵀ;   x [m,in], A [r,in], S [m,r]; x̃ = mask∘x·mask_scale
/// Thin in r: a block has 64 rows and 16 (or 64) columns, and where that makes few blocks, k is cut into parts whose sums
/// are added in a fixed order. The mask is applied to x in shared memory, by the thread that copied it.

#include "peft/cuda/kernels/tile_product.cuh"
#include "peft/cuda/kernels/tile_reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct LoraShrinkArgs {
  const T* x;
  Index ldx;
  const T* a;
  Index lda;
  T* s;
  Index lds;
  Index m, in, r;
  const std::uint8_t* mask;  ///< bits as core/rng.hpp's dropout_mask_row; null: no dropout
  Index mask_stride;         ///< bytes
  float mask_scale;          ///< 1/(1-p); looked at only with a mask
  float* workspace = nullptr;  ///< lora_shrink_workspace bytes, 16-byte aligned; null: k is not cut, which is slower for few rows
  int sm = 0;                  ///< compute capability; 0: the current device's
};

template <class T>
struct LoraShrinkTask {
  TileSegment<T> all;  ///< all steps of k
  int steps_a_part;
  TileMask mask;
  float scale;
  T* s;
  Index lds;
  float* parts;  ///< [parts, m, r], unscaled; null: straight to s
  int m, r;
  bool store_aligned;
};

/// Grid: columns, rows, parts of k. Budgets: slim 128 threads, 104 registers, 40 KiB of shared memory (sm_75:
/// 20); middle 128 threads, 112 registers, 64 KiB (32).
/// Roofline: bound by memory: x is read once (once a block of 64 columns where r > 64), A once a block of 64 rows, from L2.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kResident) void lora_shrink_kernel(LoraShrinkTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
    const int row0 = block_y() * Shape::kBlockM;
    const int column0 = block_x() * Shape::kBlockN;
    const TileSegment<T> part = part_of(task.all, block_z(), task.steps_a_part);
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, true, false>(tile, no_steps_of(task.all), part, row0, column0, task.mask, NothingBetween{});
    const int warp_row = row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    if (task.parts != nullptr) {
      float* sums = task.parts + static_cast<Index>(block_z()) * task.m * task.r;
      tile.for_each_run4([&](int row, int column, const auto& run) {
        store_run(sums, static_cast<Index>(task.r), task.m, task.r, task.r % 4 == 0, warp_row + row,
                  warp_column + column, run);
      });
    } else {
      tile.for_each_run4([&](int row, int column, auto run) {
        PEFT_UNROLL
        for (int i = 0; i < 4; ++i) run[i] *= task.scale;
        store_run(task.s, task.lds, task.m, task.r, task.store_aligned, warp_row + row, warp_column + column, run);
      });
    }
  } else {
    end_with_error();
  }
}

namespace detail {

/// Columns of a block of a product that is thin in r.
inline int thin_columns(Index r) { return r <= 16 ? 16 : 64; }

template <class T>
inline int lora_shrink_parts(Index m, Index in, Index r) {
  return split_parts(static_cast<Index>(blocks_of(m, 64)) * blocks_of(r, thin_columns(r)), blocks_of(in, kPanel<T>));
}

template <class T, class Shape, bool kOld>
inline cudaError_t launch_lora_shrink(const LoraShrinkTask<T>& task, int parts, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
  const Grid grid{blocks_of(task.r, Shape::kBlockN), blocks_of(task.m, Shape::kBlockM), parts};
  if (grid.y > kMostBlocksY) return cudaErrorInvalidValue;
  return launch<lora_shrink_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}
template <class T, bool kOld>
inline cudaError_t launch_lora_shrink(const LoraShrinkTask<T>& task, int parts, cudaStream_t stream) {
  return thin_columns(task.r) == 16 ? launch_lora_shrink<T, SlimTile, kOld>(task, parts, stream)
                                    : launch_lora_shrink<T, MiddleTile, kOld>(task, parts, stream);
}

}  // namespace detail

/// Bytes of workspace for lora_shrink.
template <class T>
inline Index lora_shrink_workspace(Index m, Index in, Index r) {
  const int parts = detail::lora_shrink_parts<T>(m, in, r);
  return parts == 1 ? 0 : parts * m * r * static_cast<Index>(sizeof(float));
}

template <class T>
inline cudaError_t lora_shrink(const LoraShrinkArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.in) || !is_size(args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.r == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const int steps = blocks_of(args.in, kPanel<T>);
  const int wanted = args.workspace == nullptr ? 1 : detail::lora_shrink_parts<T>(args.m, args.in, args.r);
  const TileCut cut = cut_steps(steps, wanted);
  const float scale = args.mask == nullptr ? 1.0f : args.mask_scale;
  const LoraShrinkTask<T> task{
      {tile_source(args.x, args.ldx, args.m, args.in), tile_source(args.a, args.lda, args.r, args.in), 0, steps},
      cut.steps_a_part,
      tile_mask(args.mask, args.mask_stride),
      scale,
      args.s,
      args.lds,
      cut.parts > 1 ? args.workspace : nullptr,
      static_cast<int>(args.m),
      static_cast<int>(args.r),
      is_store_aligned(args.s, args.lds)};
  const cudaError_t error = sm < 80 ? detail::launch_lora_shrink<T, true>(task, cut.parts, stream)
                                    : detail::launch_lora_shrink<T, false>(task, cut.parts, stream);
  if (error != cudaSuccess || cut.parts == 1) return error;
  return tile_reduce(TileReduceArgs<T>{args.workspace, cut.parts, args.s, args.lds, static_cast<int>(args.m),
                                       static_cast<int>(args.r), scale, false},
                     stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
