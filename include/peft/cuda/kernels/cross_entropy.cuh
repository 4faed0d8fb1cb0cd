#pragma once
/// Softmax cross-entropy of a chunk of logits z [rows, vocabulary] of T, sums in float:
///   loss_i = log Σ_j exp z_ij − z_i,label(i);   dz_i = scale·(softmax(z_i) − onehot(label_i)), in place of z
/// A negative label (−100, or the library's −1) has loss 0 and a zero gradient; one beyond the vocabulary makes a NaN.
///
/// A block is one row. First pass: maximum and sum of exponentials together (online: a thread's sum is rescaled when its
/// maximum grows), all combined in a fixed order; second pass: the gradient. Rows of up to kCrossEntropyStage bytes wait in
/// shared memory between the passes, so that each logit is read once and written once; longer ones are read again, from L2
/// while the rows under way fit it (a row of 128,256 in bf16: 250 KB; 132 of them 33 MB). 16-byte accesses from the first
/// aligned element on, whatever the row's stride.
///
/// Moves 2 (staged) or 3 times sizeof(T) an element; two exponentials and some ten instructions an element stay below the
/// memory's time.

#include "peft/cuda/kernels/reduce.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct CrossEntropyArgs {
  T* logits;  ///< overwritten by the gradient with want_grad
  Index ld;
  Index rows, vocabulary;
  const std::int32_t* labels;  ///< [rows]
  float scale;                 ///< of the gradient
  const float* scale_from;     ///< one more factor, in device memory, or null
  float* losses;               ///< [rows]
  std::uint8_t* correct;       ///< [rows] or null: 1 where the label's logit is the largest (the first of equals)
  bool want_grad;
};

inline constexpr int kCrossEntropyThreads = 512;
inline constexpr int kCrossEntropyStage = 64512;
inline constexpr int kCrossEntropyScratch = 256;  ///< maximum, sum and a flag of 16 warps

/// A maximum and Σ exp(z − maximum). Starts at the lowest finite number: a logit of −∞ then adds exp(−∞) = 0.
struct OnlineSum {
  float largest = -3.402823466e38f;
  float sum = 0.0f;

  /// Makes room for numbers of up to `other`.
  PEFT_DEVICE void raise(float other) {
    if (other > largest) {
      sum *= exp_(largest - other);
      largest = other;
    }
  }
  /// The same over a warp; all lanes get it.
  PEFT_DEVICE void combine() {
    const float all = warp_max(largest);
    sum = warp_sum(sum * exp_(largest - all));
    largest = all;
  }
};

/// Whether a logit at `column` is chosen before the label's.
PEFT_DEVICE bool is_before_label(float z, Index column, float of_label, Index label) {
  return z > of_label || (z == of_label && column < label);
}

