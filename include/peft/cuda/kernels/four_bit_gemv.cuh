#pragma once
/// y = x·Wᵀ + bias + scale·s·bᵀ for a few rows of x and a weight in four bits: the time is that of reading the weight once.
///
/// A block takes a row of bricks (32 rows of W); its sixteen warps take bricks in turn, so that the block reads 16 KiB at a time;
/// as soon as half a brick is decoded the half that follows in its place is asked for. Partial sums of the warps are added in
/// their order at the end; where there are too few rows of bricks, k is cut into parts, added by four_bit_reduce in their order.
///
/// four_bit_thin   f16, bf16; up to 8·kTiles rows of x. On tensor cores even for one row: W is A (16 rows), x is B (8 columns),
///                 the sums are float, and a look-up's pair goes straight into an mma: three instructions for two weights. The
///                 values are rounded to T, absmax multiplies the sums of 32 k in float.
/// four_bit_fma    any T, up to kRows rows: values, absmax, products and sums in float. For f32, and for bf16 on sm_75, which
///                 has no mma for it.
///
/// Roofline: bytes of W are in·out·(1/2 + 4/block) (nested: 1/2 + 1/block); a warp needs per brick (2048 weights) 32 look-ups of
/// one wavefront in shared memory (four_bit_fma: 64) and about 165 instructions, so that at one wavefront a clock a
/// multiprocessor takes 32 bytes of W a clock (16), above what DRAM gives it (15 on an H100). x comes from L2: 2·rows bytes for 16
/// of W.

#include <type_traits>

#include "peft/cuda/kernels/four_bit_decode.cuh"
#include "peft/cuda/kernels/tile_product.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

inline constexpr int kGemvWarps = 16;
inline constexpr int kGemvThreads = 32 * kGemvWarps;
inline constexpr int kGemvSharedBytes = kPairTableBytes + kNestedMapBytes;

template <class T>
struct FourBitGemvArgs {
  FourBitPacked w;  ///< not is_flat()
  const T* x;       ///< [m, in], rows may be read 16 bytes at a time
  Index ldx;
  const T* s;  ///< [m, r]
  Index lds;
  const T* b;  ///< [out, r]
  Index ldb;
  const T* bias;  ///< null: none
  float scale;
  T* y;
  Index ldy;
  float* parts;  ///< [grid z, m, out] where k is cut, else null
  int m, r;
  int bricks_per_part;
  bool low_rank_aligned;  ///< rows of s and b 8 bytes at a time, and r % 4 == 0
};

namespace detail {

/// Stores one output, or its part.
template <class T>
PEFT_DEVICE void store_gemv(const FourBitGemvArgs<T>& p, int row, int out, float sum) {
  if (row >= p.m || out >= p.w.out) return;
  if (p.parts != nullptr) {
    store(p.parts + (static_cast<Index>(block_z()) * p.m + row) * p.w.out + out, sum);
  } else {
    const float bias = p.bias != nullptr ? to_float(load_const(p.bias + out)) : 0.0f;
    store(p.y + row * p.ldy + out, from_float<T>(sum + bias));
  }
}

/// Half a brick is 32 chunks, one a lane; a warp's next brick is kGemvWarps further.
inline constexpr int kHalfBrick = 32, kBrickChunks = 64;

/// Scales of half h of the warp's brick at column k0; asks for those that come next, of columns before `end`.
template <bool kNested>
PEFT_DEVICE Vec<float, 4> next_scales(FourBitRowScales<kNested>& scales, const Shared<float>& map, int h, int k0, int end) {
  const Vec<float, 4> scale = scales.expand(map);
  const int next = h == 0 && scales.has_small_blocks() ? k0 + 32 : k0 + kGemvWarps * kBrickColumns;
  if (next < end) scales.fetch(next);
  return scale;
}

}  // namespace detail

