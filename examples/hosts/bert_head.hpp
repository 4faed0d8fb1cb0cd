#pragma once
/// The classification head of a BERT, as transformers' BertForSequenceClassification:
///   h [sequences, hidden] = the encoder's first rows,  p = dropout(tanh(pooler(h))),  z = p·Wᵀ + b  [sequences, classes]
/// Adapters attach to both linears by name: "bert.pooler.dense", "classifier".

#include <cstdint>
#include <string>
#include <utility>

#include "hosts/names.hpp"
#include "peft/dense_linear.hpp"
#include "peft/ops/activation.hpp"
#include "peft/ops/dropout.hpp"

namespace peft_examples {

template <Scalar T>
class BertHead {
 public:
  using A = Accumulator<T>;

  /// Throws ShapeError unless the pooler is [hidden, hidden] and the classifier [classes, hidden] with a bias.
  BertHead(Index hidden, peft::AnyLinear<T> pooler, peft::DenseLinear<T> classifier)
      : bias_size_(classifier.bias().size),
        pooler_("bert.pooler.dense", std::move(pooler)),
        classifier_("classifier", peft::AnyLinear<T>(std::move(classifier))) {
    check(pooler_.name(), pooler_.out_features(), pooler_.in_features(), hidden, hidden);
    check("classifier", classifier_.out_features(), classifier_.in_features(), classes(), hidden);
    check("classifier.bias", bias_size_, 1, classes(), 1);
  }

  AdaptedLinear<T>& pooler() noexcept { return pooler_; }
  AdaptedLinear<T>& classifier() noexcept { return classifier_; }
  Index classes() const noexcept { return classifier_.out_features(); }
  Index parameter_count() const noexcept {
    const Index hidden = classifier_.in_features();
    return hidden * hidden + hidden + classes() * hidden + classes();
  }

  /// Logits [sequences, classes], until the next call. h must outlive backward; dropout: of what the classifier reads.
  Matrix<A>& forward(MatrixView<const T> h, float dropout, const peft::TrainContext<T>& context, ExecutorRef executor) {
    first_ = h;
    pooled_.resize_discard(h.rows, h.cols);
    read_.resize_discard(h.rows, h.cols);
    scores_.resize_discard(h.rows, classes());
    logits_.resize_discard(h.rows, classes());
    pooler_.forward(h, pooled_, of_pooler_, context, executor);
    peft::ops::activation_forward<T>(peft::Activation::kTanh, pooled_, read_, executor);
    if (context.dropout) peft::ops::dropout<T>(read_, dropout, key_of(context), executor);
    classifier_.forward(std::as_const(read_).view(), scores_, of_classifier_, context, executor);
    for (Index i = 0; i < scores_.size(); ++i) logits_.flat()[i] = static_cast<A>(scores_.flat()[i]);
    return logits_;
  }
  /// From the gradients that stand in forward's logits to dh [sequences, hidden]; with no memory in dh only the head's own
  /// parts get theirs.
  void backward(MatrixView<T> dh, float dropout, const peft::TrainContext<T>& context, ExecutorRef executor) {
    for (Index i = 0; i < scores_.size(); ++i) scores_.flat()[i] = static_cast<T>(logits_.flat()[i]);
    const bool below = dh.data != nullptr || pooler_.is_adapted(context.selection);
    d_.resize_discard(pooled_.rows(), pooled_.cols());
    classifier_.backward(std::as_const(scores_).view(), std::as_const(read_).view(), of_classifier_,
                         below ? d_.view() : MatrixView<T>(), Accumulate::kOverwrite, context, executor);
    if (!below) return;
    if (context.dropout) peft::ops::dropout<T>(d_, dropout, key_of(context), executor);
    peft::ops::activation_backward<T>(peft::Activation::kTanh, d_, pooled_, pooled_, executor);
    pooler_.backward(std::as_const(pooled_).view(), first_, of_pooler_, dh, Accumulate::kOverwrite, context, executor);
  }

 private:
  static void check(const std::string& what, Index rows, Index cols, Index r, Index c) {
    if (rows != r || cols != c) {
      peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
    }
  }
  static peft::DropoutKey key_of(const peft::TrainContext<T>& context) {
    const std::uint64_t hash = peft::ModuleId("classifier").hash();
    return {context.seed, context.step, static_cast<std::uint32_t>(hash ^ (hash >> 32)), context.first_row};
  }

  Index bias_size_;
  AdaptedLinear<T> pooler_, classifier_;
  // Memory that is kept from step to step.
  MatrixView<const T> first_;
  Matrix<T> pooled_, read_, scores_, d_;  // pooled_: before the tanh
  Matrix<A> logits_;
  typename AdaptedLinear<T>::Saved of_pooler_, of_classifier_;
};

}  // namespace peft_examples
