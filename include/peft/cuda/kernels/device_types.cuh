#pragma once
/// What the CUDA kernels and the emulator of their tests (tests/cuda/emulator) share: function macros, vectors, launch grids.

#include <cstddef>
#include <cstdint>

#include "peft/config.hpp"
#include "peft/core/scalar.hpp"

#if defined(PEFT_CUDA_EMULATOR)
// A kernel is a plain function there, run once per thread.
#define PEFT_KERNEL inline
#define PEFT_KERNEL_BOUNDS(threads, min_blocks)
#define PEFT_DEVICE inline
#define PEFT_HOST_DEVICE inline
#define PEFT_UNROLL
#define PEFT_NO_UNROLL
#else
/// A kernel: `template <…> PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 2) void name(Args args)`, with one trivially copyable struct.
#define PEFT_KERNEL __global__
#define PEFT_KERNEL_BOUNDS(threads, min_blocks) __launch_bounds__(threads, min_blocks)
#define PEFT_DEVICE __device__ __forceinline__
#define PEFT_HOST_DEVICE __host__ __device__ __forceinline__
#define PEFT_UNROLL PEFT_PRAGMA(unroll)
/// Keeps a loop a loop, where unrolled it would take the registers that others need.
#define PEFT_NO_UNROLL PEFT_PRAGMA(unroll 1)
#endif

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// N elements moved by one instruction: at most 16 bytes, and aligned to its own size.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(N > 0 && (N & (N - 1)) == 0 && sizeof(T) * N <= 16);
  T v[N];

  PEFT_HOST_DEVICE T& operator[](int i) { return v[i]; }
  PEFT_HOST_DEVICE const T& operator[](int i) const { return v[i]; }
};

/// Blocks in a launch: x varies fastest.
struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

/// The same bits as another type of the same size.
template <class To, class From>
PEFT_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && __is_trivially_copyable(To) && __is_trivially_copyable(From));
  To to;
  __builtin_memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(To));
  return to;
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
