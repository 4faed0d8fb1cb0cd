#pragma once
/// The body of a Llama host: embedding, layers, final norm, as transformers' LlamaModel. Per layer, x [tokens, hidden]:
///   m = x + attention(rms_norm(x)),   x' = m + down(silu(gate) ∘ up),  gate, up from rms_norm(m)
/// where an adapter (hosts/block_adapters.hpp) may stand in the place of either sum. Every linear is a peft::AdaptedLinear,
/// every norm a peft::AdaptedNorm, the embedding a peft::AdaptedEmbedding under Hugging Face's path.
/// Training keeps x, q, k, v, m, gate, up and log-sum-exp per layer (hosts/llama_stored.hpp), and attention's result where
/// o_proj is adapted; norms, the SwiGLU product and an x that an adapter wrote are made again. Checkpointed, it keeps x.

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/block_adapters.hpp"
#include "hosts/kv_cache.hpp"
#include "hosts/llama_attention.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_layer.hpp"
#include "hosts/llama_norm.hpp"
#include "hosts/llama_stored.hpp"
#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/adapted_embedding.hpp"
#include "peft/io/paged_weights.hpp"
#include "peft/ops/swiglu.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

template <Scalar T>
class LlamaModel {
 public:
  using A = Accumulator<T>;
  using Layer = LlamaLayer<T>;
  using Site = peft::AdapterSite;

  /// Throws ConfigError, ShapeError.
  LlamaModel(LlamaConfig config, peft::RowTable<T> embedding, std::vector<LlamaLayerWeights<T>> layers, Buffer<A> final_norm)
      : config_((config.validate(), std::move(config))),
        embedding_("model.embed_tokens", std::move(embedding)),
        final_norm_("model.norm", std::move(final_norm), config_.rms_norm_eps),
        attention_(config_),
        adapters_({"Llama", peft::AdapterLayout::kLlama, "AdapterLayout::kLlama", config_.num_hidden_layers,
                   config_.hidden_size, "model.layers.", ".attention_adapters", ".output_adapters"}) {
    layers_.reserve(layers.size());
    for (auto& weights : layers) {
      layers_.emplace_back("model.layers." + std::to_string(layers_.size()) + ".", std::move(weights), config_.rms_norm_eps);
    }
    check_shapes();
  }

  const LlamaConfig& config() const noexcept { return config_; }
  std::vector<Layer>& layers() noexcept { return layers_; }
  const std::vector<Layer>& layers() const noexcept { return layers_; }
  peft::AdaptedEmbedding<T>& embedding() noexcept { return embedding_; }
  const peft::AdaptedEmbedding<T>& embedding() const noexcept { return embedding_; }
  LlamaNorm<T>& final_norm() noexcept { return final_norm_; }
  const LlamaNorm<T>& final_norm() const noexcept { return final_norm_; }
  VirtualTokens<T>& virtual_tokens() noexcept { return attention_.virtual_tokens(); }
  const VirtualTokens<T>& virtual_tokens() const noexcept { return attention_.virtual_tokens(); }
  LlamaAdapters<T>& adapters() noexcept { return adapters_; }
  const LlamaAdapters<T>& adapters() const noexcept { return adapters_; }
  void set_executor(ExecutorRef executor) noexcept { executor_ = executor; }
  LlamaStored<T>& stored() noexcept { return stored_; }
  /// Stages: the embedding, the layers, the head.
  peft::PagedWeights& paged_weights() noexcept { return paged_; }
  /// The head's weight is used next.
  void enter_head() noexcept { paged_.enter(layers_.size() + 1); }

