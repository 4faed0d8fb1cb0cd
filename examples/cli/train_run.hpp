#pragma once
/// A run of `peft train`: the trainer with its folder, what is said on the way, and the result.

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "cli/command.hpp"
#include "cli/memory_plan.hpp"
#include "cli/process.hpp"
#include "cli/progress.hpp"
#include "cli/run_folder.hpp"
#include "cli/train_options.hpp"
#include "peft/pipeline/trainer_checkpointing.hpp"
#include "peft/train/trainer.hpp"

namespace peft_examples {

/// Work: what is trained on what,
///   Model, Data, value_type         of the trainer
///   Work(options, progress)         reads records and model, starts the method
///   model(), training(), validation(), method(), started()
///   add_identity(identity)          what else decides the bits
///   plan(), adjust(config)          the plan of memory, or nullptr, and what it chose
///   evaluation_text(event)          what is said after a validation
///   finish(result, json, stop)      measures what comes after a training and adds it to the result; false where it was stopped
template <class Work>
class TrainRun {
  using T = typename Work::value_type;

 public:
  explicit TrainRun(const TrainOptions& options) : options_(options), work_(options, progress_) {}

  int operator()() {
    const MethodChoice& method = work_.method();
    trainable_ = work_.started().adapter.parameter_count();
    total_ = work_.model().parameter_count() + (method.replaces_parameters() ? 0 : trainable_);
    progress_.line(fmt::format("{}: {} records, {} to validate; weights {}", options_.data, work_.training().records(),
                               work_.validation() != nullptr ? work_.validation()->records() : 0, options_.model.text()));
    progress_.line(peft::trainable_parameters_text(trainable_, total_));

    peft::TrainerConfig trainer_config = options_.trainer;
    work_.adjust(trainer_config);
    if (trainer_config.optim != peft::OptimizerType::kAdamW) {
      progress_.line(fmt::format("optimizer: {}{}", name_of(trainer_config.optim),
                                 is_paged(trainer_config.optim)
                                     ? fmt::format("; of its state at most {} bytes in memory, the rest in a file in {}",
                                                   trainer_config.optimizer_memory, options_.out)
                                     : ""));
    }

    peft::RunIdentity identity{{"model", model_fingerprint(options_.model.model)}, {"dtype", options_.model.text()}};
    work_.add_identity(identity);
    peft::TrainerCheckpointing<T> checkpointing(
        work_.started().adapter,
        {options_.out, fmt::format("Loss of {}", std::filesystem::path(options_.data).filename().string()), std::move(identity)});
    if (!options_.has_learning_rate) trainer_config.learning_rate = method.learning_rate;
    trainer_config.loraplus_lr_ratio = method.loraplus_lr_ratio;
    trainer_config.fp16 = std::is_same_v<T, peft::f16>;
    optimizer_ = trainer_config.optim;
    peft::Trainer<typename Work::Model, typename Work::Data> trainer(work_.model(), trainer_config, work_.training(),
                                                                    work_.validation(), checkpointing.events(events()));
    if (options_.resume) {
      const auto note = checkpointing.resume(trainer);
      if (note) progress_.line(*note);
      progress_.line(fmt::format("going on after step {} of {}", trainer.progress().global_step, trainer.total_steps()));
    } else {
      const std::filesystem::path kept = keep_earlier_run(options_.out);
      if (!kept.empty()) progress_.line(fmt::format("the earlier run in {} is now {}", options_.out, kept.string()));
      checkpointing.begin(trainer);
      if (work_.started().save_parts) work_.started().save_parts(options_.out);
    }
    StopSignal stop;
    peft::TrainerResult result;
    try {
      result = trainer.run(stop.get());
    } catch (...) {
      progress_.finish();
      throw;
    }
    progress_.finish();
    return report(result, checkpointing, stop);
  }

