#pragma once
/// Dropout masks on the device, bit for bit those of the CPU (kernels/dropout.hpp, core/rng.hpp): a mask is a function of
/// its key, and a model may be trained here and there.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// The mask's key, as the CPU's DropoutKey, its probability, and where its bits go: bit c%8 of
/// bits[row·stride_bytes + c/8] is 1 where column c is kept; bits past the last column are 0.
struct DropoutArgs {
  std::uint64_t seed;
  std::uint32_t step;
  std::uint32_t module;
  Index first_row;
  float p;  ///< 0 <= p < 1
  std::uint8_t* bits;
  Index stride_bytes;
  Index rows, cols;
};

struct DropoutTask {
  std::uint32_t key[2];
  std::uint32_t step, module, first_row;
  std::uint32_t threshold;  ///< the least 16-bit draw that keeps an element
  std::uint8_t* bits;
  Index stride;
  int rows, columns;
};

/// Bits of eight columns: Philox-4x32-10 of (byte, row, module, step), 16 bits a column.
PEFT_DEVICE std::uint32_t dropout_byte(const DropoutTask& task, std::uint32_t byte, std::uint32_t row) {
  std::uint32_t c0 = byte, c1 = task.first_row + row, c2 = task.module, c3 = task.step;
  std::uint32_t k0 = task.key[0], k1 = task.key[1];
  PEFT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const std::uint32_t words[4] = {c0, c1, c2, c3};
  std::uint32_t bits = 0;
  PEFT_UNROLL
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t draw = (words[i / 2] >> (16 * (i % 2))) & 0xFFFFu;
    bits |= (draw >= task.threshold ? 1u : 0u) << i;
  }
  return bits;
}

inline constexpr int kDropoutThreads = 256;

/// One thread a byte; a block stays in one row. No shared memory; at most 48 registers.
template <int kThreads>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kThreads, 4) void dropout_mask_kernel(DropoutTask task) {
  const int byte = block_x() * kThreads + thread_index();
  if (byte * 8 >= task.columns) return;
  const int left = task.columns - byte * 8;
  const std::uint32_t inside = left < 8 ? (1u << left) - 1u : 0xFFu;
  for (int row = block_y(); row < task.rows; row += grid_y()) {
    const std::uint32_t bits = dropout_byte(task, static_cast<std::uint32_t>(byte), static_cast<std::uint32_t>(row));
    store(task.bits + static_cast<Index>(row) * task.stride + byte, static_cast<std::uint8_t>(bits & inside));
  }
}

inline cudaError_t dropout_mask(const DropoutArgs& args, cudaStream_t stream) {
  constexpr Index kMost = 0x7FFFFFFF - 8 * kDropoutThreads;
  if (args.rows < 0 || args.cols < 0 || args.rows > kMost || args.cols > kMost) return cudaErrorInvalidValue;
  if (!(args.p >= 0.0f && args.p < 1.0f)) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  // lround(p·65536) as the CPU's: the product is exact in double, halves go up.
  const auto threshold = static_cast<std::uint32_t>(static_cast<double>(args.p) * 65536.0 + 0.5);
  const DropoutTask task{{static_cast<std::uint32_t>(args.seed), static_cast<std::uint32_t>(args.seed >> 32)},
                         args.step,
                         args.module,
                         static_cast<std::uint32_t>(args.first_row),
                         threshold,
                         args.bits,
                         args.stride_bytes,
                         static_cast<int>(args.rows),
                         static_cast<int>(args.cols)};
  const Index bytes = (args.cols + 7) / 8;
  const Grid grid{static_cast<int>((bytes + kDropoutThreads - 1) / kDropoutThreads),
                  static_cast<int>(args.rows < 32768 ? args.rows : 32768), 1};
  return launch<dropout_mask_kernel<kDropoutThreads>>(grid, kDropoutThreads, 0, stream, task);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
