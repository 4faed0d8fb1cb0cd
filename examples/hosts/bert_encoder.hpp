#pragma once
/// BERT's encoder: word, position and token-type embeddings, layers with their norms behind the branches, attention in both
/// directions over packed sequences. Wiring only; every piece comes from the library's public headers, and every linear is
/// a peft::AdaptedLinear under Hugging Face's path.
///
/// x [tokens, hidden] = dropout(norm(word + type + position)); per layer:
///   m = norm(x + dropout(o(a))),  a = attention(q(x), k(x), v(x));   x' = norm(m + dropout(down(gelu(up(m)))))
/// Training keeps x, q, k, v, a, both sums, m, up and log-sum-exp per layer; the activation is made again.
///
/// Sites: (a) the linears, by name; (b) end_branch, after attention and after the feed-forward, where branch, residual and
/// norm are at hand; (c) segments_of, where a prefix's keys and values join a layer's; (d) embed, where rows join the input.

#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_config.hpp"
#include "hosts/bert_layer.hpp"
#include "hosts/bert_weights.hpp"
#include "hosts/names.hpp"
#include "hosts/trainable_linear.hpp"
#include "hosts/trainable_norm.hpp"
#include "hosts/trainable_table.hpp"
#include "peft/adapted_linear.hpp"
#include "peft/ops/activation.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/dropout.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

/// Which of the last layer's rows are wanted.
enum class BertRows : std::uint8_t {
  kAll,    ///< every token's
  kFirst,  ///< the first token's of every sequence: all that a pooler reads, for a fraction of the layer's work
};

template <Scalar T>
class BertEncoder {
 public:
  using value_type = T;
  using A = Accumulator<T>;
  using Layer = BertLayer<T>;

  /// `path` stands before every name: "bert." inside of a model with a head. Throws ConfigError, ShapeError.
  BertEncoder(BertConfig config, BertWeights<T> weights, const std::string& path = "bert.")
      : config_(std::move(config)),
        words_(path + "embeddings.word_embeddings", std::move(weights.word_embeddings), config_.pad_token_id),
        positions_(path + "embeddings.position_embeddings", std::move(weights.position_embeddings)),
        types_(path + "embeddings.token_type_embeddings", std::move(weights.token_type_embeddings)),
        embedding_norm_(path + "embeddings.LayerNorm", std::move(weights.embedding_norm.weight),
                        std::move(weights.embedding_norm.bias), config_.layer_norm_eps) {
    config_.validate();
    layers_.reserve(weights.layers.size());
    for (auto& one : weights.layers) {
      layers_.emplace_back(path + "encoder.layer." + std::to_string(layers_.size()) + ".", std::move(one),
                           config_.layer_norm_eps);
    }
    check_shapes();
  }

  const BertConfig& config() const noexcept { return config_; }
  /// Dropout in training, instead of the configuration's. Throws ConfigError.
  void set_dropout(float hidden, float attention, float head) {
    BertConfig changed = config_;
    changed.hidden_dropout_prob = hidden;
    changed.attention_probs_dropout_prob = attention;
    changed.classifier_dropout = head;
    changed.validate();
    config_ = std::move(changed);
  }
  Layer& layer(Index i) { return layers_[static_cast<std::size_t>(i)]; }
  /// Every linear that adapters may attach to, in the order of the model.
  std::vector<AdaptedLinear<T>*> sites() {
    std::vector<AdaptedLinear<T>*> result;
    for (Layer& layer : layers_) {
      for (auto* linear : layer.linears()) result.push_back(&linear->adapted());
    }
    return result;
  }
  Index parameter_count() const {
    Index count = words_.parameter_count() + positions_.parameter_count() + types_.parameter_count() +
                  embedding_norm_.parameter_count();
    for (const Layer& layer : layers_) {
      for (const auto* linear : layer.linears()) count += linear->parameter_count();
      for (const auto* norm : layer.norms()) count += norm->parameter_count();
    }
    return count;
  }
  void set_executor(ExecutorRef executor) noexcept { executor_ = executor; }

  /// Trains of the base itself what wanted(name) says; see TrainableLinear. Throws ConfigError for 16-bit activations.
  template <class Wanted>
  void train_base(Wanted&& wanted) {
    for_each_base([&](auto& part) { part.train(wanted); });
  }
  /// Visits what train_base chose.
  template <class Visitor>
  void for_each_base_parameter(Visitor&& visit) {
    for_each_base([&](auto& part) { part.for_each_parameter(visit); });
  }

