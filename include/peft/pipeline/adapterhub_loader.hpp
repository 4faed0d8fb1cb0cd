#pragma once
/// AdapterHub's folders ↔ bottleneck adapters.

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/adapter_fusion_set.hpp"
#include "peft/adapter_set.hpp"
#include "peft/checkpoint/adapterhub_directory.hpp"

PEFT_BEGIN_NAMESPACE

/// The adapters of a folder, for a model of `layers` layers; `name`: theirs, where it is not to be the file's. Throws as
/// load_adapterhub_adapter; ConfigError where the file's layers are not the model's.
template <Scalar T>
std::shared_ptr<AdapterSet<T>> load_adapterhub(const std::filesystem::path& folder, Index layers, const std::string& name = {}) {
  AdapterHubAdapter file = load_adapterhub_adapter(folder);
  if (!name.empty() && name != file.info.name) {
    const std::string own = ".adapters." + file.info.name + ".";
    for (TensorRef& tensor : file.tensors) {
      if (const std::size_t at = tensor.name.find(own); at != std::string::npos) {
        tensor.name.replace(at, own.size(), ".adapters." + name + ".");
      }
    }
    file.info.name = name;
  }
  auto result = std::make_shared<AdapterSet<T>>(file.info.name, *adapter_layout_of(file.info.model_type), file.config,
                                                file.info.hidden_size, layers);
  assign_adapter(file, *result);
  return result;
}

/// AdapterFusion layers with the adapters that they mix.
template <Scalar T>
struct FusedAdapters {
  std::vector<std::shared_ptr<AdapterSet<T>>> adapters;
  std::shared_ptr<AdapterFusionSet<T>> fusion;
};

/// New layers over adapters, at the sites that all of them have. Throws ConfigError for fewer than two, a name that two
/// have, or adapters of models that differ.
template <Scalar T>
FusedAdapters<T> fuse_adapters(std::vector<std::shared_ptr<AdapterSet<T>>> adapters, const AdapterFusionConfig& config, Index layers,
                               std::uint64_t seed = 0) {
  std::vector<std::string> names;
  bool attention = true, output = true;
  for (const auto& set : adapters) {
    for (const std::string& other : names) {
      if (other == set->name()) fail<ConfigError>("AdapterFusion: two adapters are named {}; expected a name for each", quote_text(other));
    }
    if (set->name().find_first_of(",/") != std::string::npos) {
      fail<ConfigError>("AdapterFusion: an adapter is named {}; expected a name without commas and slashes", quote_text(set->name()));
    }
    if (set->hidden_size() != adapters.front()->hidden_size() || set->layout() != adapters.front()->layout()) {
      fail<ConfigError>("AdapterFusion: adapters \"{}\" and \"{}\" are of different models", adapters.front()->name(), set->name());
    }
    names.push_back(set->name());
    attention = attention && set->config().mh_adapter;
    output = output && set->config().output_adapter;
  }
  if (adapters.size() < 2) fail<ConfigError>("AdapterFusion: {} adapters; expected at least two", adapters.size());
  auto fusion = std::make_shared<AdapterFusionSet<T>>(std::move(names), adapters.front()->layout(), config,
                                                      adapters.front()->hidden_size(), layers, attention, output, seed);
  return {std::move(adapters), std::move(fusion)};
}

/// The layers of a folder, and the adapters that they mix: each in a folder of its name within it or beside it. Throws as
/// load_adapterhub_fusion, load_adapterhub and fuse_adapters; IoError where an adapter is missing.
template <Scalar T>
FusedAdapters<T> load_adapterhub_fused(const std::filesystem::path& folder, Index layers) {
  const AdapterHubFusion file = load_adapterhub_fusion(folder);
  std::vector<std::shared_ptr<AdapterSet<T>>> adapters;
  for (const std::string& name : file.adapter_names) {
    if (name.find('/') != std::string::npos) fail<ConfigError>("AdapterFusion {}: an adapter is named {}", folder.string(), quote_text(name));
    std::error_code error;
    const std::filesystem::path inside = folder / name, beside = folder / ".." / name;
    adapters.push_back(load_adapterhub<T>(std::filesystem::exists(inside, error) ? inside : beside, layers, name));
  }
  FusedAdapters<T> result = fuse_adapters<T>(std::move(adapters), file.config, layers);
  assign_adapter(file, *result.fusion);
  result.fusion->for_each_fusion([](AdapterFusion<T>& one) { one.set_temperature(1.0); });  // where its annealing ends
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
