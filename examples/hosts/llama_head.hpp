#pragma once
/// The language-model head of a Llama host and its loss: z [rows, vocab] = h·Wᵀ. The head is a peft::AdaptedLinear under
/// Hugging Face's name, "lm_head". Without a part of an adapter on it its sums stay in float (double for double), whatever
/// the type of the activations; with one, logits are rounded to that type, as transformers' are.

#include <cstdint>
#include <type_traits>
#include <utility>

#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/adapted_linear.hpp"
#include "peft/linear_cross_entropy.hpp"

namespace peft_examples {

template <Scalar T>
class LlamaHead {
 public:
  using A = Accumulator<T>;

  explicit LlamaHead(LlamaHeadWeights<T> weights)
      : linear_("lm_head", std::move(weights.layer)), plain_(std::move(weights.wide)), address_(weights.address) {}

  AdaptedLinear<T>& linear() noexcept { return linear_; }
  const void* address() const noexcept { return address_; }
  Index parameter_count() const { return linear_.in_features() * linear_.out_features(); }
  void set_executor(ExecutorRef executor) noexcept { executor_ = executor; }
  /// Of peft::LinearCrossEntropy.
  void set_logit_bytes(Index bytes) { loss_.set_logit_bytes(bytes); }

  /// Adds to `sum`.
  void evaluate(MatrixView<const T> hidden, VectorView<const std::int32_t> targets, const peft::Selection<T>& selection,
                peft::LossSum& sum) {
    if (linear_.is_adapted(selection)) {
      const peft::TrainContext<T> context{selection, 0, 0, 0, false};
      loss_.forward(Rows{&linear_, &saved_, &context}, hidden, targets, sum, executor_);
    } else {
      loss_.forward(plain_, hidden, targets, sum, executor_);
    }
  }
  /// The same, and d [tokens, hidden] = grad_scale × d loss / d hidden; adds to the gradients of the selection's parts.
  void forward_backward(MatrixView<const T> hidden, VectorView<const std::int32_t> targets, double grad_scale, MatrixView<T> d,
                        const peft::TrainContext<T>& context, peft::LossSum& sum) {
    if (linear_.is_adapted(context.selection)) {
      loss_.forward_backward(Rows{&linear_, &saved_, &context}, hidden, targets, grad_scale, d, sum, executor_);
    } else {
      loss_.forward_backward(plain_, hidden, targets, grad_scale, d, sum, executor_);
    }
  }

  void logits(MatrixView<const T> hidden, const peft::Selection<T>& selection, MatrixView<A> out) const {
    if constexpr (std::is_same_v<T, A>) {
      linear_.forward(hidden, out, selection, executor_);
    } else if (linear_.is_adapted(selection)) {
      Matrix<T> narrow(out.rows, out.cols);
      linear_.forward(hidden, narrow, selection, executor_);
      for (Index i = 0; i < out.rows; ++i) {
        for (Index j = 0; j < out.cols; ++j) out(i, j) = static_cast<A>(narrow(i, j));
      }
    } else {
      Matrix<A> wide(hidden.rows, hidden.cols);
      for (Index i = 0; i < wide.rows(); ++i) {
        for (Index j = 0; j < wide.cols(); ++j) wide(i, j) = static_cast<A>(hidden(i, j));
      }
      plain_.forward(std::as_const(wide).view(), out, executor_);
    }
  }

 private:
  /// The adapted head as a peft::TrainedHead.
  struct Rows {
    using value_type = T;

    AdaptedLinear<T>* linear;
    typename AdaptedLinear<T>::Saved* saved;
    const peft::TrainContext<T>* context;

    Index in_features() const { return linear->in_features(); }
    Index out_features() const { return linear->out_features(); }
    void forward(MatrixView<const T> x, MatrixView<T> y) const { linear->forward(x, y, context->selection, {}); }
    void forward_rows(MatrixView<const T> x, Index first, MatrixView<T> y, ExecutorRef executor) const {
      linear->forward(x, y, *saved, from(first), executor);
    }
    void backward_rows(MatrixView<const T> dy, MatrixView<const T> x, Index first, MatrixView<T> dx,
                       ExecutorRef executor) const {
      linear->backward(dy, x, *saved, dx, Accumulate::kOverwrite, from(first), executor);
    }

   private:
    peft::TrainContext<T> from(Index first) const {
      peft::TrainContext<T> result = *context;
      result.first_row += first;
      return result;
    }
  };

  AdaptedLinear<T> linear_;
  peft::AnyLinear<A> plain_;  ///< the layer inside linear_
  const void* address_;
  typename AdaptedLinear<T>::Saved saved_;
  peft::LinearCrossEntropy<T> loss_;
  ExecutorRef executor_ = peft::default_executor();
};

}  // namespace peft_examples
