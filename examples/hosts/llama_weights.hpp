#pragma once
/// The weights of a Llama layer as a loader hands them over.

#include "hosts/names.hpp"
#include "peft/any_linear.hpp"

namespace peft_examples {

/// Norms are vectors [hidden]; each linear's weight is [out, in].
template <Scalar T>
struct LlamaLayerWeights {
  Buffer<Accumulator<T>> input_layernorm, post_attention_layernorm;
  peft::AnyLinear<T> q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

}  // namespace peft_examples
