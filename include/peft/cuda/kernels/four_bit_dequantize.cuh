#pragma once
/// out = value[code]·absmax of its block, the product rounded to float, then once to T: the CPU's bits. From bitsandbytes' order,
/// or from the packed one: rows of a weight as a dense panel, for products that cuBLASLt does faster than we do.

#include "peft/cuda/kernels/four_bit_decode.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct FourBitDequantizeArgs {
  const std::uint8_t* codes;  ///< bitsandbytes' order
  const float* absmax;        ///< null: nested
  const std::uint8_t* nested_codes;
  const float* nested_map;
  const float* nested_absmax;
  float nested_offset;
  int block_size;
  float value[16];
  Index rows, cols;
  T* out;
  Index ldo;
};

template <class T>
struct FourBitPanelArgs {
  FourBitPacked w;
  Index first_row, rows;  ///< of w
  T* out;                 ///< [rows, w.in]
  Index ldo;
};

inline constexpr int kDequantizeThreads = 256;

namespace detail {

/// Stores eight scaled weights, as far as they lie within a row of `length`.
template <class T>
PEFT_DEVICE void store_eight(T* row, int column, int length, bool aligned, const float (&x)[8]) {
  if (aligned && column + 8 <= length) {
    constexpr int kRun = static_cast<int>(16 / sizeof(T));
    PEFT_UNROLL
    for (int e = 0; e < 8; e += kRun) {
      Vec<T, kRun> run;
      PEFT_UNROLL
      for (int i = 0; i < kRun; ++i) run[i] = from_float<T>(x[e + i]);
      store(reinterpret_cast<Vec<T, kRun>*>(row + column + e), run);
    }
    return;
  }
  PEFT_UNROLL
  for (int e = 0; e < 8; ++e) {
    if (column + e < length) store(row + column + e, from_float<T>(x[e]));
  }
}

/// Sixteen values, one copy a bank, at the start of shared memory.
PEFT_DEVICE Shared<float> fill_values(const SharedMemory& memory, const float (&value)[16]) {
  const Shared<float> table = memory.template at<float>(0);
  for (int i = thread_index(); i < 16 * 32; i += kDequantizeThreads) table.store(i, value[i / 32]);
  sync_threads();
  return table + lane_index();
}

/// Whether rows may be written 16 bytes at a time.
template <class T>
PEFT_DEVICE bool is_row_aligned(const T* p, Index ld) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && ld * static_cast<Index>(sizeof(T)) % 16 == 0;
}

}  // namespace detail

/// A thread: eight columns of a row. Registers 40; shared memory 2 KiB.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kDequantizeThreads, 4) void four_bit_dequantize_kernel(FourBitDequantizeArgs<T> args) {
  const Shared<float> value = detail::fill_values(shared_memory(), args.value);
  const Index words = (args.cols + 7) / 8;
  const Index item = static_cast<Index>(block_x()) * kDequantizeThreads + thread_index();
  if (item >= words * args.rows) return;
  const Index row = item / words;
  const int column = static_cast<int>(item % words) * 8;
  const Index first = row * args.cols + column;
  const int count = static_cast<int>(min(Index{8}, args.cols - column));
  const int shift = 31 - __builtin_clz(static_cast<unsigned>(args.block_size));
  float x[8] = {};
  const auto scale_of = [&](Index block) {
    if (args.absmax != nullptr) return load_const(args.absmax + block);
    const float of_code = load_const(args.nested_map + load_const(args.nested_codes + block));
    return add_rn(mul_rn(of_code, load_const(args.nested_absmax + (block >> 8))), args.nested_offset);
  };
  const bool aligned = detail::is_row_aligned(args.out, args.ldo);
  if (count == 8 && first % 8 == 0 && reinterpret_cast<std::uintptr_t>(args.codes) % 4 == 0) {
    // One word, of one block.
    const std::uint32_t word = load_const(reinterpret_cast<const std::uint32_t*>(args.codes) + first / 8);
    const float scale = scale_of(first >> shift);
    PEFT_UNROLL
    for (int e = 0; e < 8; ++e) {
      const std::uint32_t code = (word >> (8 * (e / 2) + (e % 2 == 0 ? 4 : 0))) & 15u;
      x[e] = mul_rn(value.load(static_cast<int>(code) * 32), scale);
    }
    detail::store_eight(args.out + row * args.ldo, column, static_cast<int>(args.cols), aligned, x);
    return;
  }
  Index seen = -1;
  float scale = 0.0f;
  std::uint32_t byte = 0;
  PEFT_UNROLL
  for (int e = 0; e < 8; ++e) {
    if (e >= count) break;
    const Index element = first + e;
    const Index block = element >> shift;
    if (block != seen) {
      seen = block;
      scale = scale_of(block);
    }
    if (e == 0 || element % 2 == 0) byte = load_const(args.codes + element / 2);
    x[e] = mul_rn(value.load(static_cast<int>(element % 2 == 0 ? byte >> 4 : byte & 15u) * 32), scale);
  }
  detail::store_eight(args.out + row * args.ldo, column, static_cast<int>(args.cols), aligned, x);
}

