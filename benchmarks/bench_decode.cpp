// One token at a time of a model of SmolLM2-135M's shape, batch 1, after 64 tokens of context: base model alone, with an
// unmerged LoRA of rank 8 on all linears, and with a bottleneck adapter (seq_bn, a sixteenth as wide) in every layer; weights
// in float and bf16, and in NF4, quantised twice, with embedding and head in float or bf16. The limit is the time in which the same threads read
// a buffer as large as the weights, measured every few tokens: the rate of a machine that others use too changes from
// second to second.
//   bench_decode [--benchmark_filter=decode/bf16]; rows: tok/s, % of the read limit, peak memory.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "machine_limits.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/adapter_set.hpp"
#include "peft/core/parallel.hpp"
#include "random_llama.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;
using peft_examples::KvCache;
using peft_examples::Llama;

constexpr Index kPrompt = 64, kGenerated = 64, kPrefill = 512;
constexpr int kBlock = 8;  // tokens, then as many passes over the buffer

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

enum class Added { kNothing, kLora, kAdapter };

template <Scalar T>
class Decoder {
 public:
  Decoder(Added added, Kept kept)
      : model_(random_llama<T>(smollm2_135m(), kept)), cache_(model_.config(), kPrompt + kGenerated), ids_(kPrompt) {
    if (added == Added::kLora) {
      LoraConfig config = lora_of(true);
      config.init_lora_weights = false;  // B starts with numbers
      registry_.add_adapter("default", config, model_.sites(), 0);
      registry_.set_adapter("default");
      model_.select(registry_.selection());
    } else if (added == Added::kAdapter) {
      const auto& c = model_.config();
      model_.set_adapters(std::make_shared<AdapterSet<T>>("default", AdapterLayout::kLlama, AdapterConfig::seq_bn(),
                                                          c.hidden_size, c.num_hidden_layers));
    }
    const Index vocabulary = model_.config().vocab_size;
    logits_ = Matrix<float>(1, vocabulary);
    Philox random(7);
    for (std::int32_t& id : ids_) id = static_cast<std::int32_t>(random.uniform(0.0f, static_cast<float>(vocabulary - 1)));
    feed(kPrompt);
  }

  /// The likeliest token after the last one; a full cache starts again behind the prompt.
  void token() {
    if (cache_.length() == cache_.capacity()) cache_.rewind(kPrompt);
    feed(1);
  }

 private:
  void feed(Index count) {
    KvCache<T>* const cache = &cache_;
    model_.infer({ids_.data(), count}, std::span(&count, 1), std::span(&cache, 1), logits_.view());
    const float* first = logits_.data();
    ids_[0] = static_cast<std::int32_t>(std::max_element(first, first + logits_.cols()) - first);
  }

  Llama<T> model_;
  AdapterRegistry<T> registry_;
  KvCache<T> cache_;
  std::vector<std::int32_t> ids_;
  Matrix<float> logits_;
};

Index weights_in_head(const peft_examples::LlamaConfig& c) { return c.vocab_size * c.hidden_size; }

/// What a token reads of a model in four bits: a code and 1/64 of a byte of scale a weight, and the head's bytes.
Index bytes_per_token(Kept kept) {
  const auto config = smollm2_135m();
  const Index in_head = weights_in_head(config), in_layers = weights_per_token(config) - in_head;
  const Index head = kept == Kept::kNf4 ? 4 * in_head : kept == Kept::kNf4WithBf16Table ? 2 * in_head : in_head + in_head / 16;
  return in_layers / 2 + in_layers / 64 + head;
}