/// Budget: 64 registers (2 blocks of 512 threads a multiprocessor); shared memory 256 bytes and, staged, the row.
template <class T, bool kStaged>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kCrossEntropyThreads, 2) void cross_entropy_kernel(const CrossEntropyArgs<T> args) {
  constexpr int kVec = 16 / static_cast<int>(sizeof(T));
  constexpr int kAtOnce = 4;
  using V = Vec<T, kVec>;
  const int row = block_x();
  T* const z = args.logits + static_cast<Index>(row) * args.ld;
  const int count = static_cast<int>(args.vocabulary);
  const int label = load_const(args.labels + row);
  // Elements before the first aligned one, vectors, and elements behind them.
  const int offset = static_cast<int>(reinterpret_cast<std::uintptr_t>(z) % 16 / sizeof(T));
  const int head = min(count, (kVec - offset) % kVec);
  const int vectors = (count - head) / kVec;
  const int single = count - vectors * kVec;  // head and tail together
  const auto single_at = [&](int i) { return i < head ? i : i + vectors * kVec; };
  V* const body = reinterpret_cast<V*>(z + head);
  const int thread = thread_index();

  if (label < 0) {
    if (thread == 0) {
      store(args.losses + row, 0.0f);
      if (args.correct != nullptr) store(args.correct + row, std::uint8_t{0});
    }
    if (args.want_grad) {
      const V zero{};
      for (int i = thread; i < vectors; i += kCrossEntropyThreads) store(body + i, zero);
      for (int i = thread; i < single; i += kCrossEntropyThreads) store(z + single_at(i), from_float<T>(0.0f));
    }
    return;
  }
  const float of_label = label < count ? to_float(load(z + label)) : bit_cast<float>(0x7FC00000u);
  const SharedMemory memory = shared_memory();
  const Shared<T> stage = memory.template at<T>(kCrossEntropyScratch);

  OnlineSum own;
  bool beaten = false;
  for (int base = thread; base < vectors; base += kAtOnce * kCrossEntropyThreads) {
    V v[kAtOnce];
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kCrossEntropyThreads;
      if (i < vectors) v[u] = load(body + i);
    }
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kCrossEntropyThreads;
      if (i < vectors) {
        if constexpr (kStaged) stage.template store_vec<kVec>(i * kVec, v[u]);
        float largest = to_float(v[u][0]);
        PEFT_UNROLL
        for (int e = 1; e < kVec; ++e) largest = max(largest, to_float(v[u][e]));
        own.raise(largest);
        PEFT_UNROLL
        for (int e = 0; e < kVec; ++e) own.sum += exp_(to_float(v[u][e]) - own.largest);
        const int first = head + i * kVec;
        if (label < first || label >= first + kVec) {
          beaten = beaten || is_before_label(largest, first, of_label, label);
        } else {
          PEFT_UNROLL
          for (int e = 0; e < kVec; ++e) {
            beaten = beaten || is_before_label(to_float(v[u][e]), first + e, of_label, label);
          }
        }
      }
    }
  }
  for (int i = thread; i < single; i += kCrossEntropyThreads) {
    const int j = single_at(i);
    const float one = to_float(load(z + j));
    own.raise(one);
    own.sum += exp_(one - own.largest);
    beaten = beaten || is_before_label(one, j, of_label, label);
  }

  constexpr int kWarps = kCrossEntropyThreads / 32;
  const Shared<float> of_warps = memory.template at<float>(0);
  own.combine();
  const float was_beaten = ballot(~0u, beaten) != 0 ? 1.0f : 0.0f;
  if (lane_index() == 0) {
    of_warps.store(warp_index(), own.largest);
    of_warps.store(kWarps + warp_index(), own.sum);
    of_warps.store(2 * kWarps + warp_index(), was_beaten);
  }
  sync_threads();
  // Every warp combines all of them, in the same order; each stands in two lanes, of which one counts.
  OnlineSum all;
  all.largest = of_warps.load(lane_index() % kWarps);
  all.sum = lane_index() < kWarps ? of_warps.load(kWarps + lane_index() % kWarps) : 0.0f;
  all.combine();
  if (thread < 32) {
    const bool lost = ballot(~0u, of_warps.load(2 * kWarps + lane_index() % kWarps) != 0.0f) != 0;
    if (thread == 0) {
      store(args.losses + row, log_(all.sum) + (all.largest - of_label));
      if (args.correct != nullptr) store(args.correct + row, static_cast<std::uint8_t>(lost || !(of_label == of_label) ? 0 : 1));
    }
  }
  if (!args.want_grad) return;

  float scale = args.scale;
  if (args.scale_from != nullptr) scale = mul_rn(scale, load_const(args.scale_from));
  const float factor = div_rn(scale, all.sum);
  const auto slope = [&](T logit, int column) {
    const float p = mul_rn(exp_(to_float(logit) - all.largest), factor);
    return from_float<T>(column == label ? p - scale : p);
  };
  for (int base = thread; base < vectors; base += kAtOnce * kCrossEntropyThreads) {
    V v[kAtOnce];
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kCrossEntropyThreads;
      if (i < vectors) {
        if constexpr (kStaged) {
          v[u] = stage.template load_vec<kVec>(i * kVec);
        } else {
          v[u] = load(body + i);
        }
      }
    }
    PEFT_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = base + u * kCrossEntropyThreads;
      if (i < vectors) {
        PEFT_UNROLL
        for (int e = 0; e < kVec; ++e) v[u][e] = slope(v[u][e], head + i * kVec + e);
        store(body + i, v[u]);
      }
    }
  }
  for (int i = thread; i < single; i += kCrossEntropyThreads) {
    const int j = single_at(i);
    store(z + j, slope(load(z + j), j));
  }
}

