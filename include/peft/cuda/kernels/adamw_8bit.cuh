#pragma once
/// AdamW with moments in 8 bits, in one pass: kernels/eight_bit.hpp's codes of blocks of 256 elements that share a maximum,
/// on the signed dynamic map (m) and the unsigned one (v); the same codes, maxima and parameters as on the CPU, bit for bit.
///
/// A warp owns a block of 256: its lanes hold elements [4l, 4l+4) and [128+4l, 128+4l+4), so that every access of floats is
/// 512 bytes in a row and every access of codes 128; the maximum is a butterfly; no barrier but the one behind the tables.
/// Tables: value[256] and the words in which a code is found by one look-up, both maps: 25.6 KB of shared memory a thread
/// block, which walks over chunks so that loading them costs nothing beside the tensor. Four look-ups an element meet
/// random banks: 3.4 wavefronts a warp on average, 14 cycles for 32 elements; the memory needs more than 30 (H100: 3.35 TB/s
/// over 132 multiprocessors, 512 bytes for 32 elements), so it is the bound.
///
/// Moves 16 bytes an element (p both ways, grad, two codes both ways) and 16 a block.

#include "peft/cuda/kernels/adamw.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// Numbers that share a maximum, and where the words' buckets begin and how wide they are: kernels::EightBitTable.
inline constexpr int kEightBitBlock = 256;
inline constexpr std::uint32_t kEightBitFirst = 0x34000000u, kEightBitLast = 0x3F800000u;
inline constexpr int kEightBitSignedShift = 17, kEightBitUnsignedShift = 16;
inline constexpr int kEightBitSignedBuckets = static_cast<int>((kEightBitLast - kEightBitFirst) >> kEightBitSignedShift) + 1;
inline constexpr int kEightBitUnsignedBuckets =
    static_cast<int>((kEightBitLast - kEightBitFirst) >> kEightBitUnsignedShift) + 1;
inline constexpr int kEightBitSignedWords = 2 * kEightBitSignedBuckets;

/// The two maps' tables in device memory, copied from kernels::EightBitTable.
struct EightBitTables {
  const float* m_value;          ///< [256]
  const std::uint32_t* m_word;   ///< [kEightBitSignedWords]
  const float* v_value;          ///< [256]
  const std::uint32_t* v_word;   ///< [kEightBitUnsignedBuckets]
};

/// As AdamWTensor; a code per element and a maximum per block of 256. Zeroed memory means moments of zero.
template <class T>
struct AdamW8bitTensor {
  float* param;
  const float* grad;
  std::uint8_t* m;
  std::uint8_t* v;
  float* m_absmax;
  float* v_absmax;
  T* copy;
  Index n;
  std::int32_t group;
};

/// As AdamWArgs.
template <class T>
struct AdamW8bitArgs {
  AdamW8bitTensor<T> tensor;
  const AdamW8bitTensor<T>* tensors;
  const TensorChunk* chunks;
  int chunk_count;
  AdamWScalars scalars;
  const AdamWScalars* scalars_from;
  const float* clip;
  EightBitTables tables;
};

/// The code of x, in which the largest size of its block is 1 (or above it by a rounding).
template <bool kHasSign>
PEFT_DEVICE std::uint32_t eight_bit_code(const Shared<std::uint32_t>& words, float x) {
  constexpr int kShift = kHasSign ? kEightBitSignedShift : kEightBitUnsignedShift;
  std::uint32_t bits = bit_cast<std::uint32_t>(x);
  std::uint32_t size = kHasSign ? bits & 0x7FFFFFFFu : bits;
  size = size < kEightBitFirst ? kEightBitFirst : size > kEightBitLast ? kEightBitLast : size;
  std::uint32_t bucket = (size - kEightBitFirst) >> kShift;
  if constexpr (kHasSign) {
    const std::uint32_t sign = 0u - (bits >> 31);
    bucket += sign & static_cast<std::uint32_t>(kEightBitSignedBuckets);
    bits ^= sign;
  }
  return (words.load(static_cast<int>(bucket)) + (bits & ((1u << kShift) - 1u))) >> kShift;
}

inline constexpr int kAdamW8bitThreads = 256;
inline constexpr int kAdamW8bitSharedBytes = (512 + kEightBitSignedWords + kEightBitUnsignedBuckets) * 4;

/// Eight numbers of a lane: four and four, 128 apart.
struct EightNumbers {
  Vec<float, 4> half[2];
};

