#pragma once
/// Gains per column, on rows of activations:
///   y = g∘z (+ c)            z, y [n, m], g, c [m]
///   d += scale · Σ_i dy_i∘z_i   dy, z [n, m], d [m]; rows in ascending order
///   x̃ = m∘x                  a dropout mask with its 1/(1-p)

#include <concepts>

#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// y is overwritten and may be z; `shift` is added where it is not empty. Throws ShapeError.
template <Scalar T>
void column_gain(MatrixView<const T> z, VectorView<const Accumulator<T>> gain, VectorView<const Accumulator<T>> shift,
                 MatrixView<T> y, ExecutorRef executor) {
  detail::check_shape("column_gain", "y", y, z.rows, z.cols);
  detail::check_size("column_gain", "gain", gain, z.cols);
  if (!shift.empty()) detail::check_size("column_gain", "shift", shift, z.cols);
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < z.rows; ++i) {
      for (Index j = 0; j < z.cols; ++j) y(i, j) = gain[j] * z(i, j) + (shift.empty() ? 0.0 : shift[j]);
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, z.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * z.cols);
      for (Index i = first; i < last; ++i) {
        const float* row = detail::as_float<T>(t, z.row(i), z.cols, memory);
        float* out = detail::float_target<T>(y.row(i), memory + z.cols);
        t.scale_by(z.cols, row, gain.data, 1.0f, out);
        if (!shift.empty()) t.add(z.cols, shift.data, out);
        detail::store_row<T>(t, y.row(i), z.cols, out);
      }
    });
  }
}

/// Adds to d. Throws ShapeError.
template <Scalar T>
void column_products(MatrixView<const T> dy, MatrixView<const T> z, Accumulator<T> scale,
                     VectorView<Accumulator<T>> d, ExecutorRef executor) {
  detail::check_shape("column_products", "z", z, dy.rows, dy.cols);
  detail::check_size("column_products", "d", d, dy.cols);
  if constexpr (std::same_as<T, double>) {
    (void)executor;
    for (Index j = 0; j < dy.cols; ++j) {
      double sum = 0;
      for (Index i = 0; i < dy.rows; ++i) sum += dy(i, j) * z(i, j);
      d[j] += scale * sum;
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, dy.cols, 128, [&](Index first, Index last) {  // a task owns its columns
      const Index n = last - first;
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 4 * n);
      float* sums = memory + 3 * n;
      for (Index j = 0; j < n; ++j) sums[j] = 0.0f;
      for (Index i = 0; i < dy.rows; ++i) {
        const float* upper = detail::as_float<T>(t, dy.row(i) + first, n, memory);
        const float* row = detail::as_float<T>(t, z.row(i) + first, n, memory + n);
        t.scale_by(n, upper, row, 1.0f, memory + 2 * n);
        t.add(n, memory + 2 * n, sums);
      }
      t.axpy(n, scale, sums, d.data + first);
    });
  }
}

/// out = mask∘x, the mask's scale in it; a copy where there is no mask. Throws ShapeError.
template <Scalar T>
void apply_mask(MatrixView<const T> x, const kernels::MaskBits& mask, MatrixView<T> out, ExecutorRef executor) {
  detail::check_shape("apply_mask", "out", out, x.rows, x.cols);
  const auto keep = [&mask](Index i, Index k) {
    return mask.bits == nullptr || ((mask.bits[i * mask.stride_bytes + k / 8] >> (k % 8)) & 1u) != 0;
  };
  const float scale = mask.bits == nullptr ? 1.0f : mask.scale;
  parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      for (Index k = 0; k < x.cols; ++k) {
        using A = Accumulator<T>;
        out(i, k) = keep(i, k) ? static_cast<T>(static_cast<A>(x(i, k)) * static_cast<A>(scale)) : T(A(0));
      }
    }
  });
}

}  // namespace ops
PEFT_END_NAMESPACE
