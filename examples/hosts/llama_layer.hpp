#pragma once
/// One layer of a Llama host: its norms and its seven linears under Hugging Face's paths, and what it keeps for backward.

#include <string>
#include <utility>
#include <vector>

#include "hosts/block_adapters.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_norm.hpp"
#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/dense_linear.hpp"

namespace peft_examples {

/// Bottleneck adapters at sums that go on without a norm.
template <Scalar T>
using LlamaAdapters = BlockAdapters<T, peft::ops::NoNorm>;

template <Scalar T>
struct LlamaLayer {
  using A = Accumulator<T>;
  using Linear = AdaptedLinear<T>;

  /// eps: the norms'.
  LlamaLayer(const std::string& path, LlamaLayerWeights<T> w, float eps)
      : input_norm(path + "input_layernorm", std::move(w.input_layernorm), eps),
        post_norm(path + "post_attention_layernorm", std::move(w.post_attention_layernorm), eps),
        q_norm(path + "self_attn.q_norm", std::move(w.q_norm), eps),
        k_norm(path + "self_attn.k_norm", std::move(w.k_norm), eps),
        q(path + "self_attn.q_proj", std::move(w.q_proj)),
        k(path + "self_attn.k_proj", std::move(w.k_proj)),
        v(path + "self_attn.v_proj", std::move(w.v_proj)),
        o(path + "self_attn.o_proj", std::move(w.o_proj)),
        gate(path + "mlp.gate_proj", std::move(w.gate_proj)),
        up(path + "mlp.up_proj", std::move(w.up_proj)),
        down(path + "mlp.down_proj", std::move(w.down_proj)) {}

  /// The bias of a linear in memory as the loader made it; empty where it has none.
  static VectorView<const A> bias_of(const Linear& linear) noexcept {
    const auto* dense = linear.base().template get_if<peft::DenseLinear<T>>();
    return dense != nullptr ? dense->bias() : VectorView<const A>();
  }
  std::vector<Linear*> linears() { return {&q, &k, &v, &o, &gate, &up, &down}; }
  std::vector<const Linear*> linears() const { return {&q, &k, &v, &o, &gate, &up, &down}; }

  /// The norms that the model has.
  std::vector<LlamaNorm<T>*> norms() {
    std::vector<LlamaNorm<T>*> result;
    for (LlamaNorm<T>* norm : {&input_norm, &q_norm, &k_norm, &post_norm}) {
      if (norm->size() > 0) result.push_back(norm);
    }
    return result;
  }
  Index parameter_count() const {
    Index count = input_norm.size() + post_norm.size() + q_norm.size() + k_norm.size();
    for (const Linear* linear : linears()) count += linear->in_features() * linear->out_features() + linear->base().read_bias().size();
    return count;
  }

  // What the selection has a part on, from the layer's input on: a backward pass goes down to the first of them.
  bool is_input_adapted(const peft::Selection<T>& selection) const {
    return q.is_adapted(selection) || k.is_adapted(selection) || v.is_adapted(selection) ||
           input_norm.is_adapted(selection) || q_norm.is_adapted(selection) || k_norm.is_adapted(selection);
  }
  bool is_attention_adapted(const peft::Selection<T>& selection) const {
    return o.is_adapted(selection) || is_input_adapted(selection);
  }
  bool is_adapted(const peft::Selection<T>& selection) const {
    return gate.is_adapted(selection) || up.is_adapted(selection) || down.is_adapted(selection) ||
           post_norm.is_adapted(selection) || is_attention_adapted(selection);
  }

  /// Throws ShapeError for what is not of the configuration's size.
  void check(const LlamaConfig& c) const {
    const auto expect = [](const std::string& what, Index rows, Index cols, Index r, Index n) {
      if (rows != r || cols != n) {
        peft::fail<peft::ShapeError>("Llama: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, n);
      }
    };
    const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
    const std::pair<Index, Index> shapes[7] = {{query, c.hidden_size}, {key, c.hidden_size}, {key, c.hidden_size},
                                               {c.hidden_size, query}, {c.intermediate_size, c.hidden_size},
                                               {c.intermediate_size, c.hidden_size}, {c.hidden_size, c.intermediate_size}};
    const auto all = linears();
    for (std::size_t i = 0; i < 7; ++i) {
      expect(all[i]->name(), all[i]->out_features(), all[i]->in_features(), shapes[i].first, shapes[i].second);
    }
    expect("input_layernorm", 1, input_norm.size(), 1, c.hidden_size);
    expect("post_attention_layernorm", 1, post_norm.size(), 1, c.hidden_size);
    expect("q_norm", 1, q_norm.size(), 1, c.qk_norm ? c.head_dim : 0);
    expect("k_norm", 1, k_norm.size(), 1, c.qk_norm ? c.head_dim : 0);
  }

  LlamaNorm<T> input_norm, post_norm, q_norm, k_norm;
  Linear q, k, v, o, gate, up, down;
};

/// What one layer keeps for backward. q and k as attention takes them; where they have norms, unnormed_* as the linears
/// gave them.
template <Scalar T>
struct LlamaSaved {
  using Saved = typename AdaptedLinear<T>::Saved;

  void resize(const LlamaConfig& c, Index tokens) {
    const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
    q.resize_discard(tokens, query);
    k.resize_discard(tokens, key);
    v.resize_discard(tokens, key);
    m.resize_discard(tokens, c.hidden_size);
    gate.resize_discard(tokens, c.intermediate_size);
    up.resize_discard(tokens, c.intermediate_size);
    log_sum_exp.resize_discard(tokens, c.num_attention_heads);
    if (!c.qk_norm) return;
    unnormed_q.resize_discard(tokens, query);
    unnormed_k.resize_discard(tokens, key);
  }

  Matrix<T> q, k, v, a, m, gate, up, unnormed_q, unnormed_k;
  Matrix<Accumulator<T>> log_sum_exp;
  Saved of_q, of_k, of_v, of_o, of_gate, of_up, of_down;
  typename LlamaAdapters<T>::Saved of_attention_adapter, of_output_adapter;
};

}  // namespace peft_examples
