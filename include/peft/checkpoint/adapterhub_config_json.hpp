#pragma once
/// AdapterConfig and AdapterFusionConfig ↔ the "config" of AdapterHub's files, field by field. A field that this library
/// does not support is an error by name where it is set.

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "peft/adapter_config.hpp"
#include "peft/adapter_fusion_config.hpp"
#include "peft/checkpoint/config_reader.hpp"

PEFT_BEGIN_NAMESPACE

/// The version of adapters whose meaning the written fields have.
inline constexpr std::string_view kAdaptersFormatVersion = "adapters.1.3.0";

namespace detail {

/// Fields of BnConfig that are not supported where they are set.
inline constexpr UnsupportedField kUnsupportedAdapterFields[] = {
    {"cross_adapter", "", "adapters after cross-attention are not supported: there is no host with one"},
    {"inv_adapter", "", "invertible adapters are not supported; seq_bn and double_seq_bn are the same without"},
    {"phm_layer", "", "Compacter's hypercomplex layers are not supported; seq_bn is the nearest"},
    {"stochastic_depth", "0", "dropping whole layers is not supported; set it to 0.0"},
    {"use_gating", "", "gates, which average over a padded sequence, are not supported"},
};
/// Fields that matter only with one of those.
inline constexpr std::string_view kSilentAdapterFields[] = {
    "factorized_phm_W", "factorized_phm_rule", "hypercomplex_nonlinearity", "inv_adapter_reduction_factor",
    "learn_phm",        "phm_bias",            "phm_c_init",                "phm_dim",
    "phm_init_range",   "phm_rank",            "shared_W_phm",              "shared_phm_rule",
};
inline constexpr std::string_view kAdapterFields[] = {
    "adapter_residual_before_ln", "architecture",       "dropout",           "init_weights",   "init_weights_seed",
    "is_parallel",                "leave_out",          "ln_after",          "ln_before",      "mh_adapter",
    "non_linearity",              "original_ln_after",  "original_ln_before", "output_adapter", "reduction_factor",
    "residual_before_ln",         "scaling",
};
inline constexpr std::string_view kFusionFields[] = {
    "dropout_prob", "key",   "query",                "query_before_ln",   "regularization", "residual_before",
    "temperature",  "value", "value_before_softmax", "value_initialized",
};

template <class List>
bool lists(const List& list, std::string_view name) noexcept {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

inline void refuse_adapter_fields(const Json& json, std::string_view where) {
  for (const auto& [name, value] : json.items()) {
    if (lists(kAdapterFields, name) || lists(kSilentAdapterFields, name) || is_unset(value)) continue;
    const auto* entry = std::find_if(std::begin(kUnsupportedAdapterFields), std::end(kUnsupportedAdapterFields),
                                     [&n = name](const UnsupportedField& field) { return field.name == n; });
    if (entry == std::end(kUnsupportedAdapterFields)) {
      fail<ConfigError>("{}: it sets {} to {}, a field that AdapterHub's BnConfig does not have; remove it where the "
                        "adapter does not need it",
                        where, quote_text(name), shown(value));
    }
    if (value.is_number() && value.get<double>() == 0.0) continue;
    fail<ConfigError>("{}: it sets {} to {}; {}", where, name, shown(value), entry->meaning);
  }
}

inline ReductionFactor reduction_factor_from_json(const Json& json, const ConfigReader& reader) {
  if (json.is_number()) return json.get<double>();
  if (!json.is_object() || json.empty()) {
    reader.wrong("reduction_factor", json, "a number or an object of numbers by layer");
  }
  ReductionFactor::PerLayer layers;
  for (const auto& [name, value] : json.items()) {
    if (!value.is_number()) reader.wrong("reduction_factor[" + quote_text(name) + "]", value, "a number");
    layers.emplace_back(name, value.get<double>());
  }
  return ReductionFactor(std::move(layers));
}

/// 16, not 16.0: as it was, where the file had a whole number.
inline Json json_number(double value) {
  constexpr double kExact = 9007199254740992.0;  // 2^53
  const bool whole = std::abs(value) <= kExact && value == std::trunc(value);
  return whole ? Json(static_cast<std::int64_t>(value)) : Json(value);
}
/// The shortest number that is this float, and always one with a point.
inline Json json_float(float value) {
  return Json(shortest_number(value).get<double>());
}

}  // namespace detail

/// Reads and validates the fields; those that BnConfig has defaults for may be missing. `where` begins every message.
/// Throws ConfigError, naming the field, its value and what is expected; also for the configuration of another method,
/// naming that.
inline AdapterConfig bottleneck_config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  if (const Json* architecture = reader.field("architecture")) {
    fail<ConfigError>("{}: architecture is {}; expected none, as bottleneck adapters have it; other methods of AdapterHub "
                      "are not read here",
                      where, detail::shown(*architecture));
  }
  AdapterConfig config;
  for (const std::string_view name : {"mh_adapter", "output_adapter", "reduction_factor", "non_linearity"}) {
    if (reader.field(name) == nullptr) fail<ConfigError>("{}: it has no {}; BnConfig has no default for it", where, name);
  }
  reader.read("mh_adapter", config.mh_adapter);
  reader.read("output_adapter", config.output_adapter);
  config.reduction_factor = detail::reduction_factor_from_json(*reader.field("reduction_factor"), reader);
  reader.read("non_linearity", config.non_linearity);
  for (char& letter : config.non_linearity) letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
  reader.read("original_ln_before", config.original_ln_before);
  reader.read("original_ln_after", config.original_ln_after);
  reader.read("ln_before", config.ln_before);
  reader.read("ln_after", config.ln_after);
  reader.read("init_weights", config.init_weights);
  if (reader.field("init_weights_seed") != nullptr) reader.read("init_weights_seed", config.init_weights_seed.emplace());
  reader.read("is_parallel", config.is_parallel);
  if (const Json* scaling = reader.field("scaling")) {
    if (scaling->is_number()) {
      config.scaling = scaling->get<double>();
    } else if (scaling->is_string()) {
      config.scaling = scaling->get<std::string>();
    } else {
      reader.wrong("scaling", *scaling, "a number, \"learned\" or \"channel\"");
    }
  }
  reader.read("residual_before_ln", config.residual_before_ln);
  reader.read("adapter_residual_before_ln", config.adapter_residual_before_ln);
  reader.read("leave_out", config.leave_out);
  reader.read("dropout", config.dropout);
  detail::refuse_adapter_fields(json, where);
  try {
    config.validate();
  } catch (const ConfigError& error) {
    fail<ConfigError>("{}: {}", where, error.what());
  }
  return config;
}

