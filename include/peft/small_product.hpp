#pragma once
/// C [m,n] (+)= op(X)·op(Y) of parameter matrices: the matrix product for float, plain loops for double.

#include "peft/low_rank_update.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// `transpose_x`: X is stored [k, m]; `transpose_y`: Y is stored [n, k].
template <class A>
void small_product(MatrixView<const A> x, bool transpose_x, MatrixView<const A> y, bool transpose_y, MatrixView<A> c,
                   bool accumulate) {
  const Index depth = transpose_x ? x.rows : x.cols;
  if constexpr (std::same_as<A, float>) {
    plain_product(operand_of<float>(x, transpose_x), operand_of<float>(y, transpose_y), depth, c, accumulate,
                  ExecutorRef());
  } else {
    for (Index i = 0; i < c.rows; ++i) {
      for (Index j = 0; j < c.cols; ++j) {
        A sum = 0;
        for (Index q = 0; q < depth; ++q) sum += (transpose_x ? x(q, i) : x(i, q)) * (transpose_y ? y(j, q) : y(q, j));
        c(i, j) = accumulate ? c(i, j) + sum : sum;
      }
    }
  }
}

}  // namespace detail
PEFT_END_NAMESPACE
