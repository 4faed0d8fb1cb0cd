#pragma once
/// A model as it stands in files, whichever they are: hyper-parameters and tensors under Hugging Face's names.

#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hosts/llama_config.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/io/tensor_ref.hpp"

namespace peft_examples {

struct ModelSource {
  LlamaConfig config;
  std::map<std::string, peft::TensorRef, std::less<>> tensors;  ///< by Hugging Face's name; each keeps its file's own
  std::map<std::string, peft::AnyFourBitTensor, std::less<>> four_bit;  ///< of linears that bitsandbytes quantised
  bool permuted_heads = false;  ///< the rows of q and k stand in llama.cpp's order
  std::string where;            ///< for messages

  const peft::TensorRef* find(std::string_view name) const noexcept {
    const auto found = tensors.find(name);
    return found != tensors.end() ? &found->second : nullptr;
  }
  /// Throws FormatError where there is none.
  const peft::TensorRef& tensor(std::string_view name) const {
    const peft::TensorRef* found = find(name);
    if (found == nullptr) peft::fail<peft::FormatError>("{}: has no tensor {}", where, peft::quote_text(name));
    return *found;
  }
};

/// Whether it is the weight of a layer's linear: what may have four bits.
inline bool is_layer_weight(std::string_view name, const std::vector<Index>& shape) {
  return shape.size() == 2 && name.starts_with("model.layers.");
}

/// Calls visit(name, shape) for every tensor that a model of this configuration has. No list of them is made: the
/// configuration may claim any number of layers.
template <class Visitor>
void for_each_llama_tensor(const LlamaConfig& c, Visitor&& visit) {
  const auto put = [&](const std::string& name, const std::vector<Index>& shape) { visit(name, shape); };
  const auto linear = [&](const std::string& name, Index rows, Index cols, bool bias) {
    put(name + ".weight", {rows, cols});
    if (bias) put(name + ".bias", {rows});
  };
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  put("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    const std::string path = "model.layers." + std::to_string(i) + ".";
    put(path + "input_layernorm.weight", {c.hidden_size});
    put(path + "post_attention_layernorm.weight", {c.hidden_size});
    linear(path + "self_attn.q_proj", query, c.hidden_size, c.attention_bias);
    linear(path + "self_attn.k_proj", key, c.hidden_size, c.attention_bias);
    linear(path + "self_attn.v_proj", key, c.hidden_size, c.attention_bias);
    linear(path + "self_attn.o_proj", c.hidden_size, query, c.output_bias);
    linear(path + "mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear(path + "mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear(path + "mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
    if (!c.qk_norm) continue;
    put(path + "self_attn.q_norm.weight", {c.head_dim});
    put(path + "self_attn.k_norm.weight", {c.head_dim});
  }
  put("model.norm.weight", {c.hidden_size});
  if (!c.tie_word_embeddings) put("lm_head.weight", {c.vocab_size, c.hidden_size});
}

/// Throws ShapeError.
inline void check_shape(const peft::TensorRef& tensor, const std::vector<Index>& shape) {
  if (tensor.shape == shape) return;
  peft::fail<peft::ShapeError>("loading {}: its shape is {}; expected {}", tensor.where(), tensor.shape_text(),
                               peft::detail::shape_text(shape));
}

/// Whether the tensors are those of the configuration, without reading them. Throws FormatError for one that is missing,
/// not readable, or that a model of this configuration has no place for; ShapeError.
inline void check_tensors(const ModelSource& source) {
  std::set<std::string, std::less<>> known;
  for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
    known.insert(name);
    if (const auto packed = source.four_bit.find(name); packed != source.four_bit.end()) {
      if (!is_layer_weight(name, shape)) {
        peft::fail<peft::FormatError>("loading {}: {} is in four bits; expected that of the layers' linears only", source.where,
                                      peft::quote_text(name));
      }
      const std::vector<Index>& own = std::visit([](const auto& tensor) -> auto& { return tensor.shape(); }, packed->second);
      if (own == shape) return;
      peft::fail<peft::ShapeError>("loading {}: {}, in four bits, is {}; expected {}", source.where, peft::quote_text(name),
                                   peft::detail::shape_text(own), peft::detail::shape_text(shape));
    }
    const peft::TensorRef& tensor = source.tensor(name);
    check_shape(tensor, shape);
    tensor.read_rows_f32(0, 0, nullptr);  // refuses a type that cannot be read
  });
  for (const auto& [name, tensor] : source.four_bit) {
    if (known.count(name) == 0) {
      peft::fail<peft::FormatError>("loading {}: a {} of this configuration has no place for {}", source.where,
                                    source.config.model_type, peft::quote_text(name));
    }
  }
  for (const auto& [name, tensor] : source.tensors) {
    if (known.count(name) == 0) {
      peft::fail<peft::FormatError>("loading {}: a {} of this configuration has no place for it", tensor.where(),
                                    source.config.model_type);
    }
  }
}

}  // namespace peft_examples
