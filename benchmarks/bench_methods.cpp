// One training step (forward, backward, AdamW) of prefix tuning and prompt tuning with 20 virtual tokens and of bottleneck
// adapters a sixteenth as wide as the model, on a model of SmolLM2-135M's shape, 4 sequences of 128 tokens, a label on every
// position, float.
//   bench_methods [--benchmark_filter=prefix_step]; rows: tok/s (of the sequences' own tokens), % of the FMA rate that the
//   matrix products of those tokens need, peak memory so far.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <memory>

#include "machine_limits.hpp"
#include "peft/adapter_set.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "peft/train/adamw.hpp"
#include "random_llama.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;
using peft_examples::Llama;
using peft_examples::LlamaConfig;

constexpr Index kSequences = 4, kLength = 128, kTokens = kSequences * kLength, kVirtualTokens = 20;
double peak = 1;

/// Forward and input gradient of every matrix that a token passes.
double flops_per_token(const LlamaConfig& c) {
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const Index layer = c.hidden_size * (2 * query + 2 * key + 3 * c.intermediate_size);
  return 4.0 * static_cast<double>(c.num_hidden_layers * layer + c.vocab_size * c.hidden_size);
}

PackedBatch random_batch(Index vocabulary) {
  Philox random(7);
  const auto id = [&] { return static_cast<std::int32_t>(random.below(static_cast<std::uint32_t>(vocabulary))); };
  PackedBatch batch;
  for (Index s = 0; s < kSequences; ++s) {
    for (std::int32_t i = 0; i < kLength; ++i) {
      batch.ids.push_back(id());
      batch.positions.push_back(i);
      batch.targets.push_back(id());
    }
    batch.offsets.push_back(batch.tokens());
  }
  return batch;
}

/// attach(model) gives it what is trained.
template <class Attach>
void step(benchmark::State& state, Attach&& attach) {
  Llama<float> model = random_llama<float>(smollm2_135m());
  attach(model);
  AdamW<float> optimizer;
  const PackedBatch batch = random_batch(model.config().vocab_size);
  std::uint32_t number = 0;
  const auto run = [&] {
    model.for_each_parameter(
        [](const ParameterInfo&, VectorView<float>, VectorView<float> grad) { std::fill(grad.begin(), grad.end(), 0.0f); });
    LossSum sum;
    model.forward_backward(batch, 1.0 / static_cast<double>(kTokens), 1, number++, sum);
    optimizer.step(model, 3e-4, 1.0, default_executor());
  };
  run();  // memory is touched, the moments are made
  for (auto _ : state) run();
  const double tokens = static_cast<double>(kTokens) * static_cast<double>(state.iterations());
  state.counters["tok/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["%FMA"] =
      benchmark::Counter(tokens * flops_per_token(smollm2_135m()) * 1e-7 / peak, benchmark::Counter::kIsRate);
  state.counters["peak_MiB"] = peak_memory_mib();
}

void prefix_step(benchmark::State& state, bool projection) {
  step(state, [&](Llama<float>& model) {
    const PrefixTuningConfig config{.num_virtual_tokens = kVirtualTokens, .prefix_projection = projection};
    model.set_prefix(std::make_shared<PrefixCache<float>>(config.fit_to(model.prompt_host())));
  });
}

void prompt_step(benchmark::State& state) {
  step(state, [](Llama<float>& model) {
    const PromptTuningConfig config{.num_virtual_tokens = kVirtualTokens,
                                    .prompt_tuning_init = PromptTuningInit::kSampleVocab};
    model.set_prompt(std::make_shared<PromptEmbedding<float>>(config.fit_to(model.prompt_host()), model.embedding()));
  });
}

void p_tuning_step(benchmark::State& state, PromptEncoderReparameterizationType type) {
  step(state, [type](Llama<float>& model) {
    const PromptEncoderConfig config{
        .num_virtual_tokens = kVirtualTokens, .encoder_reparameterization_type = type, .encoder_hidden_size = 256};
    model.set_prompt(std::make_shared<PromptEmbedding<float>>(config.fit_to(model.prompt_host())));
  });
}

void adapter_step(benchmark::State& state, const AdapterConfig& config) {
  step(state, [&config](Llama<float>& model) {
    const LlamaConfig& c = model.config();
    model.set_adapters(std::make_shared<AdapterSet<float>>("default", AdapterLayout::kLlama, config, c.hidden_size,
                                                           c.num_hidden_layers));
  });
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
    using Type = PromptEncoderReparameterizationType;
    add("prefix_step/plain", [](benchmark::State& state) { prefix_step(state, false); });
    add("prompt_step", prompt_step);
    add("prefix_step/projection", [](benchmark::State& state) { prefix_step(state, true); });
    add("p_tuning_step/mlp", [](benchmark::State& state) { p_tuning_step(state, Type::kMlp); });
    add("p_tuning_step/lstm", [](benchmark::State& state) { p_tuning_step(state, Type::kLstm); });
    add("adapter_step/seq_bn", [](benchmark::State& state) { adapter_step(state, AdapterConfig::seq_bn()); });
    add("adapter_step/double_seq_bn", [](benchmark::State& state) { adapter_step(state, AdapterConfig::double_seq_bn()); });
    benchmark::RunSpecifiedBenchmarks();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
