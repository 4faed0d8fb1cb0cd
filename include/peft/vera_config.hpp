#pragma once
/// The configuration of VeRA, with the names and defaults of Python PEFT's VeraConfig.

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

/// `VeraConfig{.r = 256, .target_modules = {"q_proj", "v_proj"}}`.
struct VeraConfig {
  static constexpr std::string_view kPeftType = "VERA";
  static constexpr std::string_view kName = "VeraConfig";
  Index r = 256;
  /// Modules that get an update; as LoraConfig's.
  ModuleSelector target_modules{};
  /// Of the random projections. They are this library's own numbers, not torch's.
  Index projection_prng_key = 0;
  /// Whether the projections are saved with the adapter. Expected: true, since other programs have other numbers.
  bool save_projection = true;
  float vera_dropout = 0.0f;
  double d_initial = 0.1;
  bool fan_in_fan_out = false;
  std::string bias = "none";
  /// Modules trained in full and saved with the adapter.
  std::vector<std::string> modules_to_save{};
  bool init_weights = true;
  std::vector<Index> layers_to_transform{};
  std::vector<std::string> layers_pattern{};
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const VeraConfig&, const VeraConfig&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("r", config.r);
    visit("target_modules", config.target_modules);
    visit("projection_prng_key", config.projection_prng_key);
    visit("save_projection", config.save_projection);
    visit("vera_dropout", config.vera_dropout);
    visit("d_initial", config.d_initial);
    visit("fan_in_fan_out", config.fan_in_fan_out);
    visit("bias", config.bias);
    visit("modules_to_save", config.modules_to_save);
    visit("init_weights", config.init_weights);
    visit("layers_to_transform", config.layers_to_transform);
    visit("layers_pattern", config.layers_pattern);
    detail::visit_origin(config, visit);
  }

  /// The fields that say which modules are meant, for match_target_modules.
  LoraConfig targets() const {
    LoraConfig result = detail::targets_of(*this);
    result.r = r;
    result.bias = bias == "vera_only" ? "lora_only" : bias;
    return result;
  }

  /// Throws ConfigError, naming the field, where one is out of range or contradicts another.
  void validate() const {
    detail::validate_targets(targets(), kName);
    if (r < 1) fail<ConfigError>("{}: r is {}; expected at least 1", kName, r);
    if (!is_finite(vera_dropout) || vera_dropout < 0.0f || vera_dropout >= 1.0f) {
      fail<ConfigError>("{}: vera_dropout is {}; expected a probability p with 0 <= p < 1", kName, vera_dropout);
    }
    if (projection_prng_key < 0) {
      fail<ConfigError>("{}: projection_prng_key is {}; expected at least 0", kName, projection_prng_key);
    }
    if (!save_projection) {
      fail<ConfigError>("{}: save_projection is false; expected true: the projections are drawn by torch's generator there and "
                        "by another here, so that the adapter alone means nothing",
                        kName);
    }
    if (!is_finite(d_initial)) fail<ConfigError>("{}: d_initial is {}; expected a finite number", kName, d_initial);
  }
};

PEFT_END_NAMESPACE
