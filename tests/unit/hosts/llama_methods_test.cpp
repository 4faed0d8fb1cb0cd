// The life of an adapter on a Llama host's norms, embedding and head: made by name, trained, saved as PEFT saves it, loaded
// into another copy of the model, which then gives the same logits.
#include <filesystem>

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
