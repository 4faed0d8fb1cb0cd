#pragma once
/// What works beside the optimizer, between a step's gradients and the next step, and may have a state of its own:
/// AdaLoRA's budget of ranks, say.

#include <concepts>
#include <functional>

#include "peft/core/scalar.hpp"
#include "peft/train/parameter_tensors.hpp"

PEFT_BEGIN_NAMESPACE

/// Each function may be empty; state and restore are both there or both not. They are called on the trainer's thread, and
/// what they throw ends the run.
template <std::floating_point A>
struct OptimizerHooks {
  /// Once a step's gradients are summed, before their norm is taken: may add to them. They are `loss_scale` times those of
  /// the step's loss.
  std::function<void(double loss_scale)> on_gradients{};
  /// After an update, while its gradients stand; not where a step was skipped. `step` counts from 1; the optimizer took
  /// the gradients times grad_scale (clipping, loss scaling). May change parameters.
  std::function<void(Index step, double grad_scale)> on_update{};
  /// The state in its owner's memory: always the same names and sizes, in the same order.
  std::function<NamedTensors<A>()> state{};
  /// Copies a state of these names and sizes.
  std::function<void(const NamedTensors<A>&)> restore{};
};

PEFT_END_NAMESPACE
