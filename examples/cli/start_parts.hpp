#pragma once
/// A method of parts (LoRA's family, IA3, LN-tuning, full fine-tuning…) begins on any host.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cli/started_method.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/lora_initialization.hpp"
#include "peft/pipeline/adalora_training.hpp"
#include "peft/pipeline/mutated_lora.hpp"

namespace peft_examples {

/// The weight that a site's quantised base was read from.
template <peft::Scalar T>
using OriginalWeight = std::function<peft::Matrix<peft::Accumulator<T>>(const peft::AdaptedLinear<T>&)>;

/// Puts a new adapter `name` on `sites` of `model` and selects it alone. `original`: of sites over quantised bases, or nothing.
/// Throws ConfigError for what does not fit them.
template <peft::Scalar T, class Model>
StartedMethod<T> start_parts(const char* name, const peft::AnyConfig& config, Model& model, const peft::AdapterSites<T>& sites,
                             peft::AdapterRegistry<T>& registry, std::uint64_t seed,
                             OriginalWeight<T> original = {}) {
  std::shared_ptr<peft::NamedAdapter<T>> adapter;
  const auto add = [&]<class Config>() {
    if (const Config* own = config.get_if<Config>()) adapter = registry.add_adapter(name, *own, sites, seed);
  };
  add.template operator()<peft::LoraConfig>();
  peft::detail::for_each_config_type(add);
  if (const auto* lora = config.get_if<peft::LoraConfig>()) {
    const auto* kind = std::get_if<std::string>(&lora->init_lora_weights);
    std::vector<typename StartedMethod<T>::Left> left;
    peft::LoraStart<T> start{seed, std::move(original), [&](const auto& site, const auto& error) {
                               left.push_back({site.name(), error.before, error.after});
                             }};
    if (kind != nullptr && *kind != "gaussian" && *kind != "eva") {
      (void)peft::initialize_lora<T>(*adapter, sites.linears, start);
    }
    if (lora->changes_base()) {
      registry.set_adapter(name);
      model.select(registry.selection());
      const auto mutated = std::make_shared<peft::MutatedLora<T>>(std::move(adapter));
      StartedMethod<T> started{peft::SavedAdapter<T>(mutated), peft::MutatedLora<T>::hooks(mutated)};
      started.left = std::move(left);
      if (!started.left.empty()) {
        started.save_for_changed_base = [mutated](const std::filesystem::path& folder) { mutated->save_as_is(folder); };
      }
      return started;
    }
  }
  registry.set_adapter(name);
  model.select(registry.selection());
  StartedMethod<T> started{adapter};
  if (config.get_if<peft::AdaLoraConfig>() != nullptr) started.hooks = peft::adalora_hooks<T>(adapter);
  return started;
}

}  // namespace peft_examples
