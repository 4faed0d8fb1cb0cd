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

#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/lora_config.hpp"

PEFT_BEGIN_NAMESPACE

/// The version of PEFT whose meaning the written fields have; its loaders go by it.
inline constexpr std::string_view kPeftFormatVersion = "0.21.2";

namespace detail {

/// A field of PEFT's LoraConfig that is not supported.
struct UnsupportedField {
  std::string_view name;
  std::string_view harmless;  ///< a value besides null, false and empty that means "not used", as JSON; or ""
  std::string_view meaning;
};

inline constexpr UnsupportedField kUnsupportedLoraFields[] = {
    {"alora_invocation_tokens", "", "activated LoRA is not supported"},
    {"arrow_config", "", "Arrow routing is not supported"},
    {"corda_config", "", "CorDA initialisation is not supported"},
    {"ensure_weight_tying", "", "tied adapters are not supported"},
    {"eva_config", "", "EVA initialisation is not supported"},
    {"kasa_config", "", "KaSA is not supported"},
    {"layer_replication", "", "replicated layers are not supported: the host would have to be built with them"},
    {"loftq_config", "", "LoftQ changes the base weights, which are not in the adapter"},
    {"lora_bias", "", "a bias on B is not supported"},
    {"lora_ga_config", "", "LoRA-GA initialisation is not supported"},
    {"megatron_config", "", "Megatron's parallel layers are not supported"},
    {"megatron_core", "\"megatron.core\"", "Megatron's parallel layers are not supported"},
    {"monteclora_config", "", "MonteCLoRA is not supported"},
    {"qalora_group_size", "16", "QA-LoRA is not supported"},
    {"runtime_config", R"({"ephemeral_gpu_offload":false})", "there is nothing to offload on a CPU"},
    {"target_parameters", "", "adapting parameters that are not linear layers is not supported"},
    {"trainable_token_indices", "", "trainable tokens are not supported"},
    {"use_bdlora", "", "block-diagonal LoRA is not supported"},
    {"use_dora", "", "DoRA is not supported"},
    {"use_qalora", "", "QA-LoRA is not supported"},
    {"velora_config", "", "VeLoRA is not supported"},
};

/// Fields that change nothing here: who wrote the file, and which Python class the base has.
inline constexpr std::string_view kInformativeLoraFields[] = {"auto_mapping", "peft_version"};

/// null, false, "", [] or {}.
inline bool is_unset(const Json& value) noexcept {
  if (value.is_null() || (value.is_boolean() && !value.get<bool>())) return true;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return (value.is_array() || value.is_object()) && value.empty();
}

/// Whether all texts in a value, and the keys of its objects, are UTF-8: nothing else can be written.
inline bool texts_are_utf8(const Json& value) {
  if (value.is_string()) return is_utf8(value.get_ref<const std::string&>());
  if (!value.is_structured()) return true;
  for (const auto& [key, member] : value.items()) {
    if (!is_utf8(key) || !texts_are_utf8(member)) return false;
  }
  return true;
}

/// A value for messages, long ones cut.
inline std::string shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : std::string(kind_of(value));
}

