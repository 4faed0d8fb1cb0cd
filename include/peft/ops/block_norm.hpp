#pragma once
/// The norm of a transformer's block, as methods that sit beside it see it: a function with a gradient. The host's own
/// type will do; here are views of the two usual ones, and none.

#include <concepts>

#include "peft/core/accumulate.hpp"
#include "peft/ops/layer_norm.hpp"
#include "peft/ops/rms_norm.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// forward: y = norm(x), where y may be x. backward: dx (+)= the gradient, given the norm's input x; where dx is
/// overwritten it may be dy. A norm that is trained adds to its own gradients there.
template <class N, class T>
concept BlockNorm = requires(N& norm, MatrixView<const T> x, MatrixView<T> y, Accumulate mode, ExecutorRef executor) {
  norm.forward(x, y, executor);
  norm.backward(x, x, mode, y, executor);
};

/// The block has no norm at this place (a pre-norm host such as Llama: the sum goes on as it is).
struct NoNorm {
  template <class X, class Y>
  void forward(const X&, const Y&, ExecutorRef) const noexcept {}
  template <class D, class X, class Y>
  void backward(const D&, const X&, Accumulate, const Y&, ExecutorRef) const noexcept {}
};

/// A frozen layer norm in the host's memory.
template <Scalar T = float>
struct LayerNormView {
  VectorView<const Accumulator<T>> weight;
  VectorView<const Accumulator<T>> bias;  ///< may be empty
  float eps = 1e-12f;

  void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) const {
    layer_norm_forward<T>(x, weight, bias, eps, y, executor);
  }
  void backward(MatrixView<const T> dy, MatrixView<const T> x, Accumulate mode, MatrixView<T> dx,
                ExecutorRef executor) const {
    layer_norm_backward<T>(dy, x, weight, eps, mode, dx, {}, {}, executor);
  }
};

/// A frozen RMS norm in the host's memory.
template <Scalar T = float>
struct RmsNormView {
  VectorView<const Accumulator<T>> weight;
  float eps = 1e-5f;

  void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) const {
    rms_norm_forward<T>(x, weight, eps, y, executor);
  }
  void backward(MatrixView<const T> dy, MatrixView<const T> x, Accumulate mode, MatrixView<T> dx,
                ExecutorRef executor) const {
    rms_norm_backward<T>(dy, x, weight, eps, mode, dx, {}, executor);
  }
};

}  // namespace ops
PEFT_END_NAMESPACE
