#pragma once
/// Dynamic loss scaling for f16 activations, with the rules and defaults of torch.amp.GradScaler: the loss is
/// multiplied by `scale`, so that small gradients do not vanish in f16; a step whose gradients are not finite is skipped
/// and the scale halved; after 2000 good steps in a row it is doubled. Micikevicius et al., "Mixed Precision Training",
/// 2018.

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

struct GradScalerConfig {
  double init_scale = 65536.0;
  double growth_factor = 2.0;
  double backoff_factor = 0.5;
  Index growth_interval = 2000;
};

/// The scale and how it moves. A value type: its two numbers are its state.
class GradScaler {
 public:
  explicit GradScaler(GradScalerConfig config = {}) noexcept : config_(config), scale_(config.init_scale) {}

  /// Multiplies the loss, and so every gradient.
  double scale() const noexcept { return scale_; }
  /// Good steps since the scale last moved.
  Index growth_tracker() const noexcept { return growth_tracker_; }

  /// Call once per step: `found_non_finite` says that the step was skipped.
  void update(bool found_non_finite) noexcept {
    if (found_non_finite) {
      scale_ *= config_.backoff_factor;
      growth_tracker_ = 0;
      return;
    }
    if (++growth_tracker_ < config_.growth_interval) return;
    growth_tracker_ = 0;
    // torch keeps the scale in a float and grows it only while it stays finite.
    const double grown = scale_ * config_.growth_factor;
    if (is_finite(static_cast<float>(grown))) scale_ = grown;
  }

  /// Continues from a saved state.
  void restore(double scale, Index growth_tracker) noexcept {
    scale_ = scale;
    growth_tracker_ = growth_tracker;
  }

 private:
  GradScalerConfig config_;
  double scale_;
  Index growth_tracker_ = 0;
};

PEFT_END_NAMESPACE
