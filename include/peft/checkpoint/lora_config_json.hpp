#pragma once
/// LoraConfig ↔ adapter_config.json of Python PEFT, field by field. A field that this library does not support is an
/// error by name where it is set; what is null, false, empty or at its default may stand.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "peft/checkpoint/config_reader.hpp"
#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/lora_config.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// The JSON of an adapter_config.json. Throws IoError, FormatError.
inline Json read_config_json(const std::filesystem::path& path, std::string_view where) {
  constexpr std::size_t kMost = 16u << 20;
  const auto file = MappedFile::open(path);
  if (file->bytes().size() > kMost) {
    fail<FormatError>("{}: {} bytes; expected at most {}", where, file->bytes().size(), kMost);
  }
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  return parse_json(text, where);
}

}  // namespace detail

/// Reads the fields and validates them; those that are missing have PEFT's defaults. `where` begins every message.
/// Throws ConfigError, naming the field, its value and what is expected.
inline LoraConfig lora_config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  const Json* type = reader.field("peft_type");
  if (type == nullptr || !is_text(*type, "LORA")) {
    fail<ConfigError>("{}: peft_type is {}; expected \"LORA\"", where,
                      type != nullptr ? detail::shown(*type) : "missing");
  }
  LoraConfig config;
  reader.read("r", config.r);
  reader.read("lora_alpha", config.lora_alpha);
  reader.read("target_modules", config.target_modules);
  reader.read("exclude_modules", config.exclude_modules);
  reader.read("lora_dropout", config.lora_dropout);
  reader.read("fan_in_fan_out", config.fan_in_fan_out);
  reader.read("bias", config.bias);
  reader.read("use_rslora", config.use_rslora);
  reader.read("init_lora_weights", config.init_lora_weights);
  reader.read("layers_to_transform", config.layers_to_transform);
  reader.read("layers_pattern", config.layers_pattern);
  reader.read("rank_pattern", config.rank_pattern);
  reader.read("alpha_pattern", config.alpha_pattern);
  reader.read("modules_to_save", config.modules_to_save);
  reader.read("task_type", config.task_type);
  reader.read("base_model_name_or_path", config.base_model_name_or_path);
  reader.read("revision", config.revision);
  reader.read("inference_mode", config.inference_mode);
  reader.read("lora_bias", config.lora_bias);
  reader.read("use_dora", config.use_dora);
  reader.read("trainable_token_indices", config.trainable_token_indices);
  reader.read("alora_invocation_tokens", config.alora_invocation_tokens);
  reader.read("eva_config", config.eva_config);
  reader.read("loftq_config", config.loftq_config);
  reader.refuse_the_rest();
  try {
    config.validate();
  } catch (const ConfigError& error) {
    fail<ConfigError>("{}: {}", where, error.what());
  }
  return config;
}

/// The fields as PEFT writes them. Those of methods that are not used are left out: every version of PEFT takes its
/// default for a missing field, and older ones warn of fields that they do not know. Throws ConfigError where a field
/// is out of range, not supported or a text that is not UTF-8.
inline Json lora_config_to_json(const LoraConfig& config) {
  config.validate();
  using Value = detail::ConfigValue;
  Json json = Json::object();
  json["alpha_pattern"] = Value::of(config.alpha_pattern);
  if (!config.alora_invocation_tokens.empty()) {
    json["alora_invocation_tokens"] = Value::of(config.alora_invocation_tokens);
  }
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = Value::of(config.base_model_name_or_path);
  json["bias"] = config.bias;
  if (config.init_lora_weights == std::variant<bool, std::string>("eva") || config.eva_config != EvaConfig()) {
    json["eva_config"] = Value::of(config.eva_config);
  }
  json["exclude_modules"] = Value::of(config.exclude_modules);
  json["fan_in_fan_out"] = config.fan_in_fan_out;
  json["inference_mode"] = config.inference_mode;
  json["init_lora_weights"] = Value::of(config.init_lora_weights);
  json["layers_pattern"] = Value::of(config.layers_pattern);
  json["layers_to_transform"] = Value::of(config.layers_to_transform);
  if (config.init_lora_weights == std::variant<bool, std::string>("loftq") || config.loftq_config != LoftqConfig()) {
    json["loftq_config"] = Value::of(config.loftq_config);
  }
  json["lora_alpha"] = Value::of(config.lora_alpha);
  if (config.lora_bias) json["lora_bias"] = true;
  json["lora_dropout"] = Value::of(config.lora_dropout);
  json["modules_to_save"] = Value::of(config.modules_to_save);
  json["peft_type"] = "LORA";
  json["peft_version"] = std::string(kPeftFormatVersion);
  json["r"] = config.r;
  json["rank_pattern"] = Value::of(config.rank_pattern);
  json["revision"] = Value::of(config.revision);
  json["target_modules"] = Value::of(config.target_modules);
  json["task_type"] = Value::of(config.task_type);
  if (!config.trainable_token_indices.empty()) {
    json["trainable_token_indices"] = Value::of(config.trainable_token_indices);
  }
  json["use_dora"] = config.use_dora;
  json["use_rslora"] = config.use_rslora;
  detail::require_utf8(json, "LoraConfig");
  return json;
}

/// Reads an adapter_config.json. Throws IoError, FormatError (no JSON), ConfigError (see lora_config_from_json).
inline LoraConfig read_lora_config(const std::filesystem::path& path) {
  const std::string where = "adapter config " + path.string();
  return lora_config_from_json(detail::read_config_json(path, where), where);
}

PEFT_END_NAMESPACE
