#pragma once
/// Products of many rows with a weight in four bits, on tensor cores, T = f16 | bf16, sums in float:
///   forward   y = x·Wᵀ + bias + scale·s·bᵀ        n = out, k = in,  W's rows as A of the mma
///   gradient  dx = dy·W + mask∘(ds·a)             n = in,  k = out, W's columns as A, from the same packed copy
/// The low-rank columns come first; the accumulators are scaled (masked) in registers; k continues in them.
///
/// A block computes kTokens rows and eight warps' worth of columns: a warp takes a brick a step (forward 32 columns and 64 of k,
/// gradient 64 and 32), so that no weight is decoded twice in a block. x (dy) and codes come by cp.async, kStages - 1 steps
/// ahead; a thread copies the codes that it decodes itself. Weights are decoded in registers: look-up, absmax, one rounding to T;
/// the weight that is multiplied has the bits of the dequantised one.
///
///   x tile, 128 bytes a row (gradient: 64): lane (g, t) reads of row g the eight k (4) that belong to its codes. Chunk c of a row
///   lies at c ^ 4·(row % 2) (gradient: c ^ 2·(row/2 % 2)), so that lanes that read together meet no bank twice.
///
/// Roofline, a multiprocessor with 1024 multiply-adds a clock (sm_80; sm_90's mma.sync): a brick and kTokens rows take 2·kTokens
/// clocks of tensor cores (gradient: the same), and of shared memory 64 passes for look-ups and kTokens (gradient: kTokens/2) for
/// x: with kTokens = 128 (gradient 64) three quarters of what there is in that time. A warp issues some 580 instructions a brick,
/// 128 of them mma (gradient: 500, 64), for 1024 (512) clocks of its scheduler's tensor core.

#include "peft/cuda/kernels/four_bit_decode.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct FourBitGemmArgs {
  FourBitPacked w;  ///< not is_flat()
  const T* x;       ///< [m, k]; rows may be read 16 bytes at a time and end with 16 bytes
  Index ldx;
  const T* left;  ///< s or ds [m, r]
  Index ldleft;
  const T* right;  ///< b [out, r] or a [r, in]
  Index ldright;
  float scale;               ///< forward: of the low-rank columns
  const std::uint8_t* mask;  ///< gradient: over [m, in], kept bits are 1; null: none
  Index mask_stride;
  float mask_scale;  ///< of kept elements
  const T* bias;     ///< forward; null: none
  T* y;              ///< [m, n]
  Index ldy;
  float* parts;  ///< [grid z, m, n] where k is cut, else null
  int m, r;
  int steps_per_part;
  bool x_aligned;         ///< whether that is so: four_bit_tile.cuh takes others
  bool low_rank_aligned;  ///< of left 8 bytes at a time; of right 8 (gradient 16, and in % 8 == 0); and r % 4 == 0
  bool y_aligned;         ///< rows of y may be written 8 (gradient 16) bytes at a time
};

template <bool kGradient_, int kTokens_, int kStages_>
struct FourBitGemmPlan {
  static constexpr bool kGradient = kGradient_;
  static constexpr int kTokens = kTokens_, kStages = kStages_;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kDepth = kGradient ? kBrickRows : kBrickColumns;           ///< of k, a step
  static constexpr int kWarpColumns = kGradient ? kBrickColumns : kBrickRows;     ///< of n
  static constexpr int kColumns = kWarps * kWarpColumns;
  static constexpr int kTiles = kWarpColumns / 16, kTokenTiles = kTokens / 8;     ///< of an mma
  static constexpr int kLaneColumns = 2 * kTiles;                                 ///< beside one another
  static constexpr int kRowChunks = kDepth / 8;
  static constexpr int kTokenBytes = kTokens * kDepth * 2;
  static constexpr int kStageBytes = kTokenBytes + kWarps * kBrickBytes;
  static constexpr int kStagesAt = kPairTableBytes + kNestedMapBytes;
  static constexpr int kSharedBytes = kStagesAt + kStages * kStageBytes;

