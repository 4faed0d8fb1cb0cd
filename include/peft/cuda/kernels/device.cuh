#pragma once
/// The vocabulary of the kernels: everything that is not plain arithmetic on a thread's own registers, one line per
/// instruction. Tests compile the same kernels with g++ (PEFT_CUDA_EMULATOR): then the emulator's header defines these names.
///
/// Threads: blocks are one-dimensional, warps have 32 lanes. Shared memory is dynamic only. Addresses are aligned to the size
/// of what is moved. Fragments of matrices are laid out as the PTX ISA says. Architectures from sm_75; what it lacks says so.

#include "peft/cuda/kernels/device_types.cuh"

#if defined(PEFT_CUDA_EMULATOR)
#include "peft_cuda_emulator.hpp"
#else

#include <cuda_runtime.h>

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

// -- threads -----------------------------------------------------------------------------------------------------
PEFT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PEFT_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
PEFT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
PEFT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
PEFT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
PEFT_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
PEFT_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
PEFT_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }
PEFT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31u); }
PEFT_DEVICE int warp_index() { return static_cast<int>(threadIdx.x >> 5); }

// -- barriers and warps ------------------------------------------------------------------------------------------
PEFT_DEVICE void sync_threads() { __syncthreads(); }
PEFT_DEVICE void sync_warp(std::uint32_t mask = ~0u) { __syncwarp(mask); }

/// T of 32 bits. A shuffle orders no memory: sync_warp does.
template <class T>
PEFT_DEVICE T shuffle(std::uint32_t mask, T v, int source_lane) {
  return bit_cast<T>(__shfl_sync(mask, bit_cast<unsigned>(v), source_lane));
}
template <class T>
PEFT_DEVICE T shuffle_xor(std::uint32_t mask, T v, int lane_mask) {
  return bit_cast<T>(__shfl_xor_sync(mask, bit_cast<unsigned>(v), lane_mask));
}
/// A lane whose source would be beyond 31 gets its own value.
template <class T>
PEFT_DEVICE T shuffle_down(std::uint32_t mask, T v, int delta) {
  return bit_cast<T>(__shfl_down_sync(mask, bit_cast<unsigned>(v), static_cast<unsigned>(delta)));
}
PEFT_DEVICE std::uint32_t ballot(std::uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate); }

// -- global memory -----------------------------------------------------------------------------------------------
namespace detail {
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
/// What moves a T in one instruction. Into a variable of its own: what is cast where a pointer refers to it moves in the
/// parts that T has.
template <class T>
using WordOf = typename Word<static_cast<int>(sizeof(T))>::type;
template <class T>
PEFT_DEVICE T read_word(const T* p) {
  const WordOf<T> word = *reinterpret_cast<const WordOf<T>*>(p);
  return bit_cast<T>(word);
}
template <class T>
PEFT_DEVICE void write_word(T* p, T v) {
  const WordOf<T> word = bit_cast<WordOf<T>>(v);
  *reinterpret_cast<WordOf<T>*>(p) = word;
}
}  // namespace detail

template <class T>
PEFT_DEVICE T load(const T* p) {
  __builtin_assume(__isGlobal(p));  // of a pointer that was itself loaded the compiler cannot tell
  return detail::read_word(p);
}
/// Of memory that nothing writes while the kernel runs.
template <class T>
PEFT_DEVICE T load_const(const T* p) {
  const detail::WordOf<T> word = __ldg(reinterpret_cast<const detail::WordOf<T>*>(p));
  return bit_cast<T>(word);
}
/// As load_const, of what is read once (weights): not kept in L1, first to leave L2 (from sm_80).
template <class T>
PEFT_DEVICE T load_stream(const T* p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) >= 4) {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    if constexpr (sizeof(T) == 16) {
      uint4 r;
      asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
          : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
          : "l"(p), "l"(policy));
      return bit_cast<T>(r);
    } else if constexpr (sizeof(T) == 8) {
      uint2 r;
      asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
          : "=r"(r.x), "=r"(r.y)
          : "l"(p), "l"(policy));
      return bit_cast<T>(r);
    } else {
      unsigned r;
      asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(r) : "l"(p), "l"(policy));
      return bit_cast<T>(r);
    }
  } else {
    return load_const(p);
  }
#else
  return load_const(p);
#endif
}
template <class T>
PEFT_DEVICE void store(T* p, T v) {
  __builtin_assume(__isGlobal(p));
  detail::write_word(p, v);
}
/// Of what this kernel does not read again.
template <class T>
PEFT_DEVICE void store_stream(T* p, T v) {
  __builtin_assume(__isGlobal(p));
  __stcs(reinterpret_cast<detail::WordOf<T>*>(p), bit_cast<detail::WordOf<T>>(v));
}

// -- shared memory -----------------------------------------------------------------------------------------------
/// A position in shared memory, counted in elements of T.
template <class T>
struct Shared {
  T* pointer;

