// The life of an adapter on a Llama host's norms, embedding and head: made by name, trained, saved as PEFT saves it, loaded
// into another copy of the model, which then gives the same logits.
#include <cmath>
#include <filesystem>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "peft/train/adamw.hpp"
#include "support/catch.hpp"
#include "support/tiny_llama.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace peft_test;
using io_test::ScratchFolder;
using peft_examples::Llama;

namespace {

template <Scalar T>
Matrix<Accumulator<T>> logits_of(Llama<T>& model) {
  const PackedBatch batch = tiny_llama_batch();
  Matrix<Accumulator<T>> logits(batch.tokens(), model.config().vocab_size);
  model.logits(batch, logits);
  return logits;
}

template <class A>
bool equal(const Matrix<A>& x, const Matrix<A>& y) {
  return std::equal(x.flat().begin(), x.flat().end(), y.flat().begin());
}

/// Two steps of AdamW; then the same from the file.
template <Scalar T, class Config>
void check_life(const Config& config, const TinyLlamaOptions& options, std::size_t keys) {
  const ScratchFolder scratch;
  Llama<T> model = tiny_llama<T>(options);
  const auto untrained = logits_of(model);
  AdapterRegistry<T> registry;
  registry.add_adapter("mine", config, model.adapter_sites(), 3);
  registry.set_adapter("mine");
  model.select(registry.selection());
  AdamW<Accumulator<T>> optimizer{AdamWConfig{}};
  const PackedBatch batch = tiny_llama_batch();
  double first = 0;
  for (std::uint32_t step = 0; step < 2; ++step) {
    model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill(grad.begin(), grad.end(), 0); });
    LossSum sum;
    model.forward_backward(batch, 1.0 / static_cast<double>(batch.label_tokens()), 1, step, sum);
    if (step == 0) first = sum.loss;
    optimizer.step(model, 1e-2);
  }
  LossSum after;
  model.evaluate(batch, after);
  CHECK(after.loss < first);
  const auto trained = logits_of(model);
  CHECK_FALSE(equal(trained, untrained));
  save_pretrained(registry, "mine", scratch.path());
  CHECK(load_any_peft_adapter(scratch.path() / "mine").tensors.size() == keys);

  Llama<T> other = tiny_llama<T>(options);
  AdapterRegistry<T> loaded;
  load_adapter(loaded, scratch.path() / "mine", "again", other.adapter_sites());
  loaded.set_adapter("again");
  other.select(loaded.selection());
  CHECK(equal(logits_of(other), trained));
  other.select({});
  CHECK(equal(logits_of(other), untrained));
}

LoraConfig lora_on(std::vector<std::string> modules) {
  LoraConfig config;
  config.r = 2;
  config.lora_alpha = 4;
  config.target_modules = std::move(modules);
  return config;
}

}  // namespace

TEMPLATE_TEST_CASE("added, trained two steps, saved and loaded: the same logits", "", float, bf16) {
  using T = TestType;
  for (const bool tied : {true, false}) {
    INFO("tied " << tied);
    const TinyLlamaOptions options{.tied = tied, .biases = true, .qk_norm = true};
    LnTuningConfig norms;
    norms.target_modules = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"};
    check_life<T>(norms, options, 9);
    check_life<T>(FullConfig{}, options, 2 * (7 + 7 + 4) + (tied ? 2 : 3));
    check_life<T>(FullConfig{.bias_only = true}, options, 14);
    check_life<T>(lora_on({"embed_tokens"}), options, 2);
    check_life<T>(lora_on({"lm_head", "q_proj"}), options, 6);
    LoraConfig tokens = lora_on({"q_proj"});
    tokens.trainable_token_indices = {{"embed_tokens", {1, 4}}};
    check_life<T>(tokens, options, 5);
    LoraConfig saved = lora_on({"q_proj"});
    saved.modules_to_save = {"lm_head", "embed_tokens", "model.norm"};
    check_life<T>(saved, options, 7);
  }
}

