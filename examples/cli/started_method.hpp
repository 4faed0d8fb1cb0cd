#pragma once
/// A method that a training began with.

#include "peft/core/scalar.hpp"
#include "peft/pipeline/saved_adapter.hpp"
#include "peft/train/optimizer_hooks.hpp"

namespace peft_examples {

/// What is trained: the adapter, and what takes part in the optimizer's step.
template <peft::Scalar T>
struct StartedMethod {
  peft::SavedAdapter<T> adapter;
  peft::OptimizerHooks<peft::Accumulator<T>> hooks{};
};

}  // namespace peft_examples
