#pragma once
/// y = x / √(mean(x²) + eps) ∘ w      x, y [tokens, n], w [n]
/// (Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019). Nothing is saved: backward recomputes
/// the root from x. With r = 1/√(mean(x²)+eps): dx = r·(dy∘w) − x·r³·mean(dy∘w∘x); dw += Σ dy∘x·r.

#include <cmath>

#include "peft/core/parallel.hpp"
#include "peft/core/accumulate.hpp"
#include "peft/core/rounded.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {
namespace detail {

/// 1/√(squares/count + eps), each step rounded.
template <class A>
A inverse_root(A squares, A count, A eps) noexcept {
  return quotient(A(1), root(rounded(quotient(squares, count) + eps)));
}

}  // namespace detail

/// y is overwritten and may be x. Throws ShapeError.
template <Scalar T>
void rms_norm_forward(MatrixView<const T> x, VectorView<const Accumulator<T>> weight, float eps, MatrixView<T> y,
                      ExecutorRef executor = default_executor()) {
  detail::check_size("rms_norm_forward", "weight", weight, x.cols);
  detail::check_shape("rms_norm_forward", "y", y, x.rows, x.cols);
  const Index n = x.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      double squares = 0;
      for (Index j = 0; j < n; ++j) squares += x(i, j) * x(i, j);
      const double root = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(eps));
      for (Index j = 0; j < n; ++j) y(i, j) = x(i, j) * root * weight[j];
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * n);
      for (Index i = first; i < last; ++i) {
        const float* row = detail::as_float<T>(t, x.row(i), n, memory);
        const float root = detail::inverse_root(t.dot(n, row, row), static_cast<float>(n), eps);
        float* out = detail::float_target<T>(y.row(i), memory + n);
        t.scale_by(n, row, weight.data, root, out);
        detail::store_row<T>(t, y.row(i), n, out);
      }
    });
  }
}

/// dx is overwritten (kOverwrite; it may be dy) or added to (kAdd); dweight is added to, and may be empty: a frozen
/// norm has none. Throws ShapeError.
template <Scalar T>
void rms_norm_backward(MatrixView<const T> dy, MatrixView<const T> x, VectorView<const Accumulator<T>> weight,
                       float eps, Accumulate mode, MatrixView<T> dx, VectorView<Accumulator<T>> dweight,
                       ExecutorRef executor = default_executor()) {
  using A = Accumulator<T>;
  detail::check_shape("rms_norm_backward", "dy", dy, x.rows, x.cols);
  detail::check_size("rms_norm_backward", "weight", weight, x.cols);
  detail::check_shape("rms_norm_backward", "dx", dx, x.rows, x.cols);
  if (!dweight.empty()) detail::check_size("rms_norm_backward", "dweight", dweight, x.cols);
  const Index n = x.cols;
  const auto count = static_cast<A>(n);
  if (!dweight.empty()) {  // before dx, which may overwrite dy
    for (Index i = 0; i < x.rows; ++i) {
      A squares = 0;
      for (Index j = 0; j < n; ++j) squares = rounded(squares + rounded(static_cast<A>(x(i, j)) * static_cast<A>(x(i, j))));
      const A root = detail::inverse_root(squares, count, static_cast<A>(eps));
      for (Index j = 0; j < n; ++j) {
        dweight[j] += rounded(rounded(static_cast<A>(dy(i, j)) * static_cast<A>(x(i, j))) * root);
      }
    }
  }
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      double squares = 0, product = 0;
      for (Index j = 0; j < n; ++j) {
        squares += x(i, j) * x(i, j);
        product += dy(i, j) * weight[j] * x(i, j);
      }
      const double root = 1.0 / std::sqrt(squares / count + static_cast<double>(eps));
      const double shift = root * root * root * product / count;
      for (Index j = 0; j < n; ++j) {
        const double value = dy(i, j) * weight[j] * root - x(i, j) * shift;
        dx(i, j) = mode == Accumulate::kAdd ? dx(i, j) + value : value;
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 3 * n);
      for (Index i = first; i < last; ++i) {
        const float* row = detail::as_float<T>(t, x.row(i), n, memory);
        const float* upper = detail::as_float<T>(t, dy.row(i), n, memory + n);
        const float root = detail::inverse_root(t.dot(n, row, row), count, eps);
        const float cube = rounded(rounded(root * root) * root);
        const float shift = quotient(rounded(cube * t.dot3(n, upper, weight.data, row)), count);
        float* out = detail::float_target<T>(dx.row(i), memory + 2 * n);
        if (detail::Half<T> && mode == Accumulate::kAdd) detail::as_float<T>(t, dx.row(i), n, out);
        t.norm_backward(n, upper, weight.data, row, root, shift, mode == Accumulate::kAdd, out);
        detail::store_row<T>(t, dx.row(i), n, out);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
