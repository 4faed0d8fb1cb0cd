#pragma once
/// The configuration of any method ↔ adapter_config.json, by its peft_type.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "peft/adalora_config.hpp"
#include "peft/any_config.hpp"
#include "peft/checkpoint/config_reader.hpp"
#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/full_config.hpp"
#include "peft/ia3_config.hpp"
#include "peft/ln_tuning_config.hpp"
#include "peft/loha_config.hpp"
#include "peft/lokr_config.hpp"
#include "peft/vera_config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Calls visit.template operator()<C>() for every configuration that has for_each_field.
template <class Visit>
void for_each_config_type(Visit&& visit) {
  visit.template operator()<Ia3Config>();
  visit.template operator()<VeraConfig>();
  visit.template operator()<LohaConfig>();
  visit.template operator()<LokrConfig>();
  visit.template operator()<AdaLoraConfig>();
  visit.template operator()<LnTuningConfig>();
  visit.template operator()<FullConfig>();
}

}  // namespace detail

/// Reads the fields of one configuration and validates it. Throws ConfigError, naming the field, its value and what is
/// expected.
template <class Config>
Config config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  const Json* type = reader.field("peft_type");
  if (type == nullptr || *type != std::string(Config::kPeftType)) {
    fail<ConfigError>("{}: peft_type is {}; expected \"{}\"", where, type != nullptr ? detail::shown(*type) : "missing",
                      Config::kPeftType);
  }
  Config config;
  Config::for_each_field(config, [&reader](std::string_view name, auto& field) { reader.read(name, field); });
  reader.refuse_the_rest();
  try {
    config.validate();
  } catch (const ConfigError& error) {
    fail<ConfigError>("{}: {}", where, error.what());
  }
  return config;
}

/// The fields as PEFT writes them. Throws ConfigError where a field is out of range or a text that is not UTF-8.
template <class Config>
Json config_to_json(const Config& config) {
  config.validate();
  std::map<std::string, Json> sorted;  // as PEFT writes them
  sorted["auto_mapping"] = nullptr;
  sorted["peft_type"] = std::string(Config::kPeftType);
  sorted["peft_version"] = std::string(kPeftFormatVersion);
  Config::for_each_field(config, [&sorted](std::string_view name, const auto& field) {
    sorted[std::string(name)] = detail::ConfigValue::of(field);
  });
  Json json = Json::object();
  for (auto& [name, value] : sorted) json[name] = std::move(value);
  detail::require_utf8(json, Config::kName);
  return json;
}

/// Any method's. Throws ConfigError for a peft_type that is not known here, naming those that are.
inline AnyConfig adapter_config_from_json(const Json& json, std::string_view where) {
  if (!json.is_object()) {
    fail<ConfigError>("{}: it is {}; expected an object of PEFT's fields", where, kind_of(json));
  }
  const auto type = json.find("peft_type");
  if (type == json.end() || is_text(*type, "LORA")) return lora_config_from_json(json, where);
  std::string known = "LORA";
  std::optional<AnyConfig> result;
  detail::for_each_config_type([&]<class Config>() {
    known += ", " + std::string(Config::kPeftType);
    if (!result && is_text(*type, Config::kPeftType)) result.emplace(config_from_json<Config>(json, where));
  });
  if (!result) fail<ConfigError>("{}: peft_type is {}; expected one of {}", where, detail::shown(*type), known);
  return *result;
}

/// Any method's. Throws ConfigError for a configuration of an unknown type.
inline Json adapter_config_to_json(const AnyConfig& config) {
  if (const LoraConfig* lora = config.get_if<LoraConfig>()) return lora_config_to_json(*lora);
  std::optional<Json> result;
  detail::for_each_config_type([&]<class Config>() {
    if (const Config* own = config.get_if<Config>()) result = config_to_json(*own);
  });
  if (!result) {
    fail<ConfigError>("adapter_config.json: there is no form of a configuration of peft_type {}", config.peft_type());
  }
  return *result;
}

/// A copy with inference_mode as given.
inline AnyConfig with_inference_mode(const AnyConfig& config, bool inference_mode) {
  if (const LoraConfig* lora = config.get_if<LoraConfig>()) {
    LoraConfig copy = *lora;
    copy.inference_mode = inference_mode;
    return copy;
  }
  std::optional<AnyConfig> result;
  detail::for_each_config_type([&]<class Config>() {
    if (const Config* own = config.get_if<Config>()) {
      Config copy = *own;
      copy.inference_mode = inference_mode;
      result.emplace(std::move(copy));
    }
  });
  return result ? *result : config;
}

PEFT_END_NAMESPACE
