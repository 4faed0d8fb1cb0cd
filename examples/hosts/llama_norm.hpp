#pragma once
/// An RMSNorm of a Llama host, to whose weight adapters attach by name (LN-tuning, full fine-tuning, modules_to_save).

#include <string>
#include <utility>

#include "hosts/names.hpp"
#include "peft/adapted_norm.hpp"
#include "peft/ops/rms_norm.hpp"

namespace peft_examples {

template <Scalar T>
class LlamaNorm {
 public:
  using A = Accumulator<T>;

  /// weight [n]; empty where the model has no norm at this place.
  LlamaNorm(std::string name, Buffer<A> weight, float eps)
      : weight_(std::move(weight)), adapted_(std::move(name), std::as_const(weight_).view()), eps_(eps) {}

  const std::string& name() const noexcept { return adapted_.name(); }
  /// The base model's.
  VectorView<const A> weight() const noexcept { return weight_.view(); }
  Index size() const noexcept { return weight_.size(); }
  peft::AdaptedNorm<T>& adapted() noexcept { return adapted_; }
  bool is_adapted(const peft::Selection<T>& selection) const { return adapted_.is_adapted(selection); }

  /// y may be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, const peft::Selection<T>& selection, ExecutorRef executor) const {
    peft::ops::rms_norm_forward<T>(x, adapted_.values(selection).weight, eps_, y, executor);
  }
  /// dx is overwritten (then it may be dy) or added to; the selection's parts on the norm get their gradients.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, Accumulate mode, MatrixView<T> dx,
                const peft::Selection<T>& selection, ExecutorRef executor) const {
    Buffer<A> dweight;
    if (is_adapted(selection)) dweight = Buffer<A>::zeros(size());
    peft::ops::rms_norm_backward<T>(dy, x, adapted_.values(selection).weight, eps_, mode, dx, dweight.view(), executor);
    if (!dweight.empty()) adapted_.add_gradients(selection, std::as_const(dweight).view(), {});
  }

 private:
  Buffer<A> weight_;
  peft::AdaptedNorm<T> adapted_;
  float eps_;
};

}  // namespace peft_examples
