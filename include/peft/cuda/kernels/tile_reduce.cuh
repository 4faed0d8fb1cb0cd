#pragma once
/// The end of a sum that was cut into parts: out [rows, columns] (+)= scale · Σ_p parts[p], p upwards: the same bits in
/// every run.

#include <climits>

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct TileReduceArgs {
  const float* parts;  ///< [count, rows, columns]
  int count;
  T* out;
  Index ld;
  int rows, columns;
  float scale;
  bool add;  ///< to what `out` holds
};

inline constexpr int kReduceThreads = 256;

/// One thread an element. No shared memory; at most 48 registers.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kReduceThreads, 4) void tile_reduce_kernel(TileReduceArgs<T> args) {
  const int element = block_x() * kReduceThreads + thread_index();
  const int elements = args.rows * args.columns;
  if (element >= elements) return;
  const float* from = args.parts + element;
  float sum = 0.0f;
  for (int p = 0; p < args.count; ++p, from += elements) sum += load(from);
  T* out = args.out + static_cast<Index>(element / args.columns) * args.ld + element % args.columns;
  const float start = args.add ? to_float(load(out)) : 0.0f;
  store(out, from_float<T>(fma(args.scale, sum, start)));
}

/// rows x columns below 2^31.
template <class T>
inline cudaError_t tile_reduce(const TileReduceArgs<T>& args, cudaStream_t stream) {
  const Index elements = static_cast<Index>(args.rows) * args.columns;
  if (elements > INT_MAX - kReduceThreads) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>((elements + kReduceThreads - 1) / kReduceThreads), 1, 1};
  return launch<tile_reduce_kernel<T>>(grid, kReduceThreads, 0, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
