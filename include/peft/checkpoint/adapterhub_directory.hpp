#pragma once
/// Bottleneck adapters and AdapterFusion layers as directories of AdapterHub (adapters 1.x): adapter_config.json and
/// adapter.safetensors; adapter_fusion_config.json and model_adapter_fusion.safetensors. The adapter's name is in the
/// keys; see adapter_layout.hpp. A prediction head (head_config.json, model_head.safetensors) is its own pair of files.

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/checkpoint/adapterhub_adapter.hpp"
#include "peft/checkpoint/read_unchanged.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/io/safetensors_writer.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// The two files of one kind.
struct HubFiles {
  std::string_view config, weights, pickle, what;
};
inline constexpr HubFiles kHubAdapter{"adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin", "adapter"};
inline constexpr HubFiles kHubFusion{"adapter_fusion_config.json", "model_adapter_fusion.safetensors",
                                     "pytorch_model_adapter_fusion.bin", "AdapterFusion"};

inline void require_hub_files(const std::filesystem::path& folder, const HubFiles& files) {
  std::error_code error;
  const auto has = [&](std::string_view name) {
    return std::filesystem::exists(AtomicDirectory::locate(folder, name), error);
  };
  if (has(files.config) && has(files.weights)) return;
  if (has(files.config) && has(files.pickle)) {
    fail<FormatError>("{} folder {}: its weights are {}, a Python pickle, which is not read: it can run any code; save it "
                      "in Python with use_safetensors=True",
                      files.what, folder.string(), files.pickle);
  }
  if (!std::filesystem::exists(folder, error)) {
    fail<IoError>("{} folder {}: there is no such folder", files.what, folder.string());
  }
  if (has(files.config) && has("adapter_model.safetensors")) {
    fail<FormatError>("{} folder {}: it is one of PEFT, not of AdapterHub; load_peft_adapter() reads it", files.what,
                      folder.string());
  }
  fail<IoError>("{} folder {}: it has no {}", files.what, folder.string(), has(files.config) ? files.weights : files.config);
}

/// The outer object of a configuration; its "config" is for the caller.
inline Json read_hub_config(const std::filesystem::path& path, std::string_view where, AdapterHubInfo& info) {
  constexpr std::size_t kMost = 16u << 20;
  const auto file = MappedFile::open(path);
  if (file->bytes().size() > kMost) {
    fail<FormatError>("{}: {} bytes; expected at most {}", where, file->bytes().size(), kMost);
  }
  Json json = parse_json({reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()}, where);
  ConfigReader reader(json, where);
  for (const std::string_view name : {"config", "hidden_size", "model_type", "name"}) {
    if (reader.field(name) == nullptr) fail<ConfigError>("{}: it has no {}", where, quote_text(name));
  }
  reader.read("hidden_size", info.hidden_size);
  reader.read("model_type", info.model_type);
  reader.read("name", info.name);
  info.model_class.clear();
  if (reader.field("model_class") != nullptr) reader.read("model_class", info.model_class);
  if (reader.field("model_name") != nullptr) reader.read("model_name", info.model_name);
  Json& config = json["config"];
  if (!config.is_object()) fail<ConfigError>("{}: config is {}; expected an object", where, shown(config));
  // Files from before AdapterHub wrote versions had other names for two functions.
  if (const auto found = config.find("non_linearity"); !json.contains("version") && found != config.end()) {
    if (is_text(*found, "gelu")) {
      *found = "gelu_new";
    } else if (is_text(*found, "gelu_orig")) {
      *found = "gelu";
    }
  }
  return json;
}

inline Json hub_config_json(const AdapterHubInfo& info, Json config) {
  Json json = Json::object();
  json["config"] = std::move(config);
  json["hidden_size"] = info.hidden_size;
  json["model_class"] = info.model_class;
  json["model_name"] = info.model_name;
  json["model_type"] = info.model_type;
  json["name"] = info.name;
  json["version"] = std::string(kAdaptersFormatVersion);
  return json;
}

/// With the body's name in front where the model has a head, and, with ln_before, the norm under both of its names.
inline std::vector<TensorRef> hub_keys(std::vector<TensorRef> tensors, const AdapterHubInfo& info) {
  constexpr std::string_view kNorm = "adapter_norm_before.";
  const AdapterHubModel& model = *adapterhub_model(info.model_type);
  for (std::size_t i = 0, count = tensors.size(); i < count; ++i) {
    if (const std::size_t at = tensors[i].name.rfind(kNorm); at != std::string::npos) {
      TensorRef alias = tensors[i];
      alias.name.replace(at, kNorm.size(), "adapter_down.0.");
      tensors.push_back(std::move(alias));
    }
  }
  if (info.model_class != model.body_class) {
    for (TensorRef& tensor : tensors) tensor.name.insert(0, model.body);
  }
  return tensors;
}

