#pragma once
/// A Llama host: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head; with biases or norms of
/// q and k where the model has them. Wiring only; every piece comes from the library's public headers, and every linear is
/// a peft::AdaptedLinear under Hugging Face's path.
///
/// Per layer, x [tokens, hidden]:   a = attention(rope(q), rope(k), v),  q, k, v from rms_norm(x)
///                                  (Qwen 3: rope(rms_norm(q)), rope(rms_norm(k)), each head by itself)
///                                  m = x + o(a),   x' = m + down(silu(gate) ∘ up),  gate, up from rms_norm(m)
/// Training keeps x, q, k, v, a, m, gate, up and log-sum-exp per layer; norms and the SwiGLU product are made again.
/// Virtual tokens (hosts/virtual_tokens.hpp): a prompt's rows stand behind the batch's in all of these.

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/kv_cache.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_layer.hpp"
#include "hosts/llama_rope.hpp"
#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "hosts/virtual_tokens.hpp"
#include "peft/adapted_linear.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/dense_linear.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/ops/rms_norm.hpp"
#include "peft/ops/rope.hpp"
#include "peft/ops/swiglu.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

template <Scalar T>
class Llama {
 public:
  using value_type = T;
  using A = Accumulator<T>;
  using accumulator_type = A;
  using Linear = AdaptedLinear<T>;
  using Layer = LlamaLayer<T>;

  /// embedding [vocab, hidden]; head: lm_head [vocab, hidden], or the embedding again where the model ties them.
  /// Throws ConfigError, ShapeError.
  Llama(LlamaConfig config, SharedMatrix<T> embedding, std::vector<LlamaLayerWeights<T>> layers, Buffer<A> final_norm,
        peft::DenseLinear<T> head)
      : config_(std::move(config)),
        embedding_(std::move(embedding)),
        final_norm_(std::move(final_norm)),
        head_(std::move(head)),
        rope_(config_) {
    config_.validate();
    layers_.reserve(layers.size());
    for (auto& weights : layers) {
      layers_.emplace_back("model.layers." + std::to_string(layers_.size()) + ".", std::move(weights));
    }
    check_shapes();
  }

  const LlamaConfig& config() const noexcept { return config_; }
  /// Every linear that adapters may attach to, in the order of the model.
  std::vector<Linear*> sites() {
    std::vector<Linear*> result;
    for (Layer& layer : layers_) {
      for (Linear* linear : layer.linears()) result.push_back(linear);
    }
    return result;
  }
  /// Parameters of the base model; a tied head counts once.
  Index parameter_count() const {
    Index count = embedding_.view.rows * embedding_.view.cols + final_norm_.size();
    if (!is_tied()) count += head_.in_features() * head_.out_features();
    for (const Layer& layer : layers_) {
      count += layer.input_norm.size() + layer.post_norm.size() + layer.q_norm.size() + layer.k_norm.size();
      for (const Linear* linear : layer.linears()) {
        count += linear->in_features() * linear->out_features() + Layer::bias_of(*linear).size;
      }
    }
    return count;
  }
  bool is_tied() const noexcept { return head_.weight().data == embedding_.view.data; }
  MatrixView<const T> embedding() const noexcept { return embedding_.view; }
  VectorView<const A> final_norm() const noexcept { return final_norm_.view(); }
  const Layer& layer(Index i) const { return layers_[static_cast<std::size_t>(i)]; }
  const peft::DenseLinear<T>& head() const noexcept { return head_; }
  void set_executor(ExecutorRef executor) noexcept { executor_ = executor; }

  /// What forward_backward trains and evaluate uses.
  void select(peft::Selection<T> selection) { selection_ = std::move(selection); }
  const peft::Selection<T>& selection() const noexcept { return selection_; }
  peft::PromptHost prompt_host() const noexcept {
    return {config_.num_hidden_layers, config_.hidden_size, config_.num_attention_heads, config_.num_key_value_heads,
            config_.head_dim};
  }
  /// Puts a trained prefix, or learned vectors, before every sequence; nullptr: none. Throws ShapeError for one of another
  /// model, ConfigError for both at once.
  void set_prefix(std::shared_ptr<peft::PrefixCache<T>> prefix) { virtual_.set_prefix(std::move(prefix), prompt_host()); }
  void set_prompt(std::shared_ptr<peft::PromptEmbedding<T>> prompt) {
    virtual_.set_prompt(std::move(prompt), prompt_host());
  }
  const std::shared_ptr<peft::PrefixCache<T>>& prefix() const noexcept { return virtual_.prefix(); }
  const std::shared_ptr<peft::PromptEmbedding<T>>& prompt() const noexcept { return virtual_.prompt(); }
  /// Virtual tokens before every sequence.
  Index num_virtual_tokens() const noexcept { return virtual_.count(); }

