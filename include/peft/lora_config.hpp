#pragma once
/// The configuration of LoRA, with the field names, meanings and defaults of Python PEFT's LoraConfig, so that
/// adapter_config.json reads and writes one to one. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
/// 2021; rank-stabilised scaling: Kalajdzievski, 2023.

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/loftq_config.hpp"
#include "peft/module_selector.hpp"

PEFT_BEGIN_NAMESPACE

/// How init_lora_weights = "eva" spreads ranks over modules, and what it takes for converged (PEFT's EvaConfig).
struct EvaConfig {
  /// A module may get up to rho·r columns; 1: every module gets r.
  double rho = 2.0;
  /// Cosine similarity of singular vectors between two batches from which they count as converged.
  double tau = 0.99;
  /// Whether label masks decide which tokens count.
  bool use_label_mask = true;
  Index label_mask_value = -100;
  bool whiten = false;
  /// Whether lora_alpha is scaled with the redistributed rank, so that alpha/r stays.
  bool adjust_scaling_factors = true;

  friend bool operator==(const EvaConfig&, const EvaConfig&) = default;
};

/// `LoraConfig{.r = 8, .lora_alpha = 32, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.05f}`.
/// Rank and scale of one module follow from `rank_pattern` and `alpha_pattern`: rank_for() and scaling_for() in
/// target_modules.hpp.
struct LoraConfig {
  static constexpr std::string_view kPeftType = "LORA";
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
  /// Which biases of the base are trained: "none", "lora_only" (those of adapted layers) or "all".
  std::string bias = "none";
  bool use_rslora = false;
  /// Start of A and B: true = A Kaiming-uniform(a = √5), B = 0; "gaussian" = A normal with standard deviation 1/r,
  /// B = 0; false = both Kaiming-uniform, so that the update is not zero (for tests); "pissa", "pissa_niter_N", "olora",
  /// "orthogonal", "loftq", "eva": see lora_initialization.hpp.
  std::variant<bool, std::string> init_lora_weights = true;
  /// Layer numbers that are kept of what a list in `target_modules` matches by suffix; empty: all.
  std::vector<Index> layers_to_transform{};
  /// Regular expressions of the name before the layer number; empty: any.
  std::vector<std::string> layers_pattern{};
  /// Ranks of modules whose name ends in a match of the key; the first key that matches counts.
  std::vector<std::pair<std::string, Index>> rank_pattern{};
  /// The same for lora_alpha.
  std::vector<std::pair<std::string, double>> alpha_pattern{};
  /// Modules trained in full and saved with the adapter: names, as in a list of target_modules.
  std::vector<std::string> modules_to_save{};
  /// "CAUSAL_LM", …; kept for the file.
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;
  /// Whether B has a bias.
  bool lora_bias = false;
  /// Weight-decomposed: a trained length per output row (dora.hpp). Liu et al., 2024.
  bool use_dora = false;
  /// Token ids whose embedding rows are trained: of the input embedding, or per embedding by name.
  std::vector<std::pair<std::string, std::vector<Index>>> trainable_token_indices{};
  /// aLoRA: the adapter acts on the tokens from the last occurrence of these on. Greenewald et al., 2025.
  std::vector<Index> alora_invocation_tokens{};
  /// With init_lora_weights = "eva".
  EvaConfig eva_config{};
  /// With init_lora_weights = "loftq".
  LoftqConfig loftq_config{};

  friend bool operator==(const LoraConfig&, const LoraConfig&) = default;

  /// Whether the start changes the base's weights (PiSSA, OLoRA, LoftQ), so that the adapter means nothing on others.
  bool changes_base() const {
    const auto* kind = std::get_if<std::string>(&init_lora_weights);
    return kind != nullptr && (kind->starts_with("pissa") || *kind == "olora" || *kind == "loftq");
  }

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
    if (bias != "none" && bias != "all" && bias != "lora_only") {
      fail<ConfigError>("LoraConfig: bias is \"{}\"; expected \"none\", \"all\" or \"lora_only\"", bias);
    }
    if (const auto* kind = std::get_if<std::string>(&init_lora_weights); kind != nullptr && !is_known_start(*kind)) {
      fail<ConfigError>("LoraConfig: init_lora_weights = \"{}\" is not supported; expected true, false, \"gaussian\", "
                        "\"pissa\", \"pissa_niter_N\", \"olora\", \"orthogonal\", \"loftq\" or \"eva\"",
                        *kind);
    }
    if (lora_bias && use_dora) fail<ConfigError>("LoraConfig: lora_bias and use_dora are both set; expected one of them");
    if (lora_bias && !std::holds_alternative<bool>(init_lora_weights)) {
      fail<ConfigError>("LoraConfig: lora_bias goes with init_lora_weights = true or false only; got \"{}\"",
                        std::get<std::string>(init_lora_weights));
    }
    if (use_dora && !alora_invocation_tokens.empty()) {
      fail<ConfigError>("LoraConfig: use_dora and alora_invocation_tokens are both set; expected one of them");
    }
    if (!is_finite(eva_config.rho) || eva_config.rho < 1.0) {
      fail<ConfigError>("LoraConfig: eva_config.rho is {}; expected at least 1", eva_config.rho);
    }
    if (loftq_config.loftq_bits != 4 && loftq_config.loftq_bits != 8) {
      fail<ConfigError>("LoraConfig: loftq_config.loftq_bits is {}; expected 4 or 8", loftq_config.loftq_bits);
    }
    if (loftq_config.loftq_iter < 1) {
      fail<ConfigError>("LoraConfig: loftq_config.loftq_iter is {}; expected at least 1", loftq_config.loftq_iter);
    }
    if (!is_finite(eva_config.tau) || eva_config.tau < 0.0 || eva_config.tau > 1.0) {
      fail<ConfigError>("LoraConfig: eva_config.tau is {}; expected 0 to 1", eva_config.tau);
    }
    for (const auto& [name, tokens] : trainable_token_indices) {
      for (const Index token : tokens) {
        if (token < 0) fail<ConfigError>("LoraConfig: trainable_token_indices of {} holds {}; expected ids from 0", name, token);
      }
    }
    for (const Index token : alora_invocation_tokens) {
      if (token < 0) fail<ConfigError>("LoraConfig: alora_invocation_tokens holds {}; expected ids from 0", token);
    }
  }

  static bool is_known_start(const std::string& kind) {
    constexpr const char* kIterated = "pissa_niter_";
    if (kind.starts_with(kIterated)) {
      const std::string digits = kind.substr(std::string(kIterated).size());
      return !digits.empty() && digits.size() < 5 && digits.find_first_not_of("0123456789") == std::string::npos;
    }
    return kind == "gaussian" || kind == "pissa" || kind == "olora" || kind == "orthogonal" || kind == "loftq" || kind == "eva";
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
