#pragma once
/// Both narrow gradients of a low-rank update in one pass over dy:
///   dS = scale·dy·B,  dB += scale·dyᵀ·S;   dy [m,out], S [m,r], B [out,r], dS [m,r], dB [out,r] float
/// A block owns two panels of dy's columns and walks down its part of the rows: a tile of dy, once in shared memory, is
/// read along k = out for dS and across k = m for dB. dB stays in registers over all of the block's rows; dS is complete
/// only over all blocks of columns, so its sums per block go through the workspace ([column blocks, m, r] floats, which
/// the L2 holds for the usual m·r) and are added in a fixed order; so are dB's where the rows are cut into parts.

#include "peft/cuda/kernels/tile_product.cuh"
#include "peft/cuda/kernels/tile_reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct LoraBackwardArgs {
  const T* dy;
  Index lddy;
  const T* s;
  Index lds;
  const T* b;
  Index ldb;
  float scale;
  T* ds;
  Index ldds;
  float* db;  ///< [out, r], added to
  Index lddb;
  Index m, out, r;
  float* workspace;  ///< lora_backward_workspace bytes, 16-byte aligned
  int sm = 0;        ///< compute capability; 0: the current device's
};

template <class T>
struct LoraBackwardTask {
  TileSource<T> dy, s, b;
  float scale;
  T* ds;
  Index ldds;
  float* db;
  Index lddb;
  float* ds_parts;  ///< [grid x, m, r], unscaled; null: straight to ds
  float* db_parts;  ///< [grid y, out, r], unscaled; null: straight to db
  int m, out, r;
  int tiles, tiles_a_part;  ///< of 64 rows
  bool ds_aligned, db_aligned;
};

/// Two panels of columns, 64 rows at a time, 16 columns of r or a panel's.
template <class T, bool kWholePanel, bool kOld>
struct LoraBackwardPlan {
  static constexpr int kThreads = 128;
  static constexpr int kRows = 64;
  static constexpr int kColumns = 2 * kPanel<T>;
  static constexpr int kRank = kWholePanel ? kPanel<T> : 16;
  static constexpr int kStages = kOld ? 2 : 3;
  /// A panel of kPanel rows; 64 rows are kSubtiles of them below one another.
  static constexpr int kPanelBytes = kPanel<T> * 128;
  static constexpr int kSubtiles = kRows / kPanel<T>;
  static constexpr int kBytesDy = kSubtiles * 2 * kPanelBytes;
  static constexpr int kStageBytes = kBytesDy + kSubtiles * kPanelBytes;
  static constexpr int kBytesB = 2 * kPanelBytes;
  static constexpr int kSharedBytes = kBytesB + kStages * kStageBytes;
  static_assert(kSharedBytes <= (kOld ? 64 : 99) * 1024);
  static constexpr bool kMma = std::is_same_v<T, f16> || (std::is_same_v<T, bf16> && !kOld);
  static constexpr int kWarpColumns = kColumns / 4;  // of dy, for dB
  template <int kM, Order kA>
  using TileOf = std::conditional_t<kMma, MmaTile<T, kM, kRank, kA, Order::kAcrossK>,
                                    FmaTile<T, kM, kRank, kA, Order::kAcrossK>>;
  using TileDs = TileOf<16, Order::kAlongK>;
  using TileDb = TileOf<kWarpColumns, Order::kAcrossK>;
};

