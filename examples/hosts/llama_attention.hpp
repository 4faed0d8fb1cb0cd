#pragma once
/// The attention of a Llama host's layers, from the normed input x to the output of o_proj:
///   o(attention(rope(q), rope(k), v)),  q, k, v from x     (Qwen 3: rope(rms_norm(q)), rope(rms_norm(k)), head by head)
/// over a packed batch, or with caches. Virtual tokens (hosts/virtual_tokens.hpp) join here: a prefix's keys and values
/// stand before every sequence's, a prompt's rows behind the batch's own.

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "hosts/kv_cache.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_layer.hpp"
#include "hosts/llama_rope.hpp"
#include "hosts/names.hpp"
#include "hosts/virtual_tokens.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/rope.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

/// One for all layers of a model: what it keeps between calls is memory, and the rows' positions.
template <Scalar T>
class LlamaAttention {
 public:
  using A = Accumulator<T>;
  using Layer = LlamaLayer<T>;
  using Saved = LlamaSaved<T>;

  /// Throws ConfigError, ShapeError.
  explicit LlamaAttention(const LlamaConfig& config)
      : shape_{config.num_attention_heads, config.num_key_value_heads, config.head_dim,
               static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim))), true},
        has_norms_(config.qk_norm),
        rope_(config) {}

  VirtualTokens<T>& virtual_tokens() noexcept { return virtual_; }
  const VirtualTokens<T>& virtual_tokens() const noexcept { return virtual_; }

  // -- training ------------------------------------------------------------------------------------------------------
  /// What follows is about the rows of this batch.
  void start(const peft::PackedBatch& batch) { virtual_.positions(batch, positions_); }

  /// out [tokens, hidden] of x, leaving q, k and v in `s`, and a where o_proj is adapted, whose backward reads it.
  void forward(const Layer& layer, Index index, const peft::PackedBatch& batch, MatrixView<const T> x, Saved& s,
               MatrixView<T> out, const peft::TrainContext<T>& context, ExecutorRef executor) {
    layer.q.forward(x, has_norms_ ? s.unnormed_q : s.q, s.of_q, context, executor);
    layer.k.forward(x, has_norms_ ? s.unnormed_k : s.k, s.of_k, context, executor);
    layer.v.forward(x, s.v, s.of_v, context, executor);
    if (has_norms_) norm_heads(layer, s.unnormed_q, s.unnormed_k, s.q, s.k, context.selection, executor);
    rotate(s.q, s.k, executor);
    virtual_.segments(batch, index, s.k, s.v, segments_);
    const bool keep = layer.o.is_adapted(context.selection);
    if (!keep) s.a.resize_discard(0, s.q.cols());
    Matrix<T>& a = keep ? s.a : a_;
    a.resize_discard(s.q.rows(), s.q.cols());
    peft::ops::attention_forward<T>(s.q, segments_, shape_, a, s.log_sum_exp, executor);
    layer.o.forward(std::as_const(a).view(), out, s.of_o, context, executor);
  }

  /// The first half of backward: from the gradient of `out` to those of q, k and v as attention took them, which stay here.
  void backward_heads(const Layer& layer, Index index, const peft::PackedBatch& batch, MatrixView<const T> d_out, Saved& s,
                      const peft::TrainContext<T>& context, ExecutorRef executor) {
    d_q_.resize_discard(s.q.rows(), s.q.cols());
    d_k_.resize_discard(s.k.rows(), s.k.cols());
    d_v_.resize_discard(s.v.rows(), s.v.cols());
    const bool kept = layer.o.is_adapted(context.selection);
    const MatrixView<const T> a = kept ? std::as_const(s.a).view() : MatrixView<const T>(nullptr, s.q.rows(), s.q.cols());
    layer.o.backward(d_out, a, s.of_o, d_q_, Accumulate::kOverwrite, context, executor);
    virtual_.segments(batch, index, s.k, s.v, segments_);
    virtual_.grad_segments(segments_, index, d_k_, d_v_, grad_segments_);
    peft::ops::attention_backward<T>(std::as_const(d_q_).view(), s.q, s.log_sum_exp, segments_, shape_, d_q_, grad_segments_,
                                     executor);
  }
  /// The second half: dx is overwritten with the gradient of x, or left out where it has no memory.
  void backward_input(const Layer& layer, MatrixView<const T> x, const Saved& s, MatrixView<T> dx,
                      const peft::TrainContext<T>& context, ExecutorRef executor) {
    virtual_.add_prompt_gradients(d_k_, d_v_);
    const VectorView<const std::int32_t> positions{positions_.data(), d_q_.rows()};
    const auto& table = rope_.table(positions_);
    peft::ops::rope_backward<T>(d_q_, positions, shape_.head_dim, table, executor);
    peft::ops::rope_backward<T>(d_k_, positions, shape_.head_dim, table, executor);
    if (has_norms_) {
      norm_heads_backward(layer.q_norm, s.unnormed_q, d_q_, context.selection, executor);
      norm_heads_backward(layer.k_norm, s.unnormed_k, d_k_, context.selection, executor);
    }
    layer.q.backward(std::as_const(d_q_).view(), x, s.of_q, dx, Accumulate::kOverwrite, context, executor);
    layer.k.backward(std::as_const(d_k_).view(), x, s.of_k, dx, Accumulate::kAdd, context, executor);
    layer.v.backward(std::as_const(d_v_).view(), x, s.of_v, dx, Accumulate::kAdd, context, executor);
  }

  // -- with caches ---------------------------------------------------------------------------------------------------
  /// What follows is about new tokens: counts[i] behind those of caches[i].
  void start(std::span<const Index> counts, std::span<KvCache<T>* const> caches) {
    positions_.clear();
    for (std::size_t i = 0; i < counts.size(); ++i) {
      for (Index j = 0; j < counts[i]; ++j) positions_.push_back(static_cast<std::int32_t>(caches[i]->next_position() + j));
    }
  }
  /// out of x, the rows of all sequences one after another; their keys and values go to the caches.
  void read(const Layer& layer, Index index, std::span<const Index> counts, std::span<KvCache<T>* const> caches,
            MatrixView<const T> x, Saved& s, MatrixView<T> out, const peft::Selection<T>& selection, ExecutorRef executor) {
    layer.q.forward(x, s.q, selection, executor);
    layer.k.forward(x, s.k, selection, executor);
    layer.v.forward(x, s.v, selection, executor);
    if (has_norms_) norm_heads(layer, s.q, s.k, s.q, s.k, selection, executor);
    rotate(s.q, s.k, executor);
    segments_.clear();
    Index row = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      KvCache<T>& cache = *caches[i];
      const KvPrefix<T>* prefix = cache.prefix();
      cache.write(index, std::as_const(s.k).view().row_range(row, counts[i]),
                  std::as_const(s.v).view().row_range(row, counts[i]));
      segments_.push_back({row, counts[i], cache.keys(index), cache.values(index), {}, {}});
      if (prefix) segments_.back().prefix_keys = prefix->keys(index), segments_.back().prefix_values = prefix->values(index);
      row += counts[i];
    }
    a_.resize_discard(s.q.rows(), s.q.cols());
    peft::ops::attention_forward<T>(s.q, segments_, shape_, a_, {}, executor);
    layer.o.forward(std::as_const(a_).view(), out, selection, executor);
  }

 private:
  /// The heads of all tokens as rows [tokens × heads, head_dim].
  template <class Values>
  auto heads(Values& values) const {
    const auto view = values.view();
    return decltype(view)(view.data, view.rows * (view.cols / shape_.head_dim), shape_.head_dim);
  }
  void norm_heads(const Layer& layer, const Matrix<T>& q, const Matrix<T>& k, Matrix<T>& normed_q, Matrix<T>& normed_k,
                  const peft::Selection<T>& selection, ExecutorRef executor) const {
    layer.q_norm.forward(heads(q), heads(normed_q), selection, executor);
    layer.k_norm.forward(heads(k), heads(normed_k), selection, executor);
  }
  /// d holds the gradient of the normed heads and receives that of x.
  void norm_heads_backward(const LlamaNorm<T>& norm, const Matrix<T>& x, Matrix<T>& d, const peft::Selection<T>& selection,
                           ExecutorRef executor) const {
    norm.backward(heads(std::as_const(d)), heads(x), Accumulate::kOverwrite, heads(d), selection, executor);
  }
  void rotate(Matrix<T>& q, Matrix<T>& k, ExecutorRef executor) {
    const VectorView<const std::int32_t> at{positions_.data(), static_cast<Index>(positions_.size())};
    const auto& table = rope_.table(positions_);
    peft::ops::rope_forward<T>(q, at, shape_.head_dim, table, executor);
    peft::ops::rope_forward<T>(k, at, shape_.head_dim, table, executor);
  }

  peft::ops::AttentionShape shape_;
  bool has_norms_;
  LlamaRope<A> rope_;
  VirtualTokens<T> virtual_;
  std::vector<std::int32_t> positions_;
  Matrix<T> a_, d_q_, d_k_, d_v_;
  std::vector<peft::ops::AttentionSegment<T>> segments_;
  std::vector<peft::ops::AttentionGradSegment<T>> grad_segments_;
};

}  // namespace peft_examples