 private:
  typename peft::TrainerCheckpointing<T>::Events events() {
    typename peft::TrainerCheckpointing<T>::Events events;
    events.hooks = work_.started().hooks;
    events.on_work = [this](const peft::WorkEvent& event) {
      if (event.evaluation) {
        progress_.update(done_, fmt::format("validating: {} of {} records", event.records_done, event.records));
      }
    };
    events.on_step = [this](const peft::StepEvent& event) {
      done_ = static_cast<double>(event.record.step) / static_cast<double>(event.total_steps);
      progress_.update(done_, fmt::format("step {}/{}  loss {:.4f}  {:.0f} tok/s  {} left{}", event.record.step,
                                          event.total_steps, event.record.loss, event.record.tokens_per_second,
                                          duration_text(event.seconds_left),
                                          event.record.skipped ? "  (skipped: loss scale)" : ""));
    };
    events.on_evaluate = [this](const peft::EvaluationEvent& event) {
      progress_.line(fmt::format("epoch {:.2f}  validation loss {:.4f}  {}{}", event.record.epoch, event.record.loss,
                                 work_.evaluation_text(event), event.is_best ? "  (best)" : ""));
    };
    return events;
  }

  int report(const peft::TrainerResult& result, const peft::TrainerCheckpointing<T>& checkpointing,
             const StopSignal& stop) {
    const bool interrupted = result.status == peft::TrainerStatus::kInterrupted;
    if (interrupted) {
      progress_.line(fmt::format("stopped after step {} of {}; the state is saved. To go on, give the same command with "
                                 "--resume",
                                 result.steps, result.total_steps));
    } else {
      progress_.line(fmt::format("{} in {}: {} tokens, {:.0f} tok/s, training loss {:.4f}",
                                 result.status == peft::TrainerStatus::kStoppedEarly ? "stopped early" : "trained",
                                 duration_text(result.train_s), result.tokens, result.tok_s, result.train_loss));
      progress_.line(fmt::format("saved {} ({:.2f} MB), curve: {}", options_.out, static_cast<double>(saved_bytes()) / 1e6,
                                 checkpointing.picture_path().string()));
    }
    if (const MemoryPlan* plan = work_.plan()) {
      progress_.line(fmt::format("memory: at most {:.0f} MiB were resident, {} were predicted", peak_rss_mib(), memory_text(plan->total())));
    }
    nlohmann::ordered_json more = nlohmann::ordered_json::object();
    if (!interrupted && !work_.finish(result, more, stop)) return kInterruptedStatus;
    const auto number = [](const std::optional<double>& value) { return value ? nlohmann::ordered_json(*value) : nullptr; };
    if (options_.json) {
      nlohmann::ordered_json json = {{"status", std::string(peft::name_of(result.status))},
                                           {"steps", result.steps},
                                           {"total_steps", result.total_steps},
                                           {"tokens", result.tokens},
                                           {"label_tokens", result.label_tokens},
                                           {"train_s", result.train_s},
                                           {"tok_s", result.tok_s},
                                           {"val_loss_before", number(result.val_loss_before)},
                                           {"val_loss_after", number(result.val_loss_after)},
                                           {"best_val_loss", number(result.best_val_loss)},
                                           {"train_loss", result.train_loss},
                                           {"peak_rss_mib", peak_rss_mib()},
                                           {"memory_plan", work_.plan() ? work_.plan()->json() : nlohmann::ordered_json()},
                                           {"method", work_.method().name},
                                           {"optimizer", std::string(peft::name_of(optimizer_))},
                                           {"learning_rate", options_.has_learning_rate ? options_.trainer.learning_rate
                                                                                        : work_.method().learning_rate},
                                           {"trainable", trainable_},
                                           {"total", total_},
                                           {"cut_records", work_.training().cut_records()},
                                           {"bytes", interrupted ? nlohmann::ordered_json() : nlohmann::ordered_json(saved_bytes())},
                                           {"out", options_.out},
                                           {"loss_svg", checkpointing.picture_path().string()}};
      json.update(more);
      std::printf("%s\n", json.dump().c_str());
    }
    return interrupted ? kInterruptedStatus : 0;
  }

  /// Of the adapter's weights on disk.
  std::uintmax_t saved_bytes() const {
    for (const char* name : {"adapter_model.safetensors", "adapter.safetensors", "model_adapter_fusion.safetensors"}) {
      std::error_code error;
      if (const auto bytes = std::filesystem::file_size(std::filesystem::path(options_.out) / name, error); !error) return bytes;
    }
    return 0;
  }

  const TrainOptions& options_;
  Progress progress_;
  Work work_;
  Index trainable_ = 0, total_ = 0;
  peft::OptimizerType optimizer_{};
  double done_ = 0;
};

}  // namespace peft_examples
