#pragma once
/// The gradient of A: dA += dSᵀ·x̃;   dS [m,r] (lora_backward), x [m,in], dA [r,in] float; x̃ = mask∘x·mask_scale
/// Computed as (x̃ᵀ·dS)ᵀ, [in, r], which is thin in r as lora_shrink is, with the same mask in shared memory; k = m is cut
/// into parts whose sums are added in a fixed order.

#include "peft/cuda/kernels/lora_shrink.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct LoraFactorGradArgs {
  const T* ds;
  Index ldds;
  const T* x;
  Index ldx;
  const std::uint8_t* mask;  ///< bits as core/rng.hpp's dropout_mask_row; null: no dropout
  Index mask_stride;         ///< bytes
  float mask_scale;
  float* da;  ///< [r, in], added to
  Index ldda;
  Index m, in, r;
  float* workspace = nullptr;  ///< lora_factor_grad_workspace bytes, 16-byte aligned; null: m is not cut, which is slower
  int sm = 0;                  ///< compute capability; 0: the current device's
};

template <class T>
struct LoraFactorGradTask {
  TileSegment<T> all;
  int steps_a_part;
  TileMask mask;
  float scale;
  float* da;
  Index ldda;
  float* parts;  ///< [parts, r, in], unscaled; null: straight to da
  int in, r;
};

/// Grid: columns (r), rows (in), parts of m. Eight lanes hold eight neighbours of a row of dA: whole sectors are
/// written. Budgets: slim and middle 128 threads, 120 registers, 64 KiB of shared memory (sm_75: 32).
/// Roofline: bound by memory: x is read once (once a block of 64 columns where r > 64), dS once a block of 64 columns of x.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kResident) void lora_factor_grad_kernel(LoraFactorGradTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAcrossK, Order::kAcrossK>;
    const int row0 = block_y() * Shape::kBlockM;
    const int column0 = block_x() * Shape::kBlockN;
    const TileSegment<T> part = part_of(task.all, block_z(), task.steps_a_part);
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, true, false>(tile, no_steps_of(task.all), part, row0, column0, task.mask, NothingBetween{});
    const int warp_row = row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    float* parts = task.parts == nullptr ? nullptr : task.parts + static_cast<Index>(block_z()) * task.r * task.in;
    tile.for_each([&](int row, int column, float& sum) {
      const int i = warp_row + row;
      const int q = warp_column + column;
      if (i >= task.in || q >= task.r) return;
      if (parts != nullptr) {
        store(parts + static_cast<Index>(q) * task.in + i, sum);
      } else {
        float* at = task.da + static_cast<Index>(q) * task.ldda + i;
        store(at, fma(task.scale, sum, load(at)));
      }
    });
  } else {
    end_with_error();
  }
}

namespace detail {

template <class T>
inline int lora_factor_grad_parts(Index m, Index in, Index r) {
  return split_parts(static_cast<Index>(blocks_of(in, 64)) * blocks_of(r, thin_columns(r)), blocks_of(m, kPanel<T>));
}

template <class T, class Shape, bool kOld>
inline cudaError_t launch_lora_factor_grad(const LoraFactorGradTask<T>& task, int parts, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAcrossK, Order::kAcrossK>;
  const Grid grid{blocks_of(task.r, Shape::kBlockN), blocks_of(task.in, Shape::kBlockM), parts};
  if (grid.y > kMostBlocksY) return cudaErrorInvalidValue;
  return launch<lora_factor_grad_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}
template <class T, bool kOld>
inline cudaError_t launch_lora_factor_grad(const LoraFactorGradTask<T>& task, int parts, cudaStream_t stream) {
  return thin_columns(task.r) == 16 ? launch_lora_factor_grad<T, SlimTile, kOld>(task, parts, stream)
                                    : launch_lora_factor_grad<T, MiddleTile, kOld>(task, parts, stream);
}

}  // namespace detail

/// Bytes of workspace for lora_factor_grad.
template <class T>
inline Index lora_factor_grad_workspace(Index m, Index in, Index r) {
  const int parts = detail::lora_factor_grad_parts<T>(m, in, r);
  return parts == 1 ? 0 : parts * r * in * static_cast<Index>(sizeof(float));
}

template <class T>
inline cudaError_t lora_factor_grad(const LoraFactorGradArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.in) || !is_size(args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.in == 0 || args.r == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const int steps = blocks_of(args.m, kPanel<T>);
  const int wanted = args.workspace == nullptr ? 1 : detail::lora_factor_grad_parts<T>(args.m, args.in, args.r);
  const TileCut cut = cut_steps(steps, wanted);
  const float scale = args.mask == nullptr ? 1.0f : args.mask_scale;
  const LoraFactorGradTask<T> task{
      {tile_source(args.x, args.ldx, args.m, args.in), tile_source(args.ds, args.ldds, args.m, args.r), 0, steps},
      cut.steps_a_part,
      tile_mask(args.mask, args.mask_stride),
      scale,
      args.da,
      args.ldda,
      cut.parts > 1 ? args.workspace : nullptr,
      static_cast<int>(args.in),
      static_cast<int>(args.r)};
  const cudaError_t error = sm < 80 ? detail::launch_lora_factor_grad<T, true>(task, cut.parts, stream)
                                    : detail::launch_lora_factor_grad<T, false>(task, cut.parts, stream);
  if (error != cudaSuccess || cut.parts == 1) return error;
  return tile_reduce(TileReduceArgs<float>{args.workspace, cut.parts, args.da, args.ldda, static_cast<int>(args.r),
                                           static_cast<int>(args.in), scale, true},
                     stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
