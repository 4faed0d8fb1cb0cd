#pragma once
/// A linear layer with a low-rank update in one accumulator:
///   y = x·Wᵀ + bias + scale·S·Bᵀ;   x [m,in], W [out,in], bias [out], S [m,r] = x̃·Aᵀ (lora_shrink), B [out,r], y [m,out]
/// The r columns go first, are scaled in registers, and the k = in loop continues in the same accumulators.

#include "peft/cuda/kernels/tile_product.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct LoraForwardArgs {
  const T* x;
  Index ldx;
  const T* w;
  Index ldw;
  const T* bias;  ///< [out], or null
  const T* s;
  Index lds;
  const T* b;
  Index ldb;
  float scale;
  T* y;
  Index ldy;
  Index m, out, in, r;  ///< r = 0: the dense layer
  int sm = 0;           ///< compute capability; 0: the current device's
};

template <class T>
struct LoraForwardTask {
  TileSegment<T> low, main;
  const T* bias;
  float scale;
  T* y;
  Index ldy;
  int m, out;
  bool store_aligned;
};

/// Grid: y's columns fastest, so that blocks that run together share rows of x. Budgets: wide 256 threads, 128 registers,
/// 96 KiB of shared memory (sm_75: 64); middle 128 threads, 112 registers, 64 KiB (32); thin 128 threads, 96 registers,
/// 60 KiB (20).
/// Roofline: a wide block reads (128 + 128)·k elements and makes 128·128·k products, 64 products an element read, so that
/// many rows are bound by the tensor cores; the r columns add r/in of both. Thin blocks read each element of W once: bound
/// by memory, with 40 KiB a block under way.
template <class T, class Shape, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Shape::kThreads, Shape::kResident) void lora_forward_kernel(LoraForwardTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
    const int row0 = block_y() * Shape::kBlockM;
    const int column0 = block_x() * Shape::kBlockN;
    typename Plan::Tile tile;
    tile.clear();
    tile_product<Plan, false, false>(tile, task.low, task.main, row0, column0, TileMask{}, [&](auto& sums) {
      sums.for_each([&](int, int, float& sum) { sum *= task.scale; });
    });
    const int warp_row = row0 + Plan::warp_row();
    const int warp_column = column0 + Plan::warp_column();
    tile.for_each_run4([&](int row, int column, auto run) {
      const int at = warp_column + column;
      if (task.bias != nullptr) {
        PEFT_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (at + i < task.out) run[i] += to_float(load_const(task.bias + at + i));
        }
      }
      store_run(task.y, task.ldy, task.m, task.out, task.store_aligned, warp_row + row, at, run);
    });
  } else {
    end_with_error();
  }
}

namespace detail {

template <class T>
inline LoraForwardTask<T> lora_forward_task(const LoraForwardArgs<T>& args) {
  return {
      {tile_source(args.s, args.lds, args.m, args.r), tile_source(args.b, args.ldb, args.out, args.r), 0,
       blocks_of(args.r, kPanel<T>)},
      {tile_source(args.x, args.ldx, args.m, args.in), tile_source(args.w, args.ldw, args.out, args.in), 0,
       blocks_of(args.in, kPanel<T>)},
      args.bias,
      args.scale,
      args.y,
      args.ldy,
      static_cast<int>(args.m),
      static_cast<int>(args.out),
      is_store_aligned(args.y, args.ldy)};
}

template <class T, class Shape, bool kOld>
inline cudaError_t launch_lora_forward(const LoraForwardTask<T>& task, cudaStream_t stream) {
  using Plan = TilePlan<T, Shape, kOld, Order::kAlongK, Order::kAlongK>;
  const Grid grid{blocks_of(task.out, Shape::kBlockN), blocks_of(task.m, Shape::kBlockM), 1};
  if (grid.y > kMostBlocksY) return cudaErrorInvalidValue;
  return launch<lora_forward_kernel<T, Shape, kOld>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, task);
}
template <class T, bool kOld>
inline cudaError_t launch_lora_forward(const LoraForwardTask<T>& task, cudaStream_t stream) {
  switch (choose_tile(task.m, task.out)) {
    case TileChoice::kThin:
      return launch_lora_forward<T, ThinTile, kOld>(task, stream);
    case TileChoice::kMiddle:
      return launch_lora_forward<T, MiddleTile, kOld>(task, stream);
    default:
      return launch_lora_forward<T, WideTile, kOld>(task, stream);
  }
}

}  // namespace detail

template <class T>
inline cudaError_t lora_forward(const LoraForwardArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.out) || !is_size(args.in) || !is_size(args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.out == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const LoraForwardTask<T> task = detail::lora_forward_task(args);
  return sm < 80 ? detail::launch_lora_forward<T, true>(task, stream)
                 : detail::launch_lora_forward<T, false>(task, stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