  /// Where chunk `chunk` of row `row` lies in the row.
  static PEFT_DEVICE int swizzle(int row, int chunk) {
    return kGradient ? chunk ^ ((row >> 1 & 1) * 2) : chunk ^ ((row & 1) * 4);
  }
};

namespace detail {

/// Starts the copies of one step: rows of x, and the codes of each warp's brick.
template <class Plan, class T>
PEFT_DEVICE void load_step(const FourBitGemmArgs<T>& p, const SharedMemory& memory, int slot, int token0, int k_length, int step,
                           const std::uint8_t* codes, Index code_step, bool is_active) {
  const int stage = Plan::kStagesAt + slot * Plan::kStageBytes;
  const Shared<std::uint16_t> tile = memory.template at<std::uint16_t>(stage);
  constexpr int kItems = Plan::kTokens * Plan::kRowChunks;
  PEFT_UNROLL
  for (int i = 0; i < (kItems + Plan::kThreads - 1) / Plan::kThreads; ++i) {
    const int item = thread_index() + i * Plan::kThreads;
    if (kItems % Plan::kThreads != 0 && item >= kItems) break;
    const int row = item / Plan::kRowChunks;
    const int chunk = item % Plan::kRowChunks;
    const int k = step * Plan::kDepth + chunk * 8;
    const bool is_inside = token0 + row < p.m && k < k_length;
    const T* from = p.x + (is_inside ? (token0 + row) * p.ldx + k : Index{0});
    const Shared<std::uint16_t> to = tile + (row * Plan::kRowChunks + Plan::swizzle(row, chunk)) * 8;
    cp_async_16(to, from, is_inside);
  }
  const Shared<std::uint8_t> bricks =
      memory.template at<std::uint8_t>(stage + Plan::kTokenBytes + warp_index() * kBrickBytes + lane_index() * 16);
  const std::uint8_t* from = codes + step * code_step;
  cp_async_16(bricks, from, is_active);
  cp_async_16(bricks + 512, from + (Plan::kGradient ? 256 : 512), is_active);
}

}  // namespace detail

