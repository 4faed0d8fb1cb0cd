#pragma once
/// The configuration of AdapterFusion, with AdapterHub's field names, meanings and defaults. Pfeiffer et al.,
/// "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", 2021.

#include <optional>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// The defaults are AdapterHub's "dynamic", which is its default too.
struct AdapterFusionConfig {
  bool key = true;
  bool query = true;
  bool value = true;
  /// Whether the query is taken before the sum and norm of `original_ln_before`.
  bool query_before_ln = false;
  /// Whether the trainer adds AdapterFusion::regularization_loss().
  bool regularization = true;
  /// Whether the residual is added to keys and values, instead of to the result.
  bool residual_before = false;
  /// Whether scores are divided by a temperature, from 50 down to 1 by 0.05 a step: AdapterFusion::anneal().
  bool temperature = false;
  /// Which of two orders the value's matrix has: the result is the same.
  bool value_before_softmax = true;
  /// Whether the value's matrix starts as the identity (and 1e-6 beside it).
  bool value_initialized = true;
  /// Probability that a score is dropped in training, in [0, 1); none: the model's attention dropout, which the host
  /// gives.
  std::optional<float> dropout_prob{};

  friend bool operator==(const AdapterFusionConfig&, const AdapterFusionConfig&) = default;

  static AdapterFusionConfig dynamic_fusion() { return {}; }
  /// Without a value matrix.
  static AdapterFusionConfig static_fusion() {
    AdapterFusionConfig config;
    config.value = config.regularization = config.value_initialized = false;
    return config;
  }

  /// Throws ConfigError, naming the field.
  void validate() const {
    if (!key && !query && !value) {
      fail<ConfigError>("AdapterFusionConfig: key, query and value are all false; expected at least one, or there is "
                        "nothing to train");
    }
    if (dropout_prob && (!is_finite(*dropout_prob) || *dropout_prob < 0.0f || *dropout_prob >= 1.0f)) {
      fail<ConfigError>("AdapterFusionConfig: dropout_prob is {}; expected a probability p with 0 <= p < 1",
                        *dropout_prob);
    }
  }
};

PEFT_END_NAMESPACE