  PEFT_DEVICE T load(int i) const { return detail::read_word(pointer + i); }
  PEFT_DEVICE void store(int i, T v) const { detail::write_word(pointer + i, v); }
  /// Elements i … i+N-1; i is a multiple of N from an aligned start.
  template <int N>
  PEFT_DEVICE Vec<T, N> load_vec(int i) const {
    return detail::read_word(reinterpret_cast<const Vec<T, N>*>(pointer + i));
  }
  template <int N>
  PEFT_DEVICE void store_vec(int i, Vec<T, N> v) const {
    detail::write_word(reinterpret_cast<Vec<T, N>*>(pointer + i), v);
  }
  PEFT_DEVICE Shared operator+(int n) const { return {pointer + n}; }
  /// The same place as elements of U.
  template <class U>
  PEFT_DEVICE Shared<U> as() const {
    return {reinterpret_cast<U*>(pointer)};
  }
  PEFT_DEVICE std::uint32_t address() const { return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer)); }
};

/// The block's dynamic shared memory, 128-byte aligned.
struct SharedMemory {
  unsigned char* start;

  template <class T>
  PEFT_DEVICE Shared<T> at(int byte_offset) const {
    return {reinterpret_cast<T*>(start + byte_offset)};
  }
};
PEFT_DEVICE SharedMemory shared_memory() {
  extern __shared__ __align__(128) unsigned char peft_shared_memory[];
  return {peft_shared_memory};
}

// -- cp.async ----------------------------------------------------------------------------------------------------
/// 16 bytes from global to shared memory behind the thread's back; zeros where not valid, and src is not read then. The data
/// are there for this thread after cp_async_wait, for others after a barrier behind that. On sm_75: a load and a store.
template <class T>
PEFT_DEVICE void cp_async_16(Shared<T> dst, const void* src, bool valid) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst.address()), "l"(src), "r"(valid ? 16 : 0));
#else
  const uint4 zero = {0, 0, 0, 0};
  *reinterpret_cast<uint4*>(dst.pointer) = valid ? *static_cast<const uint4*>(src) : zero;
#endif
}
/// Closes a group of copies.
PEFT_DEVICE void cp_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}
/// Until at most kPending of this thread's youngest groups are under way.
template <int kPending>
PEFT_DEVICE void cp_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// -- matrices ----------------------------------------------------------------------------------------------------
/// Four 8x8 matrices of 16 bits: lanes 8i … 8i+7 give the rows' addresses of matrix i, each 16-byte aligned; r[i] of lane l
/// is row l/4, columns 2(l%4) and the next. _trans: transposed. x2: lanes 0 … 15.
PEFT_DEVICE void ldmatrix_x4(std::uint32_t (&r)[4], Shared<std::uint16_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address()));
}
PEFT_DEVICE void ldmatrix_x4_trans(std::uint32_t (&r)[4], Shared<std::uint16_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address()));
}
PEFT_DEVICE void ldmatrix_x2(std::uint32_t (&r)[2], Shared<std::uint16_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row.address()));
}
PEFT_DEVICE void ldmatrix_x2_trans(std::uint32_t (&r)[2], Shared<std::uint16_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row.address()));
}

/// d [16,8] += a [16,8] · b [8,8] of f16. With g = lane/4, t = lane%4: a[i] is row g+8i, columns 2t and the next; b rows 2t
/// and the next, column g; d[0] and d[1] row g, columns 2t and the next, d[2] and d[3] row g+8.
PEFT_DEVICE void mma_1688_f16(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}
/// d [16,8] += a [16,16] · b [16,8]: a[2], a[3] and b[1] are 8 further in K. T = f16 or bf16. On sm_75 f16 is two m16n8k8, and
/// bf16 traps: the host takes another kernel there (device_has_bf16_mma).
template <class T>
PEFT_DEVICE void mma_16816(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  static_assert(__is_same(T, f16) || __is_same(T, bf16));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (__is_same(T, f16)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  if constexpr (__is_same(T, f16)) {
    const std::uint32_t low[2] = {a[0], a[1]};
    const std::uint32_t high[2] = {a[2], a[3]};
    mma_1688_f16(d, low, b[0]);
    mma_1688_f16(d, high, b[1]);
  } else {
    __trap();
  }
#endif
}

// -- bits --------------------------------------------------------------------------------------------------------
/// Any function of three bits: bit (4a + 2b + c) of kTable.
template <std::uint32_t kTable>
PEFT_DEVICE std::uint32_t lop3(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return r;
}
/// Byte i of the result is the byte of {b, a} (a lower) that nibble i of the selector names; bit 3 spreads that byte's sign.
PEFT_DEVICE std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}

// -- numbers -----------------------------------------------------------------------------------------------------
PEFT_DEVICE float to_float(float x) { return x; }
PEFT_DEVICE float to_float(f16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}
PEFT_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16); }

