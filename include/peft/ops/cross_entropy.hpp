#pragma once
/// loss_i = log Σ_j exp z_ij − z_i,target(i);  dz_i = grad_scale·(softmax(z_i) − onehot(target_i)), in place of z.
///   z [rows, vocabulary] in Accumulator<T>, targets [rows], −1 = none: loss 0 and a zero gradient

#include <cmath>
#include <cstdint>

#include "peft/core/parallel.hpp"
#include "peft/kernels/softmax_xent.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// Without want_grad the logits are left as they are. correct (may be empty): 1 where the target has the largest logit.
/// Throws ShapeError, also for a target outside the vocabulary.
template <Scalar T>
void cross_entropy(MatrixView<Accumulator<T>> logits, VectorView<const std::int32_t> targets,
                   Accumulator<T> grad_scale, bool want_grad, VectorView<double> loss_per_row,
                   VectorView<std::uint8_t> correct, ExecutorRef executor = default_executor()) {
  detail::check_size("cross_entropy", "targets", targets, logits.rows);
  detail::check_size("cross_entropy", "loss_per_row", loss_per_row, logits.rows);
  if (!correct.empty()) detail::check_size("cross_entropy", "correct", correct, logits.rows);
  for (Index i = 0; i < targets.size; ++i) {
    if (targets[i] < -1 || targets[i] >= logits.cols) {
      fail<ShapeError>("cross_entropy: target {} of row {} is outside the vocabulary of {}", targets[i], i, logits.cols);
    }
  }
  if constexpr (std::same_as<Accumulator<T>, float>) {
    kernels::cross_entropy_rows(logits.rows, logits.cols, logits.data, logits.stride, targets.data, grad_scale,
                                loss_per_row.data, correct.empty() ? nullptr : correct.data, want_grad, executor);
  } else {
    for (Index i = 0; i < logits.rows; ++i) {
      double* z = logits.row(i);
      const std::int32_t target = targets[i];
      Index best = 0;
      for (Index j = 1; j < logits.cols; ++j) best = z[j] > z[best] ? j : best;
      if (!correct.empty()) correct[i] = target == best ? 1 : 0;
      double sum = 0;
      const double largest = z[best];
      for (Index j = 0; j < logits.cols; ++j) sum += std::exp(z[j] - largest);
      loss_per_row[i] = target < 0 ? 0.0 : largest + std::log(sum) - z[target];
      for (Index j = 0; want_grad && j < logits.cols; ++j) {
        z[j] = target < 0 ? 0.0 : grad_scale * (std::exp(z[j] - largest) / sum - (j == target ? 1.0 : 0.0));
      }
    }
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
