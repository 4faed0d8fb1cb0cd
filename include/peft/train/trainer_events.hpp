#pragma once
/// What a trainer tells while it works. It knows no file and no terminal: whoever wants to write or draw listens here.

#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "peft/loss_sum.hpp"
#include "peft/train/metrics_log.hpp"
#include "peft/train/optimizer_hooks.hpp"
#include "peft/train/trainer_state.hpp"

PEFT_BEGIN_NAMESPACE

/// After an optimizer step.
struct StepEvent {
  MetricsRecord record;
  Index total_steps = 0;
  double seconds_left = 0.0;  ///< of the training steps still to come, at the mean pace of this run
};

/// After an evaluation.
struct EvaluationEvent {
  MetricsRecord record;
  LossSum sum;
  bool is_best = false;
};

/// Within a step or an evaluation, after each sub-batch.
struct WorkEvent {
  bool evaluation = false;
  Index step = 0;  ///< the step under way, from 1; for an evaluation: the steps done
  Index total_steps = 0;
  Index records_done = 0;
  Index records = 0;
};

/// Why a state is to be saved.
enum class SaveReason : std::uint8_t {
  kPeriodic,     ///< TrainerConfig::save_strategy
  kBest,         ///< the lowest validation loss so far
  kInterrupted,  ///< stopped from outside
  kNumericError, ///< a loss or a gradient was not finite; the parameters are those of the last good step
  kFinal,        ///< training is complete
};

constexpr std::string_view name_of(SaveReason reason) noexcept {
  switch (reason) {
    case SaveReason::kPeriodic:
      return "periodic";
    case SaveReason::kBest:
      return "best";
    case SaveReason::kInterrupted:
      return "interrupted";
    case SaveReason::kNumericError:
      return "numeric error";
    case SaveReason::kFinal:
      return "final";
  }
  return "unknown";
}

/// Listeners; each may be empty. They are called on the thread that runs the trainer; what they throw ends the run. `hooks`
/// do more than listen: they take part in the optimizer's step.
template <std::floating_point A>
struct TrainerEvents {
  std::function<void(const WorkEvent&)> on_work{};
  std::function<void(const StepEvent&)> on_step{};
  std::function<void(const EvaluationEvent&)> on_evaluate{};
  std::function<void(SaveReason, const TrainerState<A>&)> on_save{};
  OptimizerHooks<A> hooks{};
};

/// How a run ended.
enum class TrainerStatus : std::uint8_t { kCompleted, kStoppedEarly, kInterrupted };

constexpr std::string_view name_of(TrainerStatus status) noexcept {
  switch (status) {
    case TrainerStatus::kCompleted:
      return "completed";
    case TrainerStatus::kStoppedEarly:
      return "stopped early";
    case TrainerStatus::kInterrupted:
      return "interrupted";
  }
  return "unknown";
}

/// What a run has come to; sums go over all runs of a resumed training.
struct TrainerResult {
  TrainerStatus status = TrainerStatus::kCompleted;
  Index steps = 0;         ///< optimizer steps done
  Index total_steps = 0;
  Index tokens = 0;        ///< ids trained on, without padding
  Index label_tokens = 0;
  double train_s = 0.0;    ///< from the first batch to the last optimizer step, without evaluation and saving
  double tok_s = 0.0;      ///< tokens / train_s
  double train_loss = 0.0; ///< mean over the label tokens trained on
  std::optional<double> val_loss_before{};
  std::optional<double> val_loss_after{};  ///< of the parameters that training leaves
  std::optional<double> best_val_loss{};
  Index best_step = -1;
};

PEFT_END_NAMESPACE
