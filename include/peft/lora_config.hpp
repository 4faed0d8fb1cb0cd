#pragma once
/// The configuration of LoRA, with the field names, meanings and defaults of Python PEFT's LoraConfig, so that
/// adapter_config.json reads and writes one to one. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
/// 2021; rank-stabilised scaling: Kalajdzievski, 2023.

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/module_selector.hpp"

PEFT_BEGIN_NAMESPACE

/// `LoraConfig{.r = 8, .lora_alpha = 32, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.05f}`.
/// Rank and scale of one module follow from `rank_pattern` and `alpha_pattern`: rank_for() and scaling_for() in
/// target_modules.hpp.
struct LoraConfig {
  /// Rank of the update.
  Index r = 8;
  /// Numerator of the scale: alpha/r, or alpha/√r with `use_rslora`.
  double lora_alpha = 8;
  /// Modules that get an update: names, a regular expression or "all-linear". Must be set.
  ModuleSelector target_modules{};
  /// Modules that get none although `target_modules` means them.
  ModuleSelector exclude_modules{};
  /// Probability that an element of the update's input is dropped in training; in [0, 1).
  float lora_dropout = 0.0f;
  /// Whether the Python module stores its weight as [in, out]. Kept for the file; here each layer knows its own layout.
  bool fan_in_fan_out = false;
  /// Which biases are trained. Supported: "none".
  std::string bias = "none";
  bool use_rslora = false;
  /// Start of A and B: true = A Kaiming-uniform(a = √5), B = 0; "gaussian" = A normal with standard deviation 1/r,
  /// B = 0; false = both Kaiming-uniform, so that the update is not zero (for tests).
  std::variant<bool, std::string> init_lora_weights = true;
  /// Layer numbers that are kept of what a list in `target_modules` matches by suffix; empty: all.
  std::vector<Index> layers_to_transform{};
  /// Regular expressions of the name before the layer number; empty: any.
  std::vector<std::string> layers_pattern{};
  /// Ranks of modules whose name ends in a match of the key; the first key that matches counts.
  std::vector<std::pair<std::string, Index>> rank_pattern{};
  /// The same for lora_alpha.
  std::vector<std::pair<std::string, double>> alpha_pattern{};
  /// Modules trained in full and saved with the adapter. Supported: none.
  std::vector<std::string> modules_to_save{};
  /// "CAUSAL_LM", …; kept for the file.
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const LoraConfig&, const LoraConfig&) = default;

  /// Throws ConfigError, naming the field, where one is out of range, contradicts another or is not supported.
  void validate() const {
    check_numbers();
    check_supported();
    check_targets();
  }

 private:
  void check_numbers() const {
    if (r < 1) fail<ConfigError>("LoraConfig: r is {}; expected at least 1", r);
    if (!is_finite(lora_alpha)) fail<ConfigError>("LoraConfig: lora_alpha is {}; expected a finite number", lora_alpha);
    if (!is_finite(lora_dropout) || lora_dropout < 0.0f || lora_dropout >= 1.0f) {
      fail<ConfigError>("LoraConfig: lora_dropout is {}; expected a probability p with 0 <= p < 1", lora_dropout);
    }
    for (const auto& [key, rank] : rank_pattern) {
      if (rank < 1) fail<ConfigError>("LoraConfig: rank_pattern[\"{}\"] is {}; expected at least 1", key, rank);
    }
    for (const auto& [key, alpha] : alpha_pattern) {
      if (!is_finite(alpha)) {
        fail<ConfigError>("LoraConfig: alpha_pattern[\"{}\"] is {}; expected a finite number", key, alpha);
      }
    }
    for (const Index layer : layers_to_transform) {
      if (layer < 0) {
        fail<ConfigError>("LoraConfig: layers_to_transform holds {}; expected layer numbers from 0", layer);
      }
    }
  }

  void check_supported() const {
    if (bias == "all" || bias == "lora_only") {
      fail<ConfigError>("LoraConfig: bias = \"{}\" is not supported; expected \"none\"", bias);
    }
    if (bias != "none") {
      fail<ConfigError>(
          "LoraConfig: bias is \"{}\"; PEFT knows \"none\", \"all\" and \"lora_only\"; supported: \"none\"", bias);
    }
    if (const auto* kind = std::get_if<std::string>(&init_lora_weights); kind != nullptr && *kind != "gaussian") {
      fail<ConfigError>("LoraConfig: init_lora_weights = \"{}\" is not supported; expected true, false or \"gaussian\"",
                        *kind);
    }
    if (!modules_to_save.empty()) {
      fail<ConfigError>("LoraConfig: modules_to_save (\"{}\"{}) is not supported; leave it empty",
                        modules_to_save.front(), modules_to_save.size() > 1 ? ", …" : "");
    }
  }

  void check_targets() const {
    if (target_modules.is_empty()) {
      fail<ConfigError>(
          "LoraConfig: target_modules is {}; expected a list of module names, a regular expression or "
          "\"all-linear\"",
          target_modules.text());
    }
    if (target_modules.is_pattern() && !layers_to_transform.empty()) {
      fail<ConfigError>("LoraConfig: layers_to_transform needs target_modules to be a list; got {}",
                        target_modules.text());
    }
    if (target_modules.is_pattern() && !layers_pattern.empty()) {
      fail<ConfigError>("LoraConfig: layers_pattern needs target_modules to be a list; got {}", target_modules.text());
    }
    if (!layers_pattern.empty() && layers_to_transform.empty()) {
      fail<ConfigError>("LoraConfig: layers_pattern is set (\"{}\"); expected layers_to_transform to be set with it",
                        layers_pattern.front());
    }
  }
};

/// The scale of an update of rank r: alpha/r, or alpha/√r where rank-stabilised.
inline double lora_scaling(double alpha, Index r, bool use_rslora) noexcept {
  return quotient(alpha, use_rslora ? root(static_cast<double>(r)) : static_cast<double>(r));
}

PEFT_END_NAMESPACE
