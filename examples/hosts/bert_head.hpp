#pragma once
/// The classification head of a BERT. It reads h [sequences, hidden], the encoder's first rows, and is one of
///   transformers' BertForSequenceClassification:   p = drop(tanh(h·Wpᵀ + bp)),   z = p·Wᵀ + b   [sequences, classes]
///     with the encoder's own pooler; adapters attach to "bert.pooler.dense" and "classifier"
///   AdapterHub's (peft::ClassificationHeadConfig):  p = drop(σ(drop(h)·W₁ᵀ + b₁)),   z = p·W₂ᵀ + b₂;   of one layer p = drop(h)
///     all of it its own; adapters attach to "heads.NAME.1" and "heads.NAME.4"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hosts/names.hpp"
#include "peft/classification_head_config.hpp"
#include "peft/core/rng.hpp"
#include "peft/dense_linear.hpp"
#include "peft/ops/activation.hpp"
#include "peft/ops/dropout.hpp"

namespace peft_examples {

template <Scalar T>
class BertHead {
 public:
  using A = Accumulator<T>;

  /// transformers'. Throws ShapeError unless the pooler is [hidden, hidden] and the classifier [classes, hidden] with a bias.
  BertHead(Index hidden, peft::AnyLinear<T> pooler, peft::DenseLinear<T> classifier)
      : first_(std::in_place, "bert.pooler.dense", std::move(pooler)),
        last_("classifier", peft::AnyLinear<T>(std::move(classifier))) {
    check(first_->name(), first_->out_features(), first_->in_features(), hidden, hidden);
    check("classifier", last_.out_features(), last_.in_features(), classes(), hidden);
    check("classifier.bias", last_.base().read_bias().size(), 1, classes(), 1);
  }
  /// AdapterHub's, new: weights normal with standard deviation 0.02, biases 0. Throws ConfigError.
  BertHead(Index hidden, const peft::ClassificationHeadConfig& config, Index classes, std::uint64_t seed)
      : config_((config.validate(), config)),
        activation_(*peft::activation_named(config.activation_function)),
        last_(config.modules().back(), peft::AnyLinear<T>(make_linear(config.modules().back(), classes, hidden, seed))) {
    if (config.layers == 1) return;
    const std::string name = config.modules().front();
    first_.emplace(name, peft::AnyLinear<T>(make_linear(name, hidden, hidden, seed)));
  }

  /// A new linear: weights normal with standard deviation 0.02, biases 0.
  static peft::DenseLinear<T> make_linear(const std::string& name, Index out, Index in, std::uint64_t seed) {
    peft::Philox random(seed, peft::ModuleId(name).hash());
    Matrix<T> weight(out, in);
    for (T& value : weight.flat()) value = static_cast<T>(0.02f * random.normal());
    return peft::DenseLinear<T>(std::move(weight), Buffer<A>::zeros(out));
  }

  /// Of AdapterHub's; none: transformers'.
  const std::optional<peft::ClassificationHeadConfig>& config() const noexcept { return config_; }
  /// First to last; a pooler is one of them.
  std::vector<AdaptedLinear<T>*> linears() {
    std::vector<AdaptedLinear<T>*> result;
    if (first_) result.push_back(&*first_);
    result.push_back(&last_);
    return result;
  }
  Index classes() const noexcept { return last_.out_features(); }
  Index parameter_count() const noexcept {
    const Index hidden = last_.in_features();
    return (first_ ? hidden * hidden + hidden : 0) + classes() * hidden + classes();
  }

