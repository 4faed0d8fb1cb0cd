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
#include "peft/pipeline/eva_start.hpp"
#include "peft/pipeline/fusion_training.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/pipeline/registry_loader.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;
constexpr const char* kDefault = "default";

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
  return {kDefault, type, type == "mistral" ? "MistralForCausalLM" : "LlamaForCausalLM", base, model.config().hidden_size};
}

template <Scalar T>
StartedMethod<T> start(const MethodChoice& choice, const peft::AdapterConfig& config, Llama<T>& model, std::uint64_t seed) {
  peft::AdapterHubInfo info = hub_info(model, choice.base_model);
  auto adapters = std::make_shared<peft::AdapterSet<T>>(kDefault, peft::AdapterLayout::kLlama, config, model.config().hidden_size,
                                                        model.config().num_hidden_layers, seed);
  model.set_adapters(adapters);
  return {peft::SavedAdapter<T>(std::move(adapters), std::move(info))};
}

template <Scalar T>
void put_fused(const peft::FusedAdapters<T>& fused, Llama<T>& model) {
  peft::AdapterSetup::List names;
  for (const std::string& name : fused.fusion->adapter_names()) names.emplace_back(name);
  model.set_adapters(peft::AdapterSetup::fuse(std::move(names)), fused.adapters, fused.fusion);
}

template <Scalar T>
StartedMethod<T> start(const MethodChoice& choice, const FusionChoice& fusion, Llama<T>& model, std::uint64_t seed) {
  const peft::AdapterHubInfo info = hub_info(model, choice.base_model);
  const Index layers = model.config().num_hidden_layers;
  std::vector<std::shared_ptr<peft::AdapterSet<T>>> adapters;
  for (const std::string& text : fusion.adapters) {
    const fs::path folder = fs::path(text).lexically_normal();
    const std::string last = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
    const std::string own = peft::load_adapterhub_adapter(folder).info.name;
    adapters.push_back(peft::load_adapterhub<T>(folder, layers, own == kDefault ? last : own));  // "default" is every training's
  }
  const auto fused = peft::fuse_adapters<T>(std::move(adapters), fusion.config, layers, seed);
  put_fused(fused, model);
  const auto save = [adapters = fused.adapters, info](const fs::path& folder) {
    for (const auto& set : adapters) peft::save_pretrained(*set, info, folder / set->name());
  };
  return {peft::SavedAdapter<T>(fused.fusion, info), peft::fusion_hooks<T>(fused.fusion), save};
}

}  // namespace

template <Scalar T>
StartedMethod<T> start_method(const MethodChoice& choice, const BpeTokenizer& tokenizer, Llama<T>& model,
                              peft::AdapterRegistry<T>& registry, std::uint64_t seed,
                              const std::function<Matrix<Accumulator<T>>(const AdaptedLinear<T>&)>& original) {
  if (const auto* parts = std::get_if<peft::AnyConfig>(&choice.config)) {
    return start_parts<T>(kDefault, *parts, model, model.adapter_sites(), registry, seed, original);
  }
  if (const auto* tokens = std::get_if<peft::PromptLearningConfig>(&choice.config)) {
    StartedMethod<T> started = std::visit(
        [&](const auto& config) { return start(choice, config, tokenizer, model, seed); }, *tokens);
    check_context(model);
    return started;
  }
  if (const auto* fusion = std::get_if<FusionChoice>(&choice.config)) return start(choice, *fusion, model, seed);
  return start(choice, std::get<peft::AdapterConfig>(choice.config), model, seed);
}

namespace {

/// The model's passes as they are compiled in model_runs.cpp.
template <Scalar T>
struct Passes {
  Llama<T>& model;
  void select(peft::Selection<T> selection) { model.select(std::move(selection)); }
  void evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) { evaluate_batch(model, batch, sum); }
};

}  // namespace

template <Scalar T>
FoundStart start_from_records(const MethodChoice& choice, const peft::InstructionData& data, Index records, std::uint64_t seed,
                              Llama<T>& model, peft::AdapterRegistry<T>& registry, StartedMethod<T>& started,
                              const std::function<void(Index)>& on_batch) {
  const auto& config = *std::get<peft::AnyConfig>(choice.config).template get_if<peft::LoraConfig>();
  Passes<T> passes{model};
  peft::EvaStart<T> start = peft::start_from_inputs<T>(kDefault, config, model.adapter_sites(), passes, data, {records, 100, seed}, seed,
                                                       [&](Index done) { return on_batch(done), true; });
  registry.delete_adapter(kDefault);
  registry.add_adapter(start.adapter);
  registry.set_adapter(kDefault);
  model.select(registry.selection());
  started.adapter = peft::SavedAdapter<T>(std::move(start.adapter));
  return {start.batches, start.has_settled};
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
    case AdapterKind::kFusion:
      return put_fused(peft::load_adapterhub_fused<T>(folder, model.config().num_hidden_layers), model);
    case AdapterKind::kParts:
      break;
  }
  peft::load_adapter<T>(registry, folder, kDefault, model.adapter_sites());
  registry.set_adapter(kDefault);
  model.select(registry.selection());
}

#define PEFT_CLI_METHODS(T)                                                                                          \
  template StartedMethod<T> start_method(const MethodChoice&, const BpeTokenizer&, Llama<T>&, peft::AdapterRegistry<T>&, \
                                         std::uint64_t,                                                               \
                                         const std::function<Matrix<Accumulator<T>>(const AdaptedLinear<T>&)>&);      \
  template FoundStart start_from_records(const MethodChoice&, const peft::InstructionData&, Index, std::uint64_t, Llama<T>&, \
                                         peft::AdapterRegistry<T>&, StartedMethod<T>&, const std::function<void(Index)>&);    \
  template void load_method(const fs::path&, Llama<T>&, peft::AdapterRegistry<T>&)
PEFT_CLI_METHODS(float);
PEFT_CLI_METHODS(peft::bf16);
PEFT_CLI_METHODS(peft::f16);
#undef PEFT_CLI_METHODS

}  // namespace peft_examples
