#pragma once
/// Loads a Llama host from a model's files.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "hosts/model_source.hpp"
#include "hosts/weight_reader.hpp"

namespace peft_examples {

/// Throws FormatError, ShapeError; a tensor that the host has no place for is refused by name. Weights whose stored type
/// is T, or that are kept as `storage` says, stay in the mapped files; those must not be cut while the model lives. Throws
/// ConfigError for a block size that does not exist.
template <Scalar T>
Llama<T> load_llama(const ModelSource& source, const WeightStorage& storage = {},
                    ExecutorRef executor = peft::default_executor()) {
  const LlamaConfig& c = source.config;
  c.validate();
  check_tensors(source);
  const auto tensor = [&](const std::string& name) -> const peft::TensorRef& { return source.tensor(name); };
  const auto linear = [&](const std::string& name, Index rows, Index cols, bool bias, bool has_heads = false) {
    const Index head_dim = has_heads && source.permuted_heads ? c.head_dim : 0;
    const peft::TensorRef* added = bias ? &tensor(name + ".bias") : nullptr;
    const auto packed = source.four_bit.find(name + ".weight");
    if (packed != source.four_bit.end()) return read_linear<T>(packed->second, added, storage, executor);
    return read_linear<T>(tensor(name + ".weight"), added, rows, cols, head_dim, storage, executor);
  };
  const auto norm = [&](const std::string& name, Index size) {
    return read_vector<Accumulator<T>>(tensor(name + ".weight"), size);
  };
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const Index hidden = c.hidden_size, inner = c.intermediate_size;
  const peft::TensorRef& words = tensor("model.embed_tokens.weight");
  peft::RowTable<T> embedding = read_table<T>(words, c.vocab_size, hidden, storage, executor);
  std::vector<LlamaLayerWeights<T>> layers;
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    const std::string path = "model.layers." + std::to_string(i) + ".", attention = path + "self_attn.";
    layers.push_back({norm(path + "input_layernorm", hidden), norm(path + "post_attention_layernorm", hidden),
                      linear(attention + "q_proj", query, hidden, c.attention_bias, true),
                      linear(attention + "k_proj", key, hidden, c.attention_bias, true),
                      linear(attention + "v_proj", key, hidden, c.attention_bias),
                      linear(attention + "o_proj", hidden, query, c.output_bias),
                      linear(path + "mlp.gate_proj", inner, hidden, c.mlp_bias),
                      linear(path + "mlp.up_proj", inner, hidden, c.mlp_bias),
                      linear(path + "mlp.down_proj", hidden, inner, c.mlp_bias),
                      c.qk_norm ? norm(attention + "q_norm", c.head_dim) : Buffer<Accumulator<T>>(),
                      c.qk_norm ? norm(attention + "k_norm", c.head_dim) : Buffer<Accumulator<T>>()});
  }
  Buffer<Accumulator<T>> final_norm = norm("model.norm", hidden);
  const bool is_tied = c.tie_word_embeddings;
  LlamaHeadWeights<T> head = read_head<T>(is_tied ? words : tensor("lm_head.weight"), embedding, is_tied, c.vocab_size,
                                          hidden, storage, executor);
  // Reading a tensor may bring pages of others along, already given back: the system maps files in larger steps.
  for (const auto& [name, tensor_ref] : source.tensors) {
    if (tensor_ref.file != nullptr) tensor_ref.file->release(tensor_ref.bytes);
  }
  Llama<T> model(c, std::move(embedding), std::move(layers), std::move(final_norm), std::move(head));
  model.set_executor(executor);
  return model;
}

}  // namespace peft_examples
