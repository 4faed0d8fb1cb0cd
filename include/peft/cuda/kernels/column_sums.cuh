#pragma once
/// The gradient of a bias: out += scale · Σ_i a[i] (or =);   a [m, n] of T, out [n] float. Rows are cut into parts by shape, and all
/// sums have a fixed order. Reads a once, 16 bytes a lane.

#include "peft/cuda/kernels/tile_product.cuh"
#include "peft/cuda/kernels/tile_reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct ColumnSumArgs {
  const T* a;
  Index lda;
  Index m, n;
  float scale;
  float* out;                  ///< [n], added to
  float* workspace = nullptr;  ///< column_sum_workspace bytes; null: m is not cut, which is slower
  bool overwrites = false;     ///< out = …, and not +=
};

template <class T>
struct ColumnSumTask {
  const T* a;
  Index lda;
  int m, n, rows_a_part;
  bool aligned;
  float scale;
  float* out;
  float* parts;  ///< [parts, n], unscaled; null: straight to out
  bool overwrites;
};

inline constexpr int kColumnSumWarps = 8;
/// Columns of a block: a lane holds 16 bytes of a row.
template <class T>
inline constexpr int kColumnSumSpan = 32 * kChunk<T>;

/// Grid: columns, parts of m. Budget: 256 threads, 64 registers, 8 KiB of shared memory (4 in float).
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(32 * kColumnSumWarps, 4) void column_sum_kernel(ColumnSumTask<T> task) {
  constexpr int kVec = kChunk<T>;
  constexpr int kSpan = kColumnSumSpan<T>;
  const int column0 = block_x() * kSpan;
  const int column = column0 + lane_index() * kVec;
  const int first = block_y() * task.rows_a_part;
  const int last = min(task.m, first + task.rows_a_part);
  float sums[kVec] = {};
  if (column < task.n) {
    for (int row = first + warp_index(); row < last; row += kColumnSumWarps) {
      const T* const at = task.a + static_cast<Index>(row) * task.lda + column;
      if (task.aligned) {
        const Vec<T, kVec> values = load_const(reinterpret_cast<const Vec<T, kVec>*>(at));
        PEFT_UNROLL
        for (int e = 0; e < kVec; ++e) sums[e] += to_float(values.v[e]);
      } else {
        PEFT_UNROLL
        for (int e = 0; e < kVec; ++e) {
          if (column + e < task.n) sums[e] += to_float(load_const(at + e));
        }
      }
    }
  }
  const Shared<float> of_warps = shared_memory().at<float>(0);
  PEFT_UNROLL
  for (int e = 0; e < kVec; e += 4) {
    // A lane's fours stand 32 fours apart, the second ones with neighbouring groups of four lanes swapped: neither lanes that
    // write a four beside one another nor columns beside one another meet in a bank.
    of_warps.template store_vec<4>(warp_index() * kSpan + (e / 4 * 32 + (lane_index() ^ e)) * 4,
                                   Vec<float, 4>{{sums[e], sums[e + 1], sums[e + 2], sums[e + 3]}});
  }
  sync_threads();
  for (int c = thread_index(); c < kSpan && column0 + c < task.n; c += 32 * kColumnSumWarps) {
    const int four = c % kVec / 4;
    const int place = (four * 32 + (c / kVec ^ 4 * four)) * 4 + c % 4;
    float sum = 0.0f;
    PEFT_UNROLL
    for (int w = 0; w < kColumnSumWarps; ++w) sum += of_warps.load(w * kSpan + place);
    if (task.parts != nullptr) {
      store(task.parts + static_cast<Index>(block_y()) * task.n + column0 + c, sum);
    } else {
      float* const out = task.out + column0 + c;
      store(out, fma(task.scale, sum, task.overwrites ? 0.0f : load(out)));
    }
  }
}

namespace detail {
template <class T>
inline int column_sum_parts(Index m, Index n) {
  return split_parts(blocks_of(n, kColumnSumSpan<T>), blocks_of(m, 4 * kColumnSumWarps));
}
}  // namespace detail

/// Bytes of workspace for column_sum.
template <class T>
inline Index column_sum_workspace(Index m, Index n) {
  const int parts = detail::column_sum_parts<T>(m, n);
  return parts == 1 ? 0 : parts * n * static_cast<Index>(sizeof(float));
}

template <class T>
inline cudaError_t column_sum(const ColumnSumArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.n)) return cudaErrorInvalidValue;
  if (args.m == 0 || args.n == 0) return cudaSuccess;
  if (args.a == nullptr || args.out == nullptr) return cudaErrorInvalidValue;
  const int wanted = args.workspace == nullptr ? 1 : detail::column_sum_parts<T>(args.m, args.n);
  const int rows_a_part = ceil_div(static_cast<int>(args.m), wanted);
  const int parts = ceil_div(static_cast<int>(args.m), rows_a_part);
  const ColumnSumTask<T> task{args.a,
                              args.lda,
                              static_cast<int>(args.m),
                              static_cast<int>(args.n),
                              rows_a_part,
                              is_aligned(args.a, args.lda, args.n),
                              args.scale,
                              args.out,
                              parts > 1 ? args.workspace : nullptr,
                              args.overwrites};
  const Grid grid{blocks_of(args.n, kColumnSumSpan<T>), parts, 1};
  constexpr int kShared = kColumnSumWarps * kColumnSumSpan<T> * static_cast<int>(sizeof(float));
  const cudaError_t error = launch<column_sum_kernel<T>>(grid, 32 * kColumnSumWarps, kShared, stream, task);
  if (error != cudaSuccess || parts == 1) return error;
  return tile_reduce(TileReduceArgs<float>{args.workspace, parts, args.out, args.n, 1, static_cast<int>(args.n), args.scale,
                                           !args.overwrites},
                     stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