TEMPLATE_TEST_CASE("everything trained at once has the same bits for any number of threads", "", float, bf16) {
  using T = TestType;
  std::vector<float> bits;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Llama<T> model = tiny_llama<T>({.tied = true, .biases = true, .qk_norm = true});
    model.set_executor(pool);
    AdapterRegistry<T> registry;
    registry.add_adapter("full", FullConfig{}, model.adapter_sites(), 3);
    registry.set_adapter("full");
    model.select(registry.selection());
    AdapterConfig config = AdapterConfig::double_seq_bn();
    config.reduction_factor = 2;
    config.dropout = 0.2f;
    model.set_adapters(std::make_shared<AdapterSet<T>>("task", AdapterLayout::kLlama, config, 8, 2, 7));
    perturb_parameters(model);
    LossSum sum;
    model.forward_backward(tiny_llama_batch(), 1.0, 5, 1, sum);
    std::vector<float> now = {static_cast<float>(sum.loss)};
    model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) { now.insert(now.end(), grad.begin(), grad.end()); });
    if (threads == 1) bits = now;
    CHECK(bits == now);
  }
}

TEST_CASE("activations saved in bf16: the same loss, gradients within their rounding, half the memory per layer") {
  struct Pass {
    double loss;
    Index bytes;
    std::vector<double> gradients;
  };
  const auto pass = [](DType type) {
    Llama<float> model = tiny_llama<float>({.tied = true, .biases = true, .qk_norm = true});
    model.set_saved_activations(type);
    AdapterRegistry<float> registry;
    registry.add_adapter("full", FullConfig{}, model.adapter_sites(), 3);
    registry.set_adapter("full");
    model.select(registry.selection());
    Pass result{};
    for (std::uint32_t step = 0; step < 2; ++step) {  // the second finds the first one's memory
      model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill(grad.begin(), grad.end(), 0.0f); });
      LossSum sum;
      model.forward_backward(tiny_llama_batch(), 1.0, 5, step, sum);
      result.loss = sum.loss;
    }
    result.bytes = model.saved_activation_bytes();
    model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) {
      result.gradients.insert(result.gradients.end(), grad.begin(), grad.end());
    });
    return result;
  };
  const Pass plain = pass(DType::kF32), rounded = pass(DType::kBF16);
  CHECK(rounded.loss == plain.loss);
  // Per token: a layer's input has 8 numbers, its other activations 64. Plain: three inputs, two layers. Rounded: two inputs
  // and one layer as they are computed, two of both in bf16.
  const Index tokens = tiny_llama_batch().tokens();
  CHECK(plain.bytes == tokens * 4 * (3 * 8 + 2 * 64));
  CHECK(rounded.bytes == tokens * (4 * (2 * 8 + 64) + 2 * 2 * (8 + 64)));
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < plain.gradients.size(); ++i) {
    difference += std::pow(rounded.gradients[i] - plain.gradients[i], 2);
    norm += std::pow(plain.gradients[i], 2);
  }
  // Each of a layer's ten activations is off by 2^-9 of itself at most, and passes its error on once.
  constexpr double kLayers = 2, kActivations = 10;
  CHECK(std::sqrt(difference) < kLayers * kActivations * std::ldexp(1.0, -9) * std::sqrt(norm));
  CHECK(difference > 0);

  Llama<bf16> narrow = tiny_llama<bf16>({});
  CHECK_THROWS_AS(narrow.set_saved_activations(DType::kBF16), ConfigError);
  Llama<float> model = tiny_llama<float>({});
  CHECK_THROWS_AS(model.set_saved_activations(DType::kF16), ConfigError);
}

TEST_CASE("attention's result is kept where o_proj has an adapter, and nowhere else") {
  const auto bytes_with = [](const LoraConfig& config) {
    Llama<float> model = tiny_llama<float>({});
    AdapterRegistry<float> registry;
    registry.add_adapter("lora", config, model.adapter_sites(), 3);
    registry.set_adapter("lora");
    model.select(registry.selection());
    LossSum sum;
    model.forward_backward(tiny_llama_batch(), 1.0, 5, 0, sum);
    return model.saved_activation_bytes();
  };
  constexpr Index kLayers = 2, kQueryWidth = 8;
  CHECK(bytes_with(lora_on({"o_proj"})) - bytes_with(lora_on({"q_proj", "v_proj"})) ==
        kLayers * kQueryWidth * tiny_llama_batch().tokens() * Index{sizeof(float)});
}
