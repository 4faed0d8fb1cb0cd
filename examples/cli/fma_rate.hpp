#pragma once
/// What a processor's multiplications and additions come to at most, on the default executor's threads and with the instruction
/// set that the kernels use (PEFT_NUM_THREADS, PEFT_FORCE_ISA).

#include <algorithm>
#include <chrono>
#include <vector>

#include "peft/config.hpp"
#include "peft/core/parallel.hpp"
#include "peft/kernels/dispatch.hpp"

#if PEFT_X86_64
#include <immintrin.h>
#endif

namespace peft_examples {

inline constexpr int kFmaRounds = 20000;
inline constexpr int kFmaChains = 12;  // more than latency × ports of any current core

inline float fma_rounds_scalar() noexcept {
  float sums[kFmaChains] = {};
  for (int i = 0; i < kFmaRounds; ++i) {
    for (float& sum : sums) sum = sum * 0.5f + 1.0f;
  }
  float total = 0;
  for (float sum : sums) total += sum;
  return total;
}

#if PEFT_X86_64
PEFT_TARGET_BEGIN_AVX2
inline float fma_rounds_avx2() noexcept {
  __m256 sums[kFmaChains];
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f);
  for (__m256& sum : sums) sum = one;
  for (int i = 0; i < kFmaRounds; ++i) {
    PEFT_UNROLL_PRAGMA(12) for (int c = 0; c < kFmaChains; ++c) sums[c] = _mm256_fmadd_ps(sums[c], half, one);
  }
  float total = 0;
  for (const __m256& sum : sums) total += _mm256_cvtss_f32(sum);
  return total;
}
PEFT_TARGET_END
PEFT_TARGET_BEGIN_AVX512
inline float fma_rounds_avx512() noexcept {
  __m512 sums[kFmaChains];
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  for (__m512& sum : sums) sum = one;
  for (int i = 0; i < kFmaRounds; ++i) {
    PEFT_UNROLL_PRAGMA(12) for (int c = 0; c < kFmaChains; ++c) sums[c] = _mm512_fmadd_ps(sums[c], half, one);
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}
PEFT_TARGET_END
#endif

/// Rate of all threads together in GFLOP/s, the best of many short runs, of rounds of kFmaChains chains of vectors of so many
/// lanes, each a product and a sum.
inline double peak_of(float (*rounds)() noexcept, double lanes) {
  const peft::ExecutorRef executor = peft::default_executor();
  const int threads = executor.concurrency();
  constexpr peft::Index kRunsPerThread = 8;
  std::vector<float> sink(static_cast<std::size_t>(threads * kRunsPerThread));
  double best = 0;
  for (int repeat = 0; repeat < 60; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    peft::parallel_for(executor, threads * kRunsPerThread, [&](peft::Index i) { sink[static_cast<std::size_t>(i)] = rounds(); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * lanes * kFmaChains * kFmaRounds * kRunsPerThread * threads / took.count() * 1e-9);
  }
  [[maybe_unused]] volatile float used = sink.front();  // the compiler keeps the work
  return best;
}

inline double fma_peak() {
#if PEFT_X86_64
  const peft::kernels::Isa isa = peft::kernels::float_isa(peft::kernels::active_isa());
  if (isa == peft::kernels::Isa::kAvx512) return peak_of(fma_rounds_avx512, 16);
  if (isa == peft::kernels::Isa::kAvx2) return peak_of(fma_rounds_avx2, 8);
#endif
  return peak_of(fma_rounds_scalar, 1);
}

}  // namespace peft_examples