/// The codes of a block's numbers, and their maximum. Whole blocks are multiplied by the reciprocal, others divided, as
/// bitsandbytes does. Lanes of a whole block write four codes at once.
template <bool kHasSign>
PEFT_DEVICE void store_eight_bit(const EightNumbers& x, int count, bool vectors, const Shared<std::uint32_t>& words,
                                 std::uint8_t* codes, float* absmax) {
  float largest = 0.0f;
  PEFT_UNROLL
  for (int h = 0; h < 2; ++h) {
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) largest = max(largest, kHasSign ? abs_(x.half[h][e]) : x.half[h][e]);
  }
  largest = warp_max(largest);
  sync_warp();  // every lane has read the old maximum
  if (lane_index() == 0) store(absmax, largest);
  const float least = max(largest, 1e-38f);
  const bool divide = count < kEightBitBlock;
  const float factor = div_rn(1.0f, least);
  PEFT_UNROLL
  for (int h = 0; h < 2; ++h) {
    Vec<std::uint8_t, 4> four;
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) {
      const float scaled = divide ? div_rn(x.half[h][e], least) : mul_rn(x.half[h][e], factor);
      four[e] = static_cast<std::uint8_t>(eight_bit_code<kHasSign>(words, scaled));
    }
    const int first = h * 128 + 4 * lane_index();
    if (vectors) {
      store(reinterpret_cast<Vec<std::uint8_t, 4>*>(codes + first), four);
    } else {
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (first + e < count) store(codes + first + e, four[e]);
      }
    }
  }
}

/// Budget: 80 registers, so that 768 threads of a multiprocessor have 60 KB of loads under way; 25.6 KB of shared memory a
/// block.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kAdamW8bitThreads, 3) void adamw_8bit_kernel(const AdamW8bitArgs<T> args) {
  constexpr std::uint8_t kSignedZero = 127;
  const Shared<float> m_value = shared_memory().at<float>(0);
  const Shared<float> v_value = m_value + 256;
  const Shared<std::uint32_t> m_word = shared_memory().at<std::uint32_t>(2048);
  const Shared<std::uint32_t> v_word = m_word + kEightBitSignedWords;
  if (thread_index() < 256) {
    m_value.store(thread_index(), load_const(args.tables.m_value + thread_index()));
    v_value.store(thread_index(), load_const(args.tables.v_value + thread_index()));
  }
  for (int i = thread_index(); i < kEightBitSignedWords; i += kAdamW8bitThreads) {
    m_word.store(i, load_const(args.tables.m_word + i));
  }
  for (int i = thread_index(); i < kEightBitUnsignedBuckets; i += kAdamW8bitThreads) {
    v_word.store(i, load_const(args.tables.v_word + i));
  }
  sync_threads();

  // A chunk of 4096 is sixteen blocks of 256: a round of the warps takes half of it.
  constexpr int kWarps = kAdamW8bitThreads / 32;
  constexpr int kRounds = kTensorChunk / kEightBitBlock / kWarps;
  const int lane = lane_index();
  for (int round = block_x(); round < args.chunk_count * kRounds; round += grid_x()) {
    TensorChunk chunk{0, round / kRounds};
    AdamW8bitTensor<T> tensor = args.tensor;
    if (args.tensors != nullptr) {
      chunk = load_const(args.chunks + chunk.chunk);
      const AdamW8bitTensor<T>* const one = args.tensors + chunk.tensor;
      tensor = {load_const(&one->param),    load_const(&one->grad),     load_const(&one->m),
                load_const(&one->v),        load_const(&one->m_absmax), load_const(&one->v_absmax),
                load_const(&one->copy),     load_const(&one->n),        load_const(&one->group)};
    }
    const Index block = static_cast<Index>(chunk.chunk) * (kRounds * kWarps) + round % kRounds * kWarps + warp_index();
    const Index first = block * kEightBitBlock;
    if (first >= tensor.n) continue;
    const int count = static_cast<int>(tensor.n - first < kEightBitBlock ? tensor.n - first : Index{kEightBitBlock});
    const AdamWScalars scalars = adamw_scalars_of(args, tensor.group);
    float* const p = tensor.param + first;
    const float* const g = tensor.grad + first;
    std::uint8_t* const m_codes = tensor.m + first;
    std::uint8_t* const v_codes = tensor.v + first;
    T* const copy = tensor.copy != nullptr ? tensor.copy + first : nullptr;
    const bool vectors = count == kEightBitBlock && is_aligned_16(p) && is_aligned_16(g) && is_aligned_16(m_codes) &&
                         is_aligned_16(v_codes) && is_aligned_16(copy);
    using Four = Vec<float, 4>;
    using FourCodes = Vec<std::uint8_t, 4>;
    EightNumbers p8, g8, m8, v8;
    FourCodes m_code[2], v_code[2];
    PEFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int at = h * 128 + 4 * lane;
      if (vectors) {
        m_code[h] = load(reinterpret_cast<const FourCodes*>(m_codes + at));
        v_code[h] = load(reinterpret_cast<const FourCodes*>(v_codes + at));
        p8.half[h] = load(reinterpret_cast<const Four*>(p + at));
        g8.half[h] = load_stream(reinterpret_cast<const Four*>(g + at));
      } else {
        PEFT_UNROLL
        for (int e = 0; e < 4; ++e) {  // zeros behind the end, which stay zeros
          const bool is_there = at + e < count;
          m_code[h][e] = is_there ? load(m_codes + at + e) : kSignedZero;
          v_code[h][e] = is_there ? load(v_codes + at + e) : std::uint8_t{0};
          p8.half[h][e] = is_there ? load(p + at + e) : 0.0f;
          g8.half[h][e] = is_there ? load_const(g + at + e) : 0.0f;
        }
      }
    }
    const float m_absmax = load(tensor.m_absmax + block), v_absmax = load(tensor.v_absmax + block);
    PEFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) {
        float m = mul_rn(m_value.load(m_code[h][e]), m_absmax);
        float v = mul_rn(v_value.load(v_code[h][e]), v_absmax);
        p8.half[h][e] = adamw_update(scalars, p8.half[h][e], g8.half[h][e], m, v);
        m8.half[h][e] = m;
        v8.half[h][e] = v;
      }
      const int at = h * 128 + 4 * lane;
      Vec<T, 4> narrow;
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) narrow[e] = from_float<T>(p8.half[h][e]);
      if (vectors) {
        store(reinterpret_cast<Four*>(p + at), p8.half[h]);
        if (copy != nullptr) store(reinterpret_cast<Vec<T, 4>*>(copy + at), narrow);
      } else {
        PEFT_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (at + e < count) store(p + at + e, p8.half[h][e]);
          if (at + e < count && copy != nullptr) store(copy + at + e, narrow[e]);
        }
      }
    }
    store_eight_bit<true>(m8, count, vectors, m_word, m_codes, tensor.m_absmax + block);
    store_eight_bit<false>(v8, count, vectors, v_word, v_codes, tensor.v_absmax + block);
  }
}

