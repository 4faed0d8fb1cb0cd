#pragma once
/// Products with a packed 4-bit weight, whichever kernel does them:
///   y  = x·Wᵀ + bias + scale·s·bᵀ                 x [m, in], s [m, r], b [out, r], y [m, out]
///   dx = dy·W + mask∘(ds·a)                       dy [m, out], ds [m, r], a [r, in], dx [m, in]
///
///   route   f16             bf16                      f32         blocks over the ends of rows, x (dy) not aligned
///   thin    m ≤ 16          m ≤ 16, from sm_80        -           -
///   fma     -               m ≤ 4, sm_75              m ≤ 4       -
///   gemm    m > 16; dx      m > 16; dx; from sm_80    -           -
///   tile    -               else on sm_75             else; dx    always
///
/// Aligned: the first element's address and the rows' distance are multiples of 16 bytes, and so is a row's length (8 elements of
/// 16 bits, 4 of f32), which for x follows from the block size. What is not aligned is read element by element.
///
/// How k is cut depends on the shape alone; for one device and shape the bits are the same in every run.

#include "peft/cuda/kernels/four_bit_gemm.cuh"
#include "peft/cuda/kernels/four_bit_gemv.cuh"
#include "peft/cuda/kernels/four_bit_tile.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

enum class FourBitRoute { kThin, kFma, kGemm, kTile };

template <class T>
struct FourBitForwardArgs {
  FourBitPacked w;
  const T* x;
  Index ldx;
  const T* bias;  ///< [out]; null: none
  const T* s;     ///< null where r = 0
  Index lds;
  const T* b;
  Index ldb;
  float scale;
  T* y;
  Index ldy;
  Index m, r;
  float* workspace;  ///< four_bit_forward_workspace() bytes
  int sm;            ///< compute capability, e.g. 80; 0: the current device's
};

template <class T>
struct FourBitInputGradArgs {
  FourBitPacked w;
  const T* dy;
  Index lddy;
  const T* ds;  ///< null where r = 0
  Index ldds;
  const T* a;
  Index lda;
  const std::uint8_t* mask;  ///< over [m, in], bit j%8 of byte j/8: kept; null: none
  Index mask_stride;         ///< bytes
  float mask_scale;          ///< of kept elements
  T* dx;
  Index lddx;
  Index m, r;
  float* workspace;  ///< four_bit_input_grad_workspace() bytes
  int sm;
};

namespace detail {

using FourBitWide = FourBitGemmPlan<false, 128, 4>;
using FourBitMiddle = FourBitGemmPlan<false, 64, 4>;
using FourBitSlim = FourBitGemmPlan<false, 32, 4>;
using FourBitOld = FourBitGemmPlan<false, 32, 2>;
using FourBitGradient = FourBitGemmPlan<true, 64, 4>;
using FourBitOldGradient = FourBitGemmPlan<true, 64, 2>;
static_assert(FourBitMiddle::kSharedBytes <= 99 * 1024 && FourBitGradient::kSharedBytes <= 99 * 1024);
static_assert(FourBitOld::kSharedBytes <= 64 * 1024 && FourBitOldGradient::kSharedBytes <= 64 * 1024);

/// Blocks that a product should at least have: one for each multiprocessor of an H100.
inline constexpr Index kFourBitBlocks = 132;
inline constexpr Index kFourBitMostParts = 32;

/// Into how many parts k is cut: `steps` of k, at least `least` for each.
inline int four_bit_parts(Index blocks, Index steps, Index least) {
  if (blocks <= 0) return 1;
  const Index wanted = kFourBitBlocks / blocks;
  const Index parts = min(min(wanted, steps / least), kFourBitMostParts);
  // No part without a step.
  const Index per_part = ceil_div(max(steps, Index{1}), max(parts, Index{1}));
  return static_cast<int>(ceil_div(max(steps, Index{1}), per_part));
}
inline int four_bit_steps(Index steps, int parts) { return static_cast<int>(ceil_div(max(steps, Index{1}), Index{parts})); }

template <class T>
inline bool is_wide(Index m, Index out) {
  return ceil_div(out, Index{FourBitWide::kColumns}) * ceil_div(m, Index{FourBitWide::kTokens}) >= kFourBitBlocks;
}
inline bool has_shared_memory_for_wide(int sm) { return sm == 80 || sm == 90 || sm == 100 || sm == 103; }

inline bool is_product(const FourBitPacked& w, Index m, Index r) {
  const int block = w.block_size;
  return m >= 0 && r >= 0 && w.out >= 0 && w.in >= 0 && is_size(m) && is_size(r) && is_size(w.out) && is_size(w.in) && block >= 32 &&
         block <= 4096 && (block & (block - 1)) == 0 && ceil_div(w.out + 32, Index{32}) * (w.in / 32 + 2) <= INT_MAX / 32;
}

template <class T>
inline bool is_aligned_to(const T* p, Index ld, Index columns, Index bytes) {
  const Index run = bytes / static_cast<Index>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(p) % static_cast<std::uintptr_t>(bytes) == 0 && ld % run == 0 && columns % run == 0;
}

template <class T>
struct FourBitReduceArgs {
  const float* parts;  ///< [count, m, n]
  const T* bias;
  T* y;
  Index ldy;
  Index elements, n;
  int count;
};

}  // namespace detail

