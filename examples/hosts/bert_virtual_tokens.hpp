#pragma once
/// The virtual tokens of a BERT host, as Python PEFT's PeftModelForSequenceClassification has them. Attention goes both ways:
/// what a layer makes of a prompt's rows depends on the sequence behind them, so each sequence has its own.
///   prompt: n rows before a sequence's word embeddings; positions and types are added to all n + length rows, positions
///           0…n+length−1, and a head that reads the first row reads the first virtual token's
///   prefix: keys and values that every query sees, without positions; the sequence's own positions are n…n+length−1, and
///           its first row stays its first token's

#include <cstdint>
#include <vector>

#include "hosts/names.hpp"
#include "hosts/virtual_token_methods.hpp"
#include "peft/ops/attention.hpp"
#include "peft/train/virtual_tokens.hpp"

namespace peft_examples {

template <Scalar T>
class BertVirtualTokens : public VirtualTokenMethods<T> {
 public:
  using A = Accumulator<T>;
  using Segments = std::vector<peft::ops::AttentionSegment<T>>;
  using GradSegments = std::vector<peft::ops::AttentionGradSegment<T>>;
  using VirtualTokenMethods<T>::count;
  using VirtualTokenMethods<T>::prefix;
  using VirtualTokenMethods<T>::prompt;
  using VirtualTokenMethods<T>::trains_prefix;

  /// The batch that the layers see: `batch`, with the prompt's rows in it, positions as above. It stays until the next call.
  const peft::PackedBatch& start(const peft::PackedBatch& batch) {
    if (count() == 0) return batch;
    if (prompt()) {
      peft::insert_virtual_tokens(batch, count(), rows_);
    } else {
      rows_ = batch;
      for (std::int32_t& position : rows_.positions) position += static_cast<std::int32_t>(count());
    }
    return rows_;
  }
  /// Virtual rows at the beginning of each sequence of start()'s batch.
  Index rows() const noexcept { return prompt() ? prompt()->num_virtual_tokens() : 0; }

  /// A prefix joins the sequences of a layer.
  void add_to(Segments& segments, Index layer) const {
    if (!prefix()) return;
    for (auto& one : segments) one.prefix_keys = prefix()->keys(layer), one.prefix_values = prefix()->values(layer);
  }
  void add_to(GradSegments& segments, Index layer) const {
    if (!trains_prefix()) return;
    for (auto& one : segments) one.d_prefix_keys = prefix()->grad_keys(layer), one.d_prefix_values = prefix()->grad_values(layer);
  }

  /// The prompt's rows of every sequence, in x [tokens of start()'s batch, hidden].
  void write(const peft::PackedBatch& batch, MatrixView<T> x) const {
    if (!prompt()) return;
    for (Index s = 0; s < batch.sequences(); ++s) {
      prompt()->write(x.row_range(batch.offsets[static_cast<std::size_t>(s)], rows()));
    }
  }
  /// After the first layer; dx: the gradient of all rows of write()'s x, looked at for a prompt.
  void backward(const peft::PackedBatch& batch, MatrixView<const T> dx, ExecutorRef executor) {
    if (this->trains_input()) {
      for (Index s = 0; s < batch.sequences(); ++s) {
        prompt()->add_gradient(dx.row_range(batch.offsets[static_cast<std::size_t>(s)], rows()));
      }
      prompt()->backward(executor);
    }
    if (trains_prefix()) prefix()->backward(executor);
  }

 private:
  peft::PackedBatch rows_;
};

}  // namespace peft_examples
