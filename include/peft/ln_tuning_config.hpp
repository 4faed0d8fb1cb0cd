#pragma once
/// The configuration of LN-tuning, with the names and defaults of Python PEFT's LNTuningConfig.

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

/// `LnTuningConfig{.target_modules = {"input_layernorm", "post_attention_layernorm", "norm"}}`.
struct LnTuningConfig {
  static constexpr std::string_view kPeftType = "LN_TUNING";
  static constexpr std::string_view kName = "LnTuningConfig";
  /// Norms that are trained; as LoraConfig's target_modules.
  ModuleSelector target_modules{};
  ModuleSelector exclude_modules{};
  /// Modules trained in full and saved with the adapter.
  std::vector<std::string> modules_to_save{};
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const LnTuningConfig&, const LnTuningConfig&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("target_modules", config.target_modules);
    visit("exclude_modules", config.exclude_modules);
    visit("modules_to_save", config.modules_to_save);
    detail::visit_origin(config, visit);
  }

  /// The fields that say which modules are meant, for match_target_modules.
  LoraConfig targets() const { return detail::targets_of(*this); }

  /// Throws ConfigError, naming the field, where one is out of range or contradicts another.
  void validate() const {
    detail::validate_targets(targets(), kName);
  }
};

PEFT_END_NAMESPACE