  // -- peft::TrainableModel ------------------------------------------------------------------------------------------
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (const auto& active : selection_.active()) active.adapter->for_each_parameter(visit);
    virtual_.for_each_parameter(visit);
  }

  void forward_backward(const peft::PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        peft::LossSum& sum) {
    const peft::TrainContext<T> context{selection_, seed, step, batch.first_row, true};
    forward(batch, context);
    const Index tokens = batch.tokens(), virtual_rows = virtual_.rows();
    gradient_.resize_discard(tokens + virtual_rows, config_.hidden_size);
    const MatrixView<T> d = gradient_.view().row_range(0, tokens), last = layers_in_.back().view().row_range(0, tokens);
    std::fill_n(gradient_.data() + d.rows * d.cols, virtual_rows * d.cols, T(0.0f));
    norm(last, final_norm_);
    loss_.forward_backward(head_, normed(), targets(batch), grad_scale, d, sum, executor_);
    peft::ops::rms_norm_backward<T>(d, last, final_norm_.view(), config_.rms_norm_eps, Accumulate::kOverwrite, d, {},
                                    executor_);
    const Index lowest = virtual_.trains() ? 0 : lowest_adapted_layer();
    for (Index i = config_.num_hidden_layers; i-- > lowest;) {
      backward_layer(i, batch, virtual_.trains_input() || i > lowest, context);
    }
    virtual_.backward(std::as_const(gradient_).view(), executor_);
  }

  void evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) {
    forward(batch, peft::TrainContext<T>{selection_, 0, 0, 0, false});
    norm(layers_in_.back().view().row_range(0, batch.tokens()), final_norm_);
    loss_.forward(head_, normed(), targets(batch), sum, executor_);
  }

  // -- inference -----------------------------------------------------------------------------------------------------
  /// What stands before every sequence, for the caches of any number of them: views of the prefix, or of keys and values
  /// that the prompt is read into now, once. Null where there is neither.
  typename KvCache<T>::Prefix make_prefix() {
    virtual_.encode(nullptr, executor_);
    if (prefix()) return std::make_shared<const KvPrefix<T>>(std::shared_ptr<const peft::PrefixCache<T>>(prefix()));
    if (!prompt()) return nullptr;
    const Index count = num_virtual_tokens();
    auto cache = std::make_shared<KvCache<T>>(config_, count);
    KvCache<T>* caches[] = {cache.get()};
    scratch_in_.resize_discard(count, config_.hidden_size);
    prompt()->write(scratch_in_);
    read({&count, 1}, caches);
    return std::make_shared<const KvPrefix<T>>(std::shared_ptr<const KvCache<T>>(std::move(cache)));
  }

  /// Appends the new tokens of each sequence to its cache and writes the logits [sequences, vocab] after the last one.
  /// ids holds all new tokens, one sequence after another; counts[i] ≥ 1 of them belong to caches[i]. Each cache brings its
  /// own prefix. Throws ShapeError; ConfigError for a cache without prefix where the model has virtual tokens.
  void infer(VectorView<const std::int32_t> ids, std::span<const Index> counts, std::span<KvCache<T>* const> caches,
             MatrixView<A> logits) {
    Index tokens = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const KvCache<T>& cache = *caches[i];
      if (cache.length() + counts[i] > cache.capacity()) {
        peft::fail<peft::ShapeError>("Llama::infer: the cache of sequence {} holds {} tokens; {} more exceed its {}", i,
                                     cache.length(), counts[i], cache.capacity());
      }
      if (num_virtual_tokens() > 0 && cache.prefix() == nullptr) {
        peft::fail<peft::ConfigError>("Llama::infer: the cache of sequence {} has no prefix and the model has {} virtual "
                                      "tokens; make it with make_prefix()'s",
                                      i, num_virtual_tokens());
      }
      tokens += counts[i];
    }
    if (tokens != ids.size) {
      peft::fail<peft::ShapeError>("Llama::infer: {} ids; expected {}, the sum of counts", ids.size, tokens);
    }
    scratch_in_.resize_discard(tokens, config_.hidden_size);
    peft::ops::embedding_forward<T, T>(ids, embedding_.view, scratch_in_, executor_);
    read(counts, caches);
    last_.resize_discard(static_cast<Index>(counts.size()), config_.hidden_size);
    Index row = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      row += counts[i];
      std::copy_n(scratch_in_.row(row - 1), config_.hidden_size, last_.row(static_cast<Index>(i)));
    }
    write_logits(last_, logits);
  }

  /// Logits [tokens, vocab] of every position of a batch, without dropout.
  void logits(const peft::PackedBatch& batch, MatrixView<A> out) {
    forward(batch, peft::TrainContext<T>{selection_, 0, 0, 0, false});
    write_logits(layers_in_.back().view().row_range(0, batch.tokens()), out);
  }

 private:
  using Saved = LlamaSaved<T>;
  static constexpr std::uint32_t kPromptModule = 0xFFFF0000u;  ///< of the P-tuning encoder's dropout masks

  MatrixView<const T> normed() const noexcept { return normed_; }
  peft::ops::AttentionShape shape() const noexcept {
    return {config_.num_attention_heads, config_.num_key_value_heads, config_.head_dim,
            static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim))), true};
  }
  static VectorView<const std::int32_t> targets(const peft::PackedBatch& batch) noexcept {
    return {batch.targets.data(), batch.tokens()};
  }
  void norm(MatrixView<const T> x, const Buffer<A>& weight) {
    normed_.resize_discard(x.rows, x.cols);
    peft::ops::rms_norm_forward<T>(x, weight.view(), config_.rms_norm_eps, normed_, executor_);
  }
  /// The heads of all tokens as rows [tokens × heads, head_dim].
  template <class Values>
  auto heads(Values& values) const {
    const auto view = values.view();
    return decltype(view)(view.data, view.rows * (view.cols / config_.head_dim), config_.head_dim);
  }
  void norm_heads(const Layer& layer, const Matrix<T>& q, const Matrix<T>& k, Matrix<T>& normed_q, Matrix<T>& normed_k) {
    const float eps = config_.rms_norm_eps;
    peft::ops::rms_norm_forward<T>(heads(q), layer.q_norm.view(), eps, heads(normed_q), executor_);
    peft::ops::rms_norm_forward<T>(heads(k), layer.k_norm.view(), eps, heads(normed_k), executor_);
  }
  /// d holds the gradient of the normed heads and receives that of x.
  void norm_heads_backward(Matrix<T>& d, const Matrix<T>& x, const Buffer<A>& weight) {
    peft::ops::rms_norm_backward<T>(heads(std::as_const(d)), heads(x), weight.view(), config_.rms_norm_eps,
                                    Accumulate::kOverwrite, heads(d), {}, executor_);
  }
  void rotate(Matrix<T>& q, Matrix<T>& k) {
    const VectorView<const std::int32_t> at{positions_.data(), static_cast<Index>(positions_.size())};
    const auto& table = rope_.table(positions_);
    peft::ops::rope_forward<T>(q, at, config_.head_dim, table, executor_);
    peft::ops::rope_forward<T>(k, at, config_.head_dim, table, executor_);
  }
  void write_logits(MatrixView<const T> x, MatrixView<A> out) {
    norm(x, final_norm_);
    if constexpr (std::is_same_v<T, A>) {
      head_.forward(normed(), out, executor_);
    } else {  // the head's sums stay in float
      Matrix<A> wide(x.rows, config_.hidden_size);
      for (Index i = 0; i < wide.size(); ++i) wide.flat()[i] = static_cast<A>(normed_.flat()[i]);
      head_.forward(std::as_const(wide).view(), out, executor_);
    }
  }
  Index lowest_adapted_layer() const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      for (const Linear* linear : layers_[i].linears()) {
        if (is_adapted(*linear)) return static_cast<Index>(i);
      }
    }
    return config_.num_hidden_layers;
  }
  bool is_adapted(const Linear& linear) const { return linear.is_adapted(selection_); }

  void forward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    batch.check();
    const Index own = batch.tokens(), tokens = own + virtual_.rows();
    layers_in_.resize(layers_.size() + 1);
    saved_.resize(layers_.size());
    for (auto& x : layers_in_) x.resize_discard(tokens, config_.hidden_size);
    product_.resize_discard(tokens, config_.intermediate_size);
    virtual_.positions(batch, positions_);
    const peft::DropoutKey dropout{context.seed, context.step, kPromptModule, 0};
    virtual_.encode(context.dropout ? &dropout : nullptr, executor_);
    peft::ops::embedding_forward<T, T>({batch.ids.data(), own}, embedding_.view, layers_in_[0].view().row_range(0, own),
                                       executor_);
    if (prompt()) prompt()->write(layers_in_[0].view().row_range(own, virtual_.rows()));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      Saved& s = saved_[i];
      const Matrix<T>& x = layers_in_[i];
      Matrix<T>& next = layers_in_[i + 1];
      s.resize(config_, tokens);
      norm(x, layer.input_norm);
      layer.q.forward(normed(), config_.qk_norm ? s.unnormed_q : s.q, s.of_q, context, executor_);
      layer.k.forward(normed(), config_.qk_norm ? s.unnormed_k : s.k, s.of_k, context, executor_);
      layer.v.forward(normed(), s.v, s.of_v, context, executor_);
      if (config_.qk_norm) norm_heads(layer, s.unnormed_q, s.unnormed_k, s.q, s.k);
      rotate(s.q, s.k);
      virtual_.segments(batch, static_cast<Index>(i), s.k, s.v, segments_);
      peft::ops::attention_forward<T>(s.q, segments_, shape(), s.a, s.log_sum_exp, executor_);
      layer.o.forward(std::as_const(s.a).view(), s.m, s.of_o, context, executor_);
      peft::ops::add<T>(x, s.m, executor_);
      norm(s.m, layer.post_norm);
      layer.gate.forward(normed(), s.gate, s.of_gate, context, executor_);
      layer.up.forward(normed(), s.up, s.of_up, context, executor_);
      peft::ops::swiglu_forward<T>(s.gate, s.up, product_, executor_);
      layer.down.forward(std::as_const(product_).view(), next, s.of_down, context, executor_);
      peft::ops::add<T>(s.m, next, executor_);
    }
  }

  /// gradient_ holds d loss / d (layer's output) and receives that of its input, unless nothing below is trained.
  void backward_layer(Index index, const peft::PackedBatch& batch, bool want_input,
                      const peft::TrainContext<T>& context) {
    const auto at = static_cast<std::size_t>(index);
    const Layer& layer = layers_[at];
    Saved& s = saved_[at];
    const Matrix<T>& x = layers_in_[at];
    Matrix<T>& d = gradient_;
    const Index tokens = d.rows();
    branch_.resize_discard(tokens, config_.hidden_size);
    d_keys_.resize_discard(tokens, s.k.cols());
    d_values_.resize_discard(tokens, s.v.cols());
    d_attention_.resize_discard(tokens, s.a.cols());
    d_product_.resize_discard(tokens, config_.intermediate_size);
    const MatrixView<const T> upper = std::as_const(d).view();

    peft::ops::swiglu_forward<T>(s.gate, s.up, product_, executor_);
    layer.down.backward(upper, std::as_const(product_).view(), s.of_down, d_product_, Accumulate::kOverwrite, context,
                        executor_);
    peft::ops::swiglu_backward<T>(d_product_, s.gate, s.up, s.gate, s.up, executor_);
    norm(s.m, layer.post_norm);
    layer.gate.backward(std::as_const(s.gate).view(), normed(), s.of_gate, branch_, Accumulate::kOverwrite, context,
                        executor_);
    layer.up.backward(std::as_const(s.up).view(), normed(), s.of_up, branch_, Accumulate::kAdd, context, executor_);
    peft::ops::rms_norm_backward<T>(branch_, s.m, layer.post_norm.view(), config_.rms_norm_eps, Accumulate::kAdd, d, {},
                                    executor_);

    layer.o.backward(upper, std::as_const(s.a).view(), s.of_o, d_attention_, Accumulate::kOverwrite, context, executor_);
    virtual_.segments(batch, index, s.k, s.v, segments_);
    virtual_.grad_segments(segments_, index, d_keys_, d_values_, grad_segments_);
    peft::ops::attention_backward<T>(std::as_const(d_attention_).view(), s.q, s.a, s.log_sum_exp, segments_, shape(),
                                     d_attention_, grad_segments_, executor_);
    if (!want_input && !is_adapted(layer.q) && !is_adapted(layer.k) && !is_adapted(layer.v)) return;
    virtual_.add_prompt_gradients(d_keys_, d_values_);
    const VectorView<const std::int32_t> positions{positions_.data(), tokens};
    const auto& table = rope_.table(positions_);
    peft::ops::rope_backward<T>(d_attention_, positions, config_.head_dim, table, executor_);
    peft::ops::rope_backward<T>(d_keys_, positions, config_.head_dim, table, executor_);
    if (config_.qk_norm) {
      norm_heads_backward(d_attention_, s.unnormed_q, layer.q_norm);
      norm_heads_backward(d_keys_, s.unnormed_k, layer.k_norm);
    }
    norm(x, layer.input_norm);
    const MatrixView<T> input = want_input ? branch_.view() : MatrixView<T>();
    layer.q.backward(std::as_const(d_attention_).view(), normed(), s.of_q, input, Accumulate::kOverwrite, context, executor_);
    layer.k.backward(std::as_const(d_keys_).view(), normed(), s.of_k, input, Accumulate::kAdd, context, executor_);
    layer.v.backward(std::as_const(d_values_).view(), normed(), s.of_v, input, Accumulate::kAdd, context, executor_);
    if (want_input) {
      peft::ops::rms_norm_backward<T>(branch_, x, layer.input_norm.view(), config_.rms_norm_eps, Accumulate::kAdd, d, {},
                                      executor_);
    }
  }

  /// scratch_in_ holds the embedded new tokens, one sequence after another, and receives the last layer's output; keys and
  /// values go to the caches. Sizes are the caller's to check.
  void read(std::span<const Index> counts, std::span<KvCache<T>* const> caches) {
    Matrix<T>& x = scratch_in_;
    Saved& s = scratch_;
    s.resize(config_, x.rows());
    positions_.clear();
    for (std::size_t i = 0; i < counts.size(); ++i) {
      for (Index j = 0; j < counts[i]; ++j) positions_.push_back(static_cast<std::int32_t>(caches[i]->next_position() + j));
    }
    for (Index l = 0; l < config_.num_hidden_layers; ++l) {
      const Layer& layer = layers_[static_cast<std::size_t>(l)];
      norm(x, layer.input_norm);
      layer.q.forward(normed(), s.q, selection_, executor_);
      layer.k.forward(normed(), s.k, selection_, executor_);
      layer.v.forward(normed(), s.v, selection_, executor_);
      if (config_.qk_norm) norm_heads(layer, s.q, s.k, s.q, s.k);
      rotate(s.q, s.k);
      segments_.clear();
      Index row = 0;
      for (std::size_t i = 0; i < counts.size(); ++i) {
        KvCache<T>& cache = *caches[i];
        const KvPrefix<T>* prefix = cache.prefix();
        cache.write(l, std::as_const(s.k).view().row_range(row, counts[i]), std::as_const(s.v).view().row_range(row, counts[i]));
        segments_.push_back({row, counts[i], cache.keys(l), cache.values(l), {}, {}});
        if (prefix) segments_.back().prefix_keys = prefix->keys(l), segments_.back().prefix_values = prefix->values(l);
        row += counts[i];
      }
      peft::ops::attention_forward<T>(s.q, segments_, shape(), s.a, {}, executor_);
      layer.o.forward(std::as_const(s.a).view(), s.m, selection_, executor_);
      peft::ops::add<T>(x, s.m, executor_);
      norm(s.m, layer.post_norm);
      layer.gate.forward(normed(), s.gate, selection_, executor_);
      layer.up.forward(normed(), s.up, selection_, executor_);
      peft::ops::swiglu_forward<T>(s.gate, s.up, s.gate, executor_);
      layer.down.forward(std::as_const(s.gate).view(), x, selection_, executor_);
      peft::ops::add<T>(s.m, x, executor_);
    }
  }

  void check_shapes() const {
    const auto expect = [](const std::string& what, Index rows, Index cols, Index r, Index c) {
      if (rows != r || cols != c) {
        peft::fail<peft::ShapeError>("Llama: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
      }
    };
    const LlamaConfig& c = config_;
    expect("embed_tokens", embedding_.view.rows, embedding_.view.cols, c.vocab_size, c.hidden_size);
    expect("lm_head", head_.out_features(), head_.in_features(), c.vocab_size, c.hidden_size);
    expect("norm", 1, final_norm_.size(), 1, c.hidden_size);
    expect("the list of layers", static_cast<Index>(layers_.size()), 1, c.num_hidden_layers, 1);
    for (const Layer& layer : layers_) layer.check(c);
  }

  LlamaConfig config_;
  SharedMatrix<T> embedding_;
  std::vector<Layer> layers_;
  Buffer<A> final_norm_;
  peft::DenseLinear<T> head_;
  LlamaRope<A> rope_;
  peft::Selection<T> selection_;
  VirtualTokens<T> virtual_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  peft::LinearCrossEntropy<T> loss_;
  std::vector<std::int32_t> positions_;
  std::vector<Matrix<T>> layers_in_;
  std::vector<Saved> saved_;
  Saved scratch_;
  Matrix<T> scratch_in_, last_, normed_, product_, gradient_, branch_, d_attention_, d_keys_, d_values_, d_product_;
  std::vector<peft::ops::AttentionSegment<T>> segments_;
  std::vector<peft::ops::AttentionGradSegment<T>> grad_segments_;
};

}  // namespace peft_examples