template <class T>
cudaError_t cross_entropy_chunk(const CrossEntropyArgs<T>& args, cudaStream_t stream) {
  if (args.rows < 0 || args.rows > 0x7FFFFFFF || args.vocabulary < 1 || args.vocabulary > 0x7FFFFFF0 ||
      args.ld < args.vocabulary) {
    return cudaErrorInvalidValue;
  }
  if (args.rows == 0) return cudaSuccess;
  if (args.logits == nullptr || args.labels == nullptr || args.losses == nullptr) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>(args.rows), 1, 1};
  const Index row_bytes = args.vocabulary * static_cast<Index>(sizeof(T));
  if (args.want_grad && row_bytes <= kCrossEntropyStage) {
    const int shared = kCrossEntropyScratch + static_cast<int>((row_bytes + 15) / 16 * 16);
    return launch<cross_entropy_kernel<T, true>>(grid, kCrossEntropyThreads, shared, stream, args);
  }
  return launch<cross_entropy_kernel<T, false>>(grid, kCrossEntropyThreads, kCrossEntropyScratch, stream, args);
}

/// What the rows of an accumulation come to; the members of LossSum.
struct CrossEntropyTotals {
  double loss;
  std::int64_t tokens, correct;
};

/// totals += the losses, labels and hits of a chunk.
struct CrossEntropyTotalArgs {
  const float* losses;          ///< [rows]
  const std::int32_t* labels;   ///< [rows]
  const std::uint8_t* correct;  ///< [rows] or null
  Index rows;
  CrossEntropyTotals* totals;  ///< in device memory
};

/// One block, in a fixed order: rows 256 apart by one thread, the threads as a tree.
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 1) void cross_entropy_total_kernel(const CrossEntropyTotalArgs args) {
  double loss = 0.0, tokens = 0.0, correct = 0.0;  // counts below 2^53 are exact
  for (Index i = thread_index(); i < args.rows; i += 256) {
    if (load_const(args.labels + i) < 0) continue;
    loss += static_cast<double>(load_const(args.losses + i));
    tokens += 1.0;
    if (args.correct != nullptr) correct += static_cast<double>(load_const(args.correct + i));
  }
  const Shared<double> scratch = shared_memory().at<double>(0);
  loss = block_sum_double(loss, scratch);
  tokens = block_sum_double(tokens, scratch + 8);
  correct = block_sum_double(correct, scratch + 16);
  if (thread_index() != 0) return;
  CrossEntropyTotals* const totals = args.totals;
  store(&totals->loss, load(&totals->loss) + loss);
  store(&totals->tokens, load(&totals->tokens) + static_cast<std::int64_t>(tokens));
  store(&totals->correct, load(&totals->correct) + static_cast<std::int64_t>(correct));
}

inline cudaError_t cross_entropy_total(const CrossEntropyTotalArgs& args, cudaStream_t stream) {
  if (args.rows < 0 || args.totals == nullptr) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  if (args.losses == nullptr || args.labels == nullptr) return cudaErrorInvalidValue;
  return launch<cross_entropy_total_kernel>(Grid{1, 1, 1}, 256, 3 * 8 * 8, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
