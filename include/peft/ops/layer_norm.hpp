#pragma once
/// y = x̂ ∘ w + b,  x̂ = (x − mean(x)) / √(var(x) + eps)      x, y [tokens, n], w, b [n]; var divides by n
/// (Ba, Kiros and Hinton, "Layer Normalization", 2016). Nothing is saved: backward recomputes mean and root from x. With
/// g = dy∘w and r = 1/√(var(x)+eps): dx = r·(g − mean(g) − x̂·mean(g∘x̂)); dw += Σ dy∘x̂; db += Σ dy.

#include <algorithm>
#include <cmath>

#include "peft/core/accumulate.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {
namespace detail {

/// Mean of a row and 1/√(var + eps).
template <class A>
struct RowMoments {
  A mean = 0;
  A root = 0;
};

inline RowMoments<double> row_moments(const double* x, Index n, double eps) noexcept {
  double sum = 0, squares = 0;
  for (Index j = 0; j < n; ++j) sum += x[j];
  const double mean = sum / static_cast<double>(n);
  for (Index j = 0; j < n; ++j) squares += (x[j] - mean) * (x[j] - mean);
  return {mean, 1.0 / std::sqrt(squares / static_cast<double>(n) + eps)};
}

inline RowMoments<float> row_moments(const kernels::KernelTable& t, const float* x, Index n, float eps) noexcept {
  const auto count = static_cast<float>(n);
  const float mean = quotient(t.sum(n, x), count);
  const float variance = quotient(t.squared_distance(n, x, mean), count);
  return {mean, quotient(1.0f, root(rounded(variance + eps)))};
}

/// dw += Σ dy∘x̂, db += Σ dy over all rows in ascending order: columns are shared out, so every element has one owner.
template <Scalar T>
void layer_norm_gradients(MatrixView<const T> dy, MatrixView<const T> x, float eps, VectorView<Accumulator<T>> dweight,
                          VectorView<Accumulator<T>> dbias, ExecutorRef executor) {
  const Index n = x.cols;
  if constexpr (std::same_as<T, double>) {
    (void)executor;
    for (Index i = 0; i < x.rows; ++i) {
      const RowMoments<double> m = row_moments(x.row(i), n, static_cast<double>(eps));
      for (Index j = 0; j < n; ++j) {
        if (!dweight.empty()) dweight[j] += dy(i, j) * (x(i, j) - m.mean) * m.root;
        if (!dbias.empty()) dbias[j] += dy(i, j);
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    float* moments = kernels::scratch(kernels::ScratchSlot::kShared, 2 * x.rows);
    if (!dweight.empty()) {
      parallel_for_ranges(executor, x.rows, kRowGrain, [&](Index first, Index last) {
        float* memory = kernels::scratch(kernels::ScratchSlot::kRows, n);
        for (Index i = first; i < last; ++i) {
          const RowMoments<float> m = row_moments(t, as_float<T>(t, x.row(i), n, memory), n, eps);
          moments[2 * i] = m.mean;
          moments[2 * i + 1] = m.root;
        }
      });
    } else {
      std::fill_n(moments, 2 * x.rows, 0.0f);
    }
    constexpr Index kColumns = 64;
    parallel_for_ranges(executor, n, kColumns, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * kColumns);
      float* const dw = dweight.empty() ? nullptr : dweight.data + first;
      float* const db = dbias.empty() ? nullptr : dbias.data + first;
      for (Index i = 0; i < x.rows; ++i) {
        const float* upper = as_float<T>(t, dy.row(i) + first, last - first, memory);
        const float* row = as_float<T>(t, x.row(i) + first, last - first, memory + kColumns);
        t.layer_norm_gradients(last - first, upper, row, moments[2 * i], moments[2 * i + 1], dw, db);
      }
    });
  }
}

}  // namespace detail

