#pragma once
/// Sums in a fixed order: over a warp, a block, and over all gradients,
///   norm = √Σ g²,   factor = min(1, max_norm / (norm + 1e-6))
/// as train/clip.hpp has them, so that AdamW can read the factor where it stands, with no way back over the host.
/// Four squares at a time are summed in float, these sums in double; a gradient above 1.8e19 makes the norm infinite.
///
/// Work is cut by elements only: chunks of kTensorChunk, a block each, then one block over the chunks. The same bits
/// on every device and in every run.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// Elements of a tensor that are one block's work, in the kernels that take many tensors in one launch.
inline constexpr int kTensorChunk = 4096;

/// Elements [chunk·kTensorChunk, + kTensorChunk) of tensor number `tensor`.
struct TensorChunk {
  std::int32_t tensor, chunk;
};

/// Chunks of a tensor of n elements.
PEFT_HOST_DEVICE constexpr Index tensor_chunks(Index n) { return (n + kTensorChunk - 1) / kTensorChunk; }

/// Whether a pointer may be read in 16 bytes.
PEFT_HOST_DEVICE bool is_aligned_16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// A butterfly over the warp's 32 lanes: all of them get the sum.
PEFT_DEVICE double warp_sum_double(double value) {
  PEFT_UNROLL
  for (int distance = 16; distance > 0; distance /= 2) {
    const Vec<std::uint32_t, 2> mine = bit_cast<Vec<std::uint32_t, 2>>(value);
    Vec<std::uint32_t, 2> other;
    other[0] = shuffle_xor(~0u, mine.v[0], distance);
    other[1] = shuffle_xor(~0u, mine.v[1], distance);
    value += bit_cast<double>(other);
  }
  return value;
}

/// The sum over a block of at most 32 whole warps, in thread 0. `scratch`: a double per warp; a barrier stands inside.
PEFT_DEVICE double block_sum_double(double value, const Shared<double>& scratch) {
  value = warp_sum_double(value);
  if (lane_index() == 0) scratch.store(warp_index(), value);
  sync_threads();
  if (thread_index() == 0) {
    value = 0.0;
    for (int w = 0; w < block_threads() / 32; ++w) value += scratch.load(w);
  }
  return value;
}

/// n floats.
struct SquaredNormBuffer {
  const float* data;
  Index n;
};

/// One buffer, or, where `buffers` is not null, several: these and their chunks, in order, stand in device memory.
struct SquaredNormArgs {
  SquaredNormBuffer buffer;
  const SquaredNormBuffer* buffers;
  const TensorChunk* chunks;
  int chunk_count;    ///< of all buffers together
  double* workspace;  ///< [chunk_count]
  float max_norm;     ///< 0: no clipping
  float* result;      ///< [2]: the norm and the factor; the factor is 1 without clipping, NaN where the norm is
};

inline constexpr int kSquaredNormThreads = 256;

/// Sums of the chunks' squares. Budget: 64 registers, 64 bytes of shared memory. Reads 4 bytes an element.
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kSquaredNormThreads, 4) void squared_norm_chunks(const SquaredNormArgs args) {
  TensorChunk chunk{0, block_x()};
  SquaredNormBuffer buffer = args.buffer;
  if (args.buffers != nullptr) {
    chunk = load_const(args.chunks + block_x());
    buffer = load_const(args.buffers + chunk.tensor);
  }
  const Index first = static_cast<Index>(chunk.chunk) * kTensorChunk;
  const int count = static_cast<int>(buffer.n - first < kTensorChunk ? buffer.n - first : Index{kTensorChunk});
  const float* x = buffer.data + first;
  double sum = 0.0;
  if (count == kTensorChunk && is_aligned_16(x)) {
    constexpr int kVectors = kTensorChunk / 4 / kSquaredNormThreads;
    Vec<float, 4> q[kVectors];
    PEFT_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      q[i] = load_const(reinterpret_cast<const Vec<float, 4>*>(x) + thread_index() + i * kSquaredNormThreads);
    }
    PEFT_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      sum += static_cast<double>(fma(q[i][0], q[i][0], q[i][1] * q[i][1]) + fma(q[i][2], q[i][2], q[i][3] * q[i][3]));
    }
  } else {
    for (int i = thread_index(); i < count; i += kSquaredNormThreads) {
      const float one = load_const(x + i);
      sum += static_cast<double>(one * one);
    }
  }
  sum = block_sum_double(sum, shared_memory().at<double>(0));
  if (thread_index() == 0) store(args.workspace + block_x(), sum);
}

inline constexpr int kSquaredNormTotalThreads = 1024;

/// One block: the norm and the factor of the chunks' sums. Budget: 64 registers, 256 bytes of shared memory.
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kSquaredNormTotalThreads, 1) void squared_norm_total(const SquaredNormArgs args) {
  double sum = 0.0;
  for (int i = thread_index(); i < args.chunk_count; i += kSquaredNormTotalThreads) sum += load(args.workspace + i);
  sum = block_sum_double(sum, shared_memory().at<double>(0));
  if (thread_index() != 0) return;
  const float norm = sqrt_rn(static_cast<float>(sum));
  float factor = 1.0f;
  if (args.max_norm > 0.0f) {
    const float wanted = div_rn(args.max_norm, add_rn(norm, 1e-6f));
    factor = wanted >= 1.0f ? 1.0f : wanted;  // a NaN stays one
  }
  store(args.result, norm);
  store(args.result + 1, factor);
}

inline cudaError_t squared_norm(const SquaredNormArgs& args, cudaStream_t stream) {
  if (args.chunk_count < 0 || args.result == nullptr) return cudaErrorInvalidValue;
  if (args.chunk_count > 0) {
    if (args.workspace == nullptr) return cudaErrorInvalidValue;
    const cudaError_t error = launch<squared_norm_chunks>(Grid{args.chunk_count, 1, 1}, kSquaredNormThreads,
                                                          kSquaredNormThreads / 32 * 8, stream, args);
    if (error != cudaSuccess) return error;
  }
  return launch<squared_norm_total>(Grid{1, 1, 1}, kSquaredNormTotalThreads, kSquaredNormTotalThreads / 32 * 8, stream,
                                    args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