inline constexpr int kFourBitReduceThreads = 256;

/// y = Σ parts + bias, parts upwards. A thread an element; registers 40, no shared memory.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kFourBitReduceThreads, 4) void four_bit_reduce_kernel(detail::FourBitReduceArgs<T> args) {
  const Index element = static_cast<Index>(block_x()) * kFourBitReduceThreads + thread_index();
  if (element >= args.elements) return;
  float sum = 0.0f;
  for (int part = 0; part < args.count; ++part) sum += load(args.parts + part * args.elements + element);
  const Index row = element / args.n;
  const Index column = element % args.n;
  if (args.bias != nullptr) sum += to_float(load_const(args.bias + column));
  store(args.y + row * args.ldy + column, from_float<T>(sum));
}

/// Which kernel multiplies `m` rows on an architecture.
template <class T>
inline FourBitRoute four_bit_forward_route(const FourBitPacked& w, Index m, int sm, bool x_aligned = true) {
  if (w.is_flat() || !x_aligned) return FourBitRoute::kTile;
  if (std::is_same_v<T, float> || (std::is_same_v<T, bf16> && !device_has_bf16_mma(sm))) {
    return m <= 4 ? FourBitRoute::kFma : FourBitRoute::kTile;
  }
  return m <= 16 ? FourBitRoute::kThin : FourBitRoute::kGemm;
}
template <class T>
inline FourBitRoute four_bit_input_grad_route(const FourBitPacked& w, int sm, bool dy_aligned = true) {
  const bool has_mma = !std::is_same_v<T, float> && (!std::is_same_v<T, bf16> || device_has_bf16_mma(sm));
  return has_mma && dy_aligned && !w.is_flat() ? FourBitRoute::kGemm : FourBitRoute::kTile;
}

