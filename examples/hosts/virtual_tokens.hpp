#pragma once
/// The virtual tokens of a causal host: a trained prefix (keys and values of every layer) or a prompt (rows of the first
/// layer's input), n of them before every sequence. A prompt's rows see nothing but each other, so that they are the same
/// for all sequences: the host computes them once, as n rows behind the batch's own, whose keys and values all sequences
/// see as their prefix.

#include <cstdint>
#include <vector>

#include "hosts/names.hpp"
#include "hosts/virtual_token_methods.hpp"
#include "peft/ops/attention.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

template <Scalar T>
class VirtualTokens : public VirtualTokenMethods<T> {
 public:
  using A = Accumulator<T>;
  using Segments = std::vector<peft::ops::AttentionSegment<T>>;
  using GradSegments = std::vector<peft::ops::AttentionGradSegment<T>>;
  using VirtualTokenMethods<T>::count;
  using VirtualTokenMethods<T>::prefix;
  using VirtualTokenMethods<T>::prompt;
  using VirtualTokenMethods<T>::trains_input;
  using VirtualTokenMethods<T>::trains_prefix;

  /// Rows behind the batch's: the prompt's n, or 0.
  Index rows() const noexcept { return prompt() ? prompt()->num_virtual_tokens() : 0; }

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
    if (prefix()) first_keys = prefix()->keys(layer), first_values = prefix()->values(layer);
    if (prompt()) first_keys = keys.row_range(tokens, n), first_values = values.row_range(tokens, n);
    out.clear();
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const Index first = batch.offsets[i], length = batch.offsets[i + 1] - first;
      out.push_back({first, length, keys.row_range(first, length), values.row_range(first, length), first_keys,
                     first_values});
    }
    if (prompt()) out.push_back({tokens, n, first_keys, first_values, {}, {}});
  }
  /// Where the gradients of `segments` go: what the sequences give to the prefix is added to its gradients, or put aside
  /// for add_prompt_gradients.
  void grad_segments(const Segments& segments, Index layer, MatrixView<T> d_keys, MatrixView<T> d_values,
                     GradSegments& out) {
    MatrixView<A> keys, values;
    if (trains_prefix()) keys = prefix()->grad_keys(layer), values = prefix()->grad_values(layer);
    if (prompt()) {
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
      prompt()->add_gradient(dx.row_range(dx.rows - rows(), rows()));
      prompt()->backward(executor);
    }
    if (trains_prefix()) prefix()->backward(executor);
  }

 private:
  Matrix<A> aside_;  // gradients of the prompt's keys, then of its values, in one layer
};

}  // namespace peft_examples
