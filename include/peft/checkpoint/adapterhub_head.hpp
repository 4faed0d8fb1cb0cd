#pragma once
/// A classification head as AdapterHub (adapters 1.x) saves it beside an adapter: head_config.json, with the classes' names,
/// and model_head.safetensors. Of a transformers class it has "classifier.weight" [classes, hidden] and "classifier.bias"
/// [classes]; of AdapterHub's own model classes (ClassificationHeadConfig) "heads.NAME.1.weight" and so on.

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/checkpoint/adapterhub_directory.hpp"
#include "peft/checkpoint/classification_head_json.hpp"
#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/checkpoint/peft_adapter.hpp"
#include "peft/classification_head_config.hpp"

PEFT_BEGIN_NAMESPACE

/// A head as files hold it.
struct AdapterHubHead {
  std::optional<ClassificationHeadConfig> own{};  ///< of AdapterHub's own model classes; none: of a transformers class
  Index hidden_size = 0;                          ///< 0 where the file does not say it
  std::vector<std::string> labels;                ///< by class
  std::filesystem::path path;                     ///< the folder that it was read from
  std::vector<TensorRef> tensors;                 ///< view the mapped file
};

namespace detail {

inline constexpr HubFiles kHubHead{"head_config.json", "model_head.safetensors", "pytorch_model_head.bin", "head"};

/// What the file of an own head must hold.
inline std::map<std::string, std::vector<Index>> head_shapes(const ClassificationHeadConfig& config, Index hidden, Index classes) {
  std::map<std::string, std::vector<Index>> shapes;
  const std::vector<std::string> modules = config.modules();
  for (const std::string& module : modules) {
    const Index out = &module == &modules.back() ? classes : hidden;
    shapes[module + ".weight"] = {out, hidden};
    shapes[module + ".bias"] = {out};
  }
  return shapes;
}

/// Throws FormatError for a key too many or too few, ShapeError for another shape.
inline void check_own_head(const AdapterHubHead& head, std::string_view where) {
  const auto shapes = head_shapes(*head.own, head.hidden_size, static_cast<Index>(head.labels.size()));
  const std::vector<std::string> modules = head.own->modules();
  for (const TensorRef& tensor : head.tensors) {
    if (shapes.contains(tensor.name)) continue;
    fail<FormatError>("{}: the key {} is none of the head {} with {} layers, whose last is {}", where, quote_text(tensor.name),
                      quote_text(head.own->name), head.own->layers, modules.back() + ".weight");
  }
  for (const auto& [name, shape] : shapes) {
    const auto is_it = [&key = name](const TensorRef& tensor) { return tensor.name == key; };
    const auto found = std::find_if(head.tensors.begin(), head.tensors.end(), is_it);
    if (found == head.tensors.end()) fail<FormatError>("{}: it has no {}", where, name);
    if (found->shape != shape) {
      fail<ShapeError>("{}: {} is {}; its configuration gives {}", where, quote_text(name), found->shape_text(), shape_text(shape));
    }
  }
}

inline void write_head_files(AtomicDirectory& set, const Json& json, std::span<const TensorRef> tensors, std::string_view where) {
  for (const TensorRef& tensor : tensors) check_finite(tensor, where);
  FileWriter config_file = set.create(kHubHead.config);
  config_file.write(json.dump(2));
  config_file.finish();
  FileWriter weights = set.create(kHubHead.weights);
  write_safetensors(weights, std::vector<TensorRef>(tensors.begin(), tensors.end()));
  weights.finish();
}

}  // namespace detail

/// Whether `folder` holds a head.
inline bool has_adapterhub_head(const std::filesystem::path& folder) {
  std::error_code error;
  return std::filesystem::exists(AtomicDirectory::locate(folder, detail::kHubHead.config), error);
}

/// Reads a head. Throws IoError, FormatError, ShapeError; ConfigError for what an own head has and this library does not
/// compute, by name.
inline AdapterHubHead load_adapterhub_head(const std::filesystem::path& folder) {
  return detail::read_hub(folder, detail::kHubHead, [&] {
    const std::filesystem::path config = AtomicDirectory::locate(folder, detail::kHubHead.config);
    const std::string where = "head config " + config.string();
    const Json json = detail::read_config_json(config, where);
    if (!json.is_object()) fail<FormatError>("{}: it is {}; expected an object", where, kind_of(json));
    AdapterHubHead head;
    head.path = folder;
    detail::ConfigReader(json, where).read("hidden_size", head.hidden_size);
    if (json.contains("config") && !json["config"].is_null()) {
      AdapterHubInfo info;
      (void)detail::read_hub_config(config, where, info);
      detail::check_info(info, where);
      head.own = classification_head_from_json(json["config"], info.name, where, head.labels);
    } else {
      if (!json.contains("label2id")) fail<FormatError>("{}: it has no label2id", where);
      head.labels = detail::labels_by_id(json["label2id"], where);
    }
    const std::filesystem::path weights = AtomicDirectory::locate(folder, detail::kHubHead.weights);
    head.tensors = detail::hub_tensors(weights);
    for (const TensorRef& tensor : head.tensors) detail::check_readable(tensor, "head " + folder.string());
    if (head.own) detail::check_own_head(head, "head " + weights.string());
    return head;
  });
}

/// Writes both files into a set that the caller commits. `tensors` are named "classifier.weight" and "classifier.bias".
/// Throws ConfigError for a name that is not UTF-8 or stands there twice, NumericError for a value that is not finite,
/// IoError.
inline void write_adapterhub_head(AtomicDirectory& set, const AdapterHubInfo& info, const std::vector<std::string>& labels,
                                  std::span<const TensorRef> tensors) {
  const std::string where = "saving the head to " + set.target().string();
  Json json = Json::object();
  json["config"] = nullptr;
  json["hidden_size"] = info.hidden_size;
  json["label2id"] = detail::label2id_json(labels, where);
  json["model_class"] = info.model_class;
  json["model_name"] = info.model_name;
  json["model_type"] = info.model_type;
  json["name"] = nullptr;
  json["num_labels"] = labels.size();
  json["version"] = std::string(kAdaptersFormatVersion);
  detail::write_head_files(set, json, tensors, where);
}

/// The same for a head of AdapterHub's own; `tensors` are named by its modules. Throws also FormatError and ShapeError for
/// tensors that are not those of the configuration.
inline void write_adapterhub_head(AtomicDirectory& set, const AdapterHubInfo& info, const ClassificationHeadConfig& config,
                                  const std::vector<std::string>& labels, std::span<const TensorRef> tensors) {
  const std::string where = "saving the head to " + set.target().string();
  AdapterHubInfo own = info;
  own.name = config.name;
  detail::check_info(own, where);
  const Json json = detail::hub_config_json(own, classification_head_to_json(config, labels, where));
  detail::check_own_head({config, own.hidden_size, labels, {}, {tensors.begin(), tensors.end()}}, where);
  detail::write_head_files(set, json, tensors, where);
}

PEFT_END_NAMESPACE
