#pragma once
/// Fields of an adapter_config.json, read and written one by one, with a book of which were read: what a file sets and
/// nobody reads is an error by name.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
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
#include "peft/lora_config.hpp"

PEFT_BEGIN_NAMESPACE

/// The version of PEFT whose meaning the written fields have; its loaders go by it.
inline constexpr std::string_view kPeftFormatVersion = "0.21.2";

namespace detail {

/// A field of one of PEFT's configurations that is not supported.
struct UnsupportedField {
  std::string_view name;
  std::string_view harmless;  ///< a value besides null, false and empty that means "not used", as JSON; or ""
  std::string_view meaning;
};

inline constexpr UnsupportedField kUnsupportedFields[] = {
    {"arrow_config", "", "Arrow routing is not supported"},
    {"corda_config", "", "CorDA initialisation is not supported"},
    {"ensure_weight_tying", "", "tied adapters are not supported"},
    {"kasa_config", "", "KaSA is not supported"},
    {"layer_replication", "", "replicated layers are not supported: the host would have to be built with them"},
    {"lora_ga_config", "", "LoRA-GA initialisation is not supported"},
    {"megatron_config", "", "Megatron's parallel layers are not supported"},
    {"megatron_core", "\"megatron.core\"", "Megatron's parallel layers are not supported"},
    {"monteclora_config", "", "MonteCLoRA is not supported"},
    {"qalora_group_size", "16", "QA-LoRA is not supported"},
    {"runtime_config", R"({"ephemeral_gpu_offload":false})", "there is nothing to offload on a CPU"},
    {"target_parameters", "", "adapting parameters that are not linear layers is not supported"},
    {"use_bdlora", "", "block-diagonal LoRA is not supported"},
    {"use_qalora", "", "QA-LoRA is not supported"},
    {"velora_config", "", "VeLoRA is not supported"},
};

/// Fields that change nothing here: who wrote the file, and which Python class the base has.
inline constexpr std::string_view kInformativeFields[] = {"auto_mapping", "peft_version"};

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

  /// A list of token ids (then of the input embedding, ""), or an object of lists by name.
  void read(std::string_view name, std::vector<std::pair<std::string, std::vector<Index>>>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    const auto list = [&](const std::string& key, const Json& ids) {
      if (!ids.is_array()) wrong(name, ids, "a list of token ids");
      std::vector<Index> tokens;
      for (const Json& id : ids) tokens.push_back(whole(name, id));
      out.emplace_back(key, std::move(tokens));
    };
    if (value->is_array()) {
      if (!value->empty()) list("", *value);
      return;
    }
    if (!value->is_object()) wrong(name, *value, "a list of token ids, an object of such lists or null");
    for (const auto& [key, ids] : value->items()) list(key, ids);
  }
  /// An object of lists of true and false.
  void read(std::string_view name, std::vector<std::pair<std::string, std::vector<bool>>>& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    if (!value->is_object()) wrong(name, *value, "an object of lists of true and false");
    for (const auto& [key, flags] : value->items()) {
      std::vector<bool> kept;
      if (!flags.is_array()) wrong(name, flags, "lists of true and false");
      for (const Json& flag : flags) {
        if (!flag.is_boolean()) wrong(name, flag, "true or false in the lists");
        kept.push_back(flag.get<bool>());
      }
      out.emplace_back(key, std::move(kept));
    }
  }
  void read(std::string_view name, EvaConfig& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    ConfigReader inner(*value, name);
    inner.read("rho", out.rho);
    inner.read("tau", out.tau);
    inner.read("use_label_mask", out.use_label_mask);
    inner.read("label_mask_value", out.label_mask_value);
    inner.read("whiten", out.whiten);
    inner.read("adjust_scaling_factors", out.adjust_scaling_factors);
    inner.refuse_the_rest();
  }

  /// {} is the default, as PEFT writes it for other starts.
  void read(std::string_view name, LoftqConfig& out) {
    const Json* value = field(name);
    if (value == nullptr) return;
    ConfigReader inner(*value, name);
    inner.read("loftq_bits", out.loftq_bits);
    inner.read("loftq_iter", out.loftq_iter);
    inner.refuse_the_rest();
  }

