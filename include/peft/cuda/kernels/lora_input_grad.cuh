#pragma once
/// The gradient of the input of a linear layer with a low-rank update, in one accumulator:
///   dx = dy·W + m∘(dS·A);   dy [m,out], W [out,in], dS [m,r] (lora_backward), A [r,in], dx [m,in]; m the dropout mask
///   [m,in] times 1/(1-p)
/// The r columns go first, the mask multiplies them in registers, and the k = out loop continues in the same accumulators.

#include "peft/cuda/kernels/tile_product.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct LoraInputGradArgs {
  const T* dy;
  Index lddy;
  const T* w;
  Index ldw;
  const T* ds;
  Index ldds;
  const T* a;
  Index lda;
  const std::uint8_t* mask;  ///< bits as core/rng.hpp's dropout_mask_row; null: no dropout
  Index mask_stride;         ///< bytes
  float mask_scale;
  T* dx;
  Index lddx;
  Index m, out, in, r;  ///< r = 0: the dense layer's
  int sm = 0;           ///< compute capability; 0: the current device's
};

template <class T>
struct LoraInputGradTask {
  TileSegment<T> low, main;
  TileMask mask;
  float mask_scale;
  T* dx;
  Index lddx;
  int m, in;
  bool store_aligned;
};

/// Grid, shared memory and roofline as lora_forward_kernel's; W and A are read across k. Registers: wide 208 (one block a
/// processor: what addresses across k and the mask take would not fit in 128), middle and thin 128.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kBlockM == 128 ? 1 : Shape::kResident) void lora_input_grad_kernel(
    LoraInputGradTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAcrossK>;
    const int row0 = block_y() * Shape::kBlockM;
    const int column0 = block_x() * Shape::kBlockN;
    const int warp_row = row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, false, false>(tile, task.low, task.main, row0, column0, TileMask{}, [&](auto& sums) {
      if (task.mask.bits == nullptr) return;
      sums.mask_rows(task.mask_scale, [&](int row) {
        return mask_word(task.mask, task.m, task.in, warp_row + row, warp_column);
      });
    });
    tile.for_each_run4([&](int row, int column, const auto& run) {
      store_run(task.dx, task.lddx, task.m, task.in, task.store_aligned, warp_row + row, warp_column + column, run);
    });
  } else {
    end_with_error();
  }
}

namespace detail {

template <class T>
inline LoraInputGradTask<T> lora_input_grad_task(const LoraInputGradArgs<T>& args) {
  return {
      {tile_source(args.ds, args.ldds, args.m, args.r), tile_source(args.a, args.lda, args.r, args.in), 0,
       blocks_of(args.r, kPanel<T>)},
      {tile_source(args.dy, args.lddy, args.m, args.out), tile_source(args.w, args.ldw, args.out, args.in), 0,
       blocks_of(args.out, kPanel<T>)},
      tile_mask(args.mask, args.mask_stride),
      args.mask_scale,
      args.dx,
      args.lddx,
      static_cast<int>(args.m),
      static_cast<int>(args.in),
      is_store_aligned(args.dx, args.lddx)};
}

template <class T, class Shape, bool kOld>
inline cudaError_t launch_lora_input_grad(const LoraInputGradTask<T>& task, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAcrossK>;
  const Grid grid{blocks_of(task.in, Shape::kBlockN), blocks_of(task.m, Shape::kBlockM), 1};
  if (grid.y > kMostBlocksY) return cudaErrorInvalidValue;
  return launch<lora_input_grad_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}
template <class T, bool kOld>
inline cudaError_t launch_lora_input_grad(const LoraInputGradTask<T>& task, cudaStream_t stream) {
  switch (choose_tile(task.m, task.in)) {
    case TileChoice::kThin:
      return launch_lora_input_grad<T, ThinTile, kOld>(task, stream);
    case TileChoice::kMiddle:
      return launch_lora_input_grad<T, MiddleTile, kOld>(task, stream);
    default:
      return launch_lora_input_grad<T, WideTile, kOld>(task, stream);
  }
}

}  // namespace detail

template <class T>
inline cudaError_t lora_input_grad(const LoraInputGradArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.out) || !is_size(args.in) || !is_size(args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.in == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const LoraInputGradTask<T> task = detail::lora_input_grad_task(args);
  return sm < 80 ? detail::launch_lora_input_grad<T, true>(task, stream)
                 : detail::launch_lora_input_grad<T, false>(task, stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
