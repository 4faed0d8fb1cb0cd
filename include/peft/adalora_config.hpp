#pragma once
/// The configuration of AdaLoRA, with the names and defaults of Python PEFT's AdaLoraConfig.

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

/// `AdaLoraConfig{.target_r = 8, .init_r = 12, .total_step = 1000, .target_modules = {"q_proj"}}`.
struct AdaLoraConfig {
  static constexpr std::string_view kPeftType = "ADALORA";
  static constexpr std::string_view kName = "AdaLoraConfig";
  Index target_r = 8;   ///< rank per module at the end, on average
  Index init_r = 12;    ///< rank of every module at the start
  Index tinit = 0;      ///< optimizer steps before ranks are reduced
  Index tfinal = 0;     ///< optimizer steps at the end during which they stay
  Index deltaT = 1;     ///< steps between two reductions
  double beta1 = 0.85;  ///< smoothing of the sensitivity
  double beta2 = 0.85;  ///< smoothing of its uncertainty
  double orth_reg_weight = 0.5;
  Index total_step = 0;  ///< of the training; must be set
  /// Which of its columns a module has kept: parameter's name ("….q_proj.lora_E") and one flag per column.
  std::vector<std::pair<std::string, std::vector<bool>>> rank_pattern{};
  Index r = 8;  ///< not used by AdaLoRA; kept for the file
  double lora_alpha = 8;
  /// Modules that get an update; as LoraConfig's.
  ModuleSelector target_modules{};
  ModuleSelector exclude_modules{};
  float lora_dropout = 0.0f;
  bool fan_in_fan_out = false;
  std::string bias = "none";
  bool init_lora_weights = true;
  bool use_rslora = false;  ///< changes nothing in PEFT's AdaLoRA
  std::vector<Index> layers_to_transform{};
  std::vector<std::string> layers_pattern{};
  /// Modules trained in full and saved with the adapter.
  std::vector<std::string> modules_to_save{};
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const AdaLoraConfig&, const AdaLoraConfig&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("target_r", config.target_r);
    visit("init_r", config.init_r);
    visit("tinit", config.tinit);
    visit("tfinal", config.tfinal);
    visit("deltaT", config.deltaT);
    visit("beta1", config.beta1);
    visit("beta2", config.beta2);
    visit("orth_reg_weight", config.orth_reg_weight);
    visit("total_step", config.total_step);
    visit("rank_pattern", config.rank_pattern);
    visit("r", config.r);
    visit("lora_alpha", config.lora_alpha);
    visit("target_modules", config.target_modules);
    visit("exclude_modules", config.exclude_modules);
    visit("lora_dropout", config.lora_dropout);
    visit("fan_in_fan_out", config.fan_in_fan_out);
    visit("bias", config.bias);
    visit("init_lora_weights", config.init_lora_weights);
    visit("use_rslora", config.use_rslora);
    visit("layers_to_transform", config.layers_to_transform);
    visit("layers_pattern", config.layers_pattern);
    visit("modules_to_save", config.modules_to_save);
    detail::visit_origin(config, visit);
  }

  /// The fields that say which modules are meant, for match_target_modules.
  LoraConfig targets() const {
    LoraConfig result = detail::targets_of(*this);
    result.bias = bias;
    result.r = init_r;
    result.lora_alpha = lora_alpha;
    return result;
  }

  /// Throws ConfigError, naming the field, where one is out of range or contradicts another.
  void validate() const {
    detail::validate_targets(targets(), kName);
    if (init_r < 1) fail<ConfigError>("{}: init_r is {}; expected at least 1", kName, init_r);
    if (target_r < 1) fail<ConfigError>("{}: target_r is {}; expected at least 1", kName, target_r);
    if (deltaT < 1) fail<ConfigError>("{}: deltaT is {}; expected at least 1", kName, deltaT);
    if (total_step < 1) fail<ConfigError>("{}: total_step is {}; expected at least 1", kName, total_step);
    if (!is_finite(lora_dropout) || lora_dropout < 0.0f || lora_dropout >= 1.0f) {
      fail<ConfigError>("{}: lora_dropout is {}; expected a probability p with 0 <= p < 1", kName, lora_dropout);
    }
    if (tinit < 0) fail<ConfigError>("{}: tinit is {}; expected at least 0", kName, tinit);
    if (tfinal < 0) fail<ConfigError>("{}: tfinal is {}; expected at least 0", kName, tfinal);
    if (tinit >= total_step - tfinal) {
      fail<ConfigError>("{}: tinit {}, tfinal {}, total_step {} leave no steps to reduce ranks in; expected tinit < total_step - "
                        "tfinal",
                        kName, tinit, tfinal, total_step);
    }
    for (const auto& [field, value] : {std::pair<std::string_view, double>{"beta1", beta1}, {"beta2", beta2}}) {
      if (!is_finite(value) || value <= 0.0 || value >= 1.0) {
        fail<ConfigError>("{}: {} is {}; expected a number between 0 and 1", kName, field, value);
      }
    }
    if (!is_finite(orth_reg_weight) || orth_reg_weight < 0.0) {
      fail<ConfigError>("{}: orth_reg_weight is {}; expected a number from 0", kName, orth_reg_weight);
    }
  }
};

PEFT_END_NAMESPACE
