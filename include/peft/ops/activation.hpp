#pragma once
/// y = f(x), element by element.      x, y [tokens, n]
///   relu        max(0, x)
///   gelu        x·Φ(x), Φ the normal distribution  (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)
///   gelu_tanh   x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2, their approximation
///   silu        x/(1 + e^−x)
///   tanh
///   leaky_relu  x where x > 0, else 0.01·x
/// Nothing is saved: backward computes f' from x. At 0 the slope of relu is 0 and of leaky_relu 0.01, as torch has it.

#include <cmath>

#include "peft/core/activation.hpp"
#include "peft/core/parallel.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// f(x) in double: the reference.
inline double activation_value(Activation kind, double x) noexcept {
  switch (kind) {
    case Activation::kRelu:
      return x > 0 ? x : 0.0;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-0.70710678118654752440 * x);
    case Activation::kGeluTanh:
      return x / (1.0 + std::exp(-1.59576912160573071176 * (x + 0.044715 * x * x * x)));  // (1 + tanh u)/2 = σ(2u)
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kLeakyRelu:
      return x > 0 ? x : 0.01 * x;
  }
  return x;
}

/// f'(x) in double: the reference.
inline double activation_slope(Activation kind, double x) noexcept {
  switch (kind) {
    case Activation::kRelu:
      return x > 0 ? 1.0 : 0.0;
    case Activation::kGelu:
      return 0.5 * std::erfc(-0.70710678118654752440 * x) + x * 0.39894228040143267794 * std::exp(-0.5 * x * x);
    case Activation::kGeluTanh: {
      const double gate = 1.0 / (1.0 + std::exp(-1.59576912160573071176 * (x + 0.044715 * x * x * x)));
      return gate + x * gate * (1.0 - gate) * 1.59576912160573071176 * (1.0 + 3 * 0.044715 * x * x);
    }
    case Activation::kSilu: {
      const double sigma = 1.0 / (1.0 + std::exp(-x));
      return sigma * (1.0 + x * (1.0 - sigma));
    }
    case Activation::kTanh: {
      const double t = std::tanh(x);
      return 1.0 - t * t;
    }
    case Activation::kLeakyRelu:
      return x > 0 ? 1.0 : 0.01;
  }
  return 1.0;
}

/// y is overwritten and may be x. Throws ShapeError.
template <Scalar T>
void activation_forward(Activation kind, MatrixView<const T> x, MatrixView<T> y,
                        ExecutorRef executor = default_executor()) {
  detail::check_shape("activation_forward", "y", y, x.rows, x.cols);
  const Index n = x.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      for (Index j = 0; j < n; ++j) y(i, j) = activation_value(kind, x(i, j));
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * n);
      for (Index i = first; i < last; ++i) {
        float* out = detail::float_target<T>(y.row(i), memory + n);
        t.activate(n, kind, detail::as_float<T>(t, x.row(i), n, memory), out);
        detail::store_row<T>(t, y.row(i), n, out);
      }
    });
  }
}

/// dx = dy∘f'(x). dx is overwritten and may be dy or x. Throws ShapeError.
template <Scalar T>
void activation_backward(Activation kind, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<T> dx,
                         ExecutorRef executor = default_executor()) {
  detail::check_shape("activation_backward", "x", x, dy.rows, dy.cols);
  detail::check_shape("activation_backward", "dx", dx, dy.rows, dy.cols);
  const Index n = dy.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < dy.rows; ++i) {
      for (Index j = 0; j < n; ++j) dx(i, j) = dy(i, j) * activation_slope(kind, x(i, j));
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, dy.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 3 * n);
      for (Index i = first; i < last; ++i) {
        const float* d = detail::as_float<T>(t, dy.row(i), n, memory);
        const float* row = detail::as_float<T>(t, x.row(i), n, memory + n);
        float* out = detail::float_target<T>(dx.row(i), memory + 2 * n);
        t.activate_backward(n, kind, d, row, out);
        detail::store_row<T>(t, dx.row(i), n, out);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