/// Grid: blocks of columns, parts of rows, blocks of r. Budget: 128 threads, 160 registers for 16 columns of r, 224 for a
/// panel's, 88 KiB of shared memory (f32: 80; sm_75: 64, 56).
/// Roofline: bound by memory: dy is read once a block of r. Beside its 2·128·m bytes a block of columns writes and reads back
/// 8·r·m bytes of dS's sums (f32: the same of 4·64·m): a half at r = 16, through L2.
template <class T, bool kWholePanel, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(128, 1) void lora_backward_kernel(LoraBackwardTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = LoraBackwardPlan<T, kWholePanel, kOld>;
    constexpr int kStages = Plan::kStages;
    constexpr int kThreads = Plan::kThreads;
    constexpr int kRankChunks = Plan::kRank / kChunk<T>;
    const SharedMemory memory = shared_memory();
    const int column0 = block_x() * Plan::kColumns;
    const int rank0 = block_z() * Plan::kRank;
    const int first = block_y() * task.tiles_a_part;
    const int total = min(task.tiles_a_part, task.tiles - first);
    const int warp = warp_index();

    const auto start = [&](int t, int slot) {
      const int at = Plan::kBytesB + slot * Plan::kStageBytes;
      PEFT_UNROLL
      for (int sub = 0; sub < Plan::kSubtiles; ++sub) {
        const int row = (first + t) * Plan::kRows + sub * kPanel<T>;
        load_tile<T, kPanel<T>, 16, kThreads>(memory, at + sub * 2 * Plan::kPanelBytes, task.dy, row, column0);
        load_tile<T, kPanel<T>, kRankChunks, kThreads>(memory, at + Plan::kBytesDy + sub * Plan::kPanelBytes, task.s, row,
                                                       rank0);
      }
    };

    typename Plan::TileDb db;
    db.clear();
    PEFT_UNROLL
    for (int panel = 0; panel < 2; ++panel) {
      load_tile<T, kPanel<T>, kRankChunks, kThreads>(memory, panel * Plan::kPanelBytes, task.b,
                                                     column0 + panel * kPanel<T>, rank0);
    }
    PEFT_UNROLL
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < total) start(s, s);
      cp_async_commit();
    }
    int slot = 0;
    int free_slot = kStages - 1;
    for (int t = 0; t < total; ++t) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // tile t is there for all, and all are done with t - 1, whose slot is filled next
      if (t + kStages - 1 < total) start(t + kStages - 1, free_slot);
      cp_async_commit();
      const int at = Plan::kBytesB + slot * Plan::kStageBytes;

      typename Plan::TileDs ds;
      ds.clear();
      const int warp_sub = warp * 16 / kPanel<T>;
      PEFT_UNROLL
      for (int panel = 0; panel < 2; ++panel) {
        ds.multiply(memory, at + (warp_sub * 2 + panel) * Plan::kPanelBytes, warp * 16 % kPanel<T>, 0,
                    panel * Plan::kPanelBytes, 0, 0);
      }
      PEFT_UNROLL
      for (int sub = 0; sub < Plan::kSubtiles; ++sub) {
        db.multiply(memory, at + sub * 2 * Plan::kPanelBytes, warp * Plan::kWarpColumns, 0,
                    at + Plan::kBytesDy + sub * Plan::kPanelBytes, 0, 0);
      }

      const int row0 = (first + t) * Plan::kRows + warp * 16;
      if (task.ds_parts != nullptr) {
        float* sums = task.ds_parts + static_cast<Index>(block_x()) * task.m * task.r;
        ds.for_each_run4([&](int row, int column, const auto& run) {
          store_run(sums, static_cast<Index>(task.r), task.m, task.r, task.r % 4 == 0, row0 + row, rank0 + column, run);
        });
      } else {
        ds.for_each_run4([&](int row, int column, auto run) {
          PEFT_UNROLL
          for (int i = 0; i < 4; ++i) run[i] *= task.scale;
          store_run(task.ds, task.ldds, task.m, task.r, task.ds_aligned, row0 + row, rank0 + column, run);
        });
      }
      slot = slot + 1 == kStages ? 0 : slot + 1;
      free_slot = free_slot + 1 == kStages ? 0 : free_slot + 1;
    }

    const int out0 = column0 + warp * Plan::kWarpColumns;
    if (task.db_parts != nullptr) {
      float* sums = task.db_parts + static_cast<Index>(block_y()) * task.out * task.r;
      db.for_each_run4([&](int row, int column, const auto& run) {
        store_run(sums, static_cast<Index>(task.r), task.out, task.r, task.r % 4 == 0, out0 + row, rank0 + column, run);
      });
    } else {
      db.for_each_run4([&](int row, int column, const auto& run) {
        add_run(task.db, task.lddb, task.out, task.r, task.db_aligned, out0 + row, rank0 + column, task.scale, run);
      });
    }
  } else {
    end_with_error();
  }
}