  /// Throws for every field that was not read and is set.
  void refuse_the_rest() const {
    for (const auto& [name, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end() || is_unset(value)) continue;
      if (std::find(std::begin(kInformativeFields), std::end(kInformativeFields), name) !=
          std::end(kInformativeFields)) {
        continue;
      }
      const auto* entry = std::find_if(std::begin(kUnsupportedFields), std::end(kUnsupportedFields),
                                       [&n = name](const UnsupportedField& field) { return field.name == n; });
      if (entry == std::end(kUnsupportedFields)) {
        fail<ConfigError>("{}: it sets {} to {}, a field that PEFT {} does not know; remove it where the adapter does "
                          "not need it",
                          where_, quote_text(name), shown(value), kPeftFormatVersion);
      }
      if (!entry->harmless.empty() && same_value(value, parse_json(entry->harmless, name))) continue;
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

/// A field's value as PEFT writes it.
struct ConfigValue {
  static Json of(bool value) { return value; }
  static Json of(Index value) { return value; }
  /// 16, not 16.0, as Python has it.
  static Json of(double value) {
    constexpr double kExact = 9007199254740992.0;  // 2^53
    const bool whole = std::abs(value) <= kExact && value == std::trunc(value);
    return whole ? Json(static_cast<std::int64_t>(value)) : Json(value);
  }
  static Json of(float value) { return shortest_number(value); }
  static Json of(const std::string& value) { return value; }
  static Json of(const std::optional<std::string>& value) { return value ? Json(*value) : Json(nullptr); }
  static Json of(const ModuleSelector& value) {
    if (!value.is_set()) return nullptr;
    return value.is_pattern() ? Json(value.pattern()) : Json(value.names());
  }
  static Json of(const std::variant<bool, std::string>& value) {
    if (const bool* flag = std::get_if<bool>(&value)) return *flag;
    return std::get<std::string>(value);
  }
  static Json of(const std::vector<std::string>& values) { return values.empty() ? Json(nullptr) : Json(values); }
  static Json of(const std::vector<Index>& values) { return values.empty() ? Json(nullptr) : Json(values); }
  /// The first of two equal keys counts in PEFT's meaning; an object has but one.
  template <class Value>
  static Json of(const std::vector<std::pair<std::string, Value>>& values) {
    Json result = Json::object();
    for (const auto& [key, value] : values) result.emplace(key, of(value));
    return result;
  }
  static Json of(const std::vector<bool>& values) {
    Json result = Json::array();
    for (const bool value : values) result.push_back(value);
    return result;
  }
  static Json of(const std::vector<std::pair<std::string, std::vector<bool>>>& values) {
    if (values.empty()) return nullptr;
    Json result = Json::object();
    for (const auto& [key, flags] : values) result.emplace(key, of(flags));
    return result;
  }
  static Json of(const std::vector<std::pair<std::string, std::vector<Index>>>& values) {
    if (values.empty()) return nullptr;
    if (values.size() == 1 && values.front().first.empty()) return values.front().second;
    Json result = Json::object();
    for (const auto& [key, tokens] : values) result.emplace(key, tokens);
    return result;
  }
  static Json of(const EvaConfig& value) {
    return {{"adjust_scaling_factors", value.adjust_scaling_factors},
            {"label_mask_value", value.label_mask_value},
            {"rho", of(value.rho)},
            {"tau", of(value.tau)},
            {"use_label_mask", value.use_label_mask},
            {"whiten", value.whiten}};
  }
  static Json of(const LoftqConfig& value) { return {{"loftq_bits", value.loftq_bits}, {"loftq_iter", value.loftq_iter}}; }
};

/// Throws ConfigError where a text is not UTF-8: nothing else can be written.
inline void require_utf8(const Json& json, std::string_view who) {
  for (const auto& [name, value] : json.items()) {
    if (!texts_are_utf8(value)) fail<ConfigError>("{}: {} is {}; expected UTF-8", who, name, shown(value));
  }
}

}  // namespace detail
PEFT_END_NAMESPACE
