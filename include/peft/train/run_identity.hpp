#pragma once
/// What decides the bits of a training besides its state: settings and data, as names and values. A run is resumed only
/// with those it began with.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/error.hpp"
#include "peft/train/trainer_config.hpp"
#include "peft/train/training_data.hpp"

PEFT_BEGIN_NAMESPACE

using RunIdentity = std::vector<std::pair<std::string, std::string>>;

/// FNV-1a, 64 bits, over lengths, ids and targets of all records.
template <TrainingData D>
std::uint64_t data_fingerprint(const D& data) {
  std::uint64_t hash = 0xCBF29CE484222325ull;
  const auto add = [&hash](std::int64_t value) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ static_cast<std::uint64_t>((value >> shift) & 0xFF)) * 0x100000001B3ull;
    }
  };
  PackedBatch batch;
  for (Index i = 0; i < data.records(); ++i) {
    batch.clear();
    data.append(i, batch);
    add(batch.tokens());
    for (const std::int32_t id : batch.ids) add(id);
    for (const std::int32_t target : batch.targets) add(target);
  }
  return hash;
}

/// Numbers are written with all digits that they need.
template <TrainingData D>
RunIdentity run_identity(const TrainerConfig& config, const D& data) {
  const Index records = data.records();
  const Index steps = config.total_steps(records);
  RunIdentity identity{
      {"learning_rate", fmt::to_string(config.learning_rate)},
      {"optimizer steps", fmt::to_string(steps)},
      {"records per step (batch × accumulate)", fmt::to_string(config.records_per_step())},
      {"lr_scheduler_type", std::string(name_of(config.lr_scheduler_type))},
      {"warmup_steps", fmt::to_string(warmup_step_count(steps, config.warmup_steps, config.warmup_ratio))},
      {"max_grad_norm", fmt::to_string(config.max_grad_norm)},
      {"weight_decay", fmt::to_string(config.weight_decay)},
      {"adam_beta1", fmt::to_string(config.adam_beta1)},
      {"adam_beta2", fmt::to_string(config.adam_beta2)},
      {"adam_epsilon", fmt::to_string(config.adam_epsilon)},
      {"loraplus_lr_ratio", fmt::to_string(config.loraplus_lr_ratio)},
      {"seed", fmt::to_string(config.seed)},
      {"fp16", config.fp16 ? "true" : "false"},
      {"max_tokens_per_sub_batch", fmt::to_string(config.max_tokens_per_sub_batch)},
      {"training records", fmt::to_string(records)},
      {"fingerprint of the training data", fmt::format("{:016x}", data_fingerprint(data))}};
  if (config.loraplus_lr_ratio > 0.0) {
    identity.emplace_back("loraplus_lr_embedding", fmt::to_string(config.loraplus_lr_embedding));
  }
  // Where moments stand changes no bits.
  if (is_8bit(config.optim)) {
    identity.emplace_back("optimizer", std::string(name_of(OptimizerType::kAdamW8bit)));
    identity.emplace_back("min_8bit_size", fmt::to_string(config.min_8bit_size));
  }
  return identity;
}

/// Throws ConfigError with the first name that differs, also where only the saved run has an optimizer of its own.
inline void check_identity(const RunIdentity& saved, const RunIdentity& own) {
  for (std::size_t i = 0; i < own.size(); ++i) {
    const std::string* value = nullptr;
    for (const auto& [name, text] : saved) {
      if (name == own[i].first) value = &text;
    }
    if (value != nullptr && *value == own[i].second) continue;
    fail<ConfigError>("resume: {} is {}, but the saved run has {}; a run goes on with the settings and data it began "
                      "with, or starts anew",
                      own[i].first, own[i].second, value != nullptr ? *value : "none");
  }
  const auto optimizer = [](const RunIdentity& identity) {
    return std::find_if(identity.begin(), identity.end(), [](const auto& entry) { return entry.first == "optimizer"; });
  };
  if (const auto found = optimizer(saved); found != saved.end() && optimizer(own) == own.end()) {
    fail<ConfigError>("resume: optimizer is {}, but the saved run has {}; a run goes on with the settings and data it began "
                      "with, or starts anew",
                      name_of(OptimizerType::kAdamW), found->second);
  }
}

PEFT_END_NAMESPACE
