#pragma once
/// y = silu(gate) ∘ up, silu(g) = g/(1 + e^−g)      all [tokens, n]  (Shazeer, "GLU Variants Improve Transformer", 2020)
/// Backward from gate and up: dgate = dy∘up∘σ(g)(1 + g(1 − σ(g))), dup = dy∘silu(gate).

#include <cmath>

#include "peft/core/parallel.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// y is overwritten and may be gate or up. Throws ShapeError.
template <Scalar T>
void swiglu_forward(MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y,
                    ExecutorRef executor = default_executor()) {
  detail::check_shape("swiglu_forward", "up", up, gate.rows, gate.cols);
  detail::check_shape("swiglu_forward", "y", y, gate.rows, gate.cols);
  const Index n = gate.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < gate.rows; ++i) {
      for (Index j = 0; j < n; ++j) y(i, j) = gate(i, j) / (1.0 + std::exp(-gate(i, j))) * up(i, j);
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, gate.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 3 * n);
      for (Index i = first; i < last; ++i) {
        const float* g = detail::as_float<T>(t, gate.row(i), n, memory);
        const float* u = detail::as_float<T>(t, up.row(i), n, memory + n);
        float* out = detail::float_target<T>(y.row(i), memory + 2 * n);
        t.swiglu(n, g, u, out);
        detail::store_row<T>(t, y.row(i), n, out);
      }
    });
  }
}

/// dgate and dup are overwritten; each may be any of dy, gate, up (element by element). Throws ShapeError.
template <Scalar T>
void swiglu_backward(MatrixView<const T> dy, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> dgate,
                     MatrixView<T> dup, ExecutorRef executor = default_executor()) {
  detail::check_shape("swiglu_backward", "gate", gate, dy.rows, dy.cols);
  detail::check_shape("swiglu_backward", "up", up, dy.rows, dy.cols);
  detail::check_shape("swiglu_backward", "dgate", dgate, dy.rows, dy.cols);
  detail::check_shape("swiglu_backward", "dup", dup, dy.rows, dy.cols);
  const Index n = dy.cols;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < dy.rows; ++i) {
      for (Index j = 0; j < n; ++j) {
        const double g = gate(i, j), u = up(i, j), d = dy(i, j), sigma = 1.0 / (1.0 + std::exp(-g));
        dgate(i, j) = d * u * sigma * (1.0 + g * (1.0 - sigma));
        dup(i, j) = d * g * sigma;
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, dy.rows, detail::kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, 5 * n);
      for (Index i = first; i < last; ++i) {
        const float* d = detail::as_float<T>(t, dy.row(i), n, memory);
        const float* g = detail::as_float<T>(t, gate.row(i), n, memory + n);
        const float* u = detail::as_float<T>(t, up.row(i), n, memory + 2 * n);
        float* dg = detail::float_target<T>(dgate.row(i), memory + 3 * n);
        float* du = detail::float_target<T>(dup.row(i), memory + 4 * n);
        t.swiglu_backward(n, d, g, u, dg, du);
        detail::store_row<T>(t, dgate.row(i), n, dg);
        detail::store_row<T>(t, dup.row(i), n, du);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