/// All fields of BnConfig, sorted, as AdapterHub writes them. Throws ConfigError where one is out of range.
inline Json bottleneck_config_to_json(const AdapterConfig& config) {
  config.validate();
  Json factor = detail::json_number(config.reduction_factor.factor());
  if (config.reduction_factor.is_per_layer()) {
    factor = Json::object();
    for (const auto& [name, value] : config.reduction_factor.per_layer()) factor[name] = detail::json_number(value);
  }
  const auto either = [](const auto& value) {
    return std::visit([](const auto& one) { return Json(one); }, value);
  };
  Json json = Json::object();
  json["adapter_residual_before_ln"] = config.adapter_residual_before_ln;
  json["cross_adapter"] = false;
  json["dropout"] = detail::json_float(config.dropout);
  json["factorized_phm_W"] = true;
  json["factorized_phm_rule"] = false;
  json["hypercomplex_nonlinearity"] = "glorot-uniform";
  json["init_weights"] = config.init_weights;
  json["init_weights_seed"] = config.init_weights_seed ? Json(*config.init_weights_seed) : Json(nullptr);
  json["inv_adapter"] = nullptr;
  json["inv_adapter_reduction_factor"] = nullptr;
  json["is_parallel"] = config.is_parallel;
  json["learn_phm"] = true;
  json["leave_out"] = config.leave_out;
  json["ln_after"] = config.ln_after;
  json["ln_before"] = config.ln_before;
  json["mh_adapter"] = config.mh_adapter;
  json["non_linearity"] = config.non_linearity;
  json["original_ln_after"] = config.original_ln_after;
  json["original_ln_before"] = config.original_ln_before;
  json["output_adapter"] = config.output_adapter;
  json["phm_bias"] = true;
  json["phm_c_init"] = "normal";
  json["phm_dim"] = 4;
  json["phm_init_range"] = 0.0001;
  json["phm_layer"] = false;
  json["phm_rank"] = 1;
  json["reduction_factor"] = std::move(factor);
  json["residual_before_ln"] = either(config.residual_before_ln);
  json["scaling"] = either(config.scaling);
  json["shared_W_phm"] = false;
  json["shared_phm_rule"] = true;
  json["stochastic_depth"] = 0.0;
  json["use_gating"] = false;
  return json;
}

/// The same for AdapterFusion. Throws ConfigError.
inline AdapterFusionConfig adapter_fusion_config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  AdapterFusionConfig config;
  reader.read("key", config.key);
  reader.read("query", config.query);
  reader.read("value", config.value);
  reader.read("query_before_ln", config.query_before_ln);
  reader.read("regularization", config.regularization);
  reader.read("residual_before", config.residual_before);
  reader.read("temperature", config.temperature);
  reader.read("value_before_softmax", config.value_before_softmax);
  reader.read("value_initialized", config.value_initialized);
  if (reader.field("dropout_prob") != nullptr) reader.read("dropout_prob", config.dropout_prob.emplace());
  for (const auto& [name, value] : json.items()) {
    if (detail::lists(detail::kFusionFields, name) || detail::is_unset(value)) continue;
    fail<ConfigError>("{}: it sets {} to {}, a field that AdapterHub's AdapterFusionConfig does not have", where,
                      quote_text(name), detail::shown(value));
  }
  try {
    config.validate();
  } catch (const ConfigError& error) {
    fail<ConfigError>("{}: {}", where, error.what());
  }
  return config;
}

inline Json adapter_fusion_config_to_json(const AdapterFusionConfig& config) {
  config.validate();
  Json json = Json::object();
  json["dropout_prob"] = config.dropout_prob ? detail::json_float(*config.dropout_prob) : Json(nullptr);
  json["key"] = config.key;
  json["query"] = config.query;
  json["query_before_ln"] = config.query_before_ln;
  json["regularization"] = config.regularization;
  json["residual_before"] = config.residual_before;
  json["temperature"] = config.temperature;
  json["value"] = config.value;
  json["value_before_softmax"] = config.value_before_softmax;
  json["value_initialized"] = config.value_initialized;
  return json;
}

PEFT_END_NAMESPACE