/// Reads the fields of one object and keeps book of which were read.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string_view where) : object_(object), where_(where) {
    if (!object.is_object()) {
      fail<ConfigError>("{}: it is {}; expected an object of PEFT's fields", where, kind_of(object));
    }
  }

  /// The field's value, or nullptr where it is missing or null: PEFT's default then.
  const Json* field(std::string_view name) {
    known_.push_back(name);
    const auto found = object_.find(std::string(name));
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void read(std::string_view name, bool& out) {
    const Json* value = non_null(name);
    if (value == nullptr) return;
    if (!value->is_boolean()) wrong(name, *value, "true or false");
    out = value->get<bool>();
  }
  void read(std::string_view name, std::string& out) {
    const Json* value = non_null(name);
    if (value == nullptr) return;
    if (!value->is_string()) wrong(name, *value, "a text");
    out = value->get<std::string>();
  }
  void read(std::string_view name, std::optional<std::string>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (!value->is_string()) wrong(name, *value, "a text or null");
    out = value->get<std::string>();
  }
  void read(std::string_view name, Index& out) {
    if (const Json* value = non_null(name)) out = whole(name, *value);
  }
  void read(std::string_view name, double& out) {
    if (const Json* value = non_null(name)) out = number(name, *value);
  }
  void read(std::string_view name, float& out) {
    if (const Json* value = non_null(name)) out = static_cast<float>(number(name, *value));
  }
  void read(std::string_view name, ModuleSelector& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (value->is_string()) {
      out = ModuleSelector(value->get<std::string>());
    } else if (value->is_array()) {
      out = ModuleSelector(texts(name, *value));
    } else {
      wrong(name, *value, "a list of texts, a text or null");
    }
  }
  /// A list of texts, or one text.
  void read(std::string_view name, std::vector<std::string>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (value->is_string()) {
      if (!value->get_ref<const std::string&>().empty()) out = {value->get<std::string>()};
    } else if (value->is_array()) {
      out = texts(name, *value);
    } else {
      wrong(name, *value, "a list of texts, a text or null");
    }
  }
  /// A list of whole numbers, or one.
  void read(std::string_view name, std::vector<Index>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (!value->is_array()) {
      out = {whole(name, *value)};
      return;
    }
    for (const Json& entry : *value) out.push_back(whole(name, entry));
  }
  void read(std::string_view name, std::variant<bool, std::string>& out) {
    const Json* value = non_null(name);
    if (value == nullptr) return;
    if (value->is_boolean()) {
      out = value->get<bool>();
    } else if (value->is_string()) {
      out = value->get<std::string>();
    } else {
      wrong(name, *value, "true, false or a text");
    }
  }
  /// An object of numbers, in the file's order.
  template <class Number>
  void read(std::string_view name, std::vector<std::pair<std::string, Number>>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (!value->is_object()) wrong(name, *value, "an object of numbers");
    for (const auto& [key, entry] : value->items()) {
      const std::string place = fmt::format("{}[{}]", name, quote_text(key));
      if constexpr (std::is_floating_point_v<Number>) {
        out.emplace_back(key, number(place, entry));
      } else {
        out.emplace_back(key, whole(place, entry));
      }
    }
  }

  /// Throws for every field that was not read and is set.
  void refuse_the_rest() const {
    for (const auto& [name, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end() || is_unset(value)) continue;
      if (std::find(std::begin(kInformativeLoraFields), std::end(kInformativeLoraFields), name) !=
          std::end(kInformativeLoraFields)) {
        continue;
      }
      const auto* entry = std::find_if(std::begin(kUnsupportedLoraFields), std::end(kUnsupportedLoraFields),
                                       [&n = name](const UnsupportedField& field) { return field.name == n; });
      if (entry == std::end(kUnsupportedLoraFields)) {
        fail<ConfigError>("{}: it sets {} to {}, a field that PEFT {} does not know; remove it where the adapter does "
                          "not need it",
                          where_, quote_text(name), shown(value), kPeftFormatVersion);
      }
      if (!entry->harmless.empty() && value == Json::parse(entry->harmless)) continue;
      fail<ConfigError>("{}: it sets {} to {}; {}", where_, name, shown(value), entry->meaning);
    }
  }

  [[noreturn]] void wrong(std::string_view name, const Json& value, std::string_view expected) const {
    fail<ConfigError>("{}: {} is {}; expected {}", where_, name, shown(value), expected);
  }

 private:
  /// The field's value, or nullptr where it is missing; null is no value of such a field in PEFT either.
  const Json* non_null(std::string_view name) {
    known_.push_back(name);
    const auto found = object_.find(std::string(name));
    if (found == object_.end()) return nullptr;
    if (found->is_null()) wrong(name, *found, "a value, or the field left out");
    return &*found;
  }
  Index whole(std::string_view name, const Json& value) const {
    if (value.is_number_unsigned()) {
      const auto number = value.get<std::uint64_t>();
      if (number <= static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) return static_cast<Index>(number);
    } else if (value.is_number_integer()) {
      return value.get<Index>();
    }
    wrong(name, value, "a whole number");
  }
  double number(std::string_view name, const Json& value) const {
    if (!value.is_number()) wrong(name, value, "a number");
    return value.get<double>();
  }
  std::vector<std::string> texts(std::string_view name, const Json& value) const {
    std::vector<std::string> result;
    for (const Json& entry : value) {
      if (!entry.is_string()) wrong(name, entry, "texts in the list");
      result.push_back(entry.get<std::string>());
    }
    return result;
  }

  const Json& object_;
  std::string_view where_;
  std::vector<std::string_view> known_;
};

}  // namespace detail

