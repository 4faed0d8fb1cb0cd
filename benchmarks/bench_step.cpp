// One LoRA training step (forward, backward, AdamW) of a model of SmolLM2-135M's shape on 4 sequences of 128 tokens with a
// label on every position, float, and the bare matrix products of that step as its limit. QLoRA's: linears in NF4, quantised
// twice; embedding and head, which are tied, and what is saved for backward in bf16.
//   bench_step [--benchmark_filter='lora_step/qv|products']; rows: tok/s, % of the FMA rate, peak memory so far.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine_limits.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/core/parallel.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/train/adamw.hpp"
#include "random_llama.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;
using peft_examples::Llama;
using peft_examples::LlamaConfig;

constexpr Index kSequences = 4, kLength = 128, kTokens = kSequences * kLength;
double peak = 1;

/// [out, in] of every matrix that a token passes, and how often.
struct Product {
  Index out, in, times;
};
std::vector<Product> products_of(const LlamaConfig& c) {
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const Index layers = c.num_hidden_layers;
  return {{query, c.hidden_size, layers},           {key, c.hidden_size, 2 * layers},
          {c.hidden_size, query, layers},           {c.intermediate_size, c.hidden_size, 2 * layers},
          {c.hidden_size, c.intermediate_size, layers}, {c.vocab_size, c.hidden_size, 1}};
}

/// Forward and input gradient of every matrix, for one token; what LoRA and attention add is not counted.
double flops_per_token(const LlamaConfig& config) {
  double sum = 0;
  for (const Product& p : products_of(config)) sum += 4.0 * static_cast<double>(p.out * p.in * p.times);
  return sum;
}

void report(benchmark::State& state) {
  const double tokens = static_cast<double>(kTokens) * static_cast<double>(state.iterations());
  state.counters["tok/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["%FMA"] =
      benchmark::Counter(tokens * flops_per_token(smollm2_135m()) * 1e-7 / peak, benchmark::Counter::kIsRate);
  state.counters["peak_MiB"] = peak_memory_mib();
}

/// `sequences` of kLength random tokens.
PackedBatch random_batch(Index vocabulary, Index sequences, std::uint64_t seed) {
  Philox random(seed);
  const auto id = [&] { return static_cast<std::int32_t>(random.uniform(0.0f, static_cast<float>(vocabulary - 1))); };
  PackedBatch batch;
  for (Index s = 0; s < sequences; ++s) {
    for (std::int32_t i = 0; i < kLength; ++i) {
      batch.ids.push_back(id());
      batch.positions.push_back(i);
      batch.targets.push_back(id());
    }
    batch.offsets.push_back(batch.tokens());
  }
  return batch;
}

void train_steps(benchmark::State& state, Llama<float>& model, bool all_linears) {
  const std::vector<AdaptedLinear<float>*> sites = model.sites();
  AdapterRegistry<float> registry;
  registry.add_adapter("default", lora_of(all_linears), sites, 0);
  registry.set_adapter("default");
  model.select(registry.selection());
  AdamW<float> optimizer;
  const PackedBatch batch = random_batch(model.config().vocab_size, kSequences, 7);
  std::uint32_t step = 0;
  const auto run = [&] {
    model.for_each_parameter(
        [](const ParameterInfo&, VectorView<float>, VectorView<float> grad) { std::fill(grad.begin(), grad.end(), 0.0f); });
    LossSum sum;
    model.forward_backward(batch, 1.0 / static_cast<double>(kTokens), 1, step++, sum);
    optimizer.step(model, 3e-4, 1.0, default_executor());
  };
  run();  // memory is touched, the moments are made
  for (auto _ : state) run();
  report(state);
}

void lora_step(benchmark::State& state, bool all_linears, DType saved = DType::kF32) {
  Llama<float> model = random_llama<float>(smollm2_135m());
  model.set_saved_activations(saved);
  train_steps(state, model, all_linears);
}
void qlora_step(benchmark::State& state, bool all_linears) {
  Llama<float> model = random_llama<float>(smollm2_135m(), Kept::kNf4WithBf16Table);
  model.set_saved_activations(DType::kBF16);
  train_steps(state, model, all_linears);
}

/// Every product of the step, nothing else: y = x·Wᵀ through the layers, then dx = dy·W back.
void products(benchmark::State& state) {
  struct Weight {
    Index out, in;
    Buffer<float> values;
  };
  std::vector<Weight> weights;
  Philox random(3);
  Index widest = 0;
  for (const Product& p : products_of(smollm2_135m())) {
    widest = std::max({widest, p.out, p.in});
    for (Index i = 0; i < p.times; ++i) {
      weights.push_back({p.out, p.in, Buffer<float>(p.out * p.in)});
      for (float& value : weights.back().values) value = random.uniform(-0.04f, 0.04f);
    }
  }
  Matrix<float> x(kTokens, widest), y(kTokens, widest);
  for (float& value : x.flat()) value = random.uniform(-1.0f, 1.0f);
  const auto run = [&](const Weight& w, bool forward) {
    kernels::GemmProblem problem;
    problem.m = kTokens;
    problem.n = forward ? w.out : w.in;
    problem.k = forward ? w.in : w.out;
    problem.a = {x.data(), problem.k, DType::kF32, false};
    problem.b.dense = {w.values.data(), w.in, DType::kF32, forward};
    problem.c = y.data();
    problem.c_stride = problem.n;
    kernels::gemm(problem, default_executor());
  };
  for (auto _ : state) {
    for (const Weight& w : weights) run(w, true);
    for (const Weight& w : weights) run(w, false);
  }
  report(state);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    peak = fma_peak();
    add_context(peak);
    const auto add = [](const char* name, auto run) {
      benchmark::RegisterBenchmark(name, run)->UseRealTime()->Unit(benchmark::kMillisecond);
    };
    add("lora_step/qv", [](benchmark::State& state) { lora_step(state, false); });
    add("lora_step/qv_saved_bf16", [](benchmark::State& state) { lora_step(state, false, DType::kBF16); });
    add("lora_step/all_linears", [](benchmark::State& state) { lora_step(state, true); });
    add("qlora_step/qv", [](benchmark::State& state) { qlora_step(state, false); });
    add("qlora_step/all_linears", [](benchmark::State& state) { qlora_step(state, true); });
    add("products", products);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
