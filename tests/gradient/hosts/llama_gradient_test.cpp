// Gradients of everything that a Llama host trains besides the layers' linears, by central differences in double: norms,
// embedding and head by LN-tuning, full fine-tuning, BitFit, trainable tokens, modules_to_save and LoRA; bottleneck adapters;
// and all of it together.
#include "hosts/llama.hpp"

#include <set>
#include <string>

#include "gradient/hosts/llama_gradients.hpp"
#include "support/catch.hpp"
#include "support/tiny_llama.hpp"

using namespace peft;
using namespace peft_test;
using peft_examples::Llama;

namespace {

template <class Config>
std::set<std::string> check_method(const Config& config, const TinyLlamaOptions& options) {
  Llama<double> model = tiny_llama<double>(options);
  AdapterRegistry<double> registry;
  registry.add_adapter("a", config, model.adapter_sites(), 1);
  registry.set_adapter("a");
  model.select(registry.selection());
  perturb_parameters(model);
  return check_gradients(model);
}

LoraConfig lora_on(std::vector<std::string> modules) {
  LoraConfig config;
  config.r = 2;
  config.lora_alpha = 3;
  config.target_modules = std::move(modules);
  return config;
}

}  // namespace

TEST_CASE("norms: LN-tuning, of all and of the lowest alone") {
  LnTuningConfig all;
  all.target_modules = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"};
  CHECK(check_method(all, {.qk_norm = true}).size() == 2 * 4 + 1);
  for (const std::string name : {"model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm",
                                 "model.layers.0.self_attn.q_norm", "model.layers.1.self_attn.k_norm", "model.norm"}) {
    LnTuningConfig one;
    one.target_modules = {name};
    CHECK(check_method(one, {.tied = false, .qk_norm = true}) == std::set<std::string>{name + ".ln_tuning_layers.weight"});
  }
}

TEST_CASE("full fine-tuning, of a tied and of an untied model") {
  for (const bool tied : {true, false}) {
    const auto names = check_method(FullConfig{}, {.tied = tied, .biases = true, .qk_norm = true});
    CHECK(names.size() == 2 * (7 + 7 + 4) + 2 + (tied ? 0 : 1));
    CHECK(names.count("model.embed_tokens.weight") == 1);
    CHECK(names.count("lm_head.weight") == (tied ? 0 : 1));
  }
}

TEST_CASE("BitFit: the biases alone") { CHECK(check_method(FullConfig{.bias_only = true}, {.biases = true}).size() == 2 * 7); }

TEST_CASE("embedding and head: trainable tokens, LoRA, modules_to_save") {
  for (const bool tied : {true, false}) {
    INFO("tied " << tied);
    LoraConfig tokens = lora_on({"v_proj"});
    tokens.trainable_token_indices = {{"embed_tokens", {1, 4, 6}}};
    CHECK(check_method(tokens, {.tied = tied}).count("model.embed_tokens.token_adapter.trainable_tokens_delta") == 1);
    CHECK(check_method(lora_on({"embed_tokens"}), {.tied = tied}).size() == 2);
    LoraConfig head = lora_on({"lm_head"});
    head.lora_dropout = 0.3f;
    CHECK(check_method(head, {.tied = tied}).size() == 2);
    LoraConfig saved = lora_on({"down_proj"});
    saved.modules_to_save = {"embed_tokens", "lm_head", "input_layernorm"};
    CHECK(check_method(saved, {.tied = tied}).size() == 2 * 2 + 2 + 2);
  }
}

TEST_CASE("all-linear leaves the head out") {
  Llama<double> model = tiny_llama<double>({.tied = false});
  AdapterRegistry<double> registry;
  LoraConfig config = lora_on({});
  config.target_modules = "all-linear";
  CHECK(registry.add_adapter("a", config, model.adapter_sites(), 1)->module_count() == 2 * 7);
}

TEST_CASE("sites stay where they are when the host moves") {
  Llama<double> model = tiny_llama<double>({.tied = true});
  const AdapterSites<double> before = model.adapter_sites();
  Llama<double> moved = std::move(model);
  const AdapterSites<double> after = moved.adapter_sites();
  CHECK(before.linears.data() == after.linears.data());
  CHECK(before.tied_head == after.tied_head);
  CHECK(after.linears.back() == after.tied_head);
  CHECK(after.linears.back()->name() == "lm_head");
  CHECK(after.embeddings.front()->name() == "model.embed_tokens");
  CHECK(after.norms.back()->name() == "model.norm");
  CHECK(after.norms.size() == 5);
  CHECK(moved.sites().size() == 14);
}
