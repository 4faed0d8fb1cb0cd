#pragma once
/// Where a training stands: with this, a resumed run continues as if it had never stopped, bit for bit.

#include <concepts>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/train/moments.hpp"
#include "peft/train/parameter_tensors.hpp"
#include "peft/train/run_identity.hpp"

PEFT_BEGIN_NAMESPACE

/// The numbers of a training's state. Position in the data follows from global_step; the learning rate from
/// optimizer_steps.
struct TrainerProgress {
  Index global_step = 0;      ///< accumulated batches done; numbers the dropout masks and the records' order
  Index optimizer_steps = 0;  ///< updates made: fewer than global_step where loss scaling skipped some
  Index tokens = 0;           ///< ids trained on
  Index label_tokens = 0;     ///< label tokens trained on
  double loss_sum = 0.0;      ///< sum of their losses
  double train_seconds = 0.0;
  double loss_scale = 0.0;  ///< of GradScaler
  Index growth_tracker = 0;
  Index evaluated_step = -1;  ///< global_step of the last evaluation; -1: none yet
  std::optional<double> val_loss_before{};
  std::optional<double> val_loss{};   ///< of the last evaluation
  std::optional<double> best_loss{};  ///< lowest validation loss
  Index best_step = -1;
  Index evaluations_without_gain = 0;
  bool stopped_early = false;

  friend bool operator==(const TrainerProgress&, const TrainerProgress&) = default;
};

/// The whole state. As handed out by a trainer it refers to the trainer's and the model's memory: write it, or copy it,
/// before training goes on.
template <std::floating_point A>
struct TrainerState {
  TrainerProgress progress;
  RunIdentity identity;
  NamedTensors<A> parameters;
  std::vector<Moments<A>> moments;  ///< of the optimizer; empty before the first update
  NamedTensors<A> best;             ///< the parameters at best_step, where load_best_model_at_end asks for them
  NamedTensors<A> hooks;            ///< of OptimizerHooks
  /// Called, where it is not empty, with bytes of the moments that have been read: their memory can be given back.
  std::function<void(std::span<const std::byte>)> done;
};

PEFT_END_NAMESPACE