/// The same from the packed order: a thread takes a chunk, four rows of eight columns; eight threads beside one another read 256
/// bytes and write four runs. Registers 48; shared memory 2 KiB.
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kDequantizeThreads, 4) void four_bit_panel_kernel(FourBitPanelArgs<T> args) {
  const Shared<float> value = detail::fill_values(shared_memory(), args.w.value);
  const Index words = (args.w.in + 7) / 8;
  const Index item = static_cast<Index>(block_x()) * kDequantizeThreads + thread_index();
  const Index row0 = (args.first_row / 4 + item / words) * 4;
  const Index end = args.first_row + args.rows;
  if (row0 >= end) return;
  const int column = static_cast<int>(item % words) * 8;
  const FourBitChunk chunk =
      load_const(reinterpret_cast<const FourBitChunk*>(args.w.codes + four_bit_word_byte(row0, column, args.w.in)));
  const bool aligned = detail::is_row_aligned(args.out, args.ldo);
  const bool is_flat = args.w.is_flat();
  Vec<float, 4> of_rows{};  // the four rows' maxima, which lie beside one another where blocks end with the rows
  if (!is_flat) {
    const FourBitScales all(args.w);
    const FourBitScaleWords packed = all.load_rows(static_cast<int>(row0), column);
    of_rows = packed.v;
    if (all.is_nested()) {
      PEFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float of_code = load_const(args.w.nested_map + ((packed.codes >> (8 * i)) & 255u));
        of_rows[i] = add_rn(mul_rn(of_code, packed.v[i]), args.w.nested_offset);
      }
    }
  }
  PEFT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Index row = row0 + i;
    if (row < args.first_row || row >= end) continue;
    const FourBitWordScales scales =
        is_flat ? four_bit_word_scales(args.w, row, column) : FourBitWordScales{of_rows.v[i], of_rows.v[i], 8};
    float x[8];
    PEFT_UNROLL
    for (int e = 0; e < 8; ++e) {
      const std::uint32_t code = (chunk.v[i] >> (8 * (e / 2) + (e % 2 == 0 ? 4 : 0))) & 15u;
      x[e] = mul_rn(value.load(static_cast<int>(code) * 32), scales[e]);
    }
    detail::store_eight(args.out + (row - args.first_row) * args.ldo, column, static_cast<int>(args.w.in), aligned, x);
  }
}

template <class T>
inline cudaError_t four_bit_dequantize(const FourBitDequantizeArgs<T>& args, cudaStream_t stream) {
  if (args.rows < 0 || args.cols < 0 || args.cols > INT_MAX - 64 || args.block_size < 32) return cudaErrorInvalidValue;
  const Index blocks = ((args.cols + 7) / 8 * args.rows + kDequantizeThreads - 1) / kDequantizeThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  return launch<four_bit_dequantize_kernel<T>>(Grid{static_cast<int>(blocks), 1, 1}, kDequantizeThreads, 16 * 32 * 4, stream, args);
}

/// Rows [first_row, first_row + rows) of a packed weight.
template <class T>
inline cudaError_t four_bit_dequantize_packed(const FourBitPanelArgs<T>& args, cudaStream_t stream) {
  if (args.rows < 0 || args.first_row < 0 || args.first_row + args.rows > args.w.out) return cudaErrorInvalidValue;
  const Index groups = args.rows == 0 ? 0 : (args.first_row + args.rows - 1) / 4 - args.first_row / 4 + 1;
  const Index blocks = ((args.w.in + 7) / 8 * groups + kDequantizeThreads - 1) / kDequantizeThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  return launch<four_bit_panel_kernel<T>>(Grid{static_cast<int>(blocks), 1, 1}, kDequantizeThreads, 16 * 32 * 4, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