inline void write_hub_files(AtomicDirectory& set, const HubFiles& files, const Json& config,
                            std::vector<TensorRef> tensors, const AdapterHubInfo& info, std::string_view where) {
  for (const TensorRef& tensor : tensors) check_finite(tensor, where);
  tensors = hub_keys(std::move(tensors), info);
  FileWriter config_file = set.create(files.config);
  config_file.write(config.dump(2));
  config_file.finish();
  FileWriter weights = set.create(files.weights);
  write_safetensors(weights, tensors);
  weights.finish();
}

/// read() of one save; see read_unchanged.hpp.
template <class Read>
auto read_hub(const std::filesystem::path& folder, const HubFiles& files, Read&& read) {
  return read_unchanged(folder, files.config, files.weights, fmt::format("{} folder", files.what), [&] {
    require_hub_files(folder, files);
    return read();
  });
}

inline std::vector<TensorRef> hub_tensors(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  return {file.tensors().begin(), file.tensors().end()};
}

/// Names of vectors among the parameters: they have one dimension in the files.
inline bool is_vector_parameter(std::string_view name) noexcept {
  return name.ends_with(".bias") || name.ends_with(".scaling") || name == "scaling" ||
         name.find("adapter_norm_") != std::string_view::npos;
}

}  // namespace detail

/// Reads and checks an adapter: every key understood, every parameter there, shapes as the configuration gives them. The
/// tensors stay in the mapped file. Throws IoError, FormatError, ConfigError (an unsupported field or model, by name),
/// ShapeError.
inline AdapterHubAdapter load_adapterhub_adapter(const std::filesystem::path& folder) {
  return detail::read_hub(folder, detail::kHubAdapter, [&] {
    AdapterHubAdapter result;
    result.path = folder;
    const auto config = AtomicDirectory::locate(folder, detail::kHubAdapter.config);
    const Json json = detail::read_hub_config(config, "adapter config " + config.string(), result.info);
    result.config = bottleneck_config_from_json(json["config"], "adapter config " + config.string());
    const auto weights = AtomicDirectory::locate(folder, detail::kHubAdapter.weights);
    result.tensors = detail::collect_adapter(detail::hub_tensors(weights), result.config, result.info,
                                             "adapter " + weights.string());
    return result;
  });
}

/// The same for an AdapterFusion layer.
inline AdapterHubFusion load_adapterhub_fusion(const std::filesystem::path& folder) {
  return detail::read_hub(folder, detail::kHubFusion, [&] {
    AdapterHubFusion result;
    result.path = folder;
    const auto config = AtomicDirectory::locate(folder, detail::kHubFusion.config);
    const std::string where = "AdapterFusion config " + config.string();
    const Json json = detail::read_hub_config(config, where, result.info);
    result.config = adapter_fusion_config_from_json(json["config"], where);
    detail::ConfigReader(json, where).read("adapter_names", result.adapter_names);
    if (result.adapter_names.empty()) fail<ConfigError>("{}: it has no adapter_names", where);
    const auto weights = AtomicDirectory::locate(folder, detail::kHubFusion.weights);
    result.tensors = detail::collect_fusion(detail::hub_tensors(weights), result.config, result.info,
                                            "AdapterFusion " + weights.string());
    return result;
  });
}

/// The parameters of `source` (an AdapterSet, a host…) as tensors to be written, in its own memory: save before training
/// goes on.
template <class Source>
std::vector<TensorRef> adapterhub_tensors(Source& source) {
  std::vector<TensorRef> tensors;
  source.for_each_parameter([&]<class A>(const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    if (detail::is_vector_parameter(info.name)) {
      tensors.push_back(tensor_ref<A>(std::string(info.name), VectorView<const A>(value)));
    } else {
      tensors.push_back(tensor_ref<A>(std::string(info.name), MatrixView<const A>(value.data, info.rows, info.cols)));
    }
  });
  return tensors;
}

/// Writes both files into a set that the caller commits. Throws as save_adapterhub_adapter.
inline void write_adapterhub_adapter(AtomicDirectory& set, const AdapterConfig& config, const AdapterHubInfo& info,
                                     std::span<const TensorRef> tensors) {
  const std::string where = "saving the adapter to " + set.target().string();
  const Json json = bottleneck_config_to_json(config);
  for (const TensorRef& tensor : tensors) tensor.check_size();
  auto checked = detail::collect_adapter({tensors.begin(), tensors.end()}, config, info, where);
  detail::write_hub_files(set, detail::kHubAdapter, detail::hub_config_json(info, json), std::move(checked), info, where);
}

