#pragma once
/// A layer norm of an adapter's own: its weight, bias and their gradients.

#include "peft/core/buffer.hpp"
#include "peft/ops/layer_norm.hpp"

PEFT_BEGIN_NAMESPACE

/// torch.nn.LayerNorm: eps 1e-5, starts at weight 1, bias 0.
template <Scalar T = float>
struct AdapterNorm {
  using A = Accumulator<T>;
  static constexpr float kEps = 1e-5f;

  Buffer<A> weight, bias, grad_weight, grad_bias;

  AdapterNorm() = default;
  explicit AdapterNorm(Index size) : weight(size), bias(size) { reset(); }

  bool is_set() const noexcept { return !weight.empty(); }
  void reset() {
    for (A& value : weight) value = 1;
    bias.fill_zero();
  }
  void ensure_grads() {
    if (!grad_weight.empty() || weight.empty()) return;
    grad_weight = Buffer<A>::zeros(weight.size());
    grad_bias = Buffer<A>::zeros(bias.size());
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) const {
    ops::layer_norm_forward<T>(x, weight.view(), bias.view(), kEps, y, executor);
  }
  void backward(MatrixView<const T> dy, MatrixView<const T> x, Accumulate mode, MatrixView<T> dx,
                ExecutorRef executor) {
    ensure_grads();
    ops::layer_norm_backward<T>(dy, x, std::as_const(weight).view(), kEps, mode, dx, grad_weight.view(),
                                grad_bias.view(), executor);
  }
};

PEFT_END_NAMESPACE
