#pragma once
/// out = bias + scale·add, rounded once;   [n], bias and out of T, add float: a layer's bias with an adapter's.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct BiasSumArgs {
  const T* bias;  ///< or null: zeros
  const float* add;
  float scale;
  T* out;
  Index n;
};

inline constexpr int kBiasSumThreads = 256;

/// One thread an element: thousands of them in all. Budget: 32 registers, no shared memory.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kBiasSumThreads, 4) void bias_sum_kernel(BiasSumArgs<T> args) {
  const Index i = static_cast<Index>(block_x()) * kBiasSumThreads + thread_index();
  if (i >= args.n) return;
  const float own = args.bias == nullptr ? 0.0f : to_float(load_const(args.bias + i));
  store(args.out + i, from_float<T>(fma(args.scale, load_const(args.add + i), own)));
}

template <class T>
cudaError_t bias_sum(const BiasSumArgs<T>& args, cudaStream_t stream) {
  if (args.n < 0 || args.n > 0x7FFFFFFF) return cudaErrorInvalidValue;
  if (args.n == 0) return cudaSuccess;
  if (args.add == nullptr || args.out == nullptr) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>((args.n + kBiasSumThreads - 1) / kBiasSumThreads), 1, 1};
  return launch<bias_sum_kernel<T>>(grid, kBiasSumThreads, 0, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
