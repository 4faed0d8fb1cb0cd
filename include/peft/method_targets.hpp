#pragma once
/// Checks of target_modules and its relatives for the configurations of other methods than LoRA: LoraConfig's own, under
/// their names.

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

}  // namespace detail
PEFT_END_NAMESPACE
