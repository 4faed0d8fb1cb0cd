#pragma once
/// What a trainable parameter tells those who visit it: optimizer, checkpoint, gradient check, counting. One visitor
/// serves them all:
///   module.for_each_parameter([](const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) { … });
/// with A = float (double for double activations). The order of visits is fixed: it is the order of attachment.

#include <cstdint>
#include <string_view>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

/// What a parameter is for: learning rates per role (LoRA+) and weight decay go by it.
enum class ParameterRole : std::uint8_t { kLoraA, kLoraB, kBias, kEmbedding, kOther };

/// One parameter, described. `name` lives as long as the visit.
struct ParameterInfo {
  std::string_view name;  ///< PEFT's key without "base_model.model.": "model.layers.0.self_attn.q_proj.lora_A.weight"
  ParameterRole role = ParameterRole::kOther;
  bool decay = true;  ///< whether weight decay applies (not to biases and norms)
  Index rows = 0;     ///< the parameter is [rows, cols], row-major
  Index cols = 0;
  int dimensions = 2;   ///< of the tensor in a file: 1 for a vector of rows·cols elements
  bool trained = true;  ///< false: saved with the adapter, but frozen (a shared projection)
};

PEFT_END_NAMESPACE
