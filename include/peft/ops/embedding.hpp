#pragma once
/// x_i = table[id_i]      ids [tokens], table [vocabulary, n] in any storage W, x [tokens, n]
/// Backward: dtable[id_i] += dx_i, in ascending order of i.

#include <cstdint>

#include "peft/core/parallel.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

namespace detail {

inline void check_ids(const char* op, VectorView<const std::int32_t> ids, Index vocabulary) {
  for (Index i = 0; i < ids.size; ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary) {
      fail<ShapeError>("{}: id {} at position {} is outside the vocabulary of {}", op, ids[i], i, vocabulary);
    }
  }
}

}  // namespace detail

/// x is overwritten. Throws ShapeError, also for an id outside the table.
template <class W, Scalar T>
void embedding_forward(VectorView<const std::int32_t> ids, MatrixView<const W> table, MatrixView<T> x,
                       ExecutorRef executor = default_executor()) {
  detail::check_shape("embedding_forward", "x", x, ids.size, table.cols);
  detail::check_ids("embedding_forward", ids, table.rows);
  parallel_for_ranges(executor, ids.size, 64, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      const W* row = table.row(ids[i]);
      if constexpr (std::same_as<T, double> || std::same_as<W, double>) {
        for (Index j = 0; j < x.cols; ++j) x(i, j) = static_cast<T>(static_cast<Accumulator<W>>(row[j]));
      } else {
        kernels::convert(x.cols, row, dtype_of<W>(), x.row(i), dtype_of<T>());
      }
    }
  });
}

/// dtable is added to. Throws ShapeError.
template <Scalar T>
void embedding_backward(VectorView<const std::int32_t> ids, MatrixView<const T> dx,
                        MatrixView<Accumulator<T>> dtable, ExecutorRef executor = default_executor()) {
  detail::check_shape("embedding_backward", "dx", dx, ids.size, dtable.cols);
  detail::check_ids("embedding_backward", ids, dtable.rows);
  // Columns are shared out: every element of dtable has one owner, whichever ids repeat.
  parallel_for_ranges(executor, dx.cols, 64, [&](Index first, Index last) {
    for (Index i = 0; i < ids.size; ++i) {
      Accumulator<T>* row = dtable.row(ids[i]);
      for (Index j = first; j < last; ++j) row[j] += static_cast<Accumulator<T>>(dx(i, j));
    }
  });
}

}  // namespace ops
PEFT_END_NAMESPACE
