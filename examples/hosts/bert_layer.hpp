#pragma once
/// One layer of a BERT host: its six linears under Hugging Face's paths, its two norms, and what it keeps for backward.

#include <array>
#include <string>
#include <utility>

#include "hosts/bert_config.hpp"
#include "hosts/bert_weights.hpp"
#include "hosts/names.hpp"
#include "hosts/trainable_linear.hpp"
#include "hosts/trainable_norm.hpp"

namespace peft_examples {

template <Scalar T>
struct BertLayer {
  using Linear = TrainableLinear<T>;
  using Norm = TrainableNorm<T>;

  BertLayer(const std::string& path, BertLayerWeights<T> w, float eps)
      : query(path + "attention.self.query", std::move(w.query)),
        key(path + "attention.self.key", std::move(w.key)),
        value(path + "attention.self.value", std::move(w.value)),
        attention_output(path + "attention.output.dense", std::move(w.attention_output)),
        attention_norm(path + "attention.output.LayerNorm", std::move(w.attention_norm.weight),
                       std::move(w.attention_norm.bias), eps),
        intermediate(path + "intermediate.dense", std::move(w.intermediate)),
        output(path + "output.dense", std::move(w.output)),
        output_norm(path + "output.LayerNorm", std::move(w.output_norm.weight), std::move(w.output_norm.bias), eps) {}

  std::array<Linear*, 6> linears() { return {&query, &key, &value, &attention_output, &intermediate, &output}; }
  std::array<const Linear*, 6> linears() const { return {&query, &key, &value, &attention_output, &intermediate, &output}; }
  std::array<Norm*, 2> norms() { return {&attention_norm, &output_norm}; }
  std::array<const Norm*, 2> norms() const { return {&attention_norm, &output_norm}; }

  /// Whether the base or the selection has something to train here.
  bool is_trained(const peft::Selection<T>& selection) const {
    for (const Linear* linear : linears()) {
      if (linear->is_trained() || linear->adapted().is_adapted(selection)) return true;
    }
    return attention_norm.is_trained() || output_norm.is_trained();
  }

  /// Throws ShapeError for what is not of the configuration's size.
  void check(const BertConfig& c) const {
    const auto expect = [](const std::string& what, Index rows, Index cols, Index r, Index n) {
      if (rows != r || cols != n) {
        peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, n);
      }
    };
    const auto all = linears();
    for (std::size_t i = 0; i < all.size(); ++i) {
      expect(all[i]->name(), all[i]->out_features(), all[i]->in_features(), i == 4 ? c.intermediate_size : c.hidden_size,
             i == 5 ? c.intermediate_size : c.hidden_size);
    }
    for (const Norm* norm : norms()) {
      expect(norm->name() + ".weight", 1, norm->weight().size, 1, c.hidden_size);
      expect(norm->name() + ".bias", 1, norm->bias().size, 1, c.hidden_size);
    }
  }

  Linear query, key, value, attention_output;
  Norm attention_norm;
  Linear intermediate, output;
  Norm output_norm;
};

/// What one layer keeps for backward. `rows` of its input go on through it: all of them, or one per sequence.
template <Scalar T>
struct BertSaved {
  using Saved = typename AdaptedLinear<T>::Saved;

  void resize(const BertConfig& c, Index tokens, Index rows) {
    q.resize_discard(rows, c.hidden_size);
    k.resize_discard(tokens, c.hidden_size);
    v.resize_discard(tokens, c.hidden_size);
    a.resize_discard(rows, c.hidden_size);
    attention_sum.resize_discard(rows, c.hidden_size);
    m.resize_discard(rows, c.hidden_size);
    inner.resize_discard(rows, c.intermediate_size);
    output_sum.resize_discard(rows, c.hidden_size);
    log_sum_exp.resize_discard(rows, c.num_attention_heads);
  }

  Matrix<T> first;                           ///< the rows that go on, where they are not all
  Matrix<T> q, k, v, a, m, inner;            ///< inner: before the activation
  Matrix<T> attention_sum, output_sum;       ///< branch + residual, which the norms take
  Matrix<Accumulator<T>> log_sum_exp;
  Saved of_query, of_key, of_value, of_attention_output, of_intermediate, of_output;
};

}  // namespace peft_examples
