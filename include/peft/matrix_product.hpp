#pragma once
/// Plain matrix products and column sums for methods that have whole matrices of their own; any activation type, float
/// parameters. Double runs plain loops: it is the reference.

#include <algorithm>
#include <cstring>

#include "peft/core/accumulate.hpp"
#include "peft/core/buffer.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/low_rank_product.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// A stored matrix as a factor: itself or its transpose.
template <class T>
struct Factor {
  MatrixView<const T> view;
  bool transposed = false;

  Index rows() const noexcept { return transposed ? view.cols : view.rows; }
  Index cols() const noexcept { return transposed ? view.rows : view.cols; }
  T operator()(Index i, Index j) const noexcept { return transposed ? view(j, i) : view(i, j); }
};
template <class T>
Factor<T> plain(MatrixView<const T> view) noexcept {
  return {view, false};
}
template <class T>
Factor<T> transpose(MatrixView<const T> view) noexcept {
  return {view, true};
}

/// Products of fewer multiplications than this run on the calling thread: waking another costs more.
inline constexpr Index kSerialProduct = 1 << 15;

/// C (+)= A·B + bias, A [m,k], B [k,n], bias [n] or empty. Shapes are the caller's to check; C aliases nothing.
template <class TA, class TB, class TC>
void multiply(Factor<TA> a, Factor<TB> b, VectorView<const Accumulator<TC>> bias, Accumulate mode, MatrixView<TC> c,
              ExecutorRef executor) {
  const Index m = c.rows, n = c.cols, k = a.cols();
  if (m == 0 || n == 0) return;
  if constexpr (std::same_as<TC, double>) {
    for (Index i = 0; i < m; ++i) {
      for (Index j = 0; j < n; ++j) {
        double sum = (mode == Accumulate::kAdd ? c(i, j) : 0.0) + (bias.empty() ? 0.0 : bias[j]);
        for (Index q = 0; q < k; ++q) sum += a(i, q) * b(q, j);
        c(i, j) = sum;
      }
    }
  } else {
    kernels::GemmProblem problem;
    problem.m = m;
    problem.n = n;
    problem.k = k;
    problem.a = operand_of<TA>(a.view, a.transposed);
    problem.b.dense = operand_of<TB>(b.view, b.transposed);
    problem.bias = bias.empty() ? nullptr : bias.data;
    problem.accumulate = mode == Accumulate::kAdd;
    problem.c = c.data;
    problem.c_stride = c.stride;
    problem.c_type = dtype_of<TC>();
    kernels::gemm(problem, m * n * k < kSerialProduct ? ExecutorRef() : executor);
  }
}

/// sums[j] += scale·Σ_i x[i, j], rows in ascending order.
template <Scalar T>
void add_column_sums(MatrixView<const T> x, Accumulator<T> scale, VectorView<Accumulator<T>> sums,
                     ExecutorRef executor) {
  if constexpr (std::same_as<T, double>) {
    for (Index j = 0; j < x.cols; ++j) {
      double sum = 0;
      for (Index i = 0; i < x.rows; ++i) sum += x(i, j);
      sums[j] += scale * sum;
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    constexpr Index kColumns = 128;
    parallel_for_ranges(executor, x.cols, kColumns, [&](Index first, Index last) {
      const Index n = last - first;
      float sum[kColumns] = {}, row[kColumns];
      for (Index i = 0; i < x.rows; ++i) {
        if constexpr (std::same_as<T, float>) {
          t.add(n, x.row(i) + first, sum);
        } else {
          t.widen(n, x.row(i) + first, dtype_of<T>(), row);
          t.add(n, row, sum);
        }
      }
      (void)row;
      t.axpy(n, scale, sum, sums.data + first);
    });
  }
}

/// y = a + b, or y = a where b.data is null. y may be a or b.
template <Scalar T>
void add_rows(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> y, ExecutorRef executor) {
  const Index n = y.cols;
  if (b.data == nullptr && a.data == y.data) return;
  constexpr Index kRows = 32;
  parallel_for_ranges(executor, y.rows, kRows, [&](Index first, Index last) {
    if constexpr (std::same_as<T, double>) {
      for (Index i = first; i < last; ++i) {
        for (Index j = 0; j < n; ++j) y(i, j) = a(i, j) + (b.data != nullptr ? b(i, j) : 0.0);
      }
    } else {
      const auto bytes = static_cast<std::size_t>(n) * sizeof(T);
      const kernels::KernelTable& t = kernels::table();
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * n);
      for (Index i = first; i < last; ++i) {
        const T *left = a.row(i), *right = b.data != nullptr ? b.row(i) : nullptr;
        T* out = y.row(i);
        if (right == out) std::swap(left, right);
        if (right == nullptr || std::same_as<T, float>) {
          if (left != out) std::memmove(static_cast<void*>(out), left, bytes);
          if constexpr (std::same_as<T, float>) {
            if (right != nullptr) t.add(n, right, out);
          }
        } else {
          t.widen(n, left, dtype_of<T>(), memory);
          t.widen(n, right, dtype_of<T>(), memory + n);
          t.add(n, memory + n, memory);
          t.narrow(n, memory, dtype_of<T>(), out);
        }
      }
    }
  });
}

template <class A>
void scale_values(VectorView<A> values, std::type_identity_t<A> factor) {
  if constexpr (std::same_as<A, double>) {
    for (double& value : values) value *= factor;
  } else {
    if (values.size > 0) kernels::table().scale(values.size, factor, values.data);
  }
}

}  // namespace detail
PEFT_END_NAMESPACE