namespace detail {

/// How lora_backward cuts its work.
struct LoraBackwardCut {
  int column_blocks, row_parts, tiles_a_part, rank_blocks;
};
template <class T>
inline LoraBackwardCut lora_backward_cut(Index m, Index out, Index r) {
  LoraBackwardCut cut{};
  cut.column_blocks = max(1, blocks_of(out, 2 * kPanel<T>));
  cut.rank_blocks = blocks_of(r, r <= 16 ? 16 : kPanel<T>);
  const int tiles = blocks_of(m, 64);
  cut.tiles_a_part = max(1, ceil_div(tiles, split_parts(static_cast<Index>(cut.column_blocks) * cut.rank_blocks, tiles)));
  cut.row_parts = max(1, ceil_div(tiles, cut.tiles_a_part));
  return cut;
}

template <class T, bool kWholePanel, bool kOld>
inline cudaError_t launch_lora_backward(const LoraBackwardTask<T>& task, const LoraBackwardCut& cut, cudaStream_t stream) {
  using Plan = LoraBackwardPlan<T, kWholePanel, kOld>;
  return launch<lora_backward_kernel<T, kWholePanel, kOld>>(Grid{cut.column_blocks, cut.row_parts, cut.rank_blocks},
                                                            Plan::kThreads, Plan::kSharedBytes, stream, task);
}

}  // namespace detail

/// Bytes of workspace for lora_backward.
template <class T>
inline Index lora_backward_workspace(Index m, Index out, Index r) {
  const detail::LoraBackwardCut cut = detail::lora_backward_cut<T>(m, out, r);
  const Index ds = cut.column_blocks > 1 ? cut.column_blocks * m * r : 0;
  const Index db = cut.row_parts > 1 ? cut.row_parts * out * r : 0;
  return (ds + db) * static_cast<Index>(sizeof(float));
}

template <class T>
inline cudaError_t lora_backward(const LoraBackwardArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.out) || !is_size(args.r)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.r == 0) return cudaSuccess;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const detail::LoraBackwardCut cut = detail::lora_backward_cut<T>(args.m, args.out, args.r);
  if (args.workspace == nullptr && lora_backward_workspace<T>(args.m, args.out, args.r) > 0) return cudaErrorInvalidValue;
  float* ds_parts = cut.column_blocks > 1 ? args.workspace : nullptr;
  float* db_parts = nullptr;
  if (cut.row_parts > 1) db_parts = args.workspace + (cut.column_blocks > 1 ? cut.column_blocks * args.m * args.r : 0);
  const LoraBackwardTask<T> task{tile_source(args.dy, args.lddy, args.m, args.out),
                                 tile_source(args.s, args.lds, args.m, args.r),
                                 tile_source(args.b, args.ldb, args.out, args.r),
                                 args.scale,
                                 args.ds,
                                 args.ldds,
                                 args.db,
                                 args.lddb,
                                 ds_parts,
                                 db_parts,
                                 static_cast<int>(args.m),
                                 static_cast<int>(args.out),
                                 static_cast<int>(args.r),
                                 blocks_of(args.m, 64),
                                 cut.tiles_a_part,
                                 is_store_aligned(args.ds, args.ldds),
                                 is_store_aligned(args.db, args.lddb)};
  const bool is_old = sm < 80;
  const cudaError_t error =
      args.r <= 16 ? (is_old ? detail::launch_lora_backward<T, false, true>(task, cut, stream)
                             : detail::launch_lora_backward<T, false, false>(task, cut, stream))
                   : (is_old ? detail::launch_lora_backward<T, true, true>(task, cut, stream)
                             : detail::launch_lora_backward<T, true, false>(task, cut, stream));
  if (error != cudaSuccess) return error;
  if (ds_parts != nullptr) {
    const cudaError_t reduced = tile_reduce(
        TileReduceArgs<T>{ds_parts, cut.column_blocks, args.ds, args.ldds, task.m, task.r, args.scale, false}, stream);
    if (reduced != cudaSuccess) return reduced;
  }
  if (db_parts == nullptr) return cudaSuccess;
  return tile_reduce(
      TileReduceArgs<float>{db_parts, cut.row_parts, args.db, args.lddb, task.out, task.r, args.scale, true}, stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