/// Thread blocks at most: enough for every multiprocessor that there is, few enough that each loads its tables once for
/// many chunks. Results do not depend on it.
inline constexpr int kAdamW8bitBlocks = 1024;

/// Of one tensor the chunk count is worked out here.
template <class T>
cudaError_t adamw_8bit_step(AdamW8bitArgs<T> args, cudaStream_t stream) {
  constexpr int kMostChunks = 1 << 29;
  if (args.tensors == nullptr) {
    const AdamW8bitTensor<T>& one = args.tensor;
    if (one.n < 0 || tensor_chunks(one.n) > kMostChunks) return cudaErrorInvalidValue;
    args.chunk_count = static_cast<int>(tensor_chunks(one.n));
    if (one.n > 0 && (one.param == nullptr || one.grad == nullptr || one.m == nullptr || one.v == nullptr ||
                      one.m_absmax == nullptr || one.v_absmax == nullptr)) {
      return cudaErrorInvalidValue;
    }
  } else if (args.chunks == nullptr || args.chunk_count < 0 || args.chunk_count > kMostChunks) {
    return cudaErrorInvalidValue;
  }
  const EightBitTables& tables = args.tables;
  if (tables.m_value == nullptr || tables.m_word == nullptr || tables.v_value == nullptr || tables.v_word == nullptr) {
    return cudaErrorInvalidValue;
  }
  if (args.chunk_count == 0) return cudaSuccess;
  return launch<adamw_8bit_kernel<T>>(Grid{min(2 * args.chunk_count, kAdamW8bitBlocks), 1, 1}, kAdamW8bitThreads,
                                      kAdamW8bitSharedBytes, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