/// Reads the fields and validates them; those that are missing have PEFT's defaults. `where` begins every message.
/// Throws ConfigError, naming the field, its value and what is expected.
inline LoraConfig lora_config_from_json(const Json& json, std::string_view where) {
  detail::ConfigReader reader(json, where);
  const Json* type = reader.field("peft_type");
  if (type == nullptr || *type != "LORA") {
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
  const auto selector = [](const ModuleSelector& value) -> Json {
    if (!value.is_set()) return nullptr;
    return value.is_pattern() ? Json(value.pattern()) : Json(value.names());
  };
  const auto text = [](const std::optional<std::string>& value) { return value ? Json(*value) : Json(nullptr); };
  const auto list = [](const auto& values) { return values.empty() ? Json(nullptr) : Json(values); };
  // 16, not 16.0, as Python has it.
  const auto number = [](double value) {
    constexpr double kExact = 9007199254740992.0;  // 2^53
    const bool whole = std::abs(value) <= kExact && value == std::trunc(value);
    return whole ? Json(static_cast<std::int64_t>(value)) : Json(value);
  };
  Json ranks = Json::object();
  // The first of two equal keys counts in PEFT's meaning; an object has but one.
  for (const auto& [key, rank] : config.rank_pattern) ranks.emplace(key, rank);
  Json alphas = Json::object();
  for (const auto& [key, alpha] : config.alpha_pattern) alphas.emplace(key, number(alpha));
  Json json = Json::object();
  json["alpha_pattern"] = std::move(alphas);
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = text(config.base_model_name_or_path);
  json["bias"] = config.bias;
  json["exclude_modules"] = selector(config.exclude_modules);
  json["fan_in_fan_out"] = config.fan_in_fan_out;
  json["inference_mode"] = config.inference_mode;
  json["init_lora_weights"] = std::holds_alternative<bool>(config.init_lora_weights)
                                  ? Json(std::get<bool>(config.init_lora_weights))
                                  : Json(std::get<std::string>(config.init_lora_weights));
  json["layers_pattern"] = list(config.layers_pattern);
  json["layers_to_transform"] = list(config.layers_to_transform);
  json["lora_alpha"] = number(config.lora_alpha);
  // The shortest number that is this float: 0.05, not 0.05000000074505806.
  json["lora_dropout"] = Json::parse(fmt::format("{}", config.lora_dropout));
  json["modules_to_save"] = list(config.modules_to_save);
  json["peft_type"] = "LORA";
  json["peft_version"] = std::string(kPeftFormatVersion);
  json["r"] = config.r;
  json["rank_pattern"] = std::move(ranks);
  json["revision"] = text(config.revision);
  json["target_modules"] = selector(config.target_modules);
  json["task_type"] = text(config.task_type);
  json["use_dora"] = false;
  json["use_rslora"] = config.use_rslora;
  for (const auto& [name, value] : json.items()) {
    if (!detail::texts_are_utf8(value)) {
      fail<ConfigError>("LoraConfig: {} is {}; expected UTF-8", name, detail::shown(value));
    }
  }
  return json;
}

/// Reads an adapter_config.json. Throws IoError, FormatError (no JSON), ConfigError (see lora_config_from_json).
inline LoraConfig read_lora_config(const std::filesystem::path& path) {
  constexpr std::size_t kMost = 16u << 20;
  const std::string where = "adapter config " + path.string();
  const auto file = MappedFile::open(path);
  if (file->bytes().size() > kMost) {
    fail<FormatError>("{}: {} bytes; expected at most {}", where, file->bytes().size(), kMost);
  }
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  return lora_config_from_json(parse_json(text, where), where);
}

PEFT_END_NAMESPACE
