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

#include "cli/fma_rate.hpp"
#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/kernels/dispatch.hpp"
#include "peft/kernels/kernel_table.hpp"

namespace peft_benchmarks {

using peft::Index;
using peft_examples::fma_peak;
using peft_examples::peak_of;

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
