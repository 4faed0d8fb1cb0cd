#pragma once
/// The products of four_bit_gemm.cuh for what it does not take: f32 (multiply-adds in float), bf16 on sm_75 (likewise), and weights
/// whose blocks run over the ends of rows. Weights are decoded into shared memory, then it is the dense product's tile: tensor
/// cores for f16 and bf16, else fused multiply-adds.
///
/// Two slots: while one is multiplied, the next x comes by cp.async and the next words are in registers, decoded behind the product.

#include "peft/cuda/kernels/four_bit_decode.cuh"
#include "peft/cuda/kernels/four_bit_gemm.cuh"
#include "peft/cuda/kernels/tile_product.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// kOld: for sm_75. A plan of the dense product; its shared memory holds two of its stages and sixteen values for each lane.
template <class T, bool kGradient_, bool kOld>
struct FourBitTilePlan : TilePlan<T, MiddleTile, kOld, Order::kAlongK, kGradient_ ? Order::kAcrossK : Order::kAlongK> {
  using Base = TilePlan<T, MiddleTile, kOld, Order::kAlongK, kGradient_ ? Order::kAcrossK : Order::kAlongK>;
  static constexpr bool kGradient = kGradient_;
  static constexpr int kValuesAt = 2 * Base::kStageBytes;
  static constexpr int kSharedBytes = kValuesAt + 16 * 32 * 4;
  static constexpr int kWords = 8 * kPanel<T> / Base::kThreads;  ///< of a tile, a thread
};

namespace detail {

/// A dense operand in global memory; elements outside [rows, columns] read as zero.
template <class T>
struct DenseOperand {
  const T* data;
  Index ld;
  int rows, columns;
  bool aligned;  ///< rows may be read 16 bytes at a time, and end with 16 bytes
};

/// Starts the copies of kRows x kColumns elements from (row0, column0) into panels at byte `at`, placed as kOrder has it.
template <class T, Order kOrder, int kRows, int kColumns, int kThreads>
PEFT_DEVICE void copy_operand(const SharedMemory& memory, int at, const DenseOperand<T>& source, int row0, int column0) {
  constexpr int kRowChunks = kColumns / kChunk<T>;
  static_assert(kRows * kRowChunks % kThreads == 0);
  const Shared<T> tile = memory.template at<T>(at);
  PEFT_UNROLL
  for (int i = 0; i < kRows * kRowChunks / kThreads; ++i) {
    const int item = thread_index() + i * kThreads;
    const int row = item / kRowChunks;
    const int column = item % kRowChunks * kChunk<T>;
    const bool is_inside = row0 + row < source.rows && column0 + column < source.columns;
    const T* from = source.data + (is_inside ? (row0 + row) * source.ld + column0 + column : Index{0});
    const int place = kOrder == Order::kAlongK ? tile_position<T, kOrder>(row, column) : tile_position<T, kOrder>(column, row);
    if (source.aligned) {
      cp_async_16(tile + place, from, is_inside);
    } else {
      Vec<T, kChunk<T>> values{};
      PEFT_UNROLL
      for (int e = 0; e < kChunk<T>; ++e) {
        if (is_inside && column0 + column + e < source.columns) values[e] = load_const(from + e);
      }
      tile.store_vec(place, values);
    }
  }
}

struct FourBitWord {
  std::uint32_t codes;
  FourBitWordScales scales;
};

/// Row and first column, within the tile of W, of this thread's word i: neighbours take rows below one another.
template <class Plan>
PEFT_DEVICE void tile_word(int i, int& row, int& column) {
  constexpr int kRows = Plan::kGradient ? kPanel<typename Plan::value_type> : Plan::Shape::kBlockN;
  const int item = thread_index() + i * Plan::kThreads;
  row = item % kRows;
  column = item / kRows * 8;
}

template <class Plan>
PEFT_DEVICE void load_words(FourBitWord (&words)[Plan::kWords], const FourBitPacked& w, int row0, int column0) {
  PEFT_UNROLL
  for (int i = 0; i < Plan::kWords; ++i) {
    int row, column;
    tile_word<Plan>(i, row, column);
    row += row0;
    column += column0;
    words[i] = {0, {0.0f, 0.0f, 8}};
    if (row < w.out && column < w.in) {
      words[i].codes = load_const(reinterpret_cast<const std::uint32_t*>(w.codes + four_bit_word_byte(row, column, w.in)));
      words[i].scales = four_bit_word_scales(w, row, column);
    }
  }
}

template <class Plan>
PEFT_DEVICE void decode_words(const FourBitWord (&words)[Plan::kWords], const SharedMemory& memory, int tile,
                              const Shared<float>& value) {
  using T = typename Plan::value_type;
  const Shared<T> at = memory.template at<T>(tile);
  PEFT_UNROLL
  for (int i = 0; i < Plan::kWords; ++i) {
    int row, column;
    tile_word<Plan>(i, row, column);
    PEFT_UNROLL
    for (int e = 0; e < 8; e += kChunk<T>) {
      Vec<T, kChunk<T>> run;
      PEFT_UNROLL
      for (int j = 0; j < kChunk<T>; ++j) {
        const std::uint32_t code = (words[i].codes >> (8 * ((e + j) / 2) + ((e + j) % 2 == 0 ? 4 : 0))) & 15u;
        run[j] = from_float<T>(mul_rn(value.load(static_cast<int>(code) * 32), words[i].scales[e + j]));
      }
      const int place = Plan::kGradient ? tile_position<T, Plan::kB>(column + e, row) : tile_position<T, Plan::kB>(row, column + e);
      at.store_vec(place, run);
    }
  }
}

}  // namespace detail

