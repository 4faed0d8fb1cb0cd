#pragma once
/// The configurations of prefix tuning, prompt tuning and P-tuning ↔ adapter_config.json of Python PEFT, field by field.
/// Every field that PEFT 0.21.2 writes is read and written; one that it does not know is an error by name where it is set.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/io/json.hpp"
#include "peft/prefix_config.hpp"
#include "peft/prompt_config.hpp"
#include "peft/prompt_encoder_config.hpp"

PEFT_BEGIN_NAMESPACE

/// The configuration of one of the methods whose adapter is `prompt_embeddings`.
using PromptLearningConfig = std::variant<PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig>;

namespace detail {

/// PEFT's peft_type of a configuration.
inline std::string_view peft_type_of(const PromptLearningConfig& config) noexcept {
  constexpr std::string_view kTypes[] = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"};
  return kTypes[config.index()];
}

/// A size that may be null: 0 then.
inline void read_size(ConfigReader& reader, std::string_view name, Index& out) {
  const Json* value = reader.field(name);
  if (value == nullptr) return;
  const Index size = value->is_number_integer() ? value->get<Index>() : 0;  // from 2^63: negative
  if (size < 1 || size > Index{1} << 40) reader.wrong(name, *value, "a whole number of at least 1, or null");
  out = size;
}

/// One of PEFT's names of an enumeration's values, in their order.
template <class Enum, std::size_t N>
void read_choice(ConfigReader& reader, std::string_view name, const std::string_view (&names)[N], Enum& out) {
  const Json* value = reader.field(name);
  if (value == nullptr) return;
  const auto found = value->is_string()
                         ? std::find(std::begin(names), std::end(names), value->get_ref<const std::string&>())
                         : std::end(names);
  if (found == std::end(names)) {
    std::string expected;
    for (const std::string_view one : names) expected += (expected.empty() ? "\"" : ", \"") + std::string(one) + "\"";
    reader.wrong(name, *value, "one of " + expected);
  }
  out = static_cast<Enum>(found - std::begin(names));
}

inline constexpr std::string_view kPromptInits[] = {"TEXT", "SAMPLE_VOCAB", "RANDOM"};
inline constexpr std::string_view kEncoderTypes[] = {"MLP", "LSTM"};

/// The fields that all three have.
template <class Config>
void read_common(ConfigReader& reader, Config& config) {
  read_size(reader, "num_virtual_tokens", config.num_virtual_tokens);
  read_size(reader, "token_dim", config.token_dim);
  read_size(reader, "num_layers", config.num_layers);
  read_size(reader, "num_attention_heads", config.num_attention_heads);
  read_size(reader, "num_transformer_submodules", config.num_transformer_submodules);
  reader.read("modules_to_save", config.modules_to_save);
  reader.read("task_type", config.task_type);
  reader.read("base_model_name_or_path", config.base_model_name_or_path);
  reader.read("revision", config.revision);
  reader.read("inference_mode", config.inference_mode);
}

inline void read_own(ConfigReader& reader, PrefixTuningConfig& config) {
  read_size(reader, "encoder_hidden_size", config.encoder_hidden_size);
  reader.read("prefix_projection", config.prefix_projection);
  reader.read("init_weights", config.init_weights);
}
inline void read_own(ConfigReader& reader, PromptTuningConfig& config) {
  read_choice(reader, "prompt_tuning_init", kPromptInits, config.prompt_tuning_init);
  reader.read("prompt_tuning_init_text", config.prompt_tuning_init_text);
  reader.read("tokenizer_name_or_path", config.tokenizer_name_or_path);
  if (const Json* value = reader.field("tokenizer_kwargs")) {
    if (!value->is_object()) reader.wrong("tokenizer_kwargs", *value, "an object or null");
    if (!value->empty()) config.tokenizer_kwargs = value->dump();
  }
}
inline void read_own(ConfigReader& reader, PromptEncoderConfig& config) {
  read_choice(reader, "encoder_reparameterization_type", kEncoderTypes, config.encoder_reparameterization_type);
  read_size(reader, "encoder_hidden_size", config.encoder_hidden_size);
  reader.read("encoder_num_layers", config.encoder_num_layers);
  reader.read("encoder_dropout", config.encoder_dropout);
}

template <class Config>
Json common_to_json(const Config& config) {
  const auto size = [](Index value) { return value > 0 ? Json(value) : Json(nullptr); };
  const auto text = [](const std::optional<std::string>& value) { return value ? Json(*value) : Json(nullptr); };
  Json json = Json::object();
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = text(config.base_model_name_or_path);
  json["inference_mode"] = config.inference_mode;
  json["modules_to_save"] = config.modules_to_save.empty() ? Json(nullptr) : Json(config.modules_to_save);
  json["num_attention_heads"] = size(config.num_attention_heads);
  json["num_layers"] = size(config.num_layers);
  json["num_transformer_submodules"] = size(config.num_transformer_submodules);
  json["num_virtual_tokens"] = size(config.num_virtual_tokens);
  json["peft_version"] = std::string(kPeftFormatVersion);
  json["revision"] = text(config.revision);
  json["task_type"] = text(config.task_type);
  json["token_dim"] = size(config.token_dim);
  return json;
}

inline void own_to_json(const PrefixTuningConfig& config, Json& json) {
  json["encoder_hidden_size"] = config.encoder_hidden_size > 0 ? Json(config.encoder_hidden_size) : Json(nullptr);
  json["init_weights"] = config.init_weights ? Json(*config.init_weights) : Json(nullptr);
  json["prefix_projection"] = config.prefix_projection;
}
inline void own_to_json(const PromptTuningConfig& config, Json& json) {
  const auto text = [](const std::optional<std::string>& value) { return value ? Json(*value) : Json(nullptr); };
  json["prompt_tuning_init"] = std::string(kPromptInits[static_cast<std::size_t>(config.prompt_tuning_init)]);
  json["prompt_tuning_init_text"] = text(config.prompt_tuning_init_text);
  json["tokenizer_kwargs"] =
      config.tokenizer_kwargs ? parse_json(*config.tokenizer_kwargs, "PromptTuningConfig: tokenizer_kwargs") : Json(nullptr);
  json["tokenizer_name_or_path"] = text(config.tokenizer_name_or_path);
}
inline void own_to_json(const PromptEncoderConfig& config, Json& json) {
  json["encoder_dropout"] = shortest_number(config.encoder_dropout);
  json["encoder_hidden_size"] = config.encoder_hidden_size > 0 ? Json(config.encoder_hidden_size) : Json(nullptr);
  json["encoder_num_layers"] = config.encoder_num_layers;
  json["encoder_reparameterization_type"] =
      std::string(kEncoderTypes[static_cast<std::size_t>(config.encoder_reparameterization_type)]);
}

/// Throws for every field that is set and that PEFT's class does not have; `own` are those it writes.
inline void refuse_unknown_fields(const Json& json, const Json& own, std::string_view where) {
  for (const auto& [name, value] : json.items()) {
    if (own.contains(name) || name == "peft_type" || name == "auto_mapping" || is_unset(value)) continue;
    fail<ConfigError>("{}: it sets {} to {}, a field that PEFT {} does not have for this method; remove it where the "
                      "adapter does not need it",
                      where, quote_text(name), shown(value), kPeftFormatVersion);
  }
}

}  // namespace detail

