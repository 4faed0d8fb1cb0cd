#pragma once
/// One AdamW update of a tensor (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019), as
/// torch.optim.AdamW computes it:
///   g ← grad·grad_scale;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
///   p ← p·(1 − lr·decay) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)

#include <cmath>

#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/eight_bit_tables.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Coefficients of one update. bias_correctionᵢ = 1 − βᵢᵗ.
struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double bias_correction1 = 1.0;
  double bias_correction2 = 1.0;
  double grad_scale = 1.0;
};

// Elements of one task: long enough to hide the hand-out, short enough to share out a LoRA matrix.
inline constexpr Index kAdamWRun = 16384;

inline AdamWFloats adamw_floats(const AdamWStep& step) noexcept {
  return {static_cast<float>(step.beta1),
          static_cast<float>(1.0 - step.beta1),
          static_cast<float>(step.beta2),
          static_cast<float>(1.0 - step.beta2),
          static_cast<float>(quotient(step.lr, step.bias_correction1)),
          static_cast<float>(1.0 / root(step.bias_correction2)),
          static_cast<float>(step.eps),
          static_cast<float>(1.0 - rounded(step.lr * step.weight_decay)),
          static_cast<float>(step.grad_scale)};
}

/// param, m and v are updated in place; grad is left. n elements each.
inline void adamw_step(Index n, float* param, const float* grad, float* m, float* v, const AdamWStep& step,
                       ExecutorRef executor) {
  const KernelTable& t = table();
  const AdamWFloats floats = adamw_floats(step);
  parallel_for_ranges(executor, n, kAdamWRun, [&](Index first, Index last) {
    t.adamw(last - first, param + first, grad + first, m + first, v + first, floats);
  });
}

/// The same with moments in 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022). Blocks are
/// counted from `param`.
inline void adamw_step(Index n, float* param, const float* grad, const EightBitMoments& moments, const AdamWStep& step,
                       ExecutorRef executor) {
  static_assert(kAdamWRun % kEightBitBlock == 0);
  const KernelTable& t = table();
  const AdamWFloats floats = adamw_floats(step);
  const EightBitTable& m_table = signed_eight_bit_table();
  const EightBitTable& v_table = unsigned_eight_bit_table();
  parallel_for_ranges(executor, n, kAdamWRun, [&](Index first, Index last) {
    t.adamw_8bit(last - first, param + first, grad + first, moments.from(first), m_table, v_table, floats);
  });
}

/// Σ x² in double, in a fixed order.
inline double squared_norm(Index n, const float* x) { return n > 0 ? table().squared_norm(n, x) : 0.0; }

/// Whether x holds an infinity or a NaN.
inline bool any_non_finite(Index n, const float* x) { return n > 0 && table().any_non_finite(n, x); }

/// x *= factor.
inline void scale_in_place(Index n, float factor, float* x) {
  if (n > 0) table().scale(n, factor, x);
}

}  // namespace kernels
PEFT_END_NAMESPACE
