#pragma once
/// The configuration of LoKr, with the names and defaults of Python PEFT's LoKrConfig.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/lora_config.hpp"
#include "peft/module_selector.hpp"
#include "peft/method_targets.hpp"

PEFT_BEGIN_NAMESPACE

/// `LokrConfig{.r = 8, .alpha = 8, .target_modules = {"q_proj", "v_proj"}}`.
struct LokrConfig {
  static constexpr std::string_view kPeftType = "LOKR";
  static constexpr std::string_view kName = "LokrConfig";
  Index r = 8;
  /// Numerator of the scale alpha/r.
  double alpha = 8;
  double rank_dropout = 0.0;    ///< supported: 0
  double module_dropout = 0.0;  ///< supported: 0
  bool use_effective_conv2d = false;
  /// Whether the first factor is factored too where r is small enough.
  bool decompose_both = false;
  /// −1, or what one side's first dimension is.
  Index decompose_factor = -1;
  bool rank_dropout_scale = false;
  /// Modules that get an update; as LoraConfig's.
  ModuleSelector target_modules{};
  ModuleSelector exclude_modules{};
  /// true, false or "lycoris".
  std::variant<bool, std::string> init_weights = true;
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

  friend bool operator==(const LokrConfig&, const LokrConfig&) = default;

  /// visit(name in adapter_config.json, field) for every field.
  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("r", config.r);
    visit("alpha", config.alpha);
    visit("rank_dropout", config.rank_dropout);
    visit("module_dropout", config.module_dropout);
    visit("use_effective_conv2d", config.use_effective_conv2d);
    visit("decompose_both", config.decompose_both);
    visit("decompose_factor", config.decompose_factor);
    visit("rank_dropout_scale", config.rank_dropout_scale);
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
    if (decompose_factor == 0 || decompose_factor < -1) {
      fail<ConfigError>("{}: decompose_factor is {}; expected at least 1, or -1", kName, decompose_factor);
    }
    if (const auto* start = std::get_if<std::string>(&init_weights); start != nullptr && *start != "lycoris") {
      fail<ConfigError>("{}: init_weights is \"{}\"; expected true, false or \"lycoris\"", kName, *start);
    }
  }
};

PEFT_END_NAMESPACE
