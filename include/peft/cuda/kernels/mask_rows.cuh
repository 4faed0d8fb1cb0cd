#pragma once
/// dst = m∘src, rounded once, with m a dropout mask and its 1/(1-p): what the CPU's apply_mask makes of a row. For operands of
/// products that cannot drop them where they load them.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
struct MaskRowsArgs {
  const T* src;
  Index lds;
  T* dst;
  Index ldd;
  const std::uint8_t* bits;
  Index stride_bytes;
  float scale;  ///< of what is kept
  Index rows, cols;
};

inline constexpr int kMaskRowsThreads = 256;

/// One thread a byte of the mask, eight columns: 16 or 32 bytes where `kAligned`; a block stays in one row. No shared memory, at
/// most 64 registers.
template <class T, bool kAligned>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kMaskRowsThreads, 4) void mask_rows_kernel(MaskRowsArgs<T> args) {
  constexpr int kRun = static_cast<int>(16 / sizeof(T));
  constexpr int kRuns = 8 / kRun;
  const Index byte = static_cast<Index>(block_x()) * kMaskRowsThreads + thread_index();
  const Index column = byte * 8;
  if (column >= args.cols) return;
  for (Index row = block_y(); row < args.rows; row += grid_y()) {
    const std::uint32_t bits = load_const(args.bits + row * args.stride_bytes + byte);
    const T* const src = args.src + row * args.lds + column;
    T* const dst = args.dst + row * args.ldd + column;
    const auto kept = [&](T value, int e) { return from_float<T>(((bits >> e) & 1u) != 0 ? to_float(value) * args.scale : 0.0f); };
    if (kAligned && column + 8 <= args.cols) {
      // Counted in runs, so that the compiler sees that a run is one store.
      const Vec<T, kRun>* const from = reinterpret_cast<const Vec<T, kRun>*>(args.src) + row * (args.lds / kRun) + byte * kRuns;
      Vec<T, kRun>* const to = reinterpret_cast<Vec<T, kRun>*>(args.dst) + row * (args.ldd / kRun) + byte * kRuns;
      PEFT_UNROLL
      for (int r = 0; r < kRuns; ++r) {
        const Vec<T, kRun> in = load_const(from + r);
        Vec<T, kRun> out;
        PEFT_UNROLL
        for (int e = 0; e < kRun; ++e) out[e] = kept(in.v[e], r * kRun + e);
        store(to + r, out);
      }
    } else {
      for (int e = 0; e < 8 && column + e < args.cols; ++e) store(dst + e, kept(load_const(src + e), e));
    }
  }
}

template <class T>
cudaError_t mask_rows(const MaskRowsArgs<T>& args, cudaStream_t stream) {
  constexpr Index kMost = 0x7FFFFFFF - 8 * kMaskRowsThreads;
  if (args.rows < 0 || args.cols < 0 || args.rows > kMost || args.cols > kMost) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  if (args.src == nullptr || args.dst == nullptr || args.bits == nullptr) return cudaErrorInvalidValue;
  const Index bytes = (args.cols + 7) / 8;
  const Grid grid{static_cast<int>((bytes + kMaskRowsThreads - 1) / kMaskRowsThreads),
                  static_cast<int>(args.rows < 32768 ? args.rows : 32768), 1};
  const auto is_aligned = [](const T* data, Index ld) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && static_cast<std::size_t>(ld) * sizeof(T) % 16 == 0;
  };
  return is_aligned(args.src, args.lds) && is_aligned(args.dst, args.ldd)
             ? launch<mask_rows_kernel<T, true>>(grid, kMaskRowsThreads, 0, stream, args)
             : launch<mask_rows_kernel<T, false>>(grid, kMaskRowsThreads, 0, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
