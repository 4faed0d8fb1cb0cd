#pragma once
/// A method that a training began with.

#include <filesystem>
#include <functional>

#include "peft/core/scalar.hpp"
#include "peft/pipeline/saved_adapter.hpp"
#include "peft/train/optimizer_hooks.hpp"

namespace peft_examples {

/// What is trained: the adapter, and what takes part in the optimizer's step.
template <peft::Scalar T>
struct StartedMethod {
  peft::SavedAdapter<T> adapter;
  peft::OptimizerHooks<peft::Accumulator<T>> hooks{};
  /// Of a fusion: writes the adapters that it mixes into the run's folder, each into one of its name.
  std::function<void(const std::filesystem::path&)> save_parts{};
};

}  // namespace peft_examples
