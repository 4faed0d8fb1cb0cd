#pragma once
/// AdapterHub's folders ↔ bottleneck adapters.

#include <filesystem>
#include <memory>
#include <string_view>

#include "peft/adapter_set.hpp"
#include "peft/checkpoint/adapterhub_directory.hpp"

PEFT_BEGIN_NAMESPACE

/// The adapters of a folder, for a model of `layers` layers. Throws as load_adapterhub_adapter; ConfigError where the
/// file's layers are not the model's.
template <Scalar T>
std::shared_ptr<AdapterSet<T>> load_adapterhub(const std::filesystem::path& folder, Index layers) {
  const AdapterHubAdapter file = load_adapterhub_adapter(folder);
  auto result = std::make_shared<AdapterSet<T>>(file.info.name, *adapter_layout_of(file.info.model_type), file.config,
                                                file.info.hidden_size, layers);
  assign_adapter(file, *result);
  return result;
}

/// Saves them as such a folder. `info`: the model's; its name is the set's. Throws as save_adapterhub_adapter.
template <Scalar T>
void save_pretrained(AdapterSet<T>& adapters, const AdapterHubInfo& info, const std::filesystem::path& folder) {
  AdapterHubInfo own = info;
  own.name = adapters.name();
  own.hidden_size = adapters.hidden_size();
  save_adapterhub_adapter(folder, adapters.config(), own, adapterhub_tensors(adapters));
}

PEFT_END_NAMESPACE