namespace detail {

/// How a product is laid over the device.
struct FourBitCut {
  FourBitRoute route;
  Index blocks_x, blocks_y;
  int parts, steps_per_part;
};
template <class T>
inline FourBitCut forward_cut(const FourBitPacked& w, Index m, int sm, bool x_aligned) {
  FourBitCut cut{four_bit_forward_route<T>(w, m, sm, x_aligned), 0, 1, 1, 1};
  const Index bricks = four_bit_brick_columns(w.in);
  Index steps = bricks, least = 8;
  switch (cut.route) {
    case FourBitRoute::kThin:
    case FourBitRoute::kFma:
      cut.blocks_x = ceil_div(w.out, Index{kBrickRows});
      if (cut.route == FourBitRoute::kFma) cut.blocks_x *= ceil_div(m, Index{2});
      least = kGemvWarps;
      break;
    case FourBitRoute::kGemm: {
      cut.blocks_x = ceil_div(w.out, Index{FourBitMiddle::kColumns});
      const bool is_old = !device_has_cp_async(sm);
      const int tokens = is_old || m <= 32                                          ? 32
                         : is_wide<T>(m, w.out) && has_shared_memory_for_wide(sm)   ? 128
                                                                                    : 64;
      cut.blocks_y = ceil_div(m, Index{tokens});
      break;
    }
    case FourBitRoute::kTile:
      cut.blocks_x = ceil_div(w.out, Index{MiddleTile::kBlockN});
      cut.blocks_y = ceil_div(m, Index{MiddleTile::kBlockM});
      steps = ceil_div(w.in, Index{kPanel<T>});
      break;
  }
  // By the shape alone: as if every device had the same tiles.
  const Index tokens = cut.route == FourBitRoute::kGemm ? (m <= 32 ? 32 : is_wide<T>(m, w.out) ? 128 : 64) : 64;
  const Index blocks = cut.blocks_x * (cut.route == FourBitRoute::kGemm ? ceil_div(m, tokens) : cut.blocks_y);
  cut.parts = four_bit_parts(blocks, steps, least);
  cut.steps_per_part = four_bit_steps(steps, cut.parts);
  return cut;
}
template <class T>
inline FourBitCut input_grad_cut(const FourBitPacked& w, Index m, int sm, bool dy_aligned) {
  FourBitCut cut{four_bit_input_grad_route<T>(w, sm, dy_aligned), 0, 1, 1, 1};
  const bool is_gemm = cut.route == FourBitRoute::kGemm;
  cut.blocks_x = ceil_div(w.in, Index{is_gemm ? FourBitGradient::kColumns : MiddleTile::kBlockN});
  cut.blocks_y = ceil_div(m, Index{is_gemm ? FourBitGradient::kTokens : MiddleTile::kBlockM});
  const Index steps = ceil_div(w.out, Index{is_gemm ? kBrickRows : kPanel<T>});
  cut.parts = four_bit_parts(cut.blocks_x * cut.blocks_y, steps, is_gemm ? 16 : 8);
  cut.steps_per_part = four_bit_steps(steps, cut.parts);
  return cut;
}

inline Index workspace_bytes(const FourBitCut& cut, Index m, Index n) { return cut.parts > 1 ? cut.parts * m * n * 4 : 0; }

template <class T>
inline cudaError_t reduce_parts(const FourBitCut& cut, const float* parts, const T* bias, T* y, Index ldy, Index m, Index n,
                                cudaStream_t stream) {
  if (cut.parts == 1) return cudaSuccess;
  const FourBitReduceArgs<T> args{parts, bias, y, ldy, m * n, n, cut.parts};
  const Index blocks = ceil_div(m * n, Index{kFourBitReduceThreads});
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  return launch<four_bit_reduce_kernel<T>>(Grid{static_cast<int>(blocks), 1, 1}, kFourBitReduceThreads, 0, stream, args);
}

template <class T, int kTiles>
inline cudaError_t launch_thin(const FourBitGemvArgs<T>& args, Grid grid, cudaStream_t stream) {
  return args.w.is_nested() ? launch<four_bit_thin_kernel<T, kTiles, true>>(grid, kGemvThreads, kGemvSharedBytes, stream, args)
                            : launch<four_bit_thin_kernel<T, kTiles, false>>(grid, kGemvThreads, kGemvSharedBytes, stream, args);
}
template <class T, int kRows>
inline cudaError_t launch_fma(const FourBitGemvArgs<T>& args, Grid grid, cudaStream_t stream) {
  return args.w.is_nested() ? launch<four_bit_fma_kernel<T, kRows, true>>(grid, kGemvThreads, kGemvSharedBytes, stream, args)
                            : launch<four_bit_fma_kernel<T, kRows, false>>(grid, kGemvThreads, kGemvSharedBytes, stream, args);
}
template <class T, class Plan>
inline cudaError_t launch_gemm(const FourBitGemmArgs<T>& args, Grid grid, cudaStream_t stream) {
  return launch<four_bit_gemm_kernel<T, Plan>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, args);
}
template <class T, bool kGradient>
inline cudaError_t launch_tile(const FourBitGemmArgs<T>& args, Grid grid, int sm, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (!device_has_bf16_mma(sm)) {
      using Old = FourBitTilePlan<T, kGradient, true>;
      return launch<four_bit_tile_kernel<T, Old, true>>(grid, Old::kThreads, Old::kSharedBytes, stream, args);
    }
  } else if (!device_has_cp_async(sm)) {
    using Old = FourBitTilePlan<T, kGradient, true>;
    return launch<four_bit_tile_kernel<T, Old, true>>(grid, Old::kThreads, Old::kSharedBytes, stream, args);
  }
  using Plan = FourBitTilePlan<T, kGradient, false>;
  return launch<four_bit_tile_kernel<T, Plan, false>>(grid, Plan::kThreads, Plan::kSharedBytes, stream, args);
}

}  // namespace detail