  /// Logits [sequences, classes], until the next call. h must outlive backward; dropout: the model's.
  Matrix<A>& forward(MatrixView<const T> h, float dropout, const peft::TrainContext<T>& context, ExecutorRef executor) {
    scores_.resize_discard(h.rows, classes());
    logits_.resize_discard(h.rows, classes());
    first_in_ = config_ ? dropped(h, probability(dropout, context), context, executor) : h;
    last_in_ = first_in_;
    if (first_) {
      pooled_.resize_discard(h.rows, h.cols);
      read_.resize_discard(h.rows, h.cols);
      first_->forward(first_in_, pooled_, of_first_, context, executor);
      peft::ops::activation_forward<T>(activation_, pooled_, read_, executor);
      peft::ops::dropout<T>(read_, probability(dropout, context), key_of(last_, context), executor);
      last_in_ = std::as_const(read_).view();
    }
    last_.forward(last_in_, scores_, of_last_, context, executor);
    for (Index i = 0; i < scores_.size(); ++i) logits_.flat()[i] = static_cast<A>(scores_.flat()[i]);
    return logits_;
  }
  /// From the gradients that stand in forward's logits to dh [sequences, hidden]; with no memory in dh only the head's own
  /// parts get theirs.
  void backward(MatrixView<T> dh, float dropout, const peft::TrainContext<T>& context, ExecutorRef executor) {
    for (Index i = 0; i < scores_.size(); ++i) scores_.flat()[i] = static_cast<T>(logits_.flat()[i]);
    MatrixView<T> below = dh;
    if (first_) {
      d_.resize_discard(pooled_.rows(), pooled_.cols());
      below = dh.data != nullptr || first_->is_adapted(context.selection) ? d_.view() : MatrixView<T>();
    }
    last_.backward(std::as_const(scores_).view(), last_in_, of_last_, below, Accumulate::kOverwrite, context, executor);
    if (below.data == nullptr) return;
    const float p = probability(dropout, context);
    if (first_) {
      peft::ops::dropout<T>(d_, p, key_of(last_, context), executor);
      peft::ops::activation_backward<T>(activation_, d_, pooled_, pooled_, executor);
      first_->backward(std::as_const(pooled_).view(), first_in_, of_first_, dh, Accumulate::kOverwrite, context, executor);
    }
    if (config_ && dh.data != nullptr) peft::ops::dropout<T>(dh, p, key_of(lowest(), context), executor);
  }

 private:
  static void check(const std::string& what, Index rows, Index cols, Index r, Index c) {
    if (rows != r || cols != c) {
      peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
    }
  }
  /// A mask is of the linear that reads what it has zeroed.
  static peft::DropoutKey key_of(const AdaptedLinear<T>& reader, const peft::TrainContext<T>& context) {
    const std::uint64_t hash = reader.module().hash();
    return {context.seed, context.step, static_cast<std::uint32_t>(hash ^ (hash >> 32)), context.first_row};
  }
  const AdaptedLinear<T>& lowest() const noexcept { return first_ ? *first_ : last_; }
  float probability(float dropout, const peft::TrainContext<T>& context) const noexcept {
    if (!context.dropout) return 0.0f;
    return config_ ? config_->dropout_prob.value_or(dropout) : dropout;
  }
  /// h behind its dropout: h itself where there is none.
  MatrixView<const T> dropped(MatrixView<const T> h, float p, const peft::TrainContext<T>& context, ExecutorRef executor) {
    if (p == 0.0f) return h;
    dropped_.resize_discard(h.rows, h.cols);
    for (Index i = 0; i < h.rows; ++i) std::copy_n(h.row(i), h.cols, dropped_.row(i));
    peft::ops::dropout<T>(dropped_, p, key_of(lowest(), context), executor);
    return std::as_const(dropped_).view();
  }

  std::optional<peft::ClassificationHeadConfig> config_{};
  peft::Activation activation_ = peft::Activation::kTanh;
  std::optional<AdaptedLinear<T>> first_{};
  AdaptedLinear<T> last_;
  // Memory that is kept from step to step.
  MatrixView<const T> first_in_, last_in_;
  Matrix<T> dropped_, pooled_, read_, scores_, d_;  // pooled_: before the activation
  Matrix<A> logits_;
  typename AdaptedLinear<T>::Saved of_first_, of_last_;
};

}  // namespace peft_examples
