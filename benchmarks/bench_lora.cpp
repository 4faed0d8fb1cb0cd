// A dense linear layer 4096 × 4096 in float with and without LoRA of rank 8, and what a registry does with the adapter of a
// whole model of SmolLM2-135M's shape: switch, load, merge, restore.
//   bench_lora [--benchmark_filter=linear]

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine_limits.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/core/parallel.hpp"
#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "peft/merge.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "random_llama.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;

constexpr Index kWidth = 4096, kRank = 8;
double peak = 1;

Matrix<float> numbers(Index rows, Index cols) {
  Philox random(static_cast<std::uint64_t>(rows * 7919 + cols));
  Matrix<float> result(rows, cols);
  for (float& value : result.flat()) value = random.uniform(-0.05f, 0.05f);
  return result;
}

/// y = x·Wᵀ (+ s·(x·Aᵀ)·Bᵀ); x and y [m, 4096]. The base's product counts as the work.
void linear(benchmark::State& state, Index m, bool with_lora) {
  const DenseLinear<float> base(numbers(kWidth, kWidth));
  Lora<float> lora(kWidth, kWidth, kRank, 4.0);
  for (float& value : lora.a().flat()) value = 0.01f;
  for (float& value : lora.b().flat()) value = 0.01f;
  const Matrix<float> x = numbers(m, kWidth);
  Matrix<float> y(m, kWidth);
  const ExecutorRef executor = default_executor();
  const double bandwidth = read_bandwidth(kWidth * kWidth * 4);
  for (auto _ : state) {
    if (with_lora) {
      lora.forward(base, x.view(), y.view(), executor);
    } else {
      base.forward(x.view(), y.view(), executor);
    }
    benchmark::ClobberMemory();
  }
  const double runs = static_cast<double>(state.iterations());
  const double weights = static_cast<double>(kWidth) * kWidth;
  state.counters["%FMA"] =
      benchmark::Counter(runs * 2.0 * weights * static_cast<double>(m) * 1e-7 / peak, benchmark::Counter::kIsRate);
  state.counters["%read"] = benchmark::Counter(runs * 4.0 * weights * 1e-7 / bandwidth, benchmark::Counter::kIsRate);
}

/// A model with two adapters on all linears, the second one also on disk.
struct Adapted {
  Adapted() : model(random_llama<float>(smollm2_135m())), sites(model.sites()) {
    LoraConfig config = lora_of(true);
    config.init_lora_weights = false;  // B starts with numbers: there is something to merge
    registry.add_adapter("first", config, sites, 1);
    registry.add_adapter("second", config, sites, 2);
    registry.set_adapter("first");
    folder = std::filesystem::temp_directory_path() / ("peft_bench_lora_" + std::to_string(std::rand()));
    save_pretrained(registry, "second", folder);
  }
  ~Adapted() { std::filesystem::remove_all(folder); }

  peft_examples::Llama<float> model;
  std::vector<AdaptedLinear<float>*> sites;
  AdapterRegistry<float> registry;
  std::filesystem::path folder;
};

Adapted& adapted() {
  static Adapted instance;
  return instance;
}

void switch_adapter(benchmark::State& state) {
  Adapted& a = adapted();
  bool first = false;
  for (auto _ : state) {
    a.registry.set_adapter(first ? "first" : "second");
    a.model.select(a.registry.selection());
    first = !first;
  }
}

void load(benchmark::State& state) {
  Adapted& a = adapted();
  for (auto _ : state) {
    load_adapter<float>(a.registry, a.folder / "second", "loaded", a.sites);
    state.PauseTiming();
    a.registry.delete_adapter("loaded");
    state.ResumeTiming();
  }
}

void merge(benchmark::State& state) {
  Adapted& a = adapted();
  a.registry.set_adapter("second");
  for (auto _ : state) {
    MergedAdapters<float> merged = merge_adapter<float>(a.sites, a.registry.selection());
    state.PauseTiming();
    unmerge_adapter(merged);
    state.ResumeTiming();
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    peak = fma_peak();
    add_context(peak);
    const auto add = [](const std::string& name, auto run) {
      benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMillisecond);
    };
    for (const Index m : {1, 16, 64, 128, 512}) {
      add("linear/" + std::to_string(m), [=](benchmark::State& state) { linear(state, m, false); });
      add("linear_lora/" + std::to_string(m), [=](benchmark::State& state) { linear(state, m, true); });
    }
    add("switch", switch_adapter);
    add("load", load);
    add("merge", merge);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
