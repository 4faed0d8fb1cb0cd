#pragma once
/// How to train: names and defaults of Hugging Face's TrainingArguments where it has one.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/optimizer_type.hpp"
#include "peft/train/schedule.hpp"

PEFT_BEGIN_NAMESPACE

/// When something is done that recurs: never, every so many optimizer steps, after each epoch.
enum class IntervalStrategy : std::uint8_t { kNo, kSteps, kEpoch };

constexpr std::string_view name_of(IntervalStrategy strategy) noexcept {
  switch (strategy) {
    case IntervalStrategy::kNo:
      return "no";
    case IntervalStrategy::kSteps:
      return "steps";
    case IntervalStrategy::kEpoch:
      return "epoch";
  }
  return "unknown";
}

/// One optimizer step sees per_device_train_batch_size × gradient_accumulation_steps records; its loss is the mean over
/// all their label tokens. The last step of an epoch takes what is left. Differs from Hugging Face's defaults in one
/// thing: validation data that is given is used (before, after each epoch, and at the end).
struct TrainerConfig {
  double learning_rate = 5e-5;
  double num_train_epochs = 3.0;  ///< may be a fraction
  Index max_steps = -1;           ///< above 0: so many optimizer steps, whatever num_train_epochs says
  Index per_device_train_batch_size = 8;
  Index gradient_accumulation_steps = 1;
  SchedulerType lr_scheduler_type = SchedulerType::kLinear;
  Index warmup_steps = 0;
  double warmup_ratio = 0.0;   ///< share of all steps; used where warmup_steps is 0
  double max_grad_norm = 1.0;  ///< 0: no clipping
  double weight_decay = 0.0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double loraplus_lr_ratio = 0.0;        ///< above 0: LoRA+, B learns so many times as fast as A
  double loraplus_lr_embedding = 1e-6;   ///< with LoRA+: of parameters on embeddings, at learning_rate's height
  OptimizerType optim = OptimizerType::kAdamW;
  Index min_8bit_size = 4096;                 ///< of a parameter, in elements, to have its moments in 8 bits
  Index optimizer_memory = Index{256} << 20;  ///< of a paged optimizer: bytes of its state that may be in memory
  std::filesystem::path optimizer_folder{};   ///< where its file is made, on a disk; empty: the folder for temporary files
  std::uint64_t seed = 42;  ///< of the records' order and of dropout
  bool fp16 = false;        ///< dynamic loss scaling, for a model whose activations are f16

  IntervalStrategy eval_strategy = IntervalStrategy::kEpoch;
  Index eval_steps = 500;       ///< with kSteps
  bool eval_on_start = true;
  IntervalStrategy save_strategy = IntervalStrategy::kSteps;
  Index save_steps = 500;       ///< with kSteps
  /// Evaluations without a better loss after which training stops; 0: it never stops early. Better = lower by more than
  /// early_stopping_threshold, as in EarlyStoppingCallback.
  Index early_stopping_patience = 0;
  double early_stopping_threshold = 0.0;
  bool load_best_model_at_end = false;

  /// Tokens that go through the model at once: a sub-batch has at least one record and otherwise no more tokens than
  /// this. Bounds the memory, not the gradient: another value changes only the order in which float sums are taken.
  Index max_tokens_per_sub_batch = 512;

  /// Throws ConfigError, naming the field.
  void validate() const {
    positive("num_train_epochs", num_train_epochs);
    at_least_one("per_device_train_batch_size", per_device_train_batch_size);
    at_least_one("gradient_accumulation_steps", gradient_accumulation_steps);
    at_least_one("max_tokens_per_sub_batch", max_tokens_per_sub_batch);
    not_negative("learning_rate", learning_rate);
    not_negative("max_grad_norm", max_grad_norm);
    not_negative("loraplus_lr_ratio", loraplus_lr_ratio);
    not_negative("loraplus_lr_embedding", loraplus_lr_embedding);
    not_negative("early_stopping_threshold", early_stopping_threshold);
    not_negative("warmup_ratio", warmup_ratio);
    if (warmup_ratio > 1.0) fail<ConfigError>("TrainerConfig: warmup_ratio is {}; expected at most 1", warmup_ratio);
    not_negative("warmup_steps", static_cast<double>(warmup_steps));
    not_negative("early_stopping_patience", static_cast<double>(early_stopping_patience));
    if (max_steps == 0 || max_steps < -1) {
      fail<ConfigError>("TrainerConfig: max_steps is {}; expected at least 1, or -1 to go by num_train_epochs",
                        max_steps);
    }
    if (eval_strategy == IntervalStrategy::kSteps) at_least_one("eval_steps", eval_steps);
    if (save_strategy == IntervalStrategy::kSteps) at_least_one("save_steps", save_steps);
    if (is_paged(optim) && optimizer_memory < 1) {
      fail<ConfigError>("TrainerConfig: optimizer_memory is {}; expected bytes for a part of the optimizer's state",
                        optimizer_memory);
    }
    adamw().validate();
  }

  Index records_per_step() const noexcept { return per_device_train_batch_size * gradient_accumulation_steps; }
  /// Optimizer steps of one pass over `records`.
  Index steps_per_epoch(Index records) const noexcept {
    return (records + records_per_step() - 1) / records_per_step();
  }
  /// Optimizer steps of the whole training, as Hugging Face counts them.
  Index total_steps(Index records) const noexcept {
    if (max_steps > 0) return max_steps;
    return static_cast<Index>(std::ceil(num_train_epochs * static_cast<double>(steps_per_epoch(records))));
  }
  LearningRateSchedule schedule(Index records) const noexcept {
    const Index steps = total_steps(records);
    return {lr_scheduler_type, learning_rate, steps, warmup_step_count(steps, warmup_steps, warmup_ratio)};
  }
  /// Throws ConfigError where a paged optimizer has no folder.
  AdamWConfig adamw() const {
    AdamWConfig config{adam_beta1, adam_beta2, adam_epsilon, weight_decay};
    if (is_8bit(optim)) config.optim_bits = 8;
    config.min_8bit_size = min_8bit_size;
    if (is_paged(optim)) {
      config.paged = {optimizer_folder, optimizer_memory};
      std::error_code error;
      if (optimizer_folder.empty()) config.paged->folder = std::filesystem::temp_directory_path(error);
      if (error) {
        fail<ConfigError>("TrainerConfig: there is no folder for temporary files ({}); expected optimizer_folder",
                          error.message());
      }
    }
    config.loraplus_lr_ratio = loraplus_lr_ratio;
    if (learning_rate > 0.0) config.loraplus_embedding_ratio = quotient(loraplus_lr_embedding, learning_rate);
    return config;
  }

 private:
  static void positive(std::string_view name, double value) {
    if (is_finite(value) && value > 0.0) return;
    fail<ConfigError>("TrainerConfig: {} is {}; expected above 0", name, value);
  }
  static void not_negative(std::string_view name, double value) {
    if (is_finite(value) && value >= 0.0) return;
    fail<ConfigError>("TrainerConfig: {} is {}; expected at least 0", name, value);
  }
  static void at_least_one(std::string_view name, Index value) {
    if (value < 1) fail<ConfigError>("TrainerConfig: {} is {}; expected at least 1", name, value);
  }
};

PEFT_END_NAMESPACE
