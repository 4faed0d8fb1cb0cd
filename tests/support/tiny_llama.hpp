#pragma once
/// A Llama of a few hundred numbers, random, for tests that look at all of them.

#include <memory>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/core/rng.hpp"

namespace peft_test {

struct TinyLlamaOptions {
  bool tied = true;
  bool biases = false;   ///< of every linear of the layers
  bool qk_norm = false;
  peft::Index layers = 2;
};

inline peft_examples::LlamaConfig tiny_llama_config(const TinyLlamaOptions& options = {}) {
  peft_examples::LlamaConfig config;
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.intermediate_size = 10;
  config.num_hidden_layers = options.layers;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 4;
  config.max_position_embeddings = 32;
  config.attention_bias = config.output_bias = config.mlp_bias = options.biases;
  config.qk_norm = options.qk_norm;
  config.tie_word_embeddings = options.tied;
  return config;
}

/// The same numbers for every T.
template <peft::Scalar T>
peft_examples::Llama<T> tiny_llama(const TinyLlamaOptions& options = {}) {
  using peft::Index;
  using A = peft::Accumulator<T>;
  const peft_examples::LlamaConfig c = tiny_llama_config(options);
  std::uint64_t stream = 0;
  const auto matrix = [&](Index rows, Index cols) {
    peft::Philox random(11, stream++);
    peft::Matrix<T> result(rows, cols);
    for (T& value : result.flat()) value = static_cast<T>(static_cast<A>(0.4f * random.normal()));
    return result;
  };
  const auto vector = [&](Index size, float around) {
    peft::Philox random(12, stream++);
    peft::Buffer<A> result(size);
    for (A& value : result) value = static_cast<A>(around + 0.2f * random.normal());
    return result;
  };
  const auto linear = [&](Index out, Index in) {
    if (options.biases) return peft::AnyLinear<T>(peft::DenseLinear<T>(matrix(out, in), vector(out, 0.0f)));
    return peft::AnyLinear<T>(peft::DenseLinear<T>(matrix(out, in)));
  };
  const Index hidden = c.hidden_size, inner = c.intermediate_size;
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  auto embedding = std::make_shared<const peft::Matrix<T>>(matrix(c.vocab_size, hidden));
  std::vector<peft_examples::LlamaLayerWeights<T>> layers;
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    layers.push_back({.input_layernorm = vector(hidden, 1.0f),
                      .post_attention_layernorm = vector(hidden, 1.0f),
                      .q_proj = linear(query, hidden),
                      .k_proj = linear(key, hidden),
                      .v_proj = linear(key, hidden),
                      .o_proj = linear(hidden, query),
                      .gate_proj = linear(inner, hidden),
                      .up_proj = linear(inner, hidden),
                      .down_proj = linear(hidden, inner),
                      .q_norm = vector(options.qk_norm ? c.head_dim : 0, 1.0f),
                      .k_norm = vector(options.qk_norm ? c.head_dim : 0, 1.0f)});
  }
  auto norm = vector(hidden, 1.0f);
  if (options.tied) {
    peft::DenseLinear<T> head(embedding->view(), embedding);
    return {c, embedding, std::move(layers), std::move(norm), std::move(head)};
  }
  peft::DenseLinear<T> head(matrix(c.vocab_size, hidden));
  return {c, embedding, std::move(layers), std::move(norm), std::move(head)};
}

/// Two sequences, some positions without a target.
inline peft::PackedBatch tiny_llama_batch() {
  peft::PackedBatch batch;
  batch.ids = {3, 1, 4, 1, 5, 9, 2, 6};
  batch.positions = {0, 1, 2, 3, 4, 0, 1, 2};
  batch.targets = {-1, 4, 1, 5, -1, 2, 6, 7};
  batch.offsets = {0, 5, 8};
  return batch;
}

/// Adds noise to every parameter of `model`, so that none stands where a start put it.
template <class Model>
void perturb_parameters(Model& model, float deviation = 0.2f) {
  std::uint64_t stream = 0;
  model.for_each_parameter([&](const peft::ParameterInfo&, auto value, auto) {
    peft::Philox random(13, stream++);
    for (auto& number : value) number += static_cast<std::remove_reference_t<decltype(number)>>(deviation * random.normal());
  });
}

}  // namespace peft_test