/// Rounded to nearest, ties to even. A NaN becomes 0x7FFF in 16 bits.
template <class T>
PEFT_DEVICE T from_float(float x) {
  if constexpr (__is_same(T, float)) {
    return x;
  } else if constexpr (__is_same(T, f16)) {
    T r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
  } else {
    static_assert(__is_same(T, bf16));
    T r;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
#else
    const std::uint32_t u = __float_as_uint(x);
    const std::uint32_t nearest = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    r.bits = static_cast<std::uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFFu : nearest);
#endif
    return r;
  }
}
/// Two of them, lo in the lower half.
template <class T>
PEFT_DEVICE std::uint32_t pack2(float lo, float hi) {
  static_assert(sizeof(T) == 2);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint32_t r;
  if constexpr (__is_same(T, f16)) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  }
  return r;
#else
  return from_float<T>(lo).bits | (static_cast<std::uint32_t>(from_float<T>(hi).bits) << 16);
#endif
}
/// The two halves of a packed pair.
template <class T>
PEFT_DEVICE float low_float(std::uint32_t pair) {
  T x;
  x.bits = static_cast<std::uint16_t>(pair);
  return to_float(x);
}
template <class T>
PEFT_DEVICE float high_float(std::uint32_t pair) {
  T x;
  x.bits = static_cast<std::uint16_t>(pair >> 16);
  return to_float(x);
}

// Pairs of f16: one rounding to nearest even, subnormals kept.
PEFT_DEVICE std::uint32_t hmul2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
PEFT_DEVICE std::uint32_t hadd2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
PEFT_DEVICE std::uint32_t hfma2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// Pairs of bf16, from sm_80; on sm_75 a trap.
PEFT_DEVICE std::uint32_t bfma2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
#else
  __trap();
  return a ^ b ^ c;
#endif
}
/// a·b - 0: the product itself, rounded once (mul.bf16x2 exists from sm_90 only).
PEFT_DEVICE std::uint32_t bmul2(std::uint32_t a, std::uint32_t b) { return bfma2(a, b, 0x80008000u); }
/// a·1 + b.
PEFT_DEVICE std::uint32_t badd2(std::uint32_t a, std::uint32_t b) { return bfma2(a, 0x3F803F80u, b); }

PEFT_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PEFT_DEVICE float exp_(float x) { return ::expf(x); }
PEFT_DEVICE float log_(float x) { return ::logf(x); }
PEFT_DEVICE float tanh_(float x) { return ::tanhf(x); }
PEFT_DEVICE float erf_(float x) { return ::erff(x); }
PEFT_DEVICE float sqrt_rn(float x) { return __fsqrt_rn(x); }
PEFT_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
// Never contracted to a fused multiply-add.
PEFT_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
PEFT_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
PEFT_DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
// Of a number and a NaN: the number.
PEFT_DEVICE float min(float a, float b) { return ::fminf(a, b); }
PEFT_DEVICE float max(float a, float b) { return ::fmaxf(a, b); }
PEFT_DEVICE float abs_(float x) { return ::fabsf(x); }

// Over the 32 lanes, in the order of an xor butterfly: every lane gets the same bits.
PEFT_DEVICE float warp_sum(float v) {
  PEFT_UNROLL
  for (int step = 16; step > 0; step /= 2) v += shuffle_xor(~0u, v, step);
  return v;
}
PEFT_DEVICE float warp_max(float v) {
  PEFT_UNROLL
  for (int step = 16; step > 0; step /= 2) v = max(v, shuffle_xor(~0u, v, step));
  return v;
}

// -- launch ------------------------------------------------------------------------------------------------------
/// Runs kKernel(args) on grid.x·grid.y·grid.z blocks. Neither waits nor allocates: it can be captured in a graph.
template <auto kKernel, class Args>
inline cudaError_t launch(Grid grid, int threads, int shared_bytes, cudaStream_t stream, const Args& args) {
  static_assert(__is_same(decltype(kKernel), void (*)(Args)), "the kernel takes this struct, by value");
  static_assert(__is_trivially_copyable(Args) && sizeof(Args) <= 4096);
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || threads < 1 || shared_bytes < 0) return cudaErrorInvalidValue;
  const void* kernel = reinterpret_cast<const void*>(kKernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  Args copy = args;
  void* parameters[] = {&copy};
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  return cudaLaunchKernel(kernel, blocks, dim3(static_cast<unsigned>(threads)), parameters,
                          static_cast<std::size_t>(shared_bytes), stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
#endif  // PEFT_CUDA_EMULATOR

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T>
PEFT_HOST_DEVICE constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
PEFT_HOST_DEVICE constexpr T max(T a, T b) {
  return a < b ? b : a;
}
/// ceil(a / b) of positive numbers.
template <class T>
PEFT_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

/// By compute capability, e.g. 75: what the wrappers above stand for there.
constexpr bool device_has_cp_async(int sm) noexcept { return sm >= 80; }
constexpr bool device_has_bf16_mma(int sm) noexcept { return sm >= 80; }

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
