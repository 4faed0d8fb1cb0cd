/// All methods' construction and loading, compiled once per type of activation.

#include "cli/method.hpp"

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cli/adapter_kind.hpp"
#include "cli/model_runs.hpp"
#include "cli/start_parts.hpp"
#include "peft/pipeline/adapterhub_loader.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/pipeline/registry_loader.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;
constexpr const char* kName = "default";

/// Throws ConfigError where the virtual tokens leave nothing of the model's context.
template <Scalar T>
void check_context(const Llama<T>& model) {
  const Index context = model.config().context(), count = model.num_virtual_tokens();
  if (count + 2 > context) {
    peft::fail<peft::ConfigError>("num_virtual_tokens is {}; the model reads {} tokens, and at least 2 of them must be left",
                                  count, context);
  }
}

/// What the model computes for the first `count` tokens of a text, as a prefix's start.
template <Scalar T>
void assign_text(const std::string& text, const BpeTokenizer& tokenizer, Llama<T>& model, peft::PrefixCache<T>& prefix) {
  std::vector<std::int32_t> ids = tokenizer.spec().prefix;
  const std::vector<std::int32_t> inner = tokenizer.encode(text);
  ids.insert(ids.end(), inner.begin(), inner.end());
  const Index count = prefix.num_virtual_tokens();
  ids = peft::fit_token_ids(ids, count);
  KvCache<T> cache(model.config(), count);
  read_ids<T>(model, ids, cache);
  prefix.assign(cache);
}

template <Scalar T>
StartedMethod<T> start(const MethodChoice& choice, const peft::PrefixTuningConfig& config, const BpeTokenizer& tokenizer,
                       Llama<T>& model, std::uint64_t seed) {
  auto prefix = std::make_shared<peft::PrefixCache<T>>(config.fit_to(model.prompt_host()), seed);
  if (!choice.prefix_init_text.empty()) assign_text(choice.prefix_init_text, tokenizer, model, *prefix);
  model.set_prefix(prefix);
  return {std::move(prefix)};
}
template <Scalar T>
StartedMethod<T> start(const MethodChoice&, const peft::PromptTuningConfig& config, const BpeTokenizer& tokenizer,
                       Llama<T>& model, std::uint64_t seed) {
  std::vector<std::int32_t> ids;
  if (config.prompt_tuning_init_text) {
    ids = tokenizer.spec().prefix;
    const std::vector<std::int32_t> inner = tokenizer.encode(*config.prompt_tuning_init_text);
    ids.insert(ids.end(), inner.begin(), inner.end());
  }
  auto prompt = std::make_shared<peft::PromptEmbedding<T>>(config.fit_to(model.prompt_host()), model.embedding(), ids, seed);
  model.set_prompt(prompt);
  return {std::move(prompt)};
}
template <Scalar T>
StartedMethod<T> start(const MethodChoice&, const peft::PromptEncoderConfig& config, const BpeTokenizer&, Llama<T>& model,
                       std::uint64_t seed) {
  auto prompt = std::make_shared<peft::PromptEmbedding<T>>(config.fit_to(model.prompt_host()), seed);
  model.set_prompt(prompt);
  return {std::move(prompt)};
}

/// The model as AdapterHub's files name it. Throws ConfigError for one whose layout they do not have.
template <Scalar T>
peft::AdapterHubInfo hub_info(const Llama<T>& model, const std::string& base) {
  const std::string& type = model.config().model_type;
  if (!peft::adapter_layout_of(type)) {
    peft::fail<peft::ConfigError>("bottleneck adapters: AdapterHub's files have no place for the layers of a {}; expected a model "
                                  "of type llama or mistral",
                                  type);
  }
  return {kName, type, type == "mistral" ? "MistralForCausalLM" : "LlamaForCausalLM", base, model.config().hidden_size};
}

template <Scalar T>
StartedMethod<T> start(const MethodChoice& choice, const peft::AdapterConfig& config, Llama<T>& model, std::uint64_t seed) {
  peft::AdapterHubInfo info = hub_info(model, choice.base_model);
  auto adapters = std::make_shared<peft::AdapterSet<T>>(kName, peft::AdapterLayout::kLlama, config, model.config().hidden_size,
                                                        model.config().num_hidden_layers, seed);
  model.set_adapters(adapters);
  return {peft::SavedAdapter<T>(std::move(adapters), std::move(info))};
}

}  // namespace

template <Scalar T>
StartedMethod<T> start_method(const MethodChoice& choice, const BpeTokenizer& tokenizer, Llama<T>& model,
                              peft::AdapterRegistry<T>& registry, std::uint64_t seed) {
  if (const auto* parts = std::get_if<peft::AnyConfig>(&choice.config)) return start_parts<T>(kName, *parts, model, registry, seed);
  if (const auto* tokens = std::get_if<peft::PromptLearningConfig>(&choice.config)) {
    StartedMethod<T> started = std::visit(
        [&](const auto& config) { return start(choice, config, tokenizer, model, seed); }, *tokens);
    check_context(model);
    return started;
  }
  return start(choice, std::get<peft::AdapterConfig>(choice.config), model, seed);
}

template <Scalar T>
void load_method(const fs::path& folder, Llama<T>& model, peft::AdapterRegistry<T>& registry) {
  switch (adapter_kind(folder)) {
    case AdapterKind::kPrefix:
      model.set_prefix(peft::load_prefix_cache<T>(folder));
      return check_context(model);
    case AdapterKind::kPrompt:
      model.set_prompt(peft::load_prompt_embedding<T>(folder));
      return check_context(model);
    case AdapterKind::kBottleneck:
      return model.set_adapters(peft::load_adapterhub<T>(folder, model.config().num_hidden_layers));
    case AdapterKind::kParts:
      break;
  }
  const auto adapter = peft::load_adapter<T>(registry, folder, kName, model.adapter_sites());
  if (const auto* lora = adapter->template config_as<peft::LoraConfig>(); lora != nullptr && !lora->alora_invocation_tokens.empty()) {
    peft::fail<peft::ConfigError>("adapter {}: alora_invocation_tokens is set; this program does not run aLoRA", folder.string());
  }
  registry.set_adapter(kName);
  model.select(registry.selection());
}

#define PEFT_CLI_METHODS(T)                                                                                          \
  template StartedMethod<T> start_method(const MethodChoice&, const BpeTokenizer&, Llama<T>&, peft::AdapterRegistry<T>&, \
                                         std::uint64_t);                                                              \
  template void load_method(const fs::path&, Llama<T>&, peft::AdapterRegistry<T>&)
PEFT_CLI_METHODS(float);
PEFT_CLI_METHODS(peft::bf16);
PEFT_CLI_METHODS(peft::f16);
#undef PEFT_CLI_METHODS

}  // namespace peft_examples
