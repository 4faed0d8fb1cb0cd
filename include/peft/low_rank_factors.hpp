#pragma once
/// The four thin products of a low-rank update, for any activation type; m is a dropout mask, x̃ = m∘x (with its
/// 1/(1-p)):
///   S = x̃·Aᵀ       x [n,in], A [r,in], S [n,r]
///   dS = s·dy·B     dy [n,out], B [out,r], dS [n,r]
///   dB += s·dyᵀ·S   dB [out,r]
///   dA += dSᵀ·x̃     dA [r,in]
/// Double runs plain loops: it is the reference.

#include <concepts>

#include "peft/kernels/skinny.hpp"
#include "peft/low_rank_product.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// [rows, 1], all 1, over one number: a bias as a low-rank column.
template <class A>
MatrixView<const A> ones_column(Index rows) noexcept {
  static constexpr A kOne = 1;
  return {&kOne, rows, 1, 0};
}

/// S = x̃·Aᵀ.
template <Scalar T>
void project(MatrixView<const T> x, const kernels::MaskBits& mask, MatrixView<const Accumulator<T>> a,
             MatrixView<Accumulator<T>> s, ExecutorRef executor) {
  if (s.empty()) return;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < s.rows; ++i) {
      for (Index q = 0; q < s.cols; ++q) {
        double sum = 0;
        for (Index k = 0; k < x.cols; ++k) sum += static_cast<double>(mask_factor(mask, i, k)) * x(i, k) * a(q, k);
        s(i, q) = sum;
      }
    }
  } else {
    kernels::skinny_nt(s.rows, x.cols, s.cols, x.data, x.stride, dtype_of<T>(), mask, a.data, a.stride, 1.0f, s.data,
                       s.stride, false, executor);
  }
}

/// dS = scale·dy·B.
template <Scalar T>
void project_gradient(MatrixView<const T> dy, MatrixView<const Accumulator<T>> b, Accumulator<T> scale,
                      MatrixView<Accumulator<T>> ds, ExecutorRef executor) {
  if (ds.empty()) return;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < ds.rows; ++i) {
      for (Index q = 0; q < ds.cols; ++q) {
        double sum = 0;
        for (Index j = 0; j < dy.cols; ++j) sum += dy(i, j) * b(j, q);
        ds(i, q) = scale * sum;
      }
    }
  } else {
    kernels::skinny_nn(ds.rows, dy.cols, ds.cols, dy.data, dy.stride, dtype_of<T>(), b.data, b.stride, scale, ds.data,
                       ds.stride, executor);
  }
}

/// dB += scale·dyᵀ·S.
template <Scalar T>
void gradient_b(MatrixView<const T> dy, MatrixView<const Accumulator<T>> s, Accumulator<T> scale,
                MatrixView<Accumulator<T>> grad, ExecutorRef executor) {
  if (s.empty()) return;
  if constexpr (std::same_as<T, double>) {
    for (Index j = 0; j < grad.rows; ++j) {
      for (Index q = 0; q < grad.cols; ++q) {
        double sum = 0;
        for (Index i = 0; i < s.rows; ++i) sum += dy(i, j) * s(i, q);
        grad(j, q) += scale * sum;
      }
    }
  } else {
    kernels::skinny_tn_t(s.rows, dy.cols, s.cols, dy.data, dy.stride, dtype_of<T>(), s.data, s.stride, scale, grad.data,
                         grad.stride, executor);
  }
}

/// dA += dSᵀ·x̃.
template <Scalar T>
void gradient_a(MatrixView<const Accumulator<T>> ds, MatrixView<const T> x, const kernels::MaskBits& mask,
                MatrixView<Accumulator<T>> grad, ExecutorRef executor) {
  if (ds.empty()) return;
  if constexpr (std::same_as<T, double>) {
    for (Index q = 0; q < grad.rows; ++q) {
      for (Index k = 0; k < grad.cols; ++k) {
        double sum = 0;
        for (Index i = 0; i < ds.rows; ++i) sum += ds(i, q) * static_cast<double>(mask_factor(mask, i, k)) * x(i, k);
        grad(q, k) += sum;
      }
    }
  } else {
    kernels::skinny_tn(ds.rows, x.cols, ds.cols, ds.data, ds.stride, x.data, x.stride, dtype_of<T>(), mask, 1.0f,
                       grad.data, grad.stride, executor);
  }
}

}  // namespace detail
PEFT_END_NAMESPACE
