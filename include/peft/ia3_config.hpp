#pragma once
/// The configuration of (IA)³, with the names and defaults of Python PEFT's IA3Config.

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/lora_config.hpp"
#include "peft/module_selector.hpp"
#include "peft/method_targets.hpp"

PEFT_BEGIN_NAMESPACE

/// `Ia3Config{.target_modules = {"k_proj", "v_proj", "down_proj"}, .feedforward_modules = {"down_proj"}}`.
struct Ia3Config {
  static constexpr std::string_view kPeftType = "IA3";
  static constexpr std::string_view kName = "Ia3Config";
  /// Modules that get an update; as LoraConfig's.
  ModuleSelector target_modules{};
  ModuleSelector exclude_modules{};
  /// Of these, the modules whose input is scaled instead of their output.
  ModuleSelector feedforward_modules{};
  bool fan_in_fan_out = false;
  /// Modules trained in full and saved with the adapter.
  std::vector<std::string> modules_to_save{};
  /// Whether the factors start at 1; false: normal (for tests).
  bool init_ia3_weights = true;
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const Ia3Config&, const Ia3Config&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("target_modules", config.target_modules);
    visit("exclude_modules", config.exclude_modules);
    visit("feedforward_modules", config.feedforward_modules);
    visit("fan_in_fan_out", config.fan_in_fan_out);
    visit("modules_to_save", config.modules_to_save);
    visit("init_ia3_weights", config.init_ia3_weights);
    detail::visit_origin(config, visit);
  }

  /// The fields that say which modules are meant, for match_target_modules.
  LoraConfig targets() const { return detail::targets_of(*this); }

  /// Throws ConfigError, naming the field, where one is out of range or contradicts another.
  void validate() const {
    detail::validate_targets(targets(), kName);
    for (const std::string& entry : feedforward_modules.names()) {
      if (target_modules.is_pattern()) break;
      const auto& names = target_modules.names();
      if (std::find(names.begin(), names.end(), entry) == names.end()) {
        fail<ConfigError>("{}: feedforward_modules names \"{}\", which target_modules = {} does not; expected a subset", kName,
                          entry, target_modules.text());
      }
    }
  }
};

PEFT_END_NAMESPACE
