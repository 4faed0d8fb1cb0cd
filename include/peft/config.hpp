#pragma once
/// Every toolchain macro of the library, each with its reason. Nothing else in the library looks at a compiler's name.

#include "peft/version.hpp"

#if !defined(__cplusplus) || __cplusplus < 202002L
#error "peft needs C++20: compile with -std=c++20 (g++ 12 or clang 14 and later)"
#endif

// -- processor ---------------------------------------------------------------------------------------------------
// The SIMD kernels are written for x86-64 with GCC's or Clang's target regions; elsewhere the scalar path runs.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(PEFT_NO_SIMD)
#define PEFT_X86_64 1
#else
#define PEFT_X86_64 0
#endif

// -- ABI namespace -----------------------------------------------------------------------------------------------
// Inline functions compiled with different -m flags or with -ffast-math must not be merged by the linker: the copy
// that survives could hold instructions that the oldest machine lacks, or other arithmetic. Hence the flags are part
// of the inline namespace's name. Types of two such translation units differ, and mixing them fails to link, by name.
#if defined(__AVX512F__)
#define PEFT_ABI_ISA _avx512
#elif defined(__AVX2__)
#define PEFT_ABI_ISA _avx2
#elif defined(__AVX__)
#define PEFT_ABI_ISA _avx
#else
#define PEFT_ABI_ISA
#endif
#if defined(__FAST_MATH__)
#define PEFT_ABI_MATH _fastmath
#else
#define PEFT_ABI_MATH
#endif
#if !PEFT_X86_64
#define PEFT_ABI_SIMD _scalar
#else
#define PEFT_ABI_SIMD
#endif
#define PEFT_CONCAT4_(a, b, c, d) a##b##c##d
#define PEFT_CONCAT4(a, b, c, d) PEFT_CONCAT4_(a, b, c, d)
#define PEFT_ABI_NAMESPACE PEFT_CONCAT4(v0_1, PEFT_ABI_ISA, PEFT_ABI_MATH, PEFT_ABI_SIMD)

#define PEFT_BEGIN_NAMESPACE \
  namespace peft {           \
  inline namespace PEFT_ABI_NAMESPACE {
#define PEFT_END_NAMESPACE \
  }                        \
  }

// -- target regions ----------------------------------------------------------------------------------------------
// Between PEFT_TARGET_BEGIN_X and PEFT_TARGET_END every function may use X's intrinsics although the consumer passes
// no -m flag. Rules inside a region: raw pointers only, noexcept, no std template, no std::function, no Eigen (their
// inline functions would be compiled for X and might be the linker's surviving copy), no vector type in a signature
// that is called from outside. Function names inside are local to a namespace per ISA.
#define PEFT_PRAGMA(x) _Pragma(#x)
#if PEFT_X86_64 && defined(__clang__)
#define PEFT_TARGET_BEGIN_AVX2 \
  PEFT_PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function))
#define PEFT_TARGET_BEGIN_AVX512                                                                              \
  PEFT_PRAGMA(clang attribute push(                                                                           \
      __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function))
#define PEFT_TARGET_END PEFT_PRAGMA(clang attribute pop)
#elif PEFT_X86_64
#define PEFT_TARGET_BEGIN_AVX2 PEFT_PRAGMA(GCC push_options) PEFT_PRAGMA(GCC target("avx2,fma,f16c"))
#define PEFT_TARGET_BEGIN_AVX512 \
  PEFT_PRAGMA(GCC push_options)  \
  PEFT_PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))
#define PEFT_TARGET_END PEFT_PRAGMA(GCC pop_options)
#endif

// -- small things ------------------------------------------------------------------------------------------------
#if defined(__GNUC__) || defined(__clang__)
#define PEFT_RESTRICT __restrict__
#define PEFT_ALWAYS_INLINE inline __attribute__((always_inline))
#define PEFT_NOINLINE __attribute__((noinline))
#else
#define PEFT_RESTRICT
#define PEFT_ALWAYS_INLINE inline
#define PEFT_NOINLINE
#endif

// Where two shared objects of one process both hold the library, each keeps its own pool and dispatch table unless
// the host asks for one: default visibility merges them, hidden keeps them apart. Either works; nothing is shared
// across objects except through arguments.
#if defined(__GNUC__) || defined(__clang__)
#define PEFT_UNROLL_PRAGMA(n) PEFT_PRAGMA(GCC unroll n)
#else
#define PEFT_UNROLL_PRAGMA(n)
#endif
