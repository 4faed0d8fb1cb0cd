#pragma once
/// What a method's training forward leaves for its backward on one module. Reuse it from step to step: memory is kept.

#include "peft/core/buffer.hpp"
#include "peft/dropout_mask.hpp"

PEFT_BEGIN_NAMESPACE

/// S and the mask: all that LoRA needs.
template <Scalar T>
struct LowRankSaved {
  Matrix<Accumulator<T>> s;  ///< S = x̃·Aᵀ [n, r]
  DropoutMask dropout;
};

/// The same with what other methods make on their way.
template <Scalar T>
struct UpdateSaved : LowRankSaved<T> {
  Matrix<Accumulator<T>> a, b;   ///< factors made from parameters: A [R, in], B [out, R]
  Matrix<Accumulator<T>> gain;   ///< [1, out] or [1, in]
  Matrix<Accumulator<T>> norm;   ///< DoRA: row norms of W + s·B·A [1, out]
  Matrix<T> dropped_product;     ///< DoRA under dropout: x̃·Wᵀ [n, out]
};

PEFT_END_NAMESPACE