/// Grid: rows of bricks, 1, parts. 512 threads; registers 64 (kTiles = 1: two blocks a multiprocessor, half of its threads or
/// more), 128 (kTiles = 2); shared memory 33 KiB.
template <class T, int kTiles, bool kNested>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kGemvThreads, kTiles == 1 ? 2 : 1) void four_bit_thin_kernel(FourBitGemvArgs<T> args) {
  static_assert(kTiles == 1 || kTiles == 2);
  const SharedMemory memory = shared_memory();
  const int warp = warp_index();
  const int lane = lane_index();
  const int row0 = block_x() * kBrickRows;
  const int in = static_cast<int>(args.w.in);
  const int out = static_cast<int>(args.w.out);
  const int bricks = static_cast<int>(four_bit_brick_columns(args.w.in));
  const int first = block_z() * args.bricks_per_part;
  const int end = min(first + args.bricks_per_part, bricks) * kBrickColumns;
  int k0 = (first + warp) * kBrickColumns;
  // Addresses are stepped, not worked out from what would have to be kept for it: registers are few.
  const FourBitChunk* codes = reinterpret_cast<const FourBitChunk*>(args.w.codes);
  int chunk = (block_x() * bricks + first + warp) * detail::kBrickChunks + lane;

  // Weights are under way before the table is made.
  FourBitRowScales<kNested> scales(args.w, row0 + lane / 4 * 4);
  if (k0 < end) scales.fetch(k0);
  FourBitChunk chunks[2] = {};
  PEFT_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (k0 < end) chunks[h] = load_stream(codes + (chunk + h * detail::kHalfBrick));
  }
  const PairTable<T> table = fill_pair_table<T, kGemvThreads>(memory, 0, args.w.value);
  const Shared<float> map = fill_nested_map<kGemvThreads>(memory, kPairTableBytes, args.w);

  float sums[kTiles][2][4] = {};
  if (block_z() == 0) {
    // r more columns of k, first: the accumulators are still theirs alone when they are scaled.
    for (int k = 16 * warp; k < args.r; k += 16 * kGemvWarps) {
      std::uint32_t fragments[2][4];
      low_rank_rows(fragments, args.b, args.ldb, row0, out, k, args.r, args.low_rank_aligned);
      PEFT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const int row = 8 * tile + lane / 4;
        const Vec<std::uint32_t, 2> s = load_four(args.s + row * args.lds, row < args.m, k + lane % 4 * 4, args.r,
                                                  args.low_rank_aligned);
        PEFT_UNROLL
        for (int half = 0; half < 2; ++half) mma_16816<T>(sums[tile][half], fragments[half], s.v);
      }
    }
    PEFT_UNROLL
    for (auto& tile : sums) {
      PEFT_UNROLL
      for (auto& half : tile) {
        PEFT_UNROLL
        for (float& sum : half) sum *= args.scale;
      }
    }
  }
  sync_threads();

  const int x_stride = static_cast<int>(args.ldx);
  int x_at = lane / 4 * x_stride + k0 + lane % 4 * 8;
  while (k0 < end) {
    const int column = k0;
    Vec<float, 4> scale;
    Vec<std::uint32_t, 4> x[2][kTiles];
    PEFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      PEFT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        x[h][tile] = {};
        // Where in ends within the brick, it ends with its first half.
        if (8 * tile + lane / 4 < args.m && (h == 0 || column + 32 < in)) {
          x[h][tile] = load_const(reinterpret_cast<const Vec<std::uint32_t, 4>*>(args.x + (x_at + 8 * tile * x_stride + 32 * h)));
        }
      }
    }
    k0 += kGemvWarps * kBrickColumns;
    x_at += kGemvWarps * kBrickColumns;
    chunk += kGemvWarps * detail::kBrickChunks;
    PEFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const bool is_next = h == 0 || scales.has_small_blocks();
      if (is_next) scale = scales.expand(map);
      std::uint32_t fragments[2][2][4];
      decode_rows_unscaled<T>(fragments, chunks[h], table);
      if (k0 < end) chunks[h] = load_stream(codes + (chunk + h * detail::kHalfBrick));
      PEFT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        PEFT_UNROLL
        for (int half = 0; half < 2; ++half) {
          float part[4] = {};
          PEFT_UNROLL
          for (int step = 0; step < 2; ++step) {
            const std::uint32_t pair[2] = {x[h][tile].v[2 * step], x[h][tile].v[2 * step + 1]};
            mma_16816<T>(part, fragments[step][half], pair);
          }
          PEFT_UNROLL
          for (int e = 0; e < 4; ++e) sums[tile][half][e] = fma(scale.v[2 * half + e / 2], part[e], sums[tile][half][e]);
        }
      }
      if (is_next) {
        const int next = h == 0 && scales.has_small_blocks() ? column + 32 : k0;
        if (next < end) scales.fetch(next);
      }
    }
  }

  // All the warps' sums, where the table was. Sum i of lane (g, t) lies at i*32 + 4g + (t + i/2) % 4: neither the lanes that write one
  // sum nor those that read one row of x meet a bank twice.
  sync_threads();
  const Shared<float> partial = memory.template at<float>(0);
  constexpr int kOutputs = kTiles * 8 * 32;
  const auto place = [](int i, int g, int t) { return i * 32 + 4 * g + ((t + i / 2) & 3); };
  PEFT_UNROLL
  for (int i = 0; i < kTiles * 8; ++i) {
    partial.store(warp * kOutputs + place(i, lane / 4, lane % 4), sums[i / 8][i / 4 % 2][i % 4]);
  }
  sync_threads();
  const int output = thread_index();
  if (output < kOutputs) {
    const int row = output / 32;
    const int i = row / 8 * 8 + lane % 4 * 2 + row % 2;
    float sum = 0.0f;
    PEFT_UNROLL
    for (int other = 0; other < kGemvWarps; ++other) sum += partial.load(other * kOutputs + place(i, lane / 4, row % 8 / 2));
    detail::store_gemv(args, row, row0 + lane, sum);
  }
}

