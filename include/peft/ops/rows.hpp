#pragma once
/// Rows of activations in float for the row kernels: float rows are used where they stand, 16-bit rows go through a
/// scratch row and are rounded once on their way back.

#include <concepts>

#include "peft/core/view.hpp"
#include "peft/error.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops::detail {

template <class T>
concept Half = std::same_as<T, bf16> || std::same_as<T, f16>;

/// The row itself, or its float copy in `memory` (n floats).
template <Scalar T>
const float* as_float(const kernels::KernelTable& t, const T* row, Index n, float* memory) noexcept {
  if constexpr (Half<T>) {
    t.widen(n, row, dtype_of<T>(), memory);
    return memory;
  } else {
    (void)t, (void)n, (void)memory;
    return row;
  }
}

/// Where a result row is computed: the row itself, or `memory`.
template <Scalar T>
float* float_target(T* row, float* memory) noexcept {
  if constexpr (Half<T>) {
    return memory;
  } else {
    return row;
  }
}

/// Rounds a row computed in `memory` to its place; nothing to do for float.
template <Scalar T>
void store_row(const kernels::KernelTable& t, T* row, Index n, const float* memory) noexcept {
  if constexpr (Half<T>) {
    t.narrow(n, memory, dtype_of<T>(), row);
  } else {
    (void)t, (void)row, (void)n, (void)memory;
  }
}

/// Rows of one task: the cut depends on nothing else.
inline constexpr Index kRowGrain = 8;

template <class T>
void check_shape(const char* op, const char* name, MatrixView<T> view, Index rows, Index cols) {
  if (view.rows != rows || view.cols != cols) {
    fail<ShapeError>("{}: {} is [{}, {}]; expected [{}, {}]", op, name, view.rows, view.cols, rows, cols);
  }
}
template <class T>
void check_size(const char* op, const char* name, VectorView<T> view, Index size) {
  if (view.size != size) fail<ShapeError>("{}: {} has {} elements; expected {}", op, name, view.size, size);
}

}  // namespace ops::detail
PEFT_END_NAMESPACE
