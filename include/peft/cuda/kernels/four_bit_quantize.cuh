#pragma once
/// Block-wise quantisation to four bits as bitsandbytes does it on a CPU, bit for bit (kernels/quantize_four_bit.hpp):
///   whole block   absmax = max|w|; code of w·(1/max(absmax, 1e-38))
///   short block   at the end: absmax = max(max|w|, 1e-38); code of w/absmax
/// into bitsandbytes' order; four_bit_pack (four_bit_layout.cuh) follows.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct FourBitQuantizeArgs {
  const T* w;  ///< [rows, cols], rows `ldw` apart
  Index ldw;
  Index rows, cols;
  int block_size;
  float threshold[16];  ///< the code's fifteen middles, ascending, as in kernels::FourBitTable
  std::uint32_t code_of_rank[16];
  std::uint8_t* codes;  ///< ⌈rows·cols/2⌉, 4-byte aligned
  float* absmax;        ///< one for each block; NaN where the block has an element that is not finite
};

inline constexpr int kQuantizeThreads = 256;
/// 15 thresholds, 32 copies of each: one a bank.
inline constexpr int kQuantizeSharedBytes = 16 * 32 * 4;

namespace detail {

/// Eight elements from flat position `first`; zeros from `end` on.
template <class T>
PEFT_DEVICE void gather_eight(const FourBitQuantizeArgs<T>& q, Index first, Index end, bool aligned, float (&x)[8]) {
  if (aligned && first + 8 <= end) {
    constexpr int kRun = static_cast<int>(16 / sizeof(T));
    PEFT_UNROLL
    for (int e = 0; e < 8; e += kRun) {
      const Vec<T, kRun> run = load_const(reinterpret_cast<const Vec<T, kRun>*>(q.w + first + e));
      PEFT_UNROLL
      for (int i = 0; i < kRun; ++i) x[e + i] = to_float(run.v[i]);
    }
    return;
  }
  Index row = first / q.cols;
  Index column = first % q.cols;
  PEFT_UNROLL
  for (int e = 0; e < 8; ++e) {
    x[e] = first + e < end ? to_float(load_const(q.w + row * q.ldw + column)) : 0.0f;
    if (++column == q.cols) {
      column = 0;
      ++row;
    }
  }
}

/// The code of a number between -1 and 1: thresholds below it are counted by halving.
PEFT_DEVICE std::uint32_t code_of(float x, const Shared<float>& threshold, float middle, std::uint32_t low, std::uint32_t high) {
  int rank = x > middle ? 8 : 0;
  PEFT_UNROLL
  for (int step = 4; step > 0; step /= 2) rank += x > threshold.load((rank + step - 1) * 32) ? step : 0;
  return ((rank < 8 ? low : high) >> (4 * (rank & 7))) & 15u;
}

}  // namespace detail

/// min(32, block/8) lanes for a block, eight neighbours a lane; larger blocks are gone over twice, from cache. Registers 56;
/// shared memory 2 KiB.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kQuantizeThreads, 4) void four_bit_quantize_kernel(FourBitQuantizeArgs<T> args) {
  const SharedMemory memory = shared_memory();
  const Shared<float> table = memory.template at<float>(0);
  for (int i = thread_index(); i < 16 * 32; i += kQuantizeThreads) table.store(i, args.threshold[i / 32]);
  sync_threads();
  const Shared<float> threshold = table + lane_index();
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  PEFT_UNROLL
  for (int i = 0; i < 8; ++i) {
    low |= args.code_of_rank[i] << (4 * i);
    high |= args.code_of_rank[8 + i] << (4 * i);
  }

  const Index n = args.rows * args.cols;
  const Index blocks = (n + args.block_size - 1) / args.block_size;
  const int group = min(32, args.block_size / 8);
  const bool aligned = args.ldw == args.cols && reinterpret_cast<std::uintptr_t>(args.w) % 16 == 0;
  const Index block = (static_cast<Index>(block_x()) * kQuantizeThreads + thread_index()) / group;
  const int place = thread_index() % group;
  // Lanes beyond the last block stay for the shuffles.
  const Index begin = min(block, blocks) * args.block_size;
  const Index end = min(begin + args.block_size, n);
  const bool is_whole = begin + args.block_size <= n;

  float most = 0.0f;
  std::uint32_t is_wrong = 0;
  float x[8];
  for (int i = 0; i < args.block_size; i += 8 * group) {
    detail::gather_eight(args, begin + i + 8 * place, end, aligned, x);
    PEFT_UNROLL
    for (float v : x) {
      most = max(most, abs_(v));
      is_wrong |= (bit_cast<std::uint32_t>(v) & 0x7F800000u) == 0x7F800000u ? 1u : 0u;
    }
  }
  for (int step = group / 2; step > 0; step /= 2) {
    most = max(most, shuffle_xor(~0u, most, step));
    is_wrong |= shuffle_xor(~0u, is_wrong, step);
  }
  if (block >= blocks) return;
  const float least = max(most, 1e-38f);
  if (place == 0) {
    store(args.absmax + block, is_wrong != 0 ? bit_cast<float>(0x7FC00000u) : is_whole ? most : least);
  }
  const float inverse = div_rn(1.0f, least);
  const float middle = args.threshold[7];
  for (int i = 0; i < args.block_size; i += 8 * group) {
    const Index first = begin + i + 8 * place;
    if (first >= end) break;
    // The last values are still there where one pass was enough.
    if (args.block_size > 8 * group) detail::gather_eight(args, first, end, aligned, x);
    std::uint32_t word = 0;
    PEFT_UNROLL
    for (int e = 0; e < 8; ++e) {
      const float scaled = is_whole ? mul_rn(x[e], inverse) : div_rn(x[e], least);
      word |= detail::code_of(scaled, threshold, middle, low, high) << (8 * (e / 2) + (e % 2 == 0 ? 4 : 0));
    }
    std::uint8_t* out = args.codes + first / 2;
    if (first + 8 <= end) {
      store(reinterpret_cast<std::uint32_t*>(out), word);
    } else {
      for (int b = 0; b < (end - first + 1) / 2; ++b) store(out + b, static_cast<std::uint8_t>(word >> (8 * b)));
    }
  }
}

template <class T>
inline cudaError_t four_bit_quantize(const FourBitQuantizeArgs<T>& args, cudaStream_t stream) {
  const int size = args.block_size;
  if (args.rows < 0 || args.cols < 0 || size < 32 || size > 4096 || (size & (size - 1)) != 0) return cudaErrorInvalidValue;
  const Index n = args.rows * args.cols;
  if (n == 0) return cudaSuccess;
  const Index threads = (n + size - 1) / size * min(32, size / 8);
  const Index blocks = (threads + kQuantizeThreads - 1) / kQuantizeThreads;
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidValue;
  return launch<four_bit_quantize_kernel<T>>(Grid{static_cast<int>(blocks), 1, 1}, kQuantizeThreads, kQuantizeSharedBytes, stream,
                                             args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