template <Scalar T>
void decode(benchmark::State& state, Added added, Kept kept = Kept::kDense) {
  Decoder<T> decoder(added, kept);
  for (Index i = 0; i < kGenerated; ++i) decoder.token();
  const double peak = peak_memory_mib();
  ReadBuffer weights(kept == Kept::kDense ? weights_per_token(smollm2_135m()) * static_cast<Index>(sizeof(T))
                                          : bytes_per_token(kept));
  std::vector<double> token_seconds, share;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kBlock; ++i) decoder.token();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    double read = 0;
    weights.pass();  // brings the buffer where it stays from pass to pass
    for (int i = 0; i < kBlock; ++i) read += weights.pass();
    decoder.token();
    state.SetIterationTime(took.count() / kBlock);
    token_seconds.push_back(took.count() / kBlock);
    share.push_back(100.0 * read / took.count());
  }
  const double limit = 100.0 / (median(token_seconds) * median(share));
  state.counters["tok/s"] = 1.0 / median(token_seconds);
  state.counters["%read"] = median(share);
  state.counters["limit_tok/s"] = limit;
  state.counters["peak_MiB"] = peak;
}

void prefill(benchmark::State& state, bool int8_activations, double peak) {
  const auto config = smollm2_135m();
  Llama<float> model = random_llama<float>(config, Kept::kNf4WithBf16Table);
  for (AdaptedLinear<float>* site : model.sites()) {
    if (auto* linear = site->base().get_if<Nf4Linear>(); linear != nullptr && int8_activations) linear->use_int8_activations();
  }
  KvCache<float> cache(config, kPrefill);
  KvCache<float>* const of_one = &cache;
  std::vector<std::int32_t> ids(kPrefill);
  Philox random(7);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.uniform(0.0f, static_cast<float>(config.vocab_size - 1)));
  Matrix<float> logits(1, config.vocab_size);
  for (auto _ : state) {
    cache.rewind(0);
    model.infer({ids.data(), kPrefill}, std::span(&kPrefill, 1), std::span(&of_one, 1), logits.view());
  }
  const double tokens = static_cast<double>(kPrefill) * static_cast<double>(state.iterations());
  const double flops = 2.0 * static_cast<double>(weights_per_token(config) - weights_in_head(config));
  state.counters["tok/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["%FMA"] = benchmark::Counter(tokens * flops * 1e-7 / peak, benchmark::Counter::kIsRate);
  state.counters["peak_MiB"] = peak_memory_mib();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    const double peak = fma_peak();
    add_context(peak);
    const auto add = [](const char* name, auto run) {
      benchmark::RegisterBenchmark(name, run)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(24);
    };
    add("decode/f32/base", [](benchmark::State& state) { decode<float>(state, Added::kNothing); });
    add("decode/f32/lora", [](benchmark::State& state) { decode<float>(state, Added::kLora); });
    add("decode/f32/adapter", [](benchmark::State& state) { decode<float>(state, Added::kAdapter); });
    add("decode/bf16/base", [](benchmark::State& state) { decode<bf16>(state, Added::kNothing); });
    add("decode/bf16/lora", [](benchmark::State& state) { decode<bf16>(state, Added::kLora); });
    add("decode/bf16/adapter", [](benchmark::State& state) { decode<bf16>(state, Added::kAdapter); });
    add("decode/nf4/base", [](benchmark::State& state) { decode<float>(state, Added::kNothing, Kept::kNf4); });
    add("decode/nf4/lora", [](benchmark::State& state) { decode<float>(state, Added::kLora, Kept::kNf4); });
    constexpr Kept kNarrow = Kept::kNf4WithBf16Table;
    add("decode/nf4_bf16_head/base", [](benchmark::State& state) { decode<float>(state, Added::kNothing, kNarrow); });
    add("decode/nf4_bf16_head/lora", [](benchmark::State& state) { decode<float>(state, Added::kLora, kNarrow); });
    constexpr Kept kNarrowest = Kept::kNf4WithQ8Table;
    add("decode/nf4_q8_head/base", [](benchmark::State& state) { decode<float>(state, Added::kNothing, kNarrowest); });
    add("decode/nf4_q8_head/lora", [](benchmark::State& state) { decode<float>(state, Added::kLora, kNarrowest); });
    for (const bool int8 : {false, true}) {
      benchmark::RegisterBenchmark(int8 ? "prefill/nf4_int8" : "prefill/nf4",
                                   [=](benchmark::State& state) { prefill(state, int8, peak); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RunSpecifiedBenchmarks();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
