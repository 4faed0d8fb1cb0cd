// The memory of a Llama host's training: activations that are kept, or made again with the same bits; and what is predicted from
// shapes, against what is allocated.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "hosts/llama_memory.hpp"
#include "hosts/zero_llama.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"
#include "support/tiny_llama.hpp"
#include "unit/hosts/counted_memory.hpp"

using namespace peft;
using namespace peft_test;
using peft_examples::Llama;
using peft_examples::LlamaConfig;
using peft_examples::LlamaPass;

namespace {

constexpr Index kLayers = 4;

LoraConfig lora_on(std::vector<std::string> modules) {
  LoraConfig config{.r = 2, .lora_alpha = 4};
  config.lora_dropout = 0.3f;
  config.target_modules = std::move(modules);
  return config;
}

/// Puts a method on the model; the registry keeps what is selected.
struct Method {
  const char* name;
  std::function<void(Llama<float>&, AdapterRegistry<float>&)> put;
};

template <class Config>
Method parts(const char* name, Config config) {
  return {name, [config](Llama<float>& model, AdapterRegistry<float>& registry) {
            registry.add_adapter("a", config, model.adapter_sites(), 3);
            registry.set_adapter("a");
            model.select(registry.selection());
          }};
}

std::shared_ptr<AdapterSet<float>> adapters_of(const Llama<float>& model, AdapterConfig config, const std::string& name,
                                               std::uint64_t seed) {
  config.reduction_factor = 2;
  return std::make_shared<AdapterSet<float>>(name, AdapterLayout::kLlama, config, model.config().hidden_size, kLayers, seed);
}

Method bottlenecks(const char* name, const AdapterConfig& config) {
  return {name, [config](Llama<float>& model, auto&) { model.set_adapters(adapters_of(model, config, "task", 7)); }};
}

std::vector<Method> methods() {
  std::vector<Method> result;
  LoraConfig dora = lora_on({"q_proj", "down_proj"}), some = lora_on({"down_proj", "gate_proj"}), answer = lora_on({"v_proj"});
  dora.use_dora = true;
  some.layers_to_transform = std::vector<Index>{0, 2};  // of neighbours one has what the other lacks
  answer.alora_invocation_tokens = {1, 5};
  Ia3Config scales;
  scales.target_modules = std::vector<std::string>{"k_proj", "down_proj"};
  scales.feedforward_modules = std::vector<std::string>{"down_proj"};
  result.push_back(parts("lora", lora_on({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"})));
  result.push_back(parts("lora of some layers", some));
  result.push_back(parts("dora", dora));
  result.push_back(parts("alora", answer));
  result.push_back(parts("vera", VeraConfig{.r = 1000, .target_modules = std::vector<std::string>{"q_proj", "down_proj"}}));
  result.push_back(parts("ia3", scales));
  result.push_back(parts("full", FullConfig{}));
  AdapterConfig serial = AdapterConfig::double_seq_bn(), parallel = AdapterConfig::par_bn();
  serial.dropout = 0.2f;
  serial.leave_out = {1};
  result.push_back(bottlenecks("serial adapters", serial));
  result.push_back(bottlenecks("parallel adapters", parallel));
  result.push_back({"composed adapters", [serial](Llama<float>& model, auto&) {
                      model.set_adapters(AdapterSetup::average({"a", "b"}), {adapters_of(model, serial, "a", 7), adapters_of(model, serial, "b", 8)});
                    }});
  result.push_back({"a prefix", [](Llama<float>& model, auto&) {
                      const PrefixTuningConfig config{.num_virtual_tokens = 3};
                      model.set_prefix(std::make_shared<PrefixCache<float>>(config.fit_to(model.prompt_host()), 4));
                    }});
  result.push_back({"a prompt", [](Llama<float>& model, auto&) {
                      const PromptTuningConfig config{.num_virtual_tokens = 3};
                      model.set_prompt(std::make_shared<PromptEmbedding<float>>(config.fit_to(model.prompt_host()), model.embedding(),
                                                                                std::vector<std::int32_t>(), 4));
                    }});
  return result;
}

struct Pass {
  std::vector<float> numbers;  // losses and gradients of two steps
  Index bytes = 0, predicted = 0;
};

Pass train(const Method& method, bool qk_norm, LlamaPass pass = {}) {
  Llama<float> model = tiny_llama<float>({.tied = false, .biases = true, .qk_norm = qk_norm, .layers = kLayers});
  AdapterRegistry<float> registry;
  method.put(model, registry);
  perturb_parameters(model);
  model.set_checkpointing(pass.checkpoints);
  if (pass.rounds) model.set_saved_activations(DType::kBF16);
  Pass result;
  for (std::uint32_t step = 0; step < 2; ++step) {  // the second finds the first one's memory
    model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill(grad.begin(), grad.end(), 0.0f); });
    LossSum sum;
    model.forward_backward(tiny_llama_batch(), 1.0, 5, step, sum);
    result.numbers.push_back(static_cast<float>(sum.loss));
    model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) {
      result.numbers.insert(result.numbers.end(), grad.begin(), grad.end());
    });
  }
  result.bytes = model.saved_activation_bytes();
  pass.tokens = tiny_llama_batch().tokens();
  result.predicted = peft_examples::stored_activation_bytes(model.config(), peft_examples::method_memory(model), pass);
  return result;
}

}  // namespace

