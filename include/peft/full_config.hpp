#pragma once
/// Full fine-tuning as the baseline, and BitFit: which of the base's own parameters are trained. Python PEFT has no
/// configuration of either; the adapter's file has PEFT's keys of trained copies.

#include <optional>
#include <string>
#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// `FullConfig{}`: every parameter. `FullConfig{.bias_only = true}`: BitFit, the biases alone.
struct FullConfig {
  static constexpr std::string_view kPeftType = "FULL";
  static constexpr std::string_view kName = "FullConfig";
  bool bias_only = false;
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const FullConfig&, const FullConfig&) = default;

  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("bias_only", config.bias_only);
    visit("task_type", config.task_type);
    visit("base_model_name_or_path", config.base_model_name_or_path);
    visit("revision", config.revision);
    visit("inference_mode", config.inference_mode);
  }
  void validate() const {}
};

PEFT_END_NAMESPACE
