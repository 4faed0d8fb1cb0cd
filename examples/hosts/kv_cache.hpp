#pragma once
/// Keys and values of a sequence that a Llama host has read.

#include <vector>

#include "hosts/llama_config.hpp"
#include "hosts/names.hpp"

namespace peft_examples {

/// Keys (rotated) and values of one sequence, for every layer: [capacity, key/value heads × head_dim] each, of which
/// `length` rows are filled.
template <Scalar T>
struct KvCache {
  KvCache(const LlamaConfig& config, Index capacity_tokens) : capacity(capacity_tokens) {
    const Index width = config.num_key_value_heads * config.head_dim;
    for (Index i = 0; i < config.num_hidden_layers; ++i) {
      keys.emplace_back(capacity, width);
      values.emplace_back(capacity, width);
    }
  }
  Index length = 0;
  Index capacity;
  std::vector<Matrix<T>> keys, values;
};

}  // namespace peft_examples
