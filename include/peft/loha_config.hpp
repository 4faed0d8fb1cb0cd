#pragma once
/// The configuration of LoHa, with the names and defaults of Python PEFT's LoHaConfig.

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

/// `LohaConfig{.r = 8, .alpha = 8, .target_modules = {"q_proj", "v_proj"}}`.
struct LohaConfig {
  static constexpr std::string_view kPeftType = "LOHA";
  static constexpr std::string_view kName = "LohaConfig";
  Index r = 8;
  /// Numerator of the scale alpha/r.
  double alpha = 8;
  double rank_dropout = 0.0;    ///< supported: 0
  double module_dropout = 0.0;  ///< supported: 0
  bool use_effective_conv2d = false;
  /// Modules that get an update; as LoraConfig's.
  ModuleSelector target_modules{};
  ModuleSelector exclude_modules{};
  bool init_weights = true;
  std::vector<Index> layers_to_transform{};
  std::vector<std::string> layers_pattern{};
  std::vector<std::pair<std::string, Index>> rank_pattern{};
  std::vector<std::pair<std::string, double>> alpha_pattern{};
  /// Modules trained in full and saved with the adapter.
  std::vector<std::string> modules_to_save{};
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const LohaConfig&, const LohaConfig&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("r", config.r);
    visit("alpha", config.alpha);
    visit("rank_dropout", config.rank_dropout);
    visit("module_dropout", config.module_dropout);
    visit("use_effective_conv2d", config.use_effective_conv2d);
    visit("target_modules", config.target_modules);
    visit("exclude_modules", config.exclude_modules);
    visit("init_weights", config.init_weights);
    visit("layers_to_transform", config.layers_to_transform);
    visit("layers_pattern", config.layers_pattern);
    visit("rank_pattern", config.rank_pattern);
    visit("alpha_pattern", config.alpha_pattern);
    visit("modules_to_save", config.modules_to_save);
    detail::visit_origin(config, visit);
  }

  /// The fields that say which modules are meant, for match_target_modules.
  LoraConfig targets() const {
    LoraConfig result = detail::targets_of(*this);
    result.r = r;
    result.lora_alpha = alpha;
    return result;
  }

  /// Throws ConfigError, naming the field, where one is out of range or contradicts another.
  void validate() const {
    detail::validate_targets(targets(), kName);
    detail::refuse_structured_dropout(kName, rank_dropout, module_dropout);
  }
};

PEFT_END_NAMESPACE