/// Bytes, for any alignment; 0 where k is not cut.
template <class T>
inline Index four_bit_forward_workspace(const FourBitPacked& w, Index m, int sm) {
  sm = device_architecture(sm);
  return max(detail::workspace_bytes(detail::forward_cut<T>(w, m, sm, true), m, w.out),
             detail::workspace_bytes(detail::forward_cut<T>(w, m, sm, false), m, w.out));
}
template <class T>
inline Index four_bit_input_grad_workspace(const FourBitPacked& w, Index m, int sm) {
  sm = device_architecture(sm);
  return max(detail::workspace_bytes(detail::input_grad_cut<T>(w, m, sm, true), m, w.in),
             detail::workspace_bytes(detail::input_grad_cut<T>(w, m, sm, false), m, w.in));
}

/// y is overwritten.
template <class T>
inline cudaError_t four_bit_forward(const FourBitForwardArgs<T>& args, cudaStream_t stream) {
  const FourBitPacked& w = args.w;
  if (!detail::is_product(w, args.m, args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || w.out == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  const bool x_aligned = detail::is_aligned_to(args.x, args.ldx, w.in, 16);
  const detail::FourBitCut cut = detail::forward_cut<T>(w, args.m, sm, x_aligned);
  if (cut.parts > 1 && args.workspace == nullptr) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>(cut.blocks_x), static_cast<int>(cut.blocks_y), cut.parts};
  if (cut.blocks_y > 65535) return cudaErrorInvalidValue;
  float* parts = cut.parts > 1 ? args.workspace : nullptr;
  const auto is_low_rank_aligned = [&](Index bytes) {
    return detail::is_aligned_to(args.s, args.lds, args.r, bytes) && detail::is_aligned_to(args.b, args.ldb, args.r, bytes);
  };
  cudaError_t error = cudaErrorInvalidValue;
  if (cut.route == FourBitRoute::kThin || cut.route == FourBitRoute::kFma) {
    FourBitGemvArgs<T> gemv{};
    gemv.w = w;
    gemv.x = args.x, gemv.ldx = args.ldx;
    gemv.s = args.s, gemv.lds = args.lds;
    gemv.b = args.b, gemv.ldb = args.ldb;
    gemv.bias = args.bias;
    gemv.scale = args.scale;
    gemv.y = args.y, gemv.ldy = args.ldy;
    gemv.parts = parts;
    gemv.m = static_cast<int>(args.m), gemv.r = static_cast<int>(args.r);
    gemv.bricks_per_part = cut.steps_per_part;
    gemv.low_rank_aligned = is_low_rank_aligned(8);
    if (cut.route == FourBitRoute::kFma) {
      if constexpr (!std::is_same_v<T, f16>) {
        error = args.m == 1 ? detail::launch_fma<T, 1>(gemv, grid, stream) : detail::launch_fma<T, 2>(gemv, grid, stream);
      }
    } else if constexpr (!std::is_same_v<T, float>) {
      error = args.m <= 8 ? detail::launch_thin<T, 1>(gemv, grid, stream) : detail::launch_thin<T, 2>(gemv, grid, stream);
    }
  } else {
    FourBitGemmArgs<T> gemm{};
    gemm.w = w;
    gemm.x = args.x, gemm.ldx = args.ldx;
    gemm.left = args.s, gemm.ldleft = args.lds;
    gemm.right = args.b, gemm.ldright = args.ldb;
    gemm.scale = args.scale;
    gemm.bias = args.bias;
    gemm.y = args.y, gemm.ldy = args.ldy;
    gemm.parts = parts;
    gemm.m = static_cast<int>(args.m), gemm.r = static_cast<int>(args.r);
    gemm.steps_per_part = cut.steps_per_part;
    gemm.x_aligned = x_aligned;
    if (cut.route == FourBitRoute::kTile) {
      gemm.low_rank_aligned = is_low_rank_aligned(16);
      gemm.y_aligned = is_store_aligned(args.y, args.ldy);
      error = detail::launch_tile<T, false>(gemm, grid, sm, stream);
    } else if constexpr (!std::is_same_v<T, float>) {
      gemm.low_rank_aligned = is_low_rank_aligned(8);
      gemm.y_aligned = detail::is_aligned_to(args.y, args.ldy, 0, 8);
      if (!device_has_cp_async(sm)) {
        if constexpr (std::is_same_v<T, f16>) error = detail::launch_gemm<T, detail::FourBitOld>(gemm, grid, stream);
      } else if (args.m <= 32) {
        error = detail::launch_gemm<T, detail::FourBitSlim>(gemm, grid, stream);
      } else if (detail::is_wide<T>(args.m, w.out) && detail::has_shared_memory_for_wide(sm)) {
        error = detail::launch_gemm<T, detail::FourBitWide>(gemm, grid, stream);
      } else {
        error = detail::launch_gemm<T, detail::FourBitMiddle>(gemm, grid, stream);
      }
    }
  }
  if (error != cudaSuccess) return error;
  return detail::reduce_parts(cut, parts, args.bias, args.y, args.ldy, args.m, w.out, stream);
}

/// dx is overwritten.
template <class T>
inline cudaError_t four_bit_input_grad(const FourBitInputGradArgs<T>& args, cudaStream_t stream) {
  const FourBitPacked& w = args.w;
  if (!detail::is_product(w, args.m, args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || w.in == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  const bool dy_aligned = detail::is_aligned_to(args.dy, args.lddy, w.out, 16);
  const detail::FourBitCut cut = detail::input_grad_cut<T>(w, args.m, sm, dy_aligned);
  if (cut.parts > 1 && args.workspace == nullptr) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>(cut.blocks_x), static_cast<int>(cut.blocks_y), cut.parts};
  if (cut.blocks_y > 65535) return cudaErrorInvalidValue;
  FourBitGemmArgs<T> gemm{};
  gemm.w = w;
  gemm.x = args.dy, gemm.ldx = args.lddy;
  gemm.left = args.ds, gemm.ldleft = args.ldds;
  gemm.right = args.a, gemm.ldright = args.lda;
  gemm.mask = args.mask, gemm.mask_stride = args.mask_stride, gemm.mask_scale = args.mask_scale;
  gemm.y = args.dx, gemm.ldy = args.lddx;
  gemm.parts = cut.parts > 1 ? args.workspace : nullptr;
  gemm.m = static_cast<int>(args.m), gemm.r = static_cast<int>(args.r);
  gemm.steps_per_part = cut.steps_per_part;
  gemm.x_aligned = dy_aligned;
  const bool is_tile = cut.route == FourBitRoute::kTile;
  gemm.low_rank_aligned = detail::is_aligned_to(args.ds, args.ldds, args.r, is_tile ? 16 : 8) &&
                          detail::is_aligned_to(args.a, args.lda, w.in, 16);
  cudaError_t error = cudaErrorInvalidValue;
  if (is_tile) {
    gemm.y_aligned = is_store_aligned(args.dx, args.lddx);
    error = detail::launch_tile<T, true>(gemm, grid, sm, stream);
  } else if constexpr (!std::is_same_v<T, float>) {
    gemm.y_aligned = detail::is_aligned_to(args.dx, args.lddx, 0, 16);
    if (device_has_cp_async(sm)) {
      error = detail::launch_gemm<T, detail::FourBitGradient>(gemm, grid, stream);
    } else if constexpr (std::is_same_v<T, f16>) {
      error = detail::launch_gemm<T, detail::FourBitOldGradient>(gemm, grid, stream);
    }
  }
  if (error != cudaSuccess) return error;
  return detail::reduce_parts(cut, gemm.parts, static_cast<const T*>(nullptr), args.dx, args.lddx, args.m, w.in, stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
