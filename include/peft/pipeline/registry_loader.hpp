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
#include "peft/parameter.hpp"
#include "peft/target_modules.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// An adapter's weights without gradients, which an adapter that only serves never gets.
template <Scalar T>
struct AdapterWeights {
  NamedAdapter<T>& adapter;

  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    adapter.for_each_weight(visit);
  }
};

}  // namespace detail

/// An adapter with the weights of a file, for the sites that its configuration means. Throws ConfigError where nothing
/// matches, or where modules of the file and of the model differ (unless allowed: a module of the model without weights
/// then gets no update); ShapeError for matrices that do not fit; NumericError for a value that is not finite.
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> make_adapter(std::string name, const PeftAdapter& file,
                                              std::span<AdaptedLinear<T>* const> sites,
                                              const AdapterMatching& matching = {}) {
  // An entry of target_modules that means nothing here is no error by itself: the file's keys decide.
  auto adapter = detail::attach_adapter<T>(std::move(name), file.config, sites, UnmatchedTargets::kAllow,
                                           [](const AdaptedLinear<T>&, Lora<T>&) {});
  detail::AdapterWeights<T> weights{*adapter};
  assign_adapter(file, weights, matching);
  return adapter;
}

/// Reads the adapter in `folder` and keeps it in `registry` under `name`; it is not active before set_adapter. Nothing
/// is kept where anything is wrong. Throws as load_peft_adapter, make_adapter and AdapterRegistry::add_adapter.
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> load_adapter(AdapterRegistry<T>& registry, const std::filesystem::path& folder,
                                              std::string name, std::span<AdaptedLinear<T>* const> sites,
                                              const AdapterMatching& matching = {}) {
  return registry.add_adapter(make_adapter<T>(std::move(name), load_peft_adapter(folder), sites, matching));
}

/// Saves the adapter as a folder of Python PEFT, in one step: in `folder` itself where it is named "default", else in a
/// sub-folder of its name, as PEFT does. Throws as save_peft_adapter.
template <Scalar T>
void save_pretrained(NamedAdapter<T>& adapter, const std::filesystem::path& folder) {
  detail::AdapterWeights<T> weights{adapter};
  save_peft_adapter(folder, adapter.config(), adapter_tensors(weights), adapter.name());
}
template <Scalar T>
void save_pretrained(const AdapterRegistry<T>& registry, std::string_view name, const std::filesystem::path& folder) {
  save_pretrained(*registry.adapter(name), folder);
}

PEFT_END_NAMESPACE