/// Grid: blocks of 64 columns, blocks of 64 rows, parts. 128 threads; registers 168; shared memory 34 KiB.
template <class T, class Plan, bool kOld>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(Plan::kThreads, 3) void four_bit_tile_kernel(FourBitGemmArgs<T> args) {
  if constexpr (kIsForThisDevice<kOld>) {
    constexpr bool kGradient = Plan::kGradient;
    using Shape = typename Plan::Shape;
    const SharedMemory memory = shared_memory();
    const int out = static_cast<int>(args.w.out);
    const int in = static_cast<int>(args.w.in);
    const int n = kGradient ? in : out;
    const int k_length = kGradient ? out : in;
    const int n0 = block_x() * Shape::kBlockN;
    const int token0 = block_y() * Shape::kBlockM;
    const detail::DenseOperand<T> x{args.x, args.ldx, args.m, k_length, args.x_aligned};
    const detail::DenseOperand<T> left{args.left, args.ldleft, args.m, args.r, args.low_rank_aligned};
    const detail::DenseOperand<T> right{args.right, args.ldright, kGradient ? args.r : n, kGradient ? n : args.r, args.low_rank_aligned};
    constexpr int kThreads = Plan::kThreads;
    const int first = block_z() * args.steps_per_part;
    const int steps = min(args.steps_per_part, ceil_div(k_length, kPanel<T>) - first);
    const int turn = block_z() == 0 ? ceil_div(args.r, kPanel<T>) : 0;
    const int total = turn + max(steps, 0);

    const Shared<float> values = memory.template at<float>(Plan::kValuesAt);
    for (int i = thread_index(); i < 16 * 32; i += kThreads) values.store(i, args.w.value[i / 32]);
    const Shared<float> value = values + lane_index();
    detail::FourBitWord words[Plan::kWords];

    const auto start = [&](int t) {
      const int stage = t % 2 * Plan::kStageBytes;
      if (t < turn) {
        const int k = t * kPanel<T>;
        detail::copy_operand<T, Order::kAlongK, Shape::kBlockM, kPanel<T>, kThreads>(memory, stage, left, token0, k);
        if constexpr (kGradient) {
          detail::copy_operand<T, Order::kAcrossK, kPanel<T>, Shape::kBlockN, kThreads>(memory, stage + Plan::kBytesA, right, k, n0);
        } else {
          detail::copy_operand<T, Order::kAlongK, Shape::kBlockN, kPanel<T>, kThreads>(memory, stage + Plan::kBytesA, right, n0, k);
        }
      } else {
        const int k = (first + t - turn) * kPanel<T>;
        detail::copy_operand<T, Order::kAlongK, Shape::kBlockM, kPanel<T>, kThreads>(memory, stage, x, token0, k);
        detail::load_words<Plan>(words, args.w, kGradient ? k : n0, kGradient ? n0 : k);
      }
      cp_async_commit();
    };
    const auto finish = [&](int t) {
      if (t >= turn) detail::decode_words<Plan>(words, memory, t % 2 * Plan::kStageBytes + Plan::kBytesA, value);
    };

    typename Plan::Tile tile;
    tile.clear();
    const int row0 = token0 + Plan::warp_row();
    const int column0 = n0 + Plan::warp_column();
    const auto between = [&]() {
      tile.for_each([&](int row, int column, float& sum) {
        if constexpr (!kGradient) {
          sum *= args.scale;
        } else if (args.mask != nullptr) {
          row += row0;
          column += column0;
          const bool is_inside = row < args.m && column < n;
          const std::uint32_t bits = is_inside ? load_const(args.mask + row * args.mask_stride + column / 8) : 0u;
          sum *= (bits >> (column % 8)) & 1u ? args.mask_scale : 0.0f;
        }
      });
    };
    if (total > 0) start(0);
    sync_threads();
    if (total > 0) finish(0);
    for (int t = 0; t < total; ++t) {
      cp_async_wait<0>();
      sync_threads();
      if (t + 1 < total) start(t + 1);
      if (t == turn && turn > 0) between();
      const int stage = t % 2 * Plan::kStageBytes;
      tile.multiply(memory, stage, Plan::warp_row(), 0, stage + Plan::kBytesA, Plan::warp_column(), 0);
      if (t + 1 < total) finish(t + 1);
    }
    if (turn > 0 && total == turn) between();

    tile.for_each_run([&](int row, int column, auto run) {
      row += row0;
      column += column0;
      constexpr int kRun = static_cast<int>(sizeof(run) / sizeof(float));
      if (args.parts != nullptr) {
        store_run(args.parts + static_cast<Index>(block_z()) * args.m * n, Index{n}, args.m, n, false, row, column, run);
        return;
      }
      if (!kGradient && args.bias != nullptr) {
        PEFT_UNROLL
        for (int i = 0; i < kRun; ++i) {
          if (column + i < n) run[i] += to_float(load_const(args.bias + column + i));
        }
      }
      store_run(args.y, args.ldy, args.m, n, args.y_aligned, row, column, run);
    });
  } else {
    end_with_error();
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
