#pragma once
/// Full fine-tuning as the baseline, BitFit, and modules trained alone (a head): which of the base's own parameters are
/// trained. Python PEFT has no configuration of them; the adapter's file has PEFT's keys of trained copies.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// `FullConfig{}`: every parameter. `FullConfig{.bias_only = true}`: BitFit, the biases alone; with
/// `.modules_to_save = {"classifier"}` and that module whole. `FullConfig{.target_modules = {"classifier"}}`: the modules
/// whose names end so, and nothing else.
struct FullConfig {
  static constexpr std::string_view kPeftType = "FULL";
  static constexpr std::string_view kName = "FullConfig";
  bool bias_only = false;
  std::vector<std::string> target_modules{};   ///< ends of names, as in modules_to_save; empty: all
  std::vector<std::string> modules_to_save{};  ///< with bias_only: whole, whatever else is trained
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  bool inference_mode = false;

  friend bool operator==(const FullConfig&, const FullConfig&) = default;

  template <class Config, class Visitor>
  static void for_each_field(Config& config, Visitor&& visit) {
    visit("bias_only", config.bias_only);
    visit("target_modules", config.target_modules);
    visit("modules_to_save", config.modules_to_save);
    visit("task_type", config.task_type);
    visit("base_model_name_or_path", config.base_model_name_or_path);
    visit("revision", config.revision);
    visit("inference_mode", config.inference_mode);
  }
  /// Throws ConfigError where target_modules stands beside a field that it leaves no room for.
  void validate() const {
    if (target_modules.empty() || (!bias_only && modules_to_save.empty())) return;
    fail<ConfigError>("FullConfig: target_modules names what is trained, and {} is set; expected one of them",
                      bias_only ? "bias_only" : "modules_to_save");
  }
};

PEFT_END_NAMESPACE
