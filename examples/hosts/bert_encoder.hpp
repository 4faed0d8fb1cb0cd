#pragma once
/// BERT's encoder: embeddings (hosts/bert_embeddings.hpp), layers with their norms behind the branches, attention in both
/// directions over packed sequences. Wiring only; every piece comes from the library's public headers. Every linear is a
/// peft::AdaptedLinear, every norm and table adapted likewise, under Hugging Face's paths.
///
/// Per layer, x [tokens, hidden]:
///   m = norm(x + dropout(o(a))),  a = attention(q(x), k(x), v(x));   x' = norm(m + dropout(down(gelu(up(m)))))
/// where an adapter (hosts/block_adapters.hpp) may stand in the place of either sum and its norm. Training keeps x, q, k, v,
/// a, both sums, m, up and log-sum-exp per layer; the activation is made again.
///
/// Where methods enter: linears, norms and tables by name; set_adapters(), behind attention and feed-forward; set_prefix()
/// and set_prompt(), see hosts/bert_virtual_tokens.hpp.

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_config.hpp"
#include "hosts/bert_embeddings.hpp"
#include "hosts/bert_layer.hpp"
#include "hosts/bert_virtual_tokens.hpp"
#include "hosts/bert_weights.hpp"
#include "hosts/names.hpp"
#include "peft/ops/activation.hpp"
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
      : config_((config.validate(), std::move(config))),
        embeddings_(config_, weights, path),
        adapters_({"Bert", peft::AdapterLayout::kBert, "AdapterLayout::kBert", config_.num_hidden_layers, config_.hidden_size,
                   path + "encoder.layer.", ".attention.output", ".output"}) {
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
  /// Whether training keeps each layer's input only and backward makes the rest again, the same bits (hosts/llama_stored.hpp).
  void set_checkpointing(bool on) noexcept {
    checkpoints_ = on;
    saved_.clear();
  }
  Layer& layer(Index i) { return layers_[static_cast<std::size_t>(i)]; }
  /// Everything that adapters attach to by name, in the order of the model; valid as long as this is not moved.
  std::vector<AdaptedLinear<T>*> linears() {
    std::vector<AdaptedLinear<T>*> result;
    for (Layer& layer : layers_) {
      for (AdaptedLinear<T>* linear : layer.linears()) result.push_back(linear);
    }
    return result;
  }
  std::vector<peft::AdaptedNorm<T>*> norms() {
    std::vector<peft::AdaptedNorm<T>*> result{&embeddings_.norm().adapted()};
    for (Layer& layer : layers_) {
      for (BertNorm<T>* norm : layer.norms()) result.push_back(&norm->adapted());
    }
    return result;
  }
  BertEmbeddings<T>& embeddings() noexcept { return embeddings_; }
  const BertEmbeddings<T>& embeddings() const noexcept { return embeddings_; }
  BertAdapters<T>& adapters() noexcept { return adapters_; }
  const BertAdapters<T>& adapters() const noexcept { return adapters_; }
  BertVirtualTokens<T>& virtual_tokens() noexcept { return virtual_; }
  const BertVirtualTokens<T>& virtual_tokens() const noexcept { return virtual_; }
  Index parameter_count() const {
    Index count = embeddings_.parameter_count();
    for (const Layer& layer : layers_) count += layer.parameter_count();
    return count;
  }
  void set_executor(ExecutorRef executor) noexcept { executor_ = executor; }

  /// Whether backward has something to add to.
  bool is_trained(const peft::Selection<T>& selection) const {
    return embeddings_.is_trained(selection) || virtual_.trains() || lowest_trained(selection) < config_.num_hidden_layers;
  }

  /// The last layer's output: [tokens, hidden], or [sequences, hidden] with kFirst; a prompt's rows are among the tokens. It
  /// stays until the next call. Throws ShapeError, also for a sequence that exceeds the model's positions.
  Matrix<T>& forward(const peft::PackedBatch& given, const peft::TrainContext<T>& training, BertRows rows) {
    given.check();
    check_lengths(given);
    const peft::PackedBatch& batch = virtual_.start(given);
    const peft::TrainContext<T> context = of_batch(batch, training);
    const Index tokens = batch.tokens();
    batch_ = &batch;
    layers_in_.resize(layers_.size() + 1);
    saved_.resize(checkpoints_ ? 1 : layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_in_[i].resize_discard(tokens, config_.hidden_size);
    layers_in_.back().resize_discard(rows == BertRows::kFirst ? batch.sequences() : tokens, config_.hidden_size);
    virtual_.encode(context, executor_);
    embeddings_.forward(batch, virtual_, layers_in_[0], context.selection, executor_);
    drop(layers_in_[0], embeddings_.norm().name(), context, config_.hidden_dropout_prob);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      forward_layer(i, batch, context, rows == BertRows::kFirst && i + 1 == layers_.size());
    }
    return layers_in_.back();
  }

  /// d holds d loss / d (forward's result), of its shape; adds to the gradients of what is trained. d is used up. The batch
  /// and the context are those of the forward.
  void backward(Matrix<T>& d, const peft::TrainContext<T>& training, BertRows rows) {
    const peft::PackedBatch& batch = *batch_;
    const peft::TrainContext<T> context = of_batch(batch, training);
    const bool input = virtual_.trains_input() || embeddings_.is_trained(context.selection);
    const Index lowest = input || virtual_.trains() ? 0 : lowest_trained(context.selection);
    for (Index i = config_.num_hidden_layers; i-- > lowest;) {
      backward_layer(static_cast<std::size_t>(i), batch, d, input || i > lowest, context,
                     rows == BertRows::kFirst && i + 1 == config_.num_hidden_layers);
    }
    if (input) {
      drop(d, embeddings_.norm().name(), context, config_.hidden_dropout_prob);
      embeddings_.backward(batch, virtual_, d, context.selection, executor_);
    }
    virtual_.backward(batch, std::as_const(d).view(), executor_);
  }

 private:
  using Saved = BertSaved<T>;

  using Site = peft::AdapterSite;

  void forward_layer(std::size_t at, const peft::PackedBatch& batch, const peft::TrainContext<T>& context, bool only_first) {
    Layer& layer = layers_[at];
    Saved& s = saved_of(at);
    held_ = at;
    const auto index = static_cast<Index>(at);
    const Matrix<T>& x = layers_in_[at];
    Matrix<T>& next = layers_in_[at + 1];
    const peft::TrainContext<T> own = rows_context(batch, context, only_first);
    s.resize(config_, batch.tokens(), next.rows());
    start_adapters(batch, only_first);
    if (only_first) gather_first(batch, x, s.first);
    const MatrixView<const T> going_on = only_first ? std::as_const(s.first).view() : x.view();
    layer.query.forward(going_on, s.q, s.of_query, own, executor_);
    layer.key.forward(x, s.k, s.of_key, context, executor_);
    layer.value.forward(x, s.v, s.of_value, context, executor_);
    segments_of(batch, index, s, only_first);
    peft::ops::attention_forward<T>(s.q, segments_, shape(layer, own), s.a, s.log_sum_exp, executor_);
    const MatrixView<T> attention = adapters_.branch(index, Site::kAttention, s.of_attention_site, s.m);
    layer.attention_output.forward(std::as_const(s.a).view(), attention, s.of_attention_output, own, executor_);
    drop(attention, layer.attention_norm.name(), own, config_.hidden_dropout_prob);
    adapters_.join(index, Site::kAttention, going_on, layer.attention_norm.selected(context.selection), s.of_attention_site,
                   s.m, &own, executor_);
    const MatrixView<const T> m = std::as_const(s.m).view();
    layer.intermediate.forward(m, s.inner, s.of_intermediate, own, executor_);
    product_.resize_discard(s.inner.rows(), s.inner.cols());
    peft::ops::activation_forward<T>(config_.hidden_act, s.inner, product_, executor_);
    const MatrixView<T> output = adapters_.branch(index, Site::kOutput, s.of_output_site, next);
    layer.output.forward(std::as_const(product_).view(), output, s.of_output, own, executor_);
    drop(output, layer.output_norm.name(), own, config_.hidden_dropout_prob);
    adapters_.join(index, Site::kOutput, m, layer.output_norm.selected(context.selection), s.of_output_site, next, &own,
                   executor_);
  }

  /// d holds d loss / d (layer's output) and receives that of its input, unless nothing below is trained.
  void backward_layer(std::size_t at, const peft::PackedBatch& batch, Matrix<T>& d, bool want_input,
                      const peft::TrainContext<T>& context, bool only_first) {
    if (checkpoints_ && held_ != at) forward_layer(at, batch, context, only_first);
    Layer& layer = layers_[at];
    Saved& s = saved_of(at);
    const auto index = static_cast<Index>(at);
    const Matrix<T>& x = layers_in_[at];
    const peft::Selection<T>& selection = context.selection;
    const peft::TrainContext<T> own = rows_context(batch, context, only_first);
    const bool input = want_input || layer.is_input_adapted(selection);
    const bool attention = input || layer.is_attention_adapted(selection) || virtual_.trains();
    const bool middle = attention || layer.is_middle_adapted(selection) || adapters_.has(index, Site::kAttention);
    d_attention_.resize_discard(s.a.rows(), s.a.cols());
    d_keys_.resize_discard(batch.tokens(), s.k.cols());
    d_values_.resize_discard(batch.tokens(), s.v.cols());
    d_product_.resize_discard(s.inner.rows(), s.inner.cols());
    product_.resize_discard(s.inner.rows(), s.inner.cols());
    start_adapters(batch, only_first);

    const MatrixView<const T> m = std::as_const(s.m).view();
    const MatrixView<const T> d_output =
        adapters_.backward(index, Site::kOutput, m, layer.output_norm.selected(selection), s.of_output_site, d,
                           middle || layer.output_norm.is_adapted(selection), executor_);
    if (!middle) return;
    peft::ops::activation_forward<T>(config_.hidden_act, s.inner, product_, executor_);
    layer.output.backward(of_branch(d_output, layer.output_norm.name(), own), std::as_const(product_).view(), s.of_output,
                          d_product_, Accumulate::kOverwrite, own, executor_);
    peft::ops::activation_backward<T>(config_.hidden_act, d_product_, s.inner, s.inner, executor_);
    layer.intermediate.backward(std::as_const(s.inner).view(), m, s.of_intermediate, d, Accumulate::kAdd, own, executor_);

    const MatrixView<const T> going_on = only_first ? std::as_const(s.first).view() : x.view();
    const MatrixView<const T> d_branch =
        adapters_.backward(index, Site::kAttention, going_on, layer.attention_norm.selected(selection), s.of_attention_site,
                           d, attention || layer.attention_norm.is_adapted(selection), executor_);
    if (!attention) return;
    layer.attention_output.backward(of_branch(d_branch, layer.attention_norm.name(), own), std::as_const(s.a).view(),
                                    s.of_attention_output, d_attention_, Accumulate::kOverwrite, own, executor_);
    segments_of(batch, index, s, only_first);
    grad_segments_.clear();
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      const Index first = batch.offsets[i], count = segments_[i].keys.rows;
      grad_segments_.push_back({d_keys_.view().row_range(first, count), d_values_.view().row_range(first, count), {}, {}});
    }
    virtual_.add_to(grad_segments_, index);
    peft::ops::attention_backward<T>(std::as_const(d_attention_).view(), s.q, s.log_sum_exp, segments_,
                                     shape(layer, own), d_attention_, grad_segments_, executor_);
    if (!input) return;
    layer.query.backward(std::as_const(d_attention_).view(), going_on, s.of_query, want_input ? d.view() : MatrixView<T>(),
                         Accumulate::kAdd, own, executor_);
    if (only_first && want_input) scatter_first(batch, d);
    const MatrixView<T> into = want_input ? d.view() : MatrixView<T>();
    layer.key.backward(std::as_const(d_keys_).view(), x, s.of_key, into, Accumulate::kAdd, context, executor_);
    layer.value.backward(std::as_const(d_values_).view(), x, s.of_value, into, Accumulate::kAdd, context, executor_);
  }

  /// The gradient of a branch before its dropout: d itself where there is none.
  MatrixView<const T> of_branch(MatrixView<const T> d, const std::string& name, const peft::TrainContext<T>& context) {
    if (!context.dropout || config_.hidden_dropout_prob == 0.0f) return d;
    branch_.resize_discard(d.rows, d.cols);
    for (Index i = 0; i < d.rows; ++i) std::copy_n(d.row(i), d.cols, branch_.row(i));
    drop(branch_, name, context, config_.hidden_dropout_prob);
    return std::as_const(branch_).view();
  }

  Saved& saved_of(std::size_t at) noexcept { return saved_[checkpoints_ ? 0 : at]; }

  // -- small pieces --------------------------------------------------------------------------------------------------
  /// The lowest layer with something to train at its linears, norms or adapters.
  Index lowest_trained(const peft::Selection<T>& selection) const {
    const Index most = adapters_.lowest();
    for (Index i = 0; i < most; ++i) {
      if (layers_[static_cast<std::size_t>(i)].is_adapted(selection)) return i;
    }
    return most;
  }
  void start_adapters(const peft::PackedBatch& batch, bool only_first) {
    only_first ? adapters_.start_single(batch.sequences()) : adapters_.start(batch.offsets);
  }
  /// Masks go by the rows of the batch that the layers see.
  static peft::TrainContext<T> of_batch(const peft::PackedBatch& batch, peft::TrainContext<T> context) {
    context.first_row = batch.first_row;
    return context;
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
  void drop(MatrixView<T> x, const std::string& name, const peft::TrainContext<T>& context, float p) const {
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
  void segments_of(const peft::PackedBatch& batch, Index layer, const Saved& s, bool only_first) {
    segments_.clear();
    for (Index i = 0; i < batch.sequences(); ++i) {
      const Index first = batch.offsets[static_cast<std::size_t>(i)];
      const Index count = batch.offsets[static_cast<std::size_t>(i) + 1] - first;
      segments_.push_back({only_first ? i : first, only_first ? 1 : count, s.k.view().row_range(first, count),
                           s.v.view().row_range(first, count), {}, {}});
    }
    virtual_.add_to(segments_, layer);
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
    const Index most = config_.max_position_embeddings - virtual_.count();
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const Index count = batch.offsets[i + 1] - batch.offsets[i];
      if (count <= most) continue;
      peft::fail<peft::ShapeError>("Bert: sequence {} has {} tokens; expected at most {}, the model's positions{}", i, count,
                                   most, virtual_.count() > 0 ? " behind the virtual tokens" : "");
    }
  }
  void check_shapes() const {
    const BertConfig& c = config_;
    const BertNorm<T>& norm = embeddings_.norm();
    if (norm.weight().size != c.hidden_size || norm.bias().size != c.hidden_size) {
      peft::fail<peft::ShapeError>("Bert: {} has {} weights and {} biases; expected {} of each", norm.name(),
                                   norm.weight().size, norm.bias().size, c.hidden_size);
    }
    if (static_cast<Index>(layers_.size()) != c.num_hidden_layers) {
      peft::fail<peft::ShapeError>("Bert: {} layers; expected {}", layers_.size(), c.num_hidden_layers);
    }
    for (const Layer& layer : layers_) layer.check(c);
  }

  BertConfig config_;
  BertEmbeddings<T> embeddings_;
  std::vector<Layer> layers_;
  BertAdapters<T> adapters_;
  BertVirtualTokens<T> virtual_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  const peft::PackedBatch* batch_ = nullptr;  // that the layers saw in the last forward
  std::vector<Matrix<T>> layers_in_;
  std::vector<Saved> saved_;
  bool checkpoints_ = false;
  std::size_t held_ = 0;  // the layer that saved_ is of, where there is one for all
  Matrix<T> product_, branch_, d_attention_, d_keys_, d_values_, d_product_, scattered_;
  std::vector<peft::ops::AttentionSegment<T>> segments_;
  std::vector<peft::ops::AttentionGradSegment<T>> grad_segments_;
};

}  // namespace peft_examples
