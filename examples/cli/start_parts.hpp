#pragma once
/// A method of parts (LoRA's family, IA3, LN-tuning, full fine-tuning…) begins on any host.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "cli/started_method.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/lora_initialization.hpp"
#include "peft/pipeline/adalora_training.hpp"
#include "peft/pipeline/mutated_lora.hpp"

namespace peft_examples {

/// Puts a new adapter `name` on `sites` of `model` and selects it alone. Throws ConfigError for what does not fit them.
template <peft::Scalar T, class Model>
StartedMethod<T> start_parts(const char* name, const peft::AnyConfig& config, Model& model, const peft::AdapterSites<T>& sites,
                             peft::AdapterRegistry<T>& registry, std::uint64_t seed) {
  std::shared_ptr<peft::NamedAdapter<T>> adapter;
  const auto add = [&]<class Config>() {
    if (const Config* own = config.get_if<Config>()) adapter = registry.add_adapter(name, *own, sites, seed);
  };
  add.template operator()<peft::LoraConfig>();
  peft::detail::for_each_config_type(add);
  if (const auto* lora = config.get_if<peft::LoraConfig>()) {
    const auto* kind = std::get_if<std::string>(&lora->init_lora_weights);
    if (kind != nullptr && *kind != "gaussian" && *kind != "eva") (void)peft::initialize_lora<T>(*adapter, sites.linears, seed);
    if (kind != nullptr && (kind->starts_with("pissa") || *kind == "olora")) {
      registry.set_adapter(name);
      model.select(registry.selection());
      const auto mutated = std::make_shared<peft::MutatedLora<T>>(std::move(adapter));
      return {peft::SavedAdapter<T>(mutated), peft::MutatedLora<T>::hooks(mutated)};
    }
  }
  registry.set_adapter(name);
  model.select(registry.selection());
  StartedMethod<T> started{adapter};
  if (config.get_if<peft::AdaLoraConfig>() != nullptr) started.hooks = peft::adalora_hooks<T>(adapter);
  return started;
}

}  // namespace peft_examples
