#pragma once
/// dst = scale·src from one type to another, rounded once;   [rows, cols], f32, f16 or bf16 each.

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class To, class From>
struct ConvertArgs {
  const From* src;
  Index lds;
  To* dst;
  Index ldd;
  Index rows, cols;
  float scale = 1.0f;
};

inline constexpr int kConvertThreads = 256;

/// Grid: columns, rows (a block goes on to the row that is grid_y further). A thread moves four neighbours where `kFours`:
/// 8 or 16 bytes. Budget: 32 registers, no shared memory.
template <class To, class From, bool kFours>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kConvertThreads, 4) void convert_kernel(ConvertArgs<To, From> args) {
  constexpr int kRun = kFours ? 4 : 1;
  const Index run = static_cast<Index>(block_x()) * kConvertThreads + thread_index();
  if (run * kRun >= args.cols) return;
  // Counted in runs, so that the compiler sees that a run is one store.
  const Vec<From, kRun>* const from = reinterpret_cast<const Vec<From, kRun>*>(args.src) + run;
  Vec<To, kRun>* const to = reinterpret_cast<Vec<To, kRun>*>(args.dst) + run;
  const Index from_step = args.lds / kRun, to_step = args.ldd / kRun;
  PEFT_NO_UNROLL
  for (Index row = block_y(); row < args.rows; row += grid_y()) {
    const Vec<From, kRun> in = load_const(from + row * from_step);
    Vec<To, kRun> out;
    PEFT_UNROLL
    for (int e = 0; e < kRun; ++e) out[e] = from_float<To>(mul_rn(args.scale, to_float(in.v[e])));
    store(to + row * to_step, out);
  }
}

template <class To, class From>
cudaError_t convert(ConvertArgs<To, From> args, cudaStream_t stream) {
  if (args.rows < 0 || args.cols < 0) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  if (args.src == nullptr || args.dst == nullptr) return cudaErrorInvalidValue;
  if (args.lds == args.cols && args.ldd == args.cols) {  // one long row
    args.cols *= args.rows;
    args.lds = args.ldd = args.cols;
    args.rows = 1;
  }
  const bool fours = args.cols % 4 == 0 && args.lds % 4 == 0 && args.ldd % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.src) % (4 * sizeof(From)) == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.dst) % (4 * sizeof(To)) == 0;
  const Index blocks = ceil_div(args.cols, static_cast<Index>(kConvertThreads * (fours ? 4 : 1)));
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>(blocks), static_cast<int>(min(args.rows, Index{65535})), 1};
  return fours ? launch<convert_kernel<To, From, true>>(grid, kConvertThreads, 0, stream, args)
               : launch<convert_kernel<To, From, false>>(grid, kConvertThreads, 0, stream, args);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
