#pragma once
/// AdapterFusion in a trainer: its regulariser as the trainer's hooks, as AdapterHub's AdapterTrainer adds it to the loss.
///   events.hooks = fusion_hooks<T>(fusion);

#include <memory>

#include "peft/adapter_fusion_set.hpp"
#include "peft/train/optimizer_hooks.hpp"

PEFT_BEGIN_NAMESPACE

/// 0.01·Σ (Wv − I)² of every layer is a second term of each step's loss, where the configuration says `regularization`. Throws
/// ConfigError for one with a temperature, whose place in its annealing no file keeps.
template <Scalar T>
OptimizerHooks<Accumulator<T>> fusion_hooks(std::shared_ptr<AdapterFusionSet<T>> fusion) {
  OptimizerHooks<Accumulator<T>> hooks;
  if (fusion->config().temperature) {
    fail<ConfigError>("fusion_hooks: AdapterFusion \"{}\" has a temperature; expected none where a training may be resumed",
                      fusion->name());
  }
  if (!fusion->config().regularization || !fusion->config().value) return hooks;
  hooks.on_gradients = [fusion](double loss_scale) {
    fusion->for_each_fusion([&](AdapterFusion<T>& one) { one.add_regularization_gradient(loss_scale); });
  };
  return hooks;
}

PEFT_END_NAMESPACE