/// Grid: rows of bricks times groups of kRows rows of x (neighbours read the same weights, all but the first from L2), 1, parts.
/// 512 threads; registers 64: two blocks a multiprocessor, half of its threads or more; shared memory 33 KiB.
template <class T, int kRows, bool kNested>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kGemvThreads, 2) void four_bit_fma_kernel(FourBitGemvArgs<T> args) {
  // bf16 comes here on sm_75 only.
  if constexpr (!std::is_same_v<T, bf16> || kIsForThisDevice<true>) {
    static_assert(kRows <= 2);
    const SharedMemory memory = shared_memory();
    const int warp = warp_index();
    const int lane = lane_index();
    const int t = lane % 4;
    const int groups = ceil_div(args.m, kRows);
    const int x0 = block_x() % groups * kRows;
    const int row0 = block_x() / groups * kBrickRows;
    const int in = static_cast<int>(args.w.in);
    const int bricks = static_cast<int>(four_bit_brick_columns(args.w.in));
    const int first = block_z() * args.bricks_per_part;
    const int end = min(first + args.bricks_per_part, bricks) * kBrickColumns;
    int k0 = (first + warp) * kBrickColumns;
    // Addresses are stepped, not worked out from what would have to be kept for it: registers are few.
    const FourBitChunk* codes = reinterpret_cast<const FourBitChunk*>(args.w.codes);
    int chunk = (block_x() / groups * bricks + first + warp) * detail::kBrickChunks + lane;
    FourBitRowScales<kNested> scales(args.w, row0 + lane / 4 * 4);
    if (k0 < end) scales.fetch(k0);
    FourBitChunk chunks[2] = {};
    PEFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (k0 < end) chunks[h] = load_stream(codes + (chunk + h * detail::kHalfBrick));
    }
    const PairTable<float> table = fill_pair_table<float, kGemvThreads>(memory, 0, args.w.value);
    const Shared<float> map = fill_nested_map<kGemvThreads>(memory, kPairTableBytes, args.w);
    sync_threads();

    float sums[kRows][4] = {};
    constexpr int kRun = 4;  // elements of x at a time
    const int x_stride = static_cast<int>(args.ldx);
    int x_at = x0 * x_stride + k0 + 8 * t;
    while (k0 < end) {
      const int column = k0;
      k0 += kGemvWarps * kBrickColumns;
      chunk += kGemvWarps * detail::kBrickChunks;
      Vec<float, 4> scale;
      PEFT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const bool is_inside = h == 0 || column + 32 < in;
        float part[kRows][4] = {};
        PEFT_UNROLL
        for (int run = 0; run < 8 / kRun; ++run) {
          Vec<T, kRun> x_run[kRows];
          PEFT_UNROLL
          for (int row = 0; row < kRows; ++row) {
            x_run[row] = {};
            if (is_inside && x0 + row < args.m) {
              x_run[row] = load_const(reinterpret_cast<const Vec<T, kRun>*>(args.x + (x_at + row * x_stride + 32 * h + kRun * run)));
            }
          }
          PEFT_UNROLL
          for (int out = 0; out < 4; ++out) {
            PEFT_UNROLL
            for (int half = 0; half < kRun / 2; ++half) {
              const Vec<float, 2> pair = table(chunks[h].v[out], kRun / 2 * run + half);
              PEFT_UNROLL
              for (int e = 0; e < 2; ++e) {
                PEFT_UNROLL
                for (int row = 0; row < kRows; ++row) {
                  part[row][out] = fma(pair.v[e], to_float(x_run[row].v[2 * half + e]), part[row][out]);
                }
              }
            }
          }
        }
        const auto load_next = [&] {
          if (k0 < end) chunks[h] = load_stream(codes + (chunk + h * detail::kHalfBrick));
        };
        if constexpr (!kNested) load_next();
        if (h == 0 || scales.has_small_blocks()) scale = detail::next_scales(scales, map, h, column, end);
        PEFT_UNROLL
        for (int row = 0; row < kRows; ++row) {
          PEFT_UNROLL
          for (int out = 0; out < 4; ++out) sums[row][out] = fma(scale.v[out], part[row][out], sums[row][out]);
        }
        if constexpr (kNested) load_next();  // `part` has left its registers to the address
      }
      x_at += kGemvWarps * kBrickColumns;
    }

    PEFT_UNROLL
    for (auto& row : sums) {
      PEFT_UNROLL
      for (float& sum : row) {
        sum += shuffle_xor(~0u, sum, 1);
        sum += shuffle_xor(~0u, sum, 2);
      }
    }
    sync_threads();
    const Shared<float> partial = memory.template at<float>(0);
    PEFT_UNROLL
    for (int row = 0; row < kRows; ++row) {
      PEFT_UNROLL
      for (int out = 0; out < 4; ++out) {
        if (out == t) partial.store((warp * kRows + row) * 32 + lane, sums[row][out]);
      }
    }
    sync_threads();
    const int output = thread_index();
    if (output < kRows * 32) {
      const int row = x0 + output / 32;
      const int out = row0 + lane;
      float sum = 0.0f;
      if (block_z() == 0 && row < args.m && out < args.w.out) {
        for (int k = 0; k < args.r; ++k) {
          sum = fma(to_float(load_const(args.s + row * args.lds + k)), to_float(load_const(args.b + out * args.ldb + k)), sum);
        }
        sum *= args.scale;
      }
      PEFT_UNROLL
      for (int other = 0; other < kGemvWarps; ++other) sum += partial.load(other * kRows * 32 + output);
      detail::store_gemv(args, row, out, sum);
    }
  } else {
    end_with_error();
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
