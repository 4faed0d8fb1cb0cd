// One step of AdamW over 16.7 M parameters: moments in 32 and in 8 bits, in memory and in a file within a budget of memory.
//   bench_optimizer [--benchmark_filter=adamw/8bit]

#include <benchmark/benchmark.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "machine_limits.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/train/paged_adamw.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;

constexpr Index kTensors = 16, kSize = Index{1} << 20;

/// Sixteen matrices of 4096 × 256.
struct Parameters {
  Buffer<float> value = Buffer<float>::zeros(kTensors * kSize), grad{kTensors * kSize};
  Parameters() {
    Philox random(1);
    for (float& g : grad) g = random.uniform(-0.01f, 0.01f);
  }
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (Index i = 0; i < kTensors; ++i) {
      visit(ParameterInfo{std::to_string(i), ParameterRole::kOther, true, 4096, 256}, value.view().slice(i * kSize, kSize),
            grad.view().slice(i * kSize, kSize));
    }
  }
};

/// Of a parameter are read: itself, its gradient and the moments. `budget` 0: in memory.
void step(benchmark::State& state, int bits, Index budget) {
  Parameters parameters;
  AdamWConfig config{.optim_bits = bits};
  if (budget > 0) config.paged = {std::filesystem::temp_directory_path(), budget};
  AdamW<float> optimizer(config);
  optimizer.step(parameters, 1e-3, 1.0, default_executor());
  constexpr Index kCount = kTensors * kSize;
  const double bytes = bits == 8 ? 10.0 + 8.0 / 256 : 16.0;
  const double bandwidth = read_bandwidth(static_cast<Index>(static_cast<double>(kCount) * bytes));
  for (auto _ : state) optimizer.step(parameters, 1e-3, 1.0, default_executor());
  const double count = static_cast<double>(kCount) * static_cast<double>(state.iterations());
  state.counters["M/s"] = benchmark::Counter(count * 1e-6, benchmark::Counter::kIsRate);
  state.counters["%read"] = benchmark::Counter(count * bytes * 1e-7 / bandwidth, benchmark::Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    add_context(fma_peak());
    const auto add = [](const std::string& name, int bits, Index budget) {
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { step(state, bits, budget); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    };
    constexpr Index kMiB = Index{1} << 20;
    add("adamw/32bit", 32, 0);
    add("adamw/8bit", 8, 0);
    add("paged_adamw/32bit/all", 32, 256 * kMiB);  // all 128 MiB of the moments
    add("paged_adamw/32bit/quarter", 32, 32 * kMiB);
    add("paged_adamw/8bit/all", 8, 256 * kMiB);  // 32.25 MiB
    add("paged_adamw/8bit/quarter", 8, 8 * kMiB);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
