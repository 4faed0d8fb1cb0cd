#pragma once
/// Every toolchain macro of the library, each with its reason. Nothing else in the library looks at a compiler's name.

#include "peft/version.hpp"

#if !defined(__cplusplus) || __cplusplus < 202002L
#error "peft needs C++20: compile with -std=c++20 (g++ 12 or clang 14 and later)"
#endif

// -- processor ---------------------------------------------------------------------------------------------------
// The SIMD kernels are written for x86-64 with GCC's or Clang's target regions, and for AArch64, whose NEON is no option;
// elsewhere the scalar path runs.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(PEFT_NO_SIMD)
#define PEFT_X86_64 1
#else
#define PEFT_X86_64 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN) && (defined(__GNUC__) || defined(__clang__)) && \
    !defined(PEFT_NO_SIMD)
#define PEFT_AARCH64 1
#else
#define PEFT_AARCH64 0
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
#if !PEFT_X86_64 && !PEFT_AARCH64
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
#define PEFT_TARGET_BEGIN_AVX512VNNI                                                                          \
  PEFT_PRAGMA(clang attribute push(                                                                           \
      __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni"))),      \
      apply_to = function))
#define PEFT_TARGET_END PEFT_PRAGMA(clang attribute pop)
#elif PEFT_X86_64
#define PEFT_TARGET_BEGIN_AVX2 PEFT_PRAGMA(GCC push_options) PEFT_PRAGMA(GCC target("avx2,fma,f16c"))
#define PEFT_TARGET_BEGIN_AVX512 \
  PEFT_PRAGMA(GCC push_options)  \
  PEFT_PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))
#define PEFT_TARGET_BEGIN_AVX512VNNI \
  PEFT_PRAGMA(GCC push_options)      \
  PEFT_PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni"))
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

// The asm statements hold no instruction: they say that a value is read and written where the compiler cannot look, so
// that it has to exist there, rounded, in its own type (core/rounded.hpp). Volatile, for scalars: not moved out of loops
// either. A register class per processor; memory where none is known.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PEFT_OPAQUE_SCALAR(value) __asm__ volatile("" : "+x"(value))
#define PEFT_OPAQUE_VECTOR(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define PEFT_OPAQUE_SCALAR(value) __asm__ volatile("" : "+w"(value))
#define PEFT_OPAQUE_VECTOR(value) __asm__("" : "+w"(value))
#elif defined(__GNUC__) || defined(__clang__)
#define PEFT_OPAQUE_SCALAR(value) __asm__ volatile("" : "+m"(value))
#else
#define PEFT_OPAQUE_SCALAR(value) static_cast<void>(value)
#endif
// r = instruction(a, b), in both assembler dialects (-masm=intel turns the order round).
#if PEFT_X86_64
#define PEFT_VECTOR_INSTRUCTION(name, r, a, b) __asm__(name "\t{%2, %1, %0|%0, %1, %2}" : "=v"(r) : "v"(a), "v"(b))
#define PEFT_VECTOR_INSTRUCTION1(name, r, a) __asm__(name "\t{%1, %0|%0, %1}" : "=v"(r) : "v"(a))
#elif PEFT_AARCH64
#define PEFT_VECTOR_INSTRUCTION(name, r, a, b) __asm__(name "\t%0.4s, %1.4s, %2.4s" : "=w"(r) : "w"(a), "w"(b))
#define PEFT_VECTOR_INSTRUCTION1(name, r, a) __asm__(name "\t%0.4s, %1.4s" : "=w"(r) : "w"(a))
#endif
// Whether scalar arithmetic as it is written may come out otherwise: contracted, or, with -ffast-math, regrouped.
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
#define PEFT_MAY_CONTRACT 1
#else
#define PEFT_MAY_CONTRACT 0
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__)
#define PEFT_MAY_REGROUP 1
#else
#define PEFT_MAY_REGROUP 0
#endif

// Where two shared objects of one process both hold the library, each keeps its own pool and dispatch table unless
// the host asks for one: default visibility merges them, hidden keeps them apart. Either works; nothing is shared
// across objects except through arguments.
#if defined(__GNUC__) || defined(__clang__)
#define PEFT_UNROLL_PRAGMA(n) PEFT_PRAGMA(GCC unroll n)
#else
#define PEFT_UNROLL_PRAGMA(n)
#endif
