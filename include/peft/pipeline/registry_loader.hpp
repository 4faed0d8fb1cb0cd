#pragma once
/// Adapters between Python PEFT's folders and a registry: load_adapter and save_pretrained.

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/pipeline/adapter_weights.hpp"
#include "peft/parameter.hpp"
#include "peft/target_modules.hpp"

PEFT_BEGIN_NAMESPACE

/// An adapter with the weights of a file, for the sites that its configuration means. Throws ConfigError where nothing
/// matches, or where modules of the file and of the model differ (unless allowed: a module of the model without weights
/// then gets no update); ShapeError for matrices that do not fit; NumericError for a value that is not finite.
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> make_adapter(std::string name, const AnyPeftAdapter& file,
                                              const std::type_identity_t<AdapterSites<T>>& sites,
                                              const AdapterMatching& matching = {}) {
  if (const LoraConfig* lora = file.config.get_if<LoraConfig>(); lora != nullptr && !matching.base_is_residual) {
    if (lora->changes_base()) {
      const auto& start = std::get<std::string>(lora->init_lora_weights);
      fail<ConfigError>("adapter {}: it started from \"{}\", which {}: on an untouched base it means nothing. Run "
                        "initialize_lora on the base first and set base_is_residual, or save it in Python with "
                        "path_initial_model_for_weight_conversion",
                        file.path.string(), start,
                        start == "loftq" ? "quantised the base to go with it" : "took the first singular or QR part out of the base");
    }
  }
  // An entry of target_modules that means nothing here is no error by itself: the file's keys decide.
  detail::AdapterMaker<T> maker(std::move(name), file.config, sites, UnmatchedTargets::kAllow, false, 0);
  std::shared_ptr<NamedAdapter<T>> adapter;
  const auto make = [&]<class Config>() {
    if (const Config* config = file.config.get_if<Config>()) adapter = maker.make(*config);
  };
  make.template operator()<LoraConfig>();
  detail::for_each_config_type(make);
  if (adapter == nullptr) {
    fail<ConfigError>("adapter {}: an adapter of peft_type {} does not attach to linear layers, norms and embeddings",
                      file.path.string(), file.config.peft_type());
  }
  // A table that the file carries along, trained or grown elsewhere.
  for (const AdaptedEmbedding<T>* site : sites.embeddings) {
    for (const std::string key : {"base_layer.weight", "weight"}) {
      for (const TensorRef& tensor : file.tensors) {
        if (tensor.name == site->name() + "." + key) maker.add_frozen_table(*site, tensor.rows(), tensor.cols(), key);
      }
    }
  }
  detail::AdapterWeights<T> weights{*adapter};
  assign_adapter(file, weights, matching);
  return adapter;
}
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> make_adapter(std::string name, const PeftAdapter& file,
                                              const std::type_identity_t<AdapterSites<T>>& sites,
                                              const AdapterMatching& matching = {}) {
  AnyPeftAdapter any{file.config, file.path, file.others};
  for (const LoraTensors& entry : file.modules) {
    any.tensors.push_back(entry.a);
    any.tensors.push_back(entry.b);
  }
  return make_adapter<T>(std::move(name), any, sites, matching);
}

/// Reads the adapter in `folder`, of any method that attaches to the sites, and keeps it in `registry` under `name`; it is
/// not active before set_adapter. Nothing is kept where anything is wrong. Throws as load_any_peft_adapter, make_adapter
/// and AdapterRegistry::add_adapter.
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> load_adapter(AdapterRegistry<T>& registry, const std::filesystem::path& folder,
                                              std::string name, const std::type_identity_t<AdapterSites<T>>& sites,
                                              const AdapterMatching& matching = {}) {
  return registry.add_adapter(make_adapter<T>(std::move(name), load_any_peft_adapter(folder), sites, matching));
}

/// Saves the adapter as a folder of Python PEFT, in one step: in `folder` itself where it is named "default", else in a
/// sub-folder of its name, as PEFT does. Throws as save_peft_adapter.
template <Scalar T>
void save_pretrained(NamedAdapter<T>& adapter, const std::filesystem::path& folder) {
  const SavedWeights<T> weights(adapter);
  save_peft_adapter(folder, adapter.any_config(), weights.tensors(), adapter.name());
}
template <Scalar T>
void save_pretrained(const AdapterRegistry<T>& registry, std::string_view name, const std::filesystem::path& folder) {
  save_pretrained(*registry.adapter(name), folder);
}

PEFT_END_NAMESPACE
