#pragma once
/// Which optimizer trains, by the names of Hugging Face's TrainingArguments.optim.

#include <cstdint>
#include <string_view>

#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// AdamW, by how its moments are stored: in 32 bits or 8, in memory or in a file.
enum class OptimizerType : std::uint8_t { kAdamW, kAdamW8bit, kPagedAdamW, kPagedAdamW8bit };

constexpr std::string_view name_of(OptimizerType type) noexcept {
  switch (type) {
    case OptimizerType::kAdamW:
      return "adamw_torch";
    case OptimizerType::kAdamW8bit:
      return "adamw_8bit";
    case OptimizerType::kPagedAdamW:
      return "paged_adamw_32bit";
    case OptimizerType::kPagedAdamW8bit:
      return "paged_adamw_8bit";
  }
  return "unknown";
}

constexpr bool is_8bit(OptimizerType type) noexcept {
  return type == OptimizerType::kAdamW8bit || type == OptimizerType::kPagedAdamW8bit;
}
constexpr bool is_paged(OptimizerType type) noexcept {
  return type == OptimizerType::kPagedAdamW || type == OptimizerType::kPagedAdamW8bit;
}

/// Also by Hugging Face's other names for the same. Throws ConfigError.
inline OptimizerType optimizer_type_from(std::string_view name) {
  if (name == "adamw" || name == "adamw_torch" || name == "adamw_torch_fused") return OptimizerType::kAdamW;
  if (name == "adamw_8bit" || name == "adamw_bnb_8bit") return OptimizerType::kAdamW8bit;
  if (name == "paged_adamw" || name == "paged_adamw_32bit") return OptimizerType::kPagedAdamW;
  if (name == "paged_adamw_8bit") return OptimizerType::kPagedAdamW8bit;
  fail<ConfigError>("optimizer is \"{}\"; expected adamw_torch, adamw_8bit, paged_adamw_32bit or paged_adamw_8bit", name);
}

PEFT_END_NAMESPACE
