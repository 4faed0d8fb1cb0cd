#pragma once
/// A method that a training began with.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/pipeline/saved_adapter.hpp"
#include "peft/quantization_error.hpp"
#include "peft/train/optimizer_hooks.hpp"

namespace peft_examples {

/// What is trained: the adapter, and what takes part in the optimizer's step.
template <peft::Scalar T>
struct StartedMethod {
  peft::SavedAdapter<T> adapter;
  peft::OptimizerHooks<peft::Accumulator<T>> hooks{};
  /// Of a fusion: writes the adapters that it mixes into the run's folder, each into one of its name.
  std::function<void(const std::filesystem::path&)> save_parts{};
  /// Of a start that changed a quantised base: writes the adapter as it is, for that base, into a folder.
  std::function<void(const std::filesystem::path&)> save_for_changed_base{};
  /// What such a start left of a weight: of the base as it was read, and of the new one with its update.
  struct Left {
    std::string name;
    peft::QuantizationError before, after;
  };
  std::vector<Left> left{};
};

}  // namespace peft_examples
