#pragma once
/// What the configurations of other methods than LoRA share with LoraConfig: the fields that say which modules are meant,
/// with their checks under each configuration's name, and those that only travel through files.

#include <string>
#include <string_view>

#include "peft/error.hpp"
#include "peft/lora_config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Calls body(); a ConfigError of LoraConfig's becomes one of `name`'s.
template <class Body>
auto under_name(std::string_view name, Body&& body) {
  constexpr std::string_view kOwn = "LoraConfig: ";
  try {
    return body();
  } catch (const ConfigError& error) {
    const std::string_view text = error.what();
    if (!text.starts_with(kOwn)) throw;
    fail<ConfigError>("{}: {}", name, text.substr(kOwn.size()));
  }
}

inline void validate_targets(const LoraConfig& targets, std::string_view name) {
  under_name(name, [&] { targets.validate(); });
}

/// The fields of `config` that say which modules are meant, as far as it has them, for match_target_modules.
template <class Config>
LoraConfig targets_of(const Config& config) {
  LoraConfig result;
  result.target_modules = config.target_modules;
  if constexpr (requires { config.exclude_modules; }) result.exclude_modules = config.exclude_modules;
  result.modules_to_save = config.modules_to_save;
  if constexpr (requires { config.layers_to_transform; }) {
    result.layers_to_transform = config.layers_to_transform;
    result.layers_pattern = config.layers_pattern;
  }
  if constexpr (requires { config.alpha_pattern; }) {
    result.rank_pattern = config.rank_pattern;
    result.alpha_pattern = config.alpha_pattern;
  }
  return result;
}

/// visit(name in adapter_config.json, field) for the fields that say where a file comes from.
template <class Config, class Visitor>
void visit_origin(Config& config, Visitor& visit) {
  visit("task_type", config.task_type);
  visit("base_model_name_or_path", config.base_model_name_or_path);
  visit("revision", config.revision);
  visit("inference_mode", config.inference_mode);
}

/// LyCORIS's ways to drop more than elements.
inline void refuse_structured_dropout(std::string_view name, double rank_dropout, double module_dropout) {
  const auto refuse = [&](const char* field, double p) {
    if (p == 0.0) return;
    fail<ConfigError>("{}: {} is {}; dropping whole rows or modules at random is not supported, expected 0", name, field, p);
  };
  refuse("rank_dropout", rank_dropout);
  refuse("module_dropout", module_dropout);
}

}  // namespace detail
PEFT_END_NAMESPACE
