#pragma once
/// A classification head as AdapterHub (adapters 1.x) saves the one of a transformers class beside an adapter:
/// head_config.json, with the classes' names, and model_head.safetensors with "classifier.weight" [classes, hidden] and
/// "classifier.bias" [classes].

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/checkpoint/adapterhub_directory.hpp"
#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/checkpoint/peft_adapter.hpp"

PEFT_BEGIN_NAMESPACE

/// A head as files hold it.
struct AdapterHubHead {
  std::vector<std::string> labels;  ///< by class
  std::filesystem::path path;       ///< the folder that it was read from
  std::vector<TensorRef> tensors;   ///< view the mapped file
};

namespace detail {

inline constexpr HubFiles kHubHead{"head_config.json", "model_head.safetensors", "pytorch_model_head.bin", "head"};

/// label2id's names in the order of their numbers, which are 0 to n-1.
inline std::vector<std::string> labels_by_id(const Json& label2id, std::string_view where) {
  if (!label2id.is_object()) fail<FormatError>("{}: label2id is {}; expected an object of names and classes", where, shown(label2id));
  std::vector<std::string> labels(label2id.size());
  std::vector<bool> seen(label2id.size(), false);
  for (const auto& [name, id] : label2id.items()) {
    const bool fits = id.is_number_integer() && id.get<std::int64_t>() >= 0 &&
                      id.get<std::int64_t>() < static_cast<std::int64_t>(labels.size());
    const std::size_t at = fits ? id.get<std::size_t>() : 0;
    if (!fits || seen[at]) {
      fail<FormatError>("{}: label2id gives {} the class {}; expected 0 to {}, each once", where, quote_text(name), shown(id),
                        labels.size() - 1);
    }
    seen[at] = true;
    labels[at] = name;
  }
  return labels;
}

}  // namespace detail

/// Whether `folder` holds a head.
inline bool has_adapterhub_head(const std::filesystem::path& folder) {
  std::error_code error;
  return std::filesystem::exists(AtomicDirectory::locate(folder, detail::kHubHead.config), error);
}

/// Reads the head of a transformers class. Throws IoError, FormatError, ShapeError; ConfigError for a head of AdapterHub's
/// own model classes, which has layers of its own.
inline AdapterHubHead load_adapterhub_head(const std::filesystem::path& folder) {
  return detail::read_hub(folder, detail::kHubHead, [&] {
    const std::filesystem::path config = AtomicDirectory::locate(folder, detail::kHubHead.config);
    const std::string where = "head config " + config.string();
    const Json json = detail::read_config_json(config, where);
    if (!json.is_object()) fail<FormatError>("{}: it is {}; expected an object", where, kind_of(json));
    if (json.contains("config") && !json["config"].is_null()) {
      fail<ConfigError>("{}: it is a head of AdapterHub's own model classes; expected one of a class such as "
                        "BertForSequenceClassification, whose config is null",
                        where);
    }
    AdapterHubHead head;
    head.path = folder;
    if (!json.contains("label2id")) fail<FormatError>("{}: it has no label2id", where);
    head.labels = detail::labels_by_id(json["label2id"], where);
    head.tensors = detail::hub_tensors(AtomicDirectory::locate(folder, detail::kHubHead.weights));
    for (const TensorRef& tensor : head.tensors) detail::check_readable(tensor, "head " + folder.string());
    return head;
  });
}

/// Writes both files into a set that the caller commits. `tensors` are named "classifier.weight" and "classifier.bias".
/// Throws ConfigError for a name that is not UTF-8 or stands there twice, NumericError for a value that is not finite,
/// IoError.
inline void write_adapterhub_head(AtomicDirectory& set, const AdapterHubInfo& info, const std::vector<std::string>& labels,
                                  std::span<const TensorRef> tensors) {
  const std::string where = "saving the head to " + set.target().string();
  Json names = Json::object();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (!is_utf8(labels[i]) || names.contains(labels[i])) {
      fail<ConfigError>("{}: class {} is named {}; expected a name in UTF-8 that no other class has", where, i,
                        quote_text(labels[i]));
    }
    names[labels[i]] = i;
  }
  for (const TensorRef& tensor : tensors) detail::check_finite(tensor, where);
  Json json = Json::object();
  json["config"] = nullptr;
  json["hidden_size"] = info.hidden_size;
  json["label2id"] = std::move(names);
  json["model_class"] = info.model_class;
  json["model_name"] = info.model_name;
  json["model_type"] = info.model_type;
  json["name"] = nullptr;
  json["num_labels"] = labels.size();
  json["version"] = std::string(kAdaptersFormatVersion);
  FileWriter config_file = set.create(detail::kHubHead.config);
  config_file.write(json.dump(2));
  config_file.finish();
  FileWriter weights = set.create(detail::kHubHead.weights);
  write_safetensors(weights, std::vector<TensorRef>(tensors.begin(), tensors.end()));
  weights.finish();
}

PEFT_END_NAMESPACE