/// Saves an adapter in one step (see AtomicDirectory): a kill at any moment leaves the old adapter or the new one. Other
/// files of the folder, a head's among them, stay. `tensors` are named as in AdapterHubAdapter; see adapterhub_tensors().
/// Throws ConfigError, FormatError, ShapeError for tensors that make no adapter of this configuration, NumericError for a
/// value that is not finite, IoError; the old adapter then stays.
inline void save_adapterhub_adapter(const std::filesystem::path& folder, const AdapterConfig& config,
                                    const AdapterHubInfo& info, std::span<const TensorRef> tensors) {
  AtomicDirectory set(folder);
  write_adapterhub_adapter(set, config, info, tensors);
  set.commit();
}

/// Writes an AdapterFusion layer over adapters of these names into a set that the caller commits. info.name is the layer's, by
/// AdapterHub's custom the names with commas between them. Throws as save_adapterhub_adapter.
inline void write_adapterhub_fusion(AtomicDirectory& set, const AdapterFusionConfig& config, const AdapterHubInfo& info,
                                    const std::vector<std::string>& adapter_names, std::span<const TensorRef> tensors) {
  const std::string where = "saving the AdapterFusion to " + set.target().string();
  if (adapter_names.size() < 2) {
    fail<ConfigError>("{}: {} adapters; expected at least 2", where, adapter_names.size());
  }
  for (const std::string& name : adapter_names) {
    if (name.empty() || !is_utf8(name)) fail<ConfigError>("{}: an adapter is named {}", where, quote_text(name));
  }
  Json json = Json::object();
  json["adapter_names"] = adapter_names;
  json.update(detail::hub_config_json(info, adapter_fusion_config_to_json(config)));
  for (const TensorRef& tensor : tensors) tensor.check_size();
  auto checked = detail::collect_fusion({tensors.begin(), tensors.end()}, config, info, where);
  detail::write_hub_files(set, detail::kHubFusion, json, std::move(checked), info, where);
}
/// Saves one in one step.
inline void save_adapterhub_fusion(const std::filesystem::path& folder, const AdapterFusionConfig& config,
                                   const AdapterHubInfo& info, const std::vector<std::string>& adapter_names,
                                   std::span<const TensorRef> tensors) {
  AtomicDirectory set(folder);
  write_adapterhub_fusion(set, config, info, adapter_names, tensors);
  set.commit();
}

namespace detail {

template <class Target>
void assign_hub_tensors(std::span<const TensorRef> tensors, std::string_view where, Target& target,
                        const AdapterMatching& matching) {
  std::map<std::string_view, const TensorRef*> keys;
  for (const TensorRef& tensor : tensors) keys.emplace(tensor.name, &tensor);
  std::map<std::string_view, const TensorRef*> unused = keys;
  std::vector<std::string> missing, wrong_shapes, names;
  target.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    const auto found = keys.find(info.name);
    if (found == keys.end()) {
      missing.emplace_back(info.name);
      return;
    }
    unused.erase(info.name);
    const TensorRef& tensor = *found->second;
    if (tensor.rows() != info.rows || tensor.cols() != info.cols || tensor.elements() != value.size) {
      wrong_shapes.push_back(fmt::format("{} is {}, the model's is [{}, {}]", info.name, tensor.shape_text(), info.rows,
                                         info.cols));
    }
  });
  for (const auto& [name, tensor] : unused) names.emplace_back(name);
  std::string text;
  if (!names.empty() && !matching.allow_unused_keys) {
    text += fmt::format("; {} of its {} keys match no parameter of the model: {}", names.size(), keys.size(),
                        first_names(names));
  }
  if (!missing.empty() && !matching.allow_missing_keys) {
    text += fmt::format("; {} parameters of the model have no key in it: {}", missing.size(), first_names(missing));
  }
  if (!text.empty()) fail<ConfigError>("{} does not fit the model{}", where, text);
  if (!wrong_shapes.empty()) {
    fail<ShapeError>("{} does not fit the model: {} of its {} keys have another shape: {}", where, wrong_shapes.size(),
                     keys.size(), first_names(wrong_shapes));
  }
  for (const auto& [name, tensor] : keys) {
    if (!unused.contains(name)) check_finite(*tensor, where);
  }
  target.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    if (const auto found = keys.find(info.name); found != keys.end()) copy_values(*found->second, value);
  });
}

}  // namespace detail

/// Sets the parameters of `target` (an AdapterSet, a host…), visited by the names of the keys, to those of the file.
/// Everything is checked before anything is changed. Throws ConfigError naming keys that match no parameter and parameters
/// without key, ShapeError with both shapes, NumericError with the place of a value that is not finite.
template <class Target>
void assign_adapter(const AdapterHubAdapter& adapter, Target& target, const AdapterMatching& matching = {}) {
  detail::assign_hub_tensors(adapter.tensors, "adapter " + adapter.path.string(), target, matching);
}
template <class Target>
void assign_adapter(const AdapterHubFusion& fusion, Target& target, const AdapterMatching& matching = {}) {
  detail::assign_hub_tensors(fusion.tensors, "AdapterFusion " + fusion.path.string(), target, matching);
}

PEFT_END_NAMESPACE
