#pragma once
/// One AdamW update of one tensor or of many in one launch; the formula is kernels/adamw.hpp's:
///   g ← grad·grad_scale;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
///   p ← p·(1 − lr·decay) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)
/// The roundings are those of the CPU's kernels with a fused multiply-add (AVX2 and later): the same bits.
/// Where a layer computes in 16 bits, the parameter's copy in that type is written in the same pass.
///
/// Moves 28 bytes an element (p, m, v both ways, grad once), with a copy 30: bound by the memory. Per element and byte
/// there are fewer than two instructions, and 256 threads have up to 32 KiB of loads under way: the bandwidth is reached.

#include "peft/cuda/kernels/reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// What one update of a group of parameters needs: kernels::AdamWFloats, member by member.
struct AdamWScalars {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_root_correction2, eps, decay, grad_scale;
};

/// n elements; grad is left as it is. T: type of the copy (null: none).
template <class T>
struct AdamWTensor {
  float* param;
  const float* grad;
  float* m;
  float* v;
  T* copy;
  Index n;
  std::int32_t group;  ///< whose scalars count (learning rate, decay)
};

/// One tensor, or, where `tensors` is not null, several: these and their chunks stand in device memory.
/// scalars_from: the groups' scalars in device memory, so that a captured graph can step; null: `scalars`, for all.
/// clip: a factor of the gradient in device memory, as squared_norm() writes it, or null.
template <class T>
struct AdamWArgs {
  AdamWTensor<T> tensor;
  const AdamWTensor<T>* tensors;
  const TensorChunk* chunks;
  int chunk_count;
  AdamWScalars scalars;
  const AdamWScalars* scalars_from;
  const float* clip;
};

/// The scalars of a tensor's group, with the clipping in them.
template <class Args>
PEFT_DEVICE AdamWScalars adamw_scalars_of(const Args& args, int group) {
  AdamWScalars scalars = args.scalars;
  if (args.scalars_from != nullptr) {
    const float* from = reinterpret_cast<const float*>(args.scalars_from + group);
    scalars = {load_const(from),     load_const(from + 1), load_const(from + 2), load_const(from + 3), load_const(from + 4),
               load_const(from + 5), load_const(from + 6), load_const(from + 7), load_const(from + 8)};
  }
  if (args.clip != nullptr) scalars.grad_scale = mul_rn(scalars.grad_scale, load_const(args.clip));
  return scalars;
}

/// The update of one element: m and v in place; returns the parameter. Every operation rounds once, as it stands.
PEFT_DEVICE float adamw_update(const AdamWScalars& s, float param, float grad, float& m, float& v) {
  const float g = mul_rn(grad, s.grad_scale);
  m = fma(s.beta1, m, mul_rn(s.one_minus_beta1, g));
  v = fma(s.beta2, v, mul_rn(s.one_minus_beta2, mul_rn(g, g)));
  const float denominator = fma(sqrt_rn(v), s.inverse_root_correction2, s.eps);
  return fma(-s.step_size, div_rn(m, denominator), mul_rn(param, s.decay));
}

inline constexpr int kAdamWThreads = 256;

/// A block is one chunk. Budget: 64 registers (1024 threads of a multiprocessor), no shared memory.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kAdamWThreads, 4) void adamw_kernel(const AdamWArgs<T> args) {
  TensorChunk chunk{0, block_x()};
  const AdamWTensor<T>* const from = args.tensors;
  AdamWTensor<T> tensor = args.tensor;
  if (from != nullptr) {
    chunk = load_const(args.chunks + block_x());
    const AdamWTensor<T>* const one = from + chunk.tensor;
    tensor = {load_const(&one->param), load_const(&one->grad), load_const(&one->m),    load_const(&one->v),
              load_const(&one->copy),  load_const(&one->n),    load_const(&one->group)};
  }
  const AdamWScalars scalars = adamw_scalars_of(args, tensor.group);
  const Index first = static_cast<Index>(chunk.chunk) * kTensorChunk;
  const int count = static_cast<int>(tensor.n - first < kTensorChunk ? tensor.n - first : Index{kTensorChunk});
  float* const p = tensor.param + first;
  const float* const g = tensor.grad + first;
  float* const m = tensor.m + first;
  float* const v = tensor.v + first;
  T* const copy = tensor.copy != nullptr ? tensor.copy + first : nullptr;
  // The copy's groups of four are 8 or 16 bytes.
  const bool aligned = is_aligned_16(p) && is_aligned_16(g) && is_aligned_16(m) && is_aligned_16(v) && is_aligned_16(copy);
  const int vectors = aligned ? count / 4 : 0;
  using Four = Vec<float, 4>;
  constexpr int kAtOnce = 2;
  for (int base = thread_index(); base < vectors; base += kAtOnce * kAdamWThreads) {
    Four p4[kAtOnce], g4[kAtOnce], m4[kAtOnce], v4[kAtOnce];
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kAdamWThreads;
      if (i < vectors) {
        p4[u] = load(reinterpret_cast<const Four*>(p) + i);
        g4[u] = load_stream(reinterpret_cast<const Four*>(g) + i);
        m4[u] = load(reinterpret_cast<const Four*>(m) + i);
        v4[u] = load(reinterpret_cast<const Four*>(v) + i);
      }
    }
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kAdamWThreads;
      if (i < vectors) {
        PEFT_UNROLL
        for (int e = 0; e < 4; ++e) p4[u][e] = adamw_update(scalars, p4[u][e], g4[u][e], m4[u][e], v4[u][e]);
        store(reinterpret_cast<Four*>(p) + i, p4[u]);
        store(reinterpret_cast<Four*>(m) + i, m4[u]);
        store(reinterpret_cast<Four*>(v) + i, v4[u]);
        if (copy != nullptr) {
          Vec<T, 4> narrow;
          PEFT_UNROLL
          for (int e = 0; e < 4; ++e) narrow[e] = from_float<T>(p4[u][e]);
          store(reinterpret_cast<Vec<T, 4>*>(copy) + i, narrow);
        }
      }
    }
  }
  for (int i = 4 * vectors + thread_index(); i < count; i += kAdamWThreads) {
    float m1 = load(m + i), v1 = load(v + i);
    const float updated = adamw_update(scalars, load(p + i), load_const(g + i), m1, v1);
    store(p + i, updated);
    store(m + i, m1);
    store(v + i, v1);
    if (copy != nullptr) store(copy + i, from_float<T>(updated));
  }
}

template <class T>
cudaError_t adamw_step(const AdamWArgs<T>& args, cudaStream_t stream) {
  Index blocks = args.chunk_count;
  if (args.tensors == nullptr) {
    const AdamWTensor<T>& one = args.tensor;
    if (one.n < 0) return cudaErrorInvalidValue;
    blocks = tensor_chunks(one.n);
    if (blocks > 0 && (one.param == nullptr || one.grad == nullptr || one.m == nullptr || one.v == nullptr)) {
      return cudaErrorInvalidValue;
    }
  } else if (args.chunks == nullptr) {
    return cudaErrorInvalidValue;
  }
  if (blocks < 0 || blocks > 0x7FFFFFFF) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  return launch<adamw_kernel<T>>(Grid{static_cast<int>(blocks), 1, 1}, kAdamWThreads, 0, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
