#pragma once
/// Learning-rate schedules with Hugging Face's formulas (transformers.get_scheduler). For step s of N, after w of W
/// warm-up steps, the rate is lr · f(s):
///   warm-up               f = s / max(1, W)                                    s < W
///   linear                f = max(0, (N − s) / max(1, N − W))
///   cosine                f = max(0, ½·(1 + cos(π · (s − W) / max(1, N − W))))
///   constant              f = 1, without warm-up
///   constant_with_warmup  f = 1
/// The first update is step 0, so with warm-up it has the rate 0, as there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// HF's names: "linear", "cosine", "constant", "constant_with_warmup".
enum class SchedulerType : std::uint8_t { kLinear, kCosine, kConstant, kConstantWithWarmup };

constexpr std::string_view name_of(SchedulerType type) noexcept {
  switch (type) {
    case SchedulerType::kLinear:
      return "linear";
    case SchedulerType::kCosine:
      return "cosine";
    case SchedulerType::kConstant:
      return "constant";
    case SchedulerType::kConstantWithWarmup:
      return "constant_with_warmup";
  }
  return "unknown";
}

/// The schedule of that name. Throws ConfigError for another.
inline SchedulerType scheduler_type_from(std::string_view name) {
  for (const SchedulerType type : {SchedulerType::kLinear, SchedulerType::kCosine, SchedulerType::kConstant,
                                   SchedulerType::kConstantWithWarmup}) {
    if (name == name_of(type)) return type;
  }
  fail<ConfigError>("lr_scheduler_type is \"{}\"; expected linear, cosine, constant or constant_with_warmup", name);
}

/// Warm-up steps as HF counts them: `warmup_steps` where it is set, else ⌈steps · warmup_ratio⌉.
inline Index warmup_step_count(Index steps, Index warmup_steps, double warmup_ratio) noexcept {
  if (warmup_steps > 0) return warmup_steps;
  return static_cast<Index>(std::ceil(static_cast<double>(steps) * warmup_ratio));
}

/// A learning rate per optimizer step.
class LearningRateSchedule {
 public:
  /// `steps`: optimizer steps of the whole training.
  LearningRateSchedule(SchedulerType type, double learning_rate, Index steps, Index warmup_steps) noexcept
      : type_(type), learning_rate_(learning_rate), steps_(steps), warmup_(warmup_steps) {}

  /// The rate of optimizer step `step`, counted from 0.
  double at(Index step) const noexcept { return learning_rate_ * rounded(factor(step)); }

  /// f(step), by which the configured rate is multiplied.
  double factor(Index step) const noexcept {
    if (type_ == SchedulerType::kConstant) return 1.0;
    if (step < warmup_) return ratio(step, warmup_);
    switch (type_) {
      case SchedulerType::kLinear:
        return std::max(0.0, ratio(steps_ - step, steps_ - warmup_));
      case SchedulerType::kCosine: {
        constexpr double kPi = 3.14159265358979323846;
        return std::max(0.0, 0.5 * (1.0 + rounded(std::cos(rounded(kPi * ratio(step - warmup_, steps_ - warmup_))))));
      }
      default:
        return 1.0;
    }
  }

 private:
  static double ratio(Index part, Index whole) noexcept {
    return quotient(static_cast<double>(part), static_cast<double>(std::max<Index>(1, whole)));
  }

  SchedulerType type_;
  double learning_rate_;
  Index steps_;
  Index warmup_;
};

PEFT_END_NAMESPACE