  /// The last layer's output: [tokens, hidden], or [sequences, hidden] with kFirst. It stays until the next call.
  Matrix<T>& forward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context, BertRows rows) {
    batch.check();
    check_lengths(batch);
    const Index tokens = batch.tokens();
    layers_in_.resize(layers_.size() + 1);
    saved_.resize(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_in_[i].resize_discard(tokens, config_.hidden_size);
    layers_in_.back().resize_discard(rows == BertRows::kFirst ? batch.sequences() : tokens, config_.hidden_size);
    embed(batch, context);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      forward_layer(i, batch, context, rows == BertRows::kFirst && i + 1 == layers_.size());
    }
    return layers_in_.back();
  }

  /// d holds d loss / d (forward's result), of its shape; adds to the gradients of what is trained. d is used up.
  void backward(const peft::PackedBatch& batch, Matrix<T>& d, const peft::TrainContext<T>& context, BertRows rows) {
    const bool embeddings = words_.is_trained() || positions_.is_trained() || types_.is_trained() || embedding_norm_.is_trained();
    std::size_t lowest = 0;
    while (!embeddings && lowest < layers_.size() && !layers_[lowest].is_trained(context.selection)) ++lowest;
    for (std::size_t i = layers_.size(); i-- > lowest;) {
      backward_layer(i, batch, d, embeddings || i > lowest, context, rows == BertRows::kFirst && i + 1 == layers_.size());
    }
    if (embeddings) backward_embed(batch, d, context);
  }

 private:
  using Saved = BertSaved<T>;

  template <class Visitor>
  void for_each_base(Visitor&& visit) {
    visit(words_);
    visit(positions_);
    visit(types_);
    visit(embedding_norm_);
    for (Layer& layer : layers_) {
      for (auto* linear : {&layer.query, &layer.key, &layer.value, &layer.attention_output}) visit(*linear);
      visit(layer.attention_norm);
      for (auto* linear : {&layer.intermediate, &layer.output}) visit(*linear);
      visit(layer.output_norm);
    }
  }

  // -- embeddings ----------------------------------------------------------------------------------------------------
  /// Site (d): the rows of embedded_ before types and positions are added are those of the word embeddings.
  void embed(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    const Index tokens = batch.tokens();
    embedded_.resize_discard(tokens, config_.hidden_size);
    branch_.resize_discard(tokens, config_.hidden_size);
    token_types_.assign(static_cast<std::size_t>(tokens), 0);
    words_.forward(ids_of(batch), embedded_, executor_);
    types_.forward({token_types_.data(), tokens}, branch_, executor_);
    peft::ops::add<T>(branch_, embedded_, executor_);
    positions_.forward({batch.positions.data(), tokens}, branch_, executor_);
    peft::ops::add<T>(branch_, embedded_, executor_);
    embedding_norm_.forward(embedded_, layers_in_[0], executor_);
    drop(layers_in_[0], embedding_norm_.name(), context, config_.hidden_dropout_prob);
  }
  void backward_embed(const peft::PackedBatch& batch, Matrix<T>& d, const peft::TrainContext<T>& context) {
    const Index tokens = batch.tokens();
    drop(d, embedding_norm_.name(), context, config_.hidden_dropout_prob);
    embedding_norm_.backward(std::as_const(d).view(), embedded_, d, executor_);
    const MatrixView<const T> d_sum = std::as_const(d).view();
    words_.backward(ids_of(batch), d_sum, executor_);
    positions_.backward({batch.positions.data(), tokens}, d_sum, executor_);
    types_.backward({token_types_.data(), tokens}, d_sum, executor_);
  }

  // -- one layer -----------------------------------------------------------------------------------------------------
  /// Site (b): a branch's output joins its residual and goes through the block's norm. `sum` holds the branch (behind its
  /// dropout) and receives branch + residual.
  void end_branch(const TrainableNorm<T>& norm, MatrixView<const T> residual, Matrix<T>& sum, MatrixView<T> out) const {
    peft::ops::add<T>(residual, sum, executor_);
    norm.forward(sum, out, executor_);
  }
  /// d holds the gradient of end_branch's output and receives that of the sum: of the branch and of the residual alike.
  void end_branch_backward(TrainableNorm<T>& norm, const Matrix<T>& sum, Matrix<T>& d) const {
    norm.backward(std::as_const(d).view(), sum, d, executor_);
  }

  void forward_layer(std::size_t at, const peft::PackedBatch& batch, const peft::TrainContext<T>& context, bool only_first) {
    Layer& layer = layers_[at];
    Saved& s = saved_[at];
    const Matrix<T>& x = layers_in_[at];
    Matrix<T>& next = layers_in_[at + 1];
    const peft::TrainContext<T> own = rows_context(batch, context, only_first);
    s.resize(config_, batch.tokens(), next.rows());
    if (only_first) gather_first(batch, x, s.first);
    const MatrixView<const T> going_on = only_first ? std::as_const(s.first).view() : x.view();
    layer.query.forward(going_on, s.q, s.of_query, own, executor_);
    layer.key.forward(x, s.k, s.of_key, context, executor_);
    layer.value.forward(x, s.v, s.of_value, context, executor_);
    segments_of(batch, s, only_first);
    peft::ops::attention_forward<T>(s.q, segments_, shape(layer, own), s.a, s.log_sum_exp, executor_);
    layer.attention_output.forward(std::as_const(s.a).view(), s.attention_sum, s.of_attention_output, own, executor_);
    drop(s.attention_sum, layer.attention_norm.name(), own, config_.hidden_dropout_prob);
    end_branch(layer.attention_norm, going_on, s.attention_sum, s.m);
    layer.intermediate.forward(std::as_const(s.m).view(), s.inner, s.of_intermediate, own, executor_);
    product_.resize_discard(s.inner.rows(), s.inner.cols());
    peft::ops::activation_forward<T>(config_.hidden_act, s.inner, product_, executor_);
    layer.output.forward(std::as_const(product_).view(), s.output_sum, s.of_output, own, executor_);
    drop(s.output_sum, layer.output_norm.name(), own, config_.hidden_dropout_prob);
    end_branch(layer.output_norm, std::as_const(s.m).view(), s.output_sum, next);
  }

  /// d holds d loss / d (layer's output) and receives that of its input, unless nothing below is trained.
  void backward_layer(std::size_t at, const peft::PackedBatch& batch, Matrix<T>& d, bool want_input,
                      const peft::TrainContext<T>& context, bool only_first) {
    Layer& layer = layers_[at];
    Saved& s = saved_[at];
    const Matrix<T>& x = layers_in_[at];
    const Index tokens = batch.tokens();
    const peft::TrainContext<T> own = rows_context(batch, context, only_first);
    d_attention_.resize_discard(s.a.rows(), s.a.cols());
    d_keys_.resize_discard(tokens, s.k.cols());
    d_values_.resize_discard(tokens, s.v.cols());
    d_product_.resize_discard(s.inner.rows(), s.inner.cols());
    product_.resize_discard(s.inner.rows(), s.inner.cols());

    end_branch_backward(layer.output_norm, s.output_sum, d);
    peft::ops::activation_forward<T>(config_.hidden_act, s.inner, product_, executor_);
    layer.output.backward(of_branch(d, layer.output_norm.name(), own), std::as_const(product_).view(), s.of_output,
                          d_product_, Accumulate::kOverwrite, own, executor_);
    peft::ops::activation_backward<T>(config_.hidden_act, d_product_, s.inner, s.inner, executor_);
    layer.intermediate.backward(std::as_const(s.inner).view(), std::as_const(s.m).view(), s.of_intermediate, d,
                                Accumulate::kAdd, own, executor_);

    end_branch_backward(layer.attention_norm, s.attention_sum, d);
    layer.attention_output.backward(of_branch(d, layer.attention_norm.name(), own), std::as_const(s.a).view(),
                                    s.of_attention_output, d_attention_, Accumulate::kOverwrite, own, executor_);
    segments_of(batch, s, only_first);
    grad_segments_.clear();
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      const Index first = batch.offsets[i], count = segments_[i].keys.rows;
      grad_segments_.push_back({d_keys_.view().row_range(first, count), d_values_.view().row_range(first, count), {}, {}});
    }
    peft::ops::attention_backward<T>(std::as_const(d_attention_).view(), s.q, s.log_sum_exp, segments_,
                                     shape(layer, own), d_attention_, grad_segments_, executor_);
    const MatrixView<const T> going_on = only_first ? std::as_const(s.first).view() : x.view();
    layer.query.backward(std::as_const(d_attention_).view(), going_on, s.of_query, want_input ? d.view() : MatrixView<T>(),
                         Accumulate::kAdd, own, executor_);
    if (only_first && want_input) scatter_first(batch, d);
    const MatrixView<T> input = want_input ? d.view() : MatrixView<T>();
    layer.key.backward(std::as_const(d_keys_).view(), x, s.of_key, input, Accumulate::kAdd, context, executor_);
    layer.value.backward(std::as_const(d_values_).view(), x, s.of_value, input, Accumulate::kAdd, context, executor_);
  }

  /// The gradient of a branch before its dropout: d itself where there is none.
  MatrixView<const T> of_branch(const Matrix<T>& d, const std::string& name, const peft::TrainContext<T>& context) {
    if (!context.dropout || config_.hidden_dropout_prob == 0.0f) return d.view();
    branch_.resize_discard(d.rows(), d.cols());
    std::copy_n(d.data(), d.size(), branch_.data());
    drop(branch_, name, context, config_.hidden_dropout_prob);
    return std::as_const(branch_).view();
  }

  // -- small pieces --------------------------------------------------------------------------------------------------
  static VectorView<const std::int32_t> ids_of(const peft::PackedBatch& batch) noexcept {
    return {batch.ids.data(), batch.tokens()};
  }
  /// With one row per sequence, masks go by the sequence.
  static peft::TrainContext<T> rows_context(const peft::PackedBatch& batch, peft::TrainContext<T> context, bool only_first) {
    if (only_first) context.first_row = batch.first_sequence;
    return context;
  }
  static peft::DropoutKey key_of(const std::string& name, const peft::TrainContext<T>& context) {
    const std::uint64_t hash = peft::ModuleId(name).hash();
    return {context.seed, context.step, static_cast<std::uint32_t>(hash ^ (hash >> 32)), context.first_row};
  }
  void drop(Matrix<T>& x, const std::string& name, const peft::TrainContext<T>& context, float p) const {
    if (context.dropout && p > 0.0f) peft::ops::dropout<T>(x, p, key_of(name, context), executor_);
  }
  peft::ops::AttentionShape shape(const Layer& layer, const peft::TrainContext<T>& context) const {
    peft::ops::AttentionShape shape{config_.num_attention_heads, config_.num_attention_heads, config_.head_dim(),
                                    static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim()))), false};
    if (context.dropout) {
      shape.dropout = config_.attention_probs_dropout_prob;
      shape.dropout_key = key_of(layer.query.name() + ".attention", context);
    }
    return shape;
  }
  /// Site (c): prefix_keys and prefix_values of a segment are seen by all its queries.
  void segments_of(const peft::PackedBatch& batch, const Saved& s, bool only_first) {
    segments_.clear();
    for (Index i = 0; i < batch.sequences(); ++i) {
      const Index first = batch.offsets[static_cast<std::size_t>(i)];
      const Index count = batch.offsets[static_cast<std::size_t>(i) + 1] - first;
      segments_.push_back({only_first ? i : first, only_first ? 1 : count, s.k.view().row_range(first, count),
                           s.v.view().row_range(first, count), {}, {}});
    }
  }
  void gather_first(const peft::PackedBatch& batch, const Matrix<T>& x, Matrix<T>& first) const {
    first.resize_discard(batch.sequences(), x.cols());
    for (Index i = 0; i < batch.sequences(); ++i) {
      std::copy_n(x.row(batch.offsets[static_cast<std::size_t>(i)]), x.cols(), first.row(i));
    }
  }
  /// d [sequences, hidden] becomes [tokens, hidden]: its rows at the first tokens, 0 elsewhere.
  void scatter_first(const peft::PackedBatch& batch, Matrix<T>& d) {
    scattered_.resize_discard(batch.tokens(), d.cols());
    std::fill_n(scattered_.data(), scattered_.size(), T(0.0f));
    for (Index i = 0; i < batch.sequences(); ++i) {
      std::copy_n(d.row(i), d.cols(), scattered_.row(batch.offsets[static_cast<std::size_t>(i)]));
    }
    std::swap(d, scattered_);
  }

  void check_lengths(const peft::PackedBatch& batch) const {
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const Index count = batch.offsets[i + 1] - batch.offsets[i];
      if (count > config_.max_position_embeddings) {
        peft::fail<peft::ShapeError>("Bert: sequence {} has {} tokens; expected at most {}, the model's positions", i, count,
                                     config_.max_position_embeddings);
      }
    }
  }
  void check_shapes() const {
    const auto expect = [](const std::string& what, Index rows, Index cols, Index r, Index c) {
      if (rows != r || cols != c) {
        peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
      }
    };
    const BertConfig& c = config_;
    expect(words_.name(), words_.view().rows, words_.view().cols, c.vocab_size, c.hidden_size);
    expect(positions_.name(), positions_.view().rows, positions_.view().cols, c.max_position_embeddings, c.hidden_size);
    expect(types_.name(), types_.view().rows, types_.view().cols, c.type_vocab_size, c.hidden_size);
    expect(embedding_norm_.name(), embedding_norm_.weight().size, embedding_norm_.bias().size, c.hidden_size, c.hidden_size);
    expect("the list of layers", static_cast<Index>(layers_.size()), 1, c.num_hidden_layers, 1);
    for (const Layer& layer : layers_) layer.check(c);
  }

  BertConfig config_;
  TrainableTable<T> words_, positions_, types_;
  TrainableNorm<T> embedding_norm_;
  std::vector<Layer> layers_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  std::vector<std::int32_t> token_types_;
  std::vector<Matrix<T>> layers_in_;
  std::vector<Saved> saved_;
  Matrix<T> embedded_, product_, branch_, d_attention_, d_keys_, d_values_, d_product_, scattered_;
  std::vector<peft::ops::AttentionSegment<T>> segments_;
  std::vector<peft::ops::AttentionGradSegment<T>> grad_segments_;
};

}  // namespace peft_examples