/// Grid: blocks of columns, blocks of rows, parts. 256 threads; registers 255 at most (128 rows: 128 sums, 16 of weights), one
/// block a multiprocessor; shared memory kSharedBytes: forward 129 KiB (128 rows; sm_80, 90, 100, 103), 97 KiB (64), 81 KiB (32),
/// 57 KiB (32 rows, two stages: sm_75); gradient 81 KiB (64 rows), 57 KiB (two stages: sm_75).
template <class T, class Plan>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Plan::kThreads, 1) void four_bit_gemm_kernel(FourBitGemmArgs<T> args) {
  constexpr bool kGradient = Plan::kGradient;
  constexpr int kStages = Plan::kStages;
  constexpr int kTiles = Plan::kTiles;
  constexpr int kTokenTiles = Plan::kTokenTiles;
  const SharedMemory memory = shared_memory();
  const FourBitScales scales(args.w);
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int n = kGradient ? scales.in : scales.out;
  const int k_length = kGradient ? scales.out : scales.in;
  const int tile_column = block_x() * Plan::kWarps + warp_index();  // of bricks
  const int n0 = tile_column * Plan::kWarpColumns;
  const int token0 = block_y() * Plan::kTokens;
  const bool is_active = n0 < n;
  const int steps = ceil_div(k_length, Plan::kDepth);
  const int first = block_z() * args.steps_per_part;
  const int end = min(first + args.steps_per_part, steps);

  // The brick of step i, and where this lane's chunk lies in it.
  const Index brick_columns = four_bit_brick_columns(scales.in);
  const Index code_step = kGradient ? brick_columns * kBrickBytes : Index{kBrickBytes};
  const std::uint8_t* codes = args.w.codes;
  if (is_active) {
    codes += (kGradient ? Index{tile_column} : tile_column * brick_columns) * kBrickBytes;
    codes += kGradient ? four_bit_chunk_byte(t, g) : 16 * lane;
  }
  const auto start = [&](int step, int slot) {
    detail::load_step<Plan>(args, memory, slot, token0, k_length, step, codes, code_step, is_active);
  };
  // Of a step's two halves; forward only of the first: but for blocks of 32 the second's are the same.
  constexpr int kScaleWords = kGradient ? 2 : 1;
  const auto load_scales = [&](int step, FourBitScaleWords(&words)[kScaleWords]) {
    if (!is_active || step >= end) return;
    PEFT_UNROLL
    for (int h = 0; h < kScaleWords; ++h) {
      words[h] = kGradient ? scales.load_rows(step * kBrickRows + 16 * h + 4 * t, n0 + 8 * g)
                           : scales.load_rows(n0 + 4 * g, step * kBrickColumns);
    }
  };

  PEFT_UNROLL
  for (int s = 0; s < kStages - 1; ++s) {
    if (first + s < end) start(first + s, s);
    cp_async_commit();
  }
  FourBitScaleWords next[kScaleWords] = {};
  load_scales(first, next);
  const PairTable<float> table = fill_pair_table<float, Plan::kThreads>(memory, 0, args.w.value);
  const Shared<float> map = fill_nested_map<Plan::kThreads>(memory, kPairTableBytes, args.w);

  float sums[kTiles][kTokenTiles][4] = {};
  if (block_z() == 0 && args.r > 0 && is_active) {
    for (int k = 0; k < args.r; k += 16) {
      std::uint32_t fragments[kTiles][4];
      if constexpr (kGradient) {
        low_rank_columns(fragments, args.right, args.ldright, n0, n, k, args.r, args.low_rank_aligned);
      } else {
        low_rank_rows(fragments, args.right, args.ldright, n0, n, k, args.r, args.low_rank_aligned);
      }
      PEFT_UNROLL
      for (int j = 0; j < kTokenTiles; ++j) {
        const int row = token0 + 8 * j + g;
        const Vec<std::uint32_t, 2> left =
            load_four(args.left + row * args.ldleft, row < args.m, k + 4 * t, args.r, args.low_rank_aligned);
        PEFT_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) mma_16816<T>(sums[tile][j], fragments[tile], left.v);
      }
    }
    if constexpr (!kGradient) {
      PEFT_UNROLL
      for (auto& tile : sums) {
        PEFT_UNROLL
        for (auto& part : tile) {
          PEFT_UNROLL
          for (float& sum : part) sum *= args.scale;
        }
      }
    } else if (args.mask != nullptr) {
      // This lane's eight columns are one byte of a row's mask.
      PEFT_UNROLL
      for (int j = 0; j < kTokenTiles; ++j) {
        PEFT_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int row = token0 + 8 * j + 2 * t + e;
          const bool is_inside = row < args.m && n0 + 8 * g < n;
          const std::uint32_t bits = is_inside ? load_const(args.mask + row * args.mask_stride + (n0 / 8 + g)) : 0u;
          PEFT_UNROLL
          for (int tile = 0; tile < kTiles; ++tile) {
            sums[tile][j][e] *= (bits >> (2 * tile)) & 1u ? args.mask_scale : 0.0f;
            sums[tile][j][2 + e] *= (bits >> (2 * tile + 1)) & 1u ? args.mask_scale : 0.0f;
          }
        }
      }
    }
  }

  int slot = 0;
  int free_slot = kStages - 1;
  for (int step = first; step < end; ++step) {
    cp_async_wait<kStages - 2>();
    sync_threads();  // this step is there for all, and all are done with the one before, whose slot is filled next
    if (step + kStages - 1 < end) start(step + kStages - 1, free_slot);
    cp_async_commit();
    FourBitScaleWords now[2] = {next[0], next[kScaleWords - 1]};
    if constexpr (!kGradient) {
      if (scales.shift < 6 && is_active) now[1] = scales.load_rows(n0 + 4 * g, step * kBrickColumns + 32);
    }
    load_scales(step + 1, next);
    if (is_active) {
      const int stage = Plan::kStagesAt + slot * Plan::kStageBytes;
      const Shared<std::uint32_t> tokens = memory.template at<std::uint32_t>(stage);
      const Shared<std::uint32_t> bricks =
          memory.template at<std::uint32_t>(stage + Plan::kTokenBytes + warp_index() * kBrickBytes);
      PEFT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const FourBitChunk chunk = bricks.template load_vec<4>(128 * h + 4 * lane);
        const Vec<float, 4> scale = scales.expand(now[h], map);
        if constexpr (kGradient) {
          std::uint32_t fragments[4][4];
          decode_columns<T>(fragments, chunk, scale, table);
          const Shared<std::uint32_t> row = tokens + (g * 4 + Plan::swizzle(g, 2 * h + t / 2)) * 4 + t % 2 * 2;
          PEFT_UNROLL
          for (int j = 0; j < kTokenTiles; ++j) {
            const Vec<std::uint32_t, 2> x = row.template load_vec<2>(j * 8 * 16);
            PEFT_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) mma_16816<T>(sums[tile][j], fragments[tile], x.v);
          }
        } else {
          std::uint32_t fragments[2][2][4];
          decode_rows<T>(fragments, chunk, scale, table);
          const Shared<std::uint32_t> row = tokens + (g * 8 + Plan::swizzle(g, 4 * h + t)) * 4;
          PEFT_UNROLL
          for (int j = 0; j < kTokenTiles; ++j) {
            const Vec<std::uint32_t, 4> x = row.template load_vec<4>(j * 8 * 32);
            PEFT_UNROLL
            for (int s = 0; s < 2; ++s) {
              const std::uint32_t pair[2] = {x.v[2 * s], x.v[2 * s + 1]};
              PEFT_UNROLL
              for (int tile = 0; tile < kTiles; ++tile) mma_16816<T>(sums[tile][j], fragments[s][tile], pair);
            }
          }
        }
      }
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == kStages ? 0 : free_slot + 1;
  }
  cp_async_wait<0>();
  if (!is_active) return;

  // A lane has kLaneColumns columns of each row, beside one another.
  constexpr int kRun = Plan::kLaneColumns;
  const int column = n0 + g * kRun;
  float bias[kRun] = {};
  if constexpr (!kGradient) {
    if (args.bias != nullptr && args.parts == nullptr) {
      PEFT_UNROLL
      for (int e = 0; e < kRun; ++e) {
        if (column + e < n) bias[e] = to_float(load_const(args.bias + column + e));
      }
    }
  }
  PEFT_UNROLL
  for (int j = 0; j < kTokenTiles; ++j) {
    PEFT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int row = token0 + 8 * j + 2 * t + e;
      if (row >= args.m) continue;
      if (args.parts != nullptr) {
        float* to = args.parts + (static_cast<Index>(block_z()) * args.m + row) * n + column;
        PEFT_UNROLL
        for (int i = 0; i < kRun; ++i) {
          if (column + i < n) store(to + i, sums[i / 2][j][i % 2 * 2 + e]);
        }
        continue;
      }
      T* to = args.y + row * args.ldy + column;
      if (args.y_aligned && column + kRun <= n) {
        Vec<std::uint32_t, kRun / 2> run;
        PEFT_UNROLL
        for (int i = 0; i < kRun; i += 2) run[i / 2] = pack2<T>(sums[i / 2][j][e] + bias[i], sums[i / 2][j][2 + e] + bias[i + 1]);
        store(reinterpret_cast<Vec<std::uint32_t, kRun / 2>*>(to), run);
      } else {
        PEFT_UNROLL
        for (int i = 0; i < kRun; ++i) {
          if (column + i < n) store(to + i, from_float<T>(sums[i / 2][j][i % 2 * 2 + e] + bias[i]));
        }
      }
    }
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
