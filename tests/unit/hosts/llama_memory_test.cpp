// The memory of a Llama host's training: activations that are kept, or made again with the same bits.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "support/catch.hpp"
#include "support/tiny_llama.hpp"

using namespace peft;
using namespace peft_test;
using peft_examples::Llama;

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

std::shared_ptr<AdapterSet<float>> adapters_of(AdapterConfig config, const std::string& name, std::uint64_t seed) {
  config.reduction_factor = 2;
  return std::make_shared<AdapterSet<float>>(name, AdapterLayout::kLlama, config, 8, kLayers, seed);
}

Method bottlenecks(const char* name, const AdapterConfig& config) {
  return {name, [config](Llama<float>& model, auto&) { model.set_adapters(adapters_of(config, "task", 7)); }};
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
  result.push_back(parts("ia3", scales));
  result.push_back(parts("full", FullConfig{}));
  AdapterConfig serial = AdapterConfig::double_seq_bn(), parallel = AdapterConfig::par_bn();
  serial.dropout = 0.2f;
  serial.leave_out = {1};
  result.push_back(bottlenecks("serial adapters", serial));
  result.push_back(bottlenecks("parallel adapters", parallel));
  result.push_back({"composed adapters", [serial](Llama<float>& model, auto&) {
                      model.set_adapters(AdapterSetup::average({"a", "b"}), {adapters_of(serial, "a", 7), adapters_of(serial, "b", 8)});
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
  Index bytes = 0;
};

Pass train(const Method& method, bool qk_norm, const std::function<void(Llama<float>&)>& prepare) {
  Llama<float> model = tiny_llama<float>({.tied = false, .biases = true, .qk_norm = qk_norm, .layers = kLayers});
  AdapterRegistry<float> registry;
  method.put(model, registry);
  perturb_parameters(model);
  prepare(model);
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
  return result;
}

}  // namespace

TEST_CASE("checkpointed activations: the same losses and gradients bit for bit, whatever is trained, in less memory") {
  for (const Method& method : methods()) {
    for (const bool qk_norm : {false, true}) {
      INFO(method.name << ", qk_norm " << qk_norm);
      const Pass kept = train(method, qk_norm, [](Llama<float>&) {});
      const Pass again = train(method, qk_norm, [](Llama<float>& model) { model.set_checkpointing(true); });
      CHECK(kept.numbers.size() > 2 * 10);
      CHECK(again.numbers == kept.numbers);
      CHECK(2 * again.bytes < kept.bytes);
    }
  }
}

TEST_CASE("checkpointed activations in bf16: one layer as it is computed, of the others a rounded input") {
  const Method method = methods().front();
  const Pass plain = train(method, false, [](Llama<float>& model) { model.set_checkpointing(true); });
  const Pass rounded = train(method, false, [](Llama<float>& model) {
    model.set_checkpointing(true);
    model.set_saved_activations(DType::kBF16);
  });
  CHECK(rounded.numbers.front() == plain.numbers.front());
  CHECK(rounded.numbers != plain.numbers);
  // Per token: a layer's input has 8 numbers, its other activations 52 with attention's result.
  const Index tokens = tiny_llama_batch().tokens();
  CHECK(plain.bytes == tokens * 4 * ((kLayers + 1) * 8 + 52));
  CHECK(rounded.bytes == tokens * (4 * (2 * 8 + 52) + 2 * kLayers * 8));
}
