#pragma once
/// Softmax cross-entropy of rows of logits z [rows, vocab]: loss_i = log Σ_j exp z_ij − z_i,target(i);
/// gradient, in place of the logits: grad_scale · (softmax(z_i) − onehot(target)).

#include <cmath>
#include <cstdint>
#include <cstring>

#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// targets[i] < 0: loss 0, not correct, gradient 0. correct (may be nullptr): 1 where the target has the largest logit
/// (the first of equals counts). Without want_grad the logits are left as they are.
inline void cross_entropy_rows(Index rows, Index vocab, float* logits, Index stride, const std::int32_t* targets,
                               float grad_scale, double* loss_per_row, std::uint8_t* correct, bool want_grad,
                               ExecutorRef executor) {
  const KernelTable& t = table();
  parallel_for(executor, rows, [&](Index i) {
    float* z = logits + i * stride;
    const std::int32_t target = targets[i];
    if (target < 0) {
      loss_per_row[i] = 0.0;
      if (correct != nullptr) correct[i] = 0;
      if (want_grad) std::memset(z, 0, static_cast<std::size_t>(vocab) * sizeof(float));
      return;
    }
    const float largest = t.max(vocab, z);
    const float of_target = z[target];
    const double sum = t.sum_exp(vocab, z, largest);
    const double log_sum = rounded(static_cast<double>(largest) + std::log(sum));
    loss_per_row[i] = log_sum - static_cast<double>(of_target);
    if (correct != nullptr) {
      Index first = 0;
      while (first < target && z[first] < largest) ++first;
      correct[i] = of_target == largest && first == target ? 1 : 0;
    }
    if (want_grad) {
      t.exp_sum(vocab, z, largest, z);
      t.scale(vocab, static_cast<float>(quotient(static_cast<double>(grad_scale), sum)), z);
      z[target] -= grad_scale;
    }
  });
}

}  // namespace kernels
PEFT_END_NAMESPACE
