#pragma once
/// All rows of a packed tensor as numbers.

#include <algorithm>
#include <concepts>
#include <string_view>

#include "peft/core/parallel.hpp"
#include "peft/core/scalar.hpp"
#include "peft/core/view.hpp"
#include "peft/error.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// out = all elements of `tensor`, `name`d in errors, rounded once where T has 16 bits. out [rows(), cols()]. Throws ShapeError.
template <Scalar T, class W>
void dequantize_rows(std::string_view name, const W& tensor, MatrixView<T> out, ExecutorRef executor) {
  const Index rows = tensor.rows(), cols = tensor.cols();
  if (out.rows != rows || out.cols != cols || (out.rows > 1 && out.stride < out.cols)) {
    fail<ShapeError>("{}::dequantize: the result is [{}, {}] with a row stride of {}; expected [{}, {}]", name, out.rows, out.cols,
                     out.stride, rows, cols);
  }
  const kernels::KernelTable& t = kernels::table();
  parallel_for_ranges(executor, rows, 16, [&](Index first, Index last) {
    constexpr Index kPart = 4096;
    float memory[kPart];
    for (Index i = first; i < last; ++i) {
      if constexpr (std::same_as<T, float>) {
        tensor.decode(t, i, 0, cols, out.row(i));
      } else {
        for (Index j = 0; j < cols; j += kPart) {
          const Index count = std::min(kPart, cols - j);
          tensor.decode(t, i, j, count, memory);
          t.narrow(count, memory, dtype_of<T>(), out.row(i) + j);
        }
      }
    }
  });
}

}  // namespace detail
PEFT_END_NAMESPACE
