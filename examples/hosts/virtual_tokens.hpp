#pragma once
/// The virtual tokens of a causal host: a trained prefix (keys and values of every layer) or a prompt (rows of the first
/// layer's input), n of them before every sequence. A prompt's rows see nothing but each other, so that they are the same
/// for all sequences: the host computes them once, as n rows behind the batch's own, whose keys and values all sequences
/// see as their prefix.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "hosts/names.hpp"
#include "peft/ops/attention.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

template <Scalar T>
class VirtualTokens {
 public:
  using A = Accumulator<T>;
  using Segments = std::vector<peft::ops::AttentionSegment<T>>;
  using GradSegments = std::vector<peft::ops::AttentionGradSegment<T>>;

  /// Throws ShapeError for a prefix of another model, ConfigError beside a prompt.
  void set_prefix(std::shared_ptr<peft::PrefixCache<T>> prefix, const peft::PromptHost& host) {
    if (prefix) prefix->require_host(host);
    if (prefix && prompt_) peft::fail<peft::ConfigError>("set_prefix: the model has a prompt; remove it first");
    prefix_ = std::move(prefix);
  }
  /// Throws ShapeError for a prompt of another model, ConfigError beside a prefix.
  void set_prompt(std::shared_ptr<peft::PromptEmbedding<T>> prompt, const peft::PromptHost& host) {
    if (prompt) prompt->require_host(host);
    if (prompt && prefix_) peft::fail<peft::ConfigError>("set_prompt: the model has a prefix; remove it first");
    prompt_ = std::move(prompt);
  }
  const std::shared_ptr<peft::PrefixCache<T>>& prefix() const noexcept { return prefix_; }
  const std::shared_ptr<peft::PromptEmbedding<T>>& prompt() const noexcept { return prompt_; }
  /// n: where the sequences' own positions begin.
  Index count() const noexcept {
    return prefix_ ? prefix_->num_virtual_tokens() : prompt_ ? prompt_->num_virtual_tokens() : 0;
  }
  /// Rows behind the batch's: the prompt's n, or 0.
  Index rows() const noexcept { return prompt_ ? prompt_->num_virtual_tokens() : 0; }
  /// Whether the gradient of the first layer's input, or of its keys and values, is wanted.
  bool trains_input() const noexcept { return prompt_ && prompt_->is_trainable(); }
  bool trains() const noexcept { return trains_input() || trains_prefix(); }
  template <class Visitor>
  void for_each_parameter(Visitor& visit) {
    if (trains_prefix()) prefix_->for_each_parameter(visit);
    if (trains_input()) prompt_->for_each_parameter(visit);
  }

  /// Brings what is trained, or was changed, up to its parameters; dropout: of the step, or nullptr.
  void encode(const peft::DropoutKey* dropout, ExecutorRef executor) {
    if (prefix_ && (trains_prefix() || prefix_->is_stale())) prefix_->encode(executor);
    if (prompt_ && (trains_input() || prompt_->is_stale())) prompt_->encode(dropout, executor);
  }
  /// The positions of all rows: the batch's after the virtual tokens, then the prompt's rows'.
  void positions(const peft::PackedBatch& batch, std::vector<std::int32_t>& out) const {
    out = batch.positions;
    for (std::int32_t& position : out) position += static_cast<std::int32_t>(count());
    for (Index j = 0; j < rows(); ++j) out.push_back(static_cast<std::int32_t>(j));
  }

  /// The batch's sequences, each behind the virtual tokens; last, the prompt's rows by themselves. keys and values: of all
  /// rows of this layer.
  void segments(const peft::PackedBatch& batch, Index layer, MatrixView<const T> keys, MatrixView<const T> values,
                Segments& out) const {
    const Index tokens = batch.tokens(), n = rows();
    MatrixView<const T> first_keys, first_values;
    if (prefix_) first_keys = prefix_->keys(layer), first_values = prefix_->values(layer);
    if (prompt_) first_keys = keys.row_range(tokens, n), first_values = values.row_range(tokens, n);
    out.clear();
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const Index first = batch.offsets[i], length = batch.offsets[i + 1] - first;
      out.push_back({first, length, keys.row_range(first, length), values.row_range(first, length), first_keys,
                     first_values});
    }
    if (prompt_) out.push_back({tokens, n, first_keys, first_values, {}, {}});
  }
  /// Where the gradients of `segments` go: what the sequences give to the prefix is added to its gradients, or put aside
  /// for add_prompt_gradients.
  void grad_segments(const Segments& segments, Index layer, MatrixView<T> d_keys, MatrixView<T> d_values,
                     GradSegments& out) {
    MatrixView<A> keys, values;
    if (trains_prefix()) keys = prefix_->grad_keys(layer), values = prefix_->grad_values(layer);
    if (prompt_) {
      aside_.resize_discard(2 * rows(), d_keys.cols);
      aside_.fill_zero();
      keys = aside_.view().row_range(0, rows()), values = aside_.view().row_range(rows(), rows());
    }
    out.clear();
    for (const auto& s : segments) {
      const bool has_prefix = s.prefix_keys.rows > 0;
      out.push_back({d_keys.row_range(s.query_first, s.query_count), d_values.row_range(s.query_first, s.query_count),
                     has_prefix ? keys : MatrixView<A>(), has_prefix ? values : MatrixView<A>()});
    }
  }
  /// After attention's backward: adds what all sequences gave to the prompt's keys and values, the last rows of d_keys and
  /// d_values.
  void add_prompt_gradients(MatrixView<T> d_keys, MatrixView<T> d_values) const noexcept {
    const auto add = [](const A* from, MatrixView<T> to, Index row) {
      for (Index i = 0; i < to.cols; ++i) to(row, i) = static_cast<T>(static_cast<A>(to(row, i)) + from[i]);
    };
    for (Index j = 0; j < rows(); ++j) {
      add(aside_.row(j), d_keys, d_keys.rows - rows() + j);
      add(aside_.row(rows() + j), d_values, d_values.rows - rows() + j);
    }
  }
  /// After the first layer; dx: the gradient of all rows of its input.
  void backward(MatrixView<const T> dx, ExecutorRef executor) {
    if (trains_input()) {
      prompt_->add_gradient(dx.row_range(dx.rows - rows(), rows()));
      prompt_->backward(executor);
    }
    if (trains_prefix()) prefix_->backward(executor);
  }

 private:
  bool trains_prefix() const noexcept { return prefix_ && prefix_->is_trainable(); }

  std::shared_ptr<peft::PrefixCache<T>> prefix_;
  std::shared_ptr<peft::PromptEmbedding<T>> prompt_;
  Matrix<A> aside_;  // gradients of the prompt's keys, then of its values, in one layer
};

}  // namespace peft_examples
