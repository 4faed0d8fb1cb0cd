#pragma once
/// A base layer and layers instead of it, each at a weight:
///   y = (1 − Σw)·base(x) + Σ w·layer(x);   dx likewise of dy. Nothing is saved.

#include <utility>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/rounded.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/column_gain.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Refers to all layers. The gradients of their own are theirs.
template <Scalar T>
class MixedLayer {
 public:
  using A = Accumulator<T>;

  MixedLayer(const AnyLinear<T>& base, ExecutorRef executor) : base_(base), executor_(executor) {}
  void add(const AnyLinear<T>& layer, double weight) { parts_.push_back({&layer, weight}); }

  /// 1 − Σw.
  A base_share() const noexcept {
    double share = 1.0;
    for (const Part& part : parts_) share -= part.weight;
    return static_cast<A>(share);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y) const {
    base_.forward(x, y, executor_);
    scale(MatrixView<const T>(y), base_share(), y);
    Matrix<T> own(y.rows, y.cols);
    for (const Part& part : parts_) {
      part.layer->forward(x, own.view(), executor_);
      scale(std::as_const(own).view(), static_cast<A>(part.weight), own.view());
      ops::add<T>(std::as_const(own).view(), y, executor_);
    }
  }
  void backward(MatrixView<const T> dy, MatrixView<T> dx, Accumulate mode) const {
    Matrix<T> own(dy.rows, dy.cols);
    scale(dy, base_share(), own.view());
    base_.backward_input(std::as_const(own).view(), dx, mode, executor_);
    for (const Part& part : parts_) {
      scale(dy, static_cast<A>(part.weight), own.view());
      part.layer->backward_input(std::as_const(own).view(), dx, Accumulate::kAdd, executor_);
    }
  }
  /// weight holds the base's and receives the mixture's.
  void mix_weight(Matrix<A>& weight) const {
    for (A& value : weight.flat()) value *= base_share();
    Matrix<A> other(weight.rows(), weight.cols());
    for (const Part& part : parts_) {
      part.layer->read_weight_rows(0, other.view());
      for (Index i = 0; i < other.size(); ++i) {
        weight.data()[i] += rounded(static_cast<A>(part.weight) * other.data()[i]);
      }
    }
  }

 private:
  struct Part {
    const AnyLinear<T>* layer;
    double weight;
  };
  void scale(MatrixView<const T> x, A by, MatrixView<T> y) const {
    Buffer<A> gain(x.cols);
    for (A& value : gain) value = by;
    ops::column_gain<T>(x, std::as_const(gain).view(), {}, y, executor_);
  }

  const AnyLinear<T>& base_;
  ExecutorRef executor_;
  std::vector<Part> parts_;
};

}  // namespace detail
PEFT_END_NAMESPACE
