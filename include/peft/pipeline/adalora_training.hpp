#pragma once
/// AdaLoRA in a trainer: its allocator as the trainer's hooks.
///   events.hooks = adalora_hooks<T>(adapter);

#include <algorithm>
#include <memory>
#include <string>

#include "peft/adalora_allocator.hpp"
#include "peft/train/optimizer_hooks.hpp"

PEFT_BEGIN_NAMESPACE

/// The regulariser is added to each step's gradients, as a second term of its loss; ranks are allocated after each update.
/// The scores are part of the trainer's state, so that a resumed run equals one that never stopped. Throws ConfigError
/// unless the adapter is an AdaLoRA.
template <Scalar T>
OptimizerHooks<Accumulator<T>> adalora_hooks(std::shared_ptr<NamedAdapter<T>> adapter) {
  using A = Accumulator<T>;
  struct Owner {  // the allocator refers to the adapter
    std::shared_ptr<NamedAdapter<T>> adapter;
    AdaLoraAllocator<T> allocator;
    double weight;
    explicit Owner(std::shared_ptr<NamedAdapter<T>> given)
        : adapter(std::move(given)), allocator(*adapter), weight(adapter->template config_as<AdaLoraConfig>()->orth_reg_weight) {}
  };
  const auto owner = std::make_shared<Owner>(std::move(adapter));
  OptimizerHooks<A> hooks;
  hooks.on_gradients = [owner](double loss_scale) { owner->allocator.add_regularization(owner->weight * loss_scale); };
  hooks.on_update = [owner](Index step, double grad_scale) { owner->allocator.update_and_allocate(step, grad_scale); };
  hooks.state = [owner] {
    NamedTensors<A> state;
    owner->allocator.for_each_state([&](const std::string& name, Index rows, Index cols, VectorView<A> values) {
      state.push_back({name, rows, cols, values});
    });
    return state;
  };
  hooks.restore = [owner](const NamedTensors<A>& state) {
    owner->allocator.for_each_state([&](const std::string& name, Index, Index, VectorView<A> values) {
      const NamedTensor<A>& tensor = find_tensor(state, name, "hooks");
      std::copy(tensor.values.begin(), tensor.values.end(), values.begin());
    });
    owner->allocator.restored();
  };
  return hooks;
}

PEFT_END_NAMESPACE