TEST_CASE("checkpointed activations: the same losses and gradients bit for bit, whatever is trained, in less memory") {
  for (const Method& method : methods()) {
    for (const bool qk_norm : {false, true}) {
      INFO(method.name << ", qk_norm " << qk_norm);
      const Pass kept = train(method, qk_norm), again = train(method, qk_norm, {.checkpoints = true});
      CHECK(kept.numbers.size() > 2 * 10);
      CHECK(again.numbers == kept.numbers);
      CHECK(2 * again.bytes < kept.bytes);
      CHECK(kept.bytes == kept.predicted);
      CHECK(again.bytes == again.predicted);
    }
  }
}

TEST_CASE("checkpointed activations in bf16: one layer as it is computed, of the others a rounded input") {
  for (const Method& method : methods()) {
    INFO(method.name);
    const Pass plain = train(method, false, {.checkpoints = true});
    const Pass rounded = train(method, false, {.checkpoints = true, .rounds = true}), kept = train(method, false, {.rounds = true});
    CHECK(rounded.numbers.front() == plain.numbers.front());
    CHECK(rounded.numbers != plain.numbers);
    CHECK(rounded.bytes == rounded.predicted);
    CHECK(kept.bytes == kept.predicted);
    CHECK(rounded.bytes < plain.bytes);
  }
}

TEST_CASE("what a training takes is predicted from shapes, for every method, and however activations are kept") {
  LlamaConfig config = tiny_llama_config({.tied = false, .layers = kLayers});
  config.hidden_size = 64, config.intermediate_size = 160, config.vocab_size = 500;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 16;
  config.max_position_embeddings = 64;
  PackedBatch batch;
  constexpr Index kSequences = 40, kLength = 30;
  for (Index i = 0; i < kSequences * kLength; ++i) {
    batch.ids.push_back(static_cast<std::int32_t>((i * 37 + 5) % config.vocab_size));
    batch.positions.push_back(static_cast<std::int32_t>(i % kLength));
    batch.targets.push_back(static_cast<std::int32_t>((i * 11 + 1) % config.vocab_size));
    if (i % kLength == kLength - 1) batch.offsets.push_back(i + 1);
  }
  // Under sanitizers, which see these paths above, one pair: each takes half a minute there.
  constexpr Index kStride = kSanitized ? 44 : 1;
  Index pair = 0;
  for (const Method& method : methods()) {
    for (LlamaPass pass : {LlamaPass{}, LlamaPass{.checkpoints = true}, LlamaPass{.rounds = true},
                           LlamaPass{.checkpoints = true, .logit_bytes = 200000}}) {
      if (pair++ % kStride != 0) continue;
      const std::size_t before = peft_test::CountedMemory::live();
      Llama<float> model = peft_examples::zero_llama<float>(config);
      model.set_executor({});
      AdapterRegistry<float> registry;
      method.put(model, registry);
      pass.tokens = batch.tokens();
      model.set_checkpointing(pass.checkpoints);
      model.set_logit_bytes(pass.logit_bytes);
      if (pass.rounds) model.set_saved_activations(DType::kBF16);
      const auto own = peft_examples::method_memory(model);
      peft_test::CountedMemory::restart();
      AdamW<float> optimizer{AdamWConfig{}};
      for (std::uint32_t step = 0; step < 2; ++step) {
        LossSum sum;
        model.forward_backward(batch, 1.0, 5, step, sum);
        optimizer.step(model, 1e-3);
      }
      const auto counted = static_cast<double>(peft_test::CountedMemory::peak() - before);
      const auto predicted = static_cast<double>(
          peft_examples::parameter_bytes(own) + peft_examples::optimizer_bytes(own, false, 4096).total +
          peft_examples::activation_bytes(config, own, pass) + peft_examples::workspace_bytes(config, own, pass));
      INFO(method.name << ", checkpoints " << pass.checkpoints << ", rounds " << pass.rounds);
      CHECK(counted / predicted < 1.05);
      CHECK(counted / predicted > 0.9);
    }
  }
}
