#pragma once
/// ClassificationHeadConfig ↔ the "config" of AdapterHub's head_config.json. What this library does not compute is an error
/// by name.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "peft/checkpoint/adapterhub_config_json.hpp"
#include "peft/checkpoint/config_reader.hpp"
#include "peft/classification_head_config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::string_view kHeadFields[] = {"activation_function", "bias",       "dropout_prob", "head_type", "label2id",
                                                   "layers",              "num_labels", "use_pooler"};

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

/// label2id of these names. Throws ConfigError for one that is not UTF-8 or stands there twice.
inline Json label2id_json(const std::vector<std::string>& labels, std::string_view where) {
  Json names = Json::object();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (!is_utf8(labels[i]) || names.contains(labels[i])) {
      fail<ConfigError>("{}: class {} is named {}; expected a name in UTF-8 that no other class has", where, i,
                        quote_text(labels[i]));
    }
    names[labels[i]] = i;
  }
  return names;
}

}  // namespace detail

/// The head named `name`, whose classes' names go to `labels`. Throws ConfigError for a field that is not supported, by name,
/// FormatError for classes that contradict each other.
inline ClassificationHeadConfig classification_head_from_json(const Json& json, std::string name, std::string_view where,
                                                              std::vector<std::string>& labels) {
  detail::ConfigReader reader(json, where);
  std::string type;
  reader.read("head_type", type);
  if (type != "classification") {
    fail<ConfigError>("{}: head_type is {}; expected \"classification\": heads that give each text one class are supported", where,
                      quote_text(type));
  }
  bool use_pooler = false, bias = true;
  reader.read("use_pooler", use_pooler);
  if (use_pooler) {
    fail<ConfigError>("{}: use_pooler is true, a head of AdapterHub's own behind BERT's pooler, which is not supported; expected false, "
                      "or the head of a class such as BertForSequenceClassification, whose config is null",
                      where);
  }
  reader.read("bias", bias);
  if (!bias) fail<ConfigError>("{}: bias is false; expected true: linears without biases are not supported in heads", where);
  ClassificationHeadConfig config;
  config.name = std::move(name);
  reader.read("layers", config.layers);
  if (reader.field("activation_function") != nullptr) {
    reader.read("activation_function", config.activation_function);
  } else if (config.layers != 1) {
    fail<ConfigError>("{}: activation_function is null: linears without one between them are not supported; expected tanh, relu, gelu, "
                      "gelu_new, silu, swish or leakyrelu",
                      where);
  }
  if (reader.field("dropout_prob") != nullptr) {
    float p = 0;
    reader.read("dropout_prob", p);
    config.dropout_prob = p;
  }
  const Json* label2id = reader.field("label2id");
  if (label2id == nullptr) fail<FormatError>("{}: it has no label2id", where);
  labels = detail::labels_by_id(*label2id, where);
  auto num_labels = static_cast<Index>(labels.size());
  reader.read("num_labels", num_labels);
  if (num_labels != static_cast<Index>(labels.size())) {
    fail<FormatError>("{}: num_labels is {}, label2id names {} classes; expected as many", where, num_labels, labels.size());
  }
  for (const auto& [field, value] : json.items()) {
    if (detail::lists(detail::kHeadFields, field) || detail::is_unset(value)) continue;
    fail<ConfigError>("{}: it sets {} to {}, a field that a classification head of AdapterHub does not have", where, quote_text(field),
                      detail::shown(value));
  }
  try {
    config.validate();
  } catch (const ConfigError& error) {
    fail<ConfigError>("{}: {}", where, error.what());
  }
  return config;
}

/// Throws ConfigError as ClassificationHeadConfig::validate, and for a class's name that is not UTF-8 or stands there twice.
inline Json classification_head_to_json(const ClassificationHeadConfig& config, const std::vector<std::string>& labels,
                                        std::string_view where) {
  config.validate();
  Json json = Json::object();
  json["activation_function"] = config.activation_function;
  json["bias"] = true;
  json["dropout_prob"] = config.dropout_prob ? detail::ConfigValue::of(*config.dropout_prob) : Json(nullptr);
  json["head_type"] = "classification";
  json["label2id"] = detail::label2id_json(labels, where);
  json["layers"] = config.layers;
  json["num_labels"] = labels.size();
  json["use_pooler"] = false;
  return json;
}

PEFT_END_NAMESPACE