  // -- training ------------------------------------------------------------------------------------------------------
  /// The final norm's output [tokens, hidden]. It stays until the next call.
  MatrixView<const T> forward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    batch.check();
    const Index own = batch.tokens(), tokens = own + virtual_tokens().rows();
    stored_.resize(config_, tokens, [&](Index i) { return adapters_.can_join_again(i - 1, Site::kOutput); });
    product_.resize_discard(tokens, config_.intermediate_size);
    attention_.start(batch);
    adapters_.start(batch.offsets, virtual_tokens().rows());
    virtual_tokens().encode(context, executor_);
    paged_.enter(0);
    embedding_.forward({batch.ids.data(), own}, stored_.input(0).view().row_range(0, own), context.selection, executor_);
    if (const auto& prompt = virtual_tokens().prompt()) {
      prompt->write(stored_.input(0).view().row_range(own, virtual_tokens().rows()));
    }
    for (Index i = 0; i < config_.num_hidden_layers; ++i) {
      enter_layer(i);
      forward_layer(i, batch, context);
    }
    return normed(final_norm_, stored_.output().view().row_range(0, own), context.selection);
  }

  /// Where the gradient of forward's result is to be written.
  MatrixView<T> gradient() {
    const Matrix<T>& last = stored_.output();
    gradient_.resize_discard(last.rows(), last.cols());
    return gradient_.view().row_range(0, last.rows() - virtual_tokens().rows());
  }
  /// From gradient() on, as far down as something is trained: adds to the gradients of what is.
  void backward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    const Index tokens = batch.tokens();
    const MatrixView<T> d = gradient_.view().row_range(0, tokens);
    std::fill_n(gradient_.data() + d.rows * d.cols, (gradient_.rows() - tokens) * d.cols, T(0.0f));
    final_norm_.backward(d, stored_.output().view().row_range(0, tokens), Accumulate::kOverwrite, d,
                         context.selection, executor_);
    const bool input = virtual_tokens().trains_input() || embedding_.is_trained(context.selection);
    const Index lowest = input || virtual_tokens().trains() ? 0 : lowest_trained(context.selection);
    for (Index i = config_.num_hidden_layers; i-- > lowest;) {
      enter_layer(i);
      backward_layer(i, batch, input || i > lowest, context);
    }
    embedding_.backward({batch.ids.data(), tokens}, d, context.selection, executor_);
    virtual_tokens().backward(std::as_const(gradient_).view(), executor_);
  }

  // -- inference -----------------------------------------------------------------------------------------------------
  /// Rows that read() takes and gives; the caller fills them.
  Matrix<T>& rows(Index count) {
    rows_.resize_discard(count, config_.hidden_size);
    return rows_;
  }
  /// rows() hold the embedded new tokens, one sequence after another, and receive the last layer's output; keys and values
  /// go to the caches. Sizes are the caller's to check.
  void read(std::span<const Index> counts, std::span<KvCache<T>* const> caches, const peft::Selection<T>& selection) {
    Matrix<T>& x = rows_;
    LlamaSaved<T>& s = scratch_;
    s.resize(config_, x.rows());
    attention_.start(counts, caches);
    adapters_.start_counts(counts);
    for (Index i = 0; i < config_.num_hidden_layers; ++i) {
      enter_layer(i);
      const Layer& layer = layers_[static_cast<std::size_t>(i)];
      const MatrixView<const T> in = normed(layer.input_norm, x, selection);
      attention_.read(layer, i, counts, caches, in, s, adapters_.branch(i, Site::kAttention, s.of_attention_adapter, s.m),
                      selection, executor_);
      adapters_.join(i, Site::kAttention, x, kNoNorm, s.of_attention_adapter, s.m, nullptr, executor_);
      const MatrixView<const T> middle = normed(layer.post_norm, s.m, selection);
      layer.gate.forward(middle, s.gate, selection, executor_);
      layer.up.forward(middle, s.up, selection, executor_);
      peft::ops::swiglu_forward<T>(s.gate, s.up, s.gate, executor_);
      layer.down.forward(std::as_const(s.gate).view(), adapters_.branch(i, Site::kOutput, s.of_output_adapter, x), selection,
                         executor_);
      adapters_.join(i, Site::kOutput, s.m, kNoNorm, s.of_output_adapter, x, nullptr, executor_);
    }
  }
  /// norm(x), until the next call of anything here.
  MatrixView<const T> normed(const LlamaNorm<T>& norm, MatrixView<const T> x, const peft::Selection<T>& selection) {
    normed_.resize_discard(x.rows, x.cols);
    norm.forward(x, normed_, selection, executor_);
    return std::as_const(normed_).view();
  }

 private:
  static constexpr peft::ops::NoNorm kNoNorm{};

  void enter_layer(Index i) noexcept { paged_.enter(static_cast<std::size_t>(i) + 1); }

  void forward_layer(Index index, const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    forward_layer(index, batch, true, stored_.begin(index), context);
    stored_.put(index, executor_);
  }
  /// Without `want_output` only what backward reads is sure to be made.
  void forward_layer(Index index, const peft::PackedBatch& batch, bool want_output, LlamaSaved<T>& s,
                     const peft::TrainContext<T>& context) {
    const Layer& layer = layers_[static_cast<std::size_t>(index)];
    const Matrix<T>& x = stored_.input(index);
    Matrix<T>& next = stored_.input(index + 1);
    s.resize(config_, x.rows());
    attention_.forward(layer, index, batch, normed(layer.input_norm, x, context.selection), s,
                       adapters_.branch(index, Site::kAttention, s.of_attention_adapter, s.m), context, executor_);
    adapters_.join(index, Site::kAttention, x, kNoNorm, s.of_attention_adapter, s.m, &context, executor_);
    const MatrixView<const T> middle = normed(layer.post_norm, s.m, context.selection);
    layer.gate.forward(middle, s.gate, s.of_gate, context, executor_);
    layer.up.forward(middle, s.up, s.of_up, context, executor_);
    if (!want_output && !layer.down.is_adapted(context.selection) && !adapters_.has(index, Site::kOutput)) {
      s.of_down.adapters.clear();  // another layer's
      return;
    }
    peft::ops::swiglu_forward<T>(s.gate, s.up, product_, executor_);
    layer.down.forward(std::as_const(product_).view(),
                       adapters_.branch(index, Site::kOutput, s.of_output_adapter, next), s.of_down, context, executor_);
    adapters_.join(index, Site::kOutput, s.m, kNoNorm, s.of_output_adapter, next, &context, executor_);
  }

  /// gradient_ holds d loss / d (layer's output) and receives that of its input, unless nothing below is trained.
  void backward_layer(Index index, const peft::PackedBatch& batch, bool want_input, const peft::TrainContext<T>& context) {
    if (stored_.is_made_again(index)) {
      LlamaSaved<T>& below = stored_.layer(index - 1);
      adapters_.join(index - 1, Site::kOutput, below.m, kNoNorm, below.of_output_adapter, stored_.input(index), &context, executor_);
    }
    LlamaSaved<T>& s = stored_.get(index, executor_);
    if (stored_.is_gone(index)) forward_layer(index, batch, false, s, context);
    backward_layer(index, batch, want_input, s, context);
    stored_.done(index);
  }
  void backward_layer(Index index, const peft::PackedBatch& batch, bool want_input, LlamaSaved<T>& s,
                      const peft::TrainContext<T>& context) {
    const Layer& layer = layers_[static_cast<std::size_t>(index)];
    const Matrix<T>& x = stored_.input(index);
    Matrix<T>& d = gradient_;
    const peft::Selection<T>& selection = context.selection;
    const bool input = want_input || layer.is_input_adapted(selection);
    const bool attention = input || layer.is_attention_adapted(selection) || virtual_tokens().trains();
    const bool middle = attention || layer.is_adapted(selection) || adapters_.has(index, Site::kAttention);
    branch_.resize_discard(d.rows(), config_.hidden_size);
    d_product_.resize_discard(d.rows(), config_.intermediate_size);

    const MatrixView<const T> d_down =
        adapters_.backward(index, Site::kOutput, s.m, kNoNorm, s.of_output_adapter, d, middle, executor_);
    if (!middle) return;
    peft::ops::swiglu_forward<T>(s.gate, s.up, product_, executor_);
    layer.down.backward(d_down, std::as_const(product_).view(), s.of_down, d_product_, Accumulate::kOverwrite, context,
                        executor_);
    peft::ops::swiglu_backward<T>(d_product_, s.gate, s.up, s.gate, s.up, executor_);
    const MatrixView<const T> m = normed(layer.post_norm, s.m, selection);
    layer.gate.backward(std::as_const(s.gate).view(), m, s.of_gate, branch_, Accumulate::kOverwrite, context, executor_);
    layer.up.backward(std::as_const(s.up).view(), m, s.of_up, branch_, Accumulate::kAdd, context, executor_);
    layer.post_norm.backward(branch_, s.m, Accumulate::kAdd, d, selection, executor_);

    const MatrixView<const T> d_attention =
        adapters_.backward(index, Site::kAttention, x, kNoNorm, s.of_attention_adapter, d, attention, executor_);
    if (!attention) return;
    attention_.backward_heads(layer, index, batch, d_attention, s, context, executor_);
    if (!input) return;
    const bool wanted = want_input || layer.input_norm.is_adapted(selection);
    attention_.backward_input(layer, normed(layer.input_norm, x, selection), s, wanted ? branch_.view() : MatrixView<T>(),
                              context, executor_);
    if (wanted) layer.input_norm.backward(branch_, x, Accumulate::kAdd, d, selection, executor_);
  }

  /// The lowest layer with something to train.
  Index lowest_trained(const peft::Selection<T>& selection) const {
    const Index most = adapters_.lowest();
    for (Index i = 0; i < most; ++i) {
      if (layers_[static_cast<std::size_t>(i)].is_adapted(selection)) return i;
    }
    return most;
  }

  void check_shapes() const {
    const auto expect = [](const char* what, Index rows, Index cols, Index r, Index c) {
      if (rows != r || cols != c) {
        peft::fail<peft::ShapeError>("Llama: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
      }
    };
    const LlamaConfig& c = config_;
    expect("embed_tokens", embedding_.vocabulary(), embedding_.width(), c.vocab_size, c.hidden_size);
    expect("norm", 1, final_norm_.size(), 1, c.hidden_size);
    expect("the list of layers", static_cast<Index>(layers_.size()), 1, c.num_hidden_layers, 1);
    for (const Layer& layer : layers_) layer.check(c);
  }

  LlamaConfig config_;
  peft::AdaptedEmbedding<T> embedding_;
  std::vector<Layer> layers_;
  LlamaNorm<T> final_norm_;
  LlamaAttention<T> attention_;
  LlamaAdapters<T> adapters_;
  peft::PagedWeights paged_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  LlamaStored<T> stored_;
  LlamaSaved<T> scratch_;
  Matrix<T> rows_, normed_, product_, gradient_, branch_, d_product_;
};

}  // namespace peft_examples