/// The fields as PEFT writes them, sorted by name. Throws ConfigError where a field is out of range, not supported or no UTF-8.
inline Json prompt_learning_config_to_json(const PromptLearningConfig& config) {
  Json json = std::visit(
      [](const auto& c) {
        c.validate();
        Json result = detail::common_to_json(c);
        detail::own_to_json(c, result);
        return result;
      },
      config);
  json["peft_type"] = std::string(detail::peft_type_of(config));
  for (const auto& [name, value] : json.items()) {
    if (!detail::texts_are_utf8(value)) fail<ConfigError>("{} is {}; expected UTF-8", name, detail::shown(value));
  }
  std::map<std::string, Json> fields;
  for (auto& [name, value] : json.items()) fields.emplace(name, std::move(value));
  Json sorted = Json::object();
  for (auto& [name, value] : fields) sorted[name] = std::move(value);
  return sorted;
}

/// Reads the fields and validates them; those that are missing have PEFT's defaults. `where` begins every message.
/// Throws ConfigError, naming the field, its value and what is expected.
inline PromptLearningConfig prompt_learning_config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  const Json* type = reader.field("peft_type");
  PromptLearningConfig config;
  if (type != nullptr && is_text(*type, "PREFIX_TUNING")) {
    config = PrefixTuningConfig{};
  } else if (type != nullptr && is_text(*type, "PROMPT_TUNING")) {
    config = PromptTuningConfig{};
  } else if (type != nullptr && is_text(*type, "P_TUNING")) {
    config = PromptEncoderConfig{};
  } else if (type != nullptr && is_text(*type, "LORA")) {
    fail<ConfigError>("{}: peft_type is \"LORA\"; load_peft_adapter reads it", where);
  } else {
    fail<ConfigError>("{}: peft_type is {}; expected \"PREFIX_TUNING\", \"PROMPT_TUNING\" or \"P_TUNING\"", where,
                      type != nullptr ? detail::shown(*type) : "missing");
  }
  std::visit(
      [&](auto& c) {
        detail::read_common(reader, c);
        detail::read_own(reader, c);
        Json known = detail::common_to_json(c);
        detail::own_to_json(c, known);
        detail::refuse_unknown_fields(json, known, where);
        try {
          c.validate();
        } catch (const ConfigError& error) {
          fail<ConfigError>("{}: {}", where, error.what());
        }
      },
      config);
  return config;
}

PEFT_END_NAMESPACE
