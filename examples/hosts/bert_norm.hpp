#pragma once
/// A layer norm of a BERT host, to whose weight and bias adapters attach by name (LN-tuning, full fine-tuning, BitFit,
/// modules_to_save).

#include <string>
#include <utility>

#include "hosts/names.hpp"
#include "peft/adapted_norm.hpp"
#include "peft/ops/layer_norm.hpp"

namespace peft_examples {

template <Scalar T>
class BertNorm {
 public:
  using A = Accumulator<T>;

  /// weight and bias [hidden].
  BertNorm(std::string name, Buffer<A> weight, Buffer<A> bias, float eps)
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        adapted_(std::move(name), std::as_const(weight_).view(), std::as_const(bias_).view()),
        eps_(eps) {}

  const std::string& name() const noexcept { return adapted_.name(); }
  /// The base model's.
  VectorView<const A> weight() const noexcept { return weight_.view(); }
  VectorView<const A> bias() const noexcept { return bias_.view(); }
  Index parameter_count() const noexcept { return weight_.size() + bias_.size(); }
  peft::AdaptedNorm<T>& adapted() noexcept { return adapted_; }
  bool is_adapted(const peft::Selection<T>& selection) const { return adapted_.is_adapted(selection); }

  /// The norm as a selection makes it: a peft::ops::BlockNorm, which refers to both. Its backward adds to the gradients of
  /// the selection's parts.
  class Selected {
   public:
    Selected(const BertNorm& norm, const peft::Selection<T>& selection) noexcept : norm_(norm), selection_(selection) {}

    void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) const {
      const auto values = norm_.adapted_.values(selection_);
      peft::ops::layer_norm_forward<T>(x, values.weight, values.bias, norm_.eps_, y, executor);
    }
    void backward(MatrixView<const T> dy, MatrixView<const T> x, Accumulate mode, MatrixView<T> dx,
                  ExecutorRef executor) const {
      const auto values = norm_.adapted_.values(selection_);
      Buffer<A> dweight, dbias;
      if (norm_.is_adapted(selection_)) {
        dweight = Buffer<A>::zeros(norm_.weight_.size());
        dbias = Buffer<A>::zeros(norm_.bias_.size());
      }
      peft::ops::layer_norm_backward<T>(dy, x, values.weight, norm_.eps_, mode, dx, dweight.view(), dbias.view(), executor);
      if (dweight.empty()) return;
      norm_.adapted_.add_gradients(selection_, std::as_const(dweight).view(), std::as_const(dbias).view());
    }

   private:
    const BertNorm& norm_;
    const peft::Selection<T>& selection_;
  };
  Selected selected(const peft::Selection<T>& selection) const noexcept { return Selected(*this, selection); }

 private:
  Buffer<A> weight_, bias_;
  peft::AdaptedNorm<T> adapted_;
  float eps_;
};

}  // namespace peft_examples
