#pragma once
/// y += x, the residual connection.      x, y [tokens, n]

#include "peft/core/parallel.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// Throws ShapeError.
template <Scalar T>
void add(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) {
  detail::check_shape("add", "y", y, x.rows, x.cols);
  const Index n = x.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      for (Index j = 0; j < n; ++j) y(i, j) += x(i, j);
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, 4 * detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 2 * n);
      for (Index i = first; i < last; ++i) {
        const float* a = detail::as_float<T>(t, x.row(i), n, memory);
        float* b = detail::float_target<T>(y.row(i), memory + n);
        detail::as_float<T>(t, y.row(i), n, b);
        t.add(n, a, b);
        detail::store_row<T>(t, y.row(i), n, b);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
