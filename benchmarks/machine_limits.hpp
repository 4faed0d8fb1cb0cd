#pragma once
/// What the machine can do at most, measured in the same run as the work that is compared with it, on the same threads
/// and with the same instruction set (PEFT_NUM_THREADS, PEFT_FORCE_ISA).

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/kernels/dispatch.hpp"
#include "peft/kernels/kernel_table.hpp"

#if PEFT_X86_64
#include <immintrin.h>
#endif

namespace peft_benchmarks {

using peft::ExecutorRef;
using peft::Index;

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
  const ExecutorRef executor = peft::default_executor();
  const int threads = executor.concurrency();
  constexpr Index kRunsPerThread = 8;
  std::vector<float> sink(static_cast<std::size_t>(threads * kRunsPerThread));
  double best = 0;
  for (int repeat = 0; repeat < 60; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    peft::parallel_for(executor, threads * kRunsPerThread, [&](Index i) { sink[static_cast<std::size_t>(i)] = rounds(); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * lanes * kFmaChains * kFmaRounds * kRunsPerThread * threads / took.count() * 1e-9);
  }
  benchmark::DoNotOptimize(sink.data());
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

/// A buffer that all threads together read from end to end.
class ReadBuffer {
 public:
  explicit ReadBuffer(Index bytes)
      : chunks_(std::max<Index>(1, bytes / static_cast<Index>(sizeof(float)) / kChunk)),
        data_(peft::Buffer<float>::zeros(chunks_ * kChunk)),
        sink_(static_cast<std::size_t>(chunks_)) {}

  double bytes() const noexcept { return static_cast<double>(chunks_ * kChunk) * sizeof(float); }
  /// Seconds of one pass.
  double pass() {
    const peft::kernels::KernelTable& table = peft::kernels::table();
    const auto start = std::chrono::steady_clock::now();
    peft::parallel_for(peft::default_executor(), chunks_, [&](Index i) {
      sink_[static_cast<std::size_t>(i)] = table.max(kChunk, data_.data() + i * kChunk);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    benchmark::DoNotOptimize(sink_.data());
    return took.count();
  }

 private:
  static constexpr Index kChunk = 1 << 16;  // floats
  Index chunks_;
  peft::Buffer<float> data_;
  std::vector<float> sink_;
};

/// Rate in GB/s at which all threads together read a buffer of `bytes`: the best of several passes, so a buffer that
/// fits in a cache is read from it, as the work of that size would be.
inline double read_bandwidth(Index bytes) {
  ReadBuffer buffer(bytes);
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) best = std::max(best, buffer.bytes() / buffer.pass() * 1e-9);
  return best;
}

/// Peak resident memory of this process (VmHWM) in MiB; 0 where the system does not say.
inline double peak_memory_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return static_cast<double>(std::stol(line.substr(6))) / 1024.0;
  }
  return 0;
}

/// What every table needs to be read: instruction set, threads, FMA rate.
inline void add_context(double peak) {
  benchmark::AddCustomContext("instruction set", std::string(peft::kernels::name_of(peft::kernels::active_isa())));
  benchmark::AddCustomContext("threads", std::to_string(peft::default_executor().concurrency()));
  benchmark::AddCustomContext("FMA peak, GFLOP/s", std::to_string(peak));
}

}  // namespace peft_benchmarks