/// y is overwritten and may be x; an empty `bias` adds nothing. Throws ShapeError.
template <Scalar T>
void layer_norm_forward(MatrixView<const T> x, VectorView<const Accumulator<T>> weight,
                        VectorView<const Accumulator<T>> bias, float eps, MatrixView<T> y,
                        ExecutorRef executor = default_executor()) {
  detail::check_size("layer_norm_forward", "weight", weight, x.cols);
  if (!bias.empty()) detail::check_size("layer_norm_forward", "bias", bias, x.cols);
  detail::check_shape("layer_norm_forward", "y", y, x.rows, x.cols);
  const Index n = x.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      const auto m = detail::row_moments(x.row(i), n, static_cast<double>(eps));
      for (Index j = 0; j < n; ++j) {
        y(i, j) = (x(i, j) - m.mean) * m.root * weight[j] + (bias.empty() ? 0.0 : bias[j]);
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * n);
      for (Index i = first; i < last; ++i) {
        const float* row = detail::as_float<T>(t, x.row(i), n, memory);
        const auto m = detail::row_moments(t, row, n, eps);
        float* out = detail::float_target<T>(y.row(i), memory + n);
        t.layer_norm(n, row, m.mean, m.root, weight.data, bias.empty() ? nullptr : bias.data, out);
        detail::store_row<T>(t, y.row(i), n, out);
      }
    });
  }
}

/// dx is overwritten (kOverwrite; it may be dy) or added to (kAdd), and not computed where its data is null; dweight and
/// dbias are added to, and each may be empty: a frozen norm has none. Throws ShapeError.
template <Scalar T>
void layer_norm_backward(MatrixView<const T> dy, MatrixView<const T> x, VectorView<const Accumulator<T>> weight,
                         float eps, Accumulate mode, MatrixView<T> dx, VectorView<Accumulator<T>> dweight,
                         VectorView<Accumulator<T>> dbias, ExecutorRef executor = default_executor()) {
  detail::check_shape("layer_norm_backward", "dy", dy, x.rows, x.cols);
  detail::check_size("layer_norm_backward", "weight", weight, x.cols);
  if (dx.data != nullptr) detail::check_shape("layer_norm_backward", "dx", dx, x.rows, x.cols);
  if (!dweight.empty()) detail::check_size("layer_norm_backward", "dweight", dweight, x.cols);
  if (!dbias.empty()) detail::check_size("layer_norm_backward", "dbias", dbias, x.cols);
  const Index n = x.cols;
  if (!dweight.empty() || !dbias.empty()) {  // before dx, which may overwrite dy
    detail::layer_norm_gradients<T>(dy, x, eps, dweight, dbias, executor);
  }
  if (dx.data == nullptr) return;
  if constexpr (std::same_as<T, double>) {
    const auto count = static_cast<double>(n);
    for (Index i = 0; i < x.rows; ++i) {
      const auto m = detail::row_moments(x.row(i), n, static_cast<double>(eps));
      double plain = 0, along = 0;
      for (Index j = 0; j < n; ++j) {
        plain += dy(i, j) * weight[j];
        along += dy(i, j) * weight[j] * (x(i, j) - m.mean) * m.root;
      }
      for (Index j = 0; j < n; ++j) {
        const double normal = (x(i, j) - m.mean) * m.root;
        const double value = m.root * (dy(i, j) * weight[j] - plain / count - normal * along / count);
        dx(i, j) = mode == Accumulate::kAdd ? dx(i, j) + value : value;
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    const auto count = static_cast<float>(n);
    parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 3 * n);
      for (Index i = first; i < last; ++i) {
        const float* row = detail::as_float<T>(t, x.row(i), n, memory);
        const float* upper = detail::as_float<T>(t, dy.row(i), n, memory + n);
        const auto m = detail::row_moments(t, row, n, eps);
        float sums[2];
        t.layer_norm_sums(n, upper, weight.data, row, m.mean, m.root, sums);
        float* out = detail::float_target<T>(dx.row(i), memory + 2 * n);
        if (detail::Half<T> && mode == Accumulate::kAdd) detail::as_float<T>(t, dx.row(i), n, out);
        t.layer_norm_backward(n, upper, weight.data, row, m.mean, m.root, quotient(sums[0], count),
                              quotient(sums[1], count), mode == Accumulate::kAdd, out);
        detail::store_row<T>(t, dx.row(i), n, out);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
