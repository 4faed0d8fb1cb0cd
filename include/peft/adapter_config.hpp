#pragma once
/// The configuration of bottleneck adapters, with the field names, meanings and defaults of AdapterHub's BnConfig, so
/// that adapter_config.json reads and writes one to one. Houlsby et al., "Parameter-Efficient Transfer Learning for
/// NLP", 2019; Pfeiffer et al., "AdapterFusion", 2021; He et al., "Towards a Unified View of Parameter-Efficient Transfer
/// Learning", 2022 (parallel, scaled).

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "peft/core/activation.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/reduction_factor.hpp"

PEFT_BEGIN_NAMESPACE

/// Where in a layer an adapter stands.
enum class AdapterSite : std::uint8_t {
  kAttention,  ///< after attention: `mh_adapter`
  kOutput,     ///< after the feed-forward: `output_adapter`
};

/// `auto config = AdapterConfig::seq_bn(); config.reduction_factor = 8;`
/// What BnConfig has no default for has that of seq_bn here: after the feed-forward, relu, a sixteenth.
struct AdapterConfig {
  /// After attention of each layer.
  bool mh_adapter = false;
  /// After the feed-forward of each layer.
  bool output_adapter = true;
  ReductionFactor reduction_factor = 16;
  /// A name of transformers' ACT2FN: see activation_named().
  std::string non_linearity = "relu";
  /// Residual connection and norm of the block before the adapter. Not looked at where `is_parallel`.
  bool original_ln_before = false;
  /// Residual connection and norm of the block after the adapter.
  bool original_ln_after = true;
  /// A layer norm of the adapter's own, before the bottleneck.
  bool ln_before = false;
  /// The same after it.
  bool ln_after = false;
  /// Start of the weights: "bert" (normal, 0.02), "mam_adapter" (the update starts at 0), "houlsby" (truncated normal,
  /// 0.01).
  std::string init_weights = "bert";
  /// Where set, every adapter starts from this seed, all alike.
  std::optional<Index> init_weights_seed{};
  /// Beside the block instead of behind it: the input is the block's input.
  bool is_parallel = false;
  /// Factor of the update: a number, "learned" (one, trained) or "channel" (one per unit, trained).
  std::variant<double, std::string> scaling = 1.0;
  /// The residual connection around the bottleneck starts: true, before `original_ln_before`'s sum and norm; "post_add",
  /// between sum and norm; false, after both. Matters only with `original_ln_before`.
  std::variant<bool, std::string> residual_before_ln = true;
  /// Whether that residual is added before `ln_after`. Matters only with `ln_after`, not where `is_parallel`.
  bool adapter_residual_before_ln = false;
  /// Layers without adapters.
  std::vector<Index> leave_out{};
  /// Probability that an element of the update is dropped in training; in [0, 1).
  float dropout = 0.0f;

  friend bool operator==(const AdapterConfig&, const AdapterConfig&) = default;

  /// Pfeiffer et al., 2021.
  static AdapterConfig seq_bn() {
    AdapterConfig config;
    config.original_ln_before = true;
    return config;
  }
  /// Houlsby et al., 2019.
  static AdapterConfig double_seq_bn() {
    AdapterConfig config;
    config.mh_adapter = true;
    config.non_linearity = "swish";
    return config;
  }
  /// He et al., 2022.
  static AdapterConfig par_bn() {
    AdapterConfig config;
    config.reduction_factor = 2;
    config.init_weights = "mam_adapter";
    config.is_parallel = true;
    config.scaling = 4.0;
    return config;
  }
  static AdapterConfig scaled_par_bn() {
    AdapterConfig config = par_bn();
    config.scaling = "learned";
    return config;
  }
  /// By AdapterHub's name, the old ones ("pfeiffer", "houlsby", "parallel", "scaled_parallel") too. Throws ConfigError.
  static AdapterConfig named(std::string_view name) {
    if (name == "seq_bn" || name == "pfeiffer") return seq_bn();
    if (name == "double_seq_bn" || name == "houlsby") return double_seq_bn();
    if (name == "par_bn" || name == "parallel") return par_bn();
    if (name == "scaled_par_bn" || name == "scaled_parallel") return scaled_par_bn();
    fail<ConfigError>("AdapterConfig: there is no configuration named \"{}\"; expected seq_bn, double_seq_bn, par_bn or "
                      "scaled_par_bn",
                      name);
  }

  /// Whether layer `layer` has an adapter at `site`.
  bool has_adapter(AdapterSite site, Index layer) const noexcept {
    return (site == AdapterSite::kAttention ? mh_adapter : output_adapter) &&
           std::find(leave_out.begin(), leave_out.end(), layer) == leave_out.end();
  }
  Index bottleneck_size(Index hidden_size, Index layer) const {
    return reduction_factor.bottleneck_size(hidden_size, layer);
  }
  bool is_scaling_trained() const noexcept { return std::holds_alternative<std::string>(scaling); }
  bool is_post_add() const noexcept { return std::holds_alternative<std::string>(residual_before_ln); }

  /// Throws ConfigError, naming the field, where one is out of range, contradicts another or is not supported.
  void validate() const {
    if (!mh_adapter && !output_adapter) {
      fail<ConfigError>("AdapterConfig: mh_adapter and output_adapter are both false; expected at least one site");
    }
    reduction_factor.validate();
    if (!activation_named(non_linearity)) {
      fail<ConfigError>("AdapterConfig: non_linearity \"{}\" is not supported; expected relu, gelu, gelu_new, silu, "
                        "swish, tanh or leakyrelu",
                        non_linearity);
    }
    if (init_weights != "bert" && init_weights != "mam_adapter" && init_weights != "houlsby") {
      fail<ConfigError>("AdapterConfig: init_weights is \"{}\"; expected \"bert\", \"mam_adapter\" or \"houlsby\"",
                        init_weights);
    }
    if (const double* factor = std::get_if<double>(&scaling)) {
      if (!is_finite(*factor)) fail<ConfigError>("AdapterConfig: scaling is {}; expected a finite number", *factor);
    } else if (const auto& kind = std::get<std::string>(scaling); kind != "learned" && kind != "channel") {
      fail<ConfigError>("AdapterConfig: scaling is \"{}\"; expected a number, \"learned\" or \"channel\"", kind);
    }
    if (is_post_add()) {
      if (const auto& kind = std::get<std::string>(residual_before_ln); kind != "post_add") {
        fail<ConfigError>("AdapterConfig: residual_before_ln is \"{}\"; expected true, false or \"post_add\"", kind);
      }
      if (!original_ln_before && !is_parallel) {
        fail<ConfigError>("AdapterConfig: residual_before_ln is \"post_add\" without original_ln_before: there is no sum "
                          "that it could mean");
      }
    }
    for (const Index layer : leave_out) {
      if (layer < 0) fail<ConfigError>("AdapterConfig: leave_out holds {}; expected layer numbers from 0", layer);
    }
    if (!is_finite(dropout) || dropout < 0.0f || dropout >= 1.0f) {
      fail<ConfigError>("AdapterConfig: dropout is {}; expected a probability p with 0 <= p < 1", dropout);
    }
  }
};

PEFT_END_NAMESPACE
