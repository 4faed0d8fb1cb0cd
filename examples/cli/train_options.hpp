#pragma once
/// What `peft train` is told.

#include <optional>
#include <string>

#include "cli/memory_options.hpp"
#include "cli/method_options.hpp"
#include "cli/session.hpp"
#include "peft/train/trainer_config.hpp"

namespace peft_examples {

struct TrainOptions {
  ModelOptions model;
  MethodOptions method;
  Task task = Task::kGenerate;
  Head head = Head::kTransformers;
  std::string data, val, test, out, prompt_template = "chatml", saved_activations = "f32";
  Index max_length = 256, max_records = -1, max_val_records = -1;
  std::string scheduler = "linear", optimizer = "adamw_torch", optimizer_memory = "256M";
  MemoryOptions memory;
  std::string synthetic, weights_memory;  ///< empty: a model that is there; not paged
  peft::TrainerConfig trainer;
  std::optional<double> dropout{};
  bool resume = false, json = false, has_learning_rate = false, report_start = false;

  TrainOptions() {
    trainer.num_train_epochs = 3;
    trainer.per_device_train_batch_size = 4;
    trainer.gradient_accumulation_steps = 4;
    trainer.seed = 0;
    trainer.save_steps = 50;
  }
};

/// The training of --task classify (classify_train.cpp); returns the exit status.
int train_classifier(const TrainOptions& options);

}  // namespace peft_examples
