#pragma once
/// One layer of a BERT host: its six linears under Hugging Face's paths, its two norms, and what it keeps for backward.

#include <array>
#include <string>
#include <utility>

#include "hosts/bert_config.hpp"
#include "hosts/bert_norm.hpp"
#include "hosts/bert_weights.hpp"
#include "hosts/block_adapters.hpp"
#include "hosts/names.hpp"

namespace peft_examples {

/// Bottleneck adapters at sums that go on through a norm.
template <Scalar T>
using BertAdapters = BlockAdapters<T, typename BertNorm<T>::Selected>;

template <Scalar T>
struct BertLayer {
  using Linear = AdaptedLinear<T>;
  using Norm = BertNorm<T>;

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

  Index parameter_count() const {
    Index count = 0;
    for (const Linear* linear : linears()) {
      count += linear->in_features() * linear->out_features() + linear->out_features();
    }
    for (const Norm* norm : norms()) count += norm->parameter_count();
    return count;
  }

  // What the selection has a part on, from the layer's input on: a backward pass goes down to the first of them.
  bool is_input_adapted(const peft::Selection<T>& selection) const {
    return query.is_adapted(selection) || key.is_adapted(selection) || value.is_adapted(selection);
  }
  bool is_attention_adapted(const peft::Selection<T>& selection) const {
    return attention_output.is_adapted(selection) || is_input_adapted(selection);
  }
  /// All but the norm at the layer's end.
  bool is_middle_adapted(const peft::Selection<T>& selection) const {
    return attention_norm.is_adapted(selection) || intermediate.is_adapted(selection) || output.is_adapted(selection) ||
           is_attention_adapted(selection);
  }
  bool is_adapted(const peft::Selection<T>& selection) const {
    return output_norm.is_adapted(selection) || is_middle_adapted(selection);
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
    m.resize_discard(rows, c.hidden_size);
    inner.resize_discard(rows, c.intermediate_size);
    log_sum_exp.resize_discard(rows, c.num_attention_heads);
  }

  Matrix<T> first;                           ///< the rows that go on, where they are not all
  Matrix<T> q, k, v, a, m, inner;            ///< inner: before the activation
  Matrix<Accumulator<T>> log_sum_exp;
  Saved of_query, of_key, of_value, of_attention_output, of_intermediate, of_output;
  typename BertAdapters<T>::Saved of_attention_site, of_output_site;
};

}  // namespace peft_examples
