#pragma once
/// Numbers that are not finite must be seen, whatever the compiler was told about them (-ffast-math says there are
/// none). `bad` comes from its bits; only bits are looked at here.

#include <utility>
#include <vector>

#include "bits/bits_model.hpp"
#include "bits/bits_support.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/cross_entropy.hpp"

namespace bits_test {

/// Whether cross-entropy makes a finite loss of a row with a NaN, or of one whose largest logit is +∞.
inline bool cross_entropy_hides(float bad, Index at, Index n, ExecutorRef executor) {
  Matrix<float> z = numbers<float>(1, n, 96);
  z.data()[at] = bad;
  const std::int32_t target = 0;
  double loss = 0;
  ops::cross_entropy<float>(z.view(), {&target, 1}, 1.0f, true, {&loss, 1}, {}, executor);
  return is_finite(loss);
}

inline float swiglu_of(float bad, ExecutorRef executor) {
  Matrix<float> x = numbers<float>(1, 19, 97), y(1, 19);
  x.data()[17] = bad;
  ops::swiglu_forward<float>(x.view(), x.view(), y.view(), executor);
  return y.data()[17];
}

/// Whether the outputs that see a broken key stay finite.
inline bool attention_hides(float bad, ExecutorRef executor) {
  Matrix<float> q = numbers<float>(20, 8, 98), k = numbers<float>(20, 8, 99), out(20, 8);
  k(18, 3) = bad;
  const ops::AttentionSegment<float> segment{0, 20, k.view(), q.view(), {}, {}};
  ops::attention_forward<float>(q.view(), std::span(&segment, 1), {1, 1, 8, 0.35f, true}, out.view(), {}, executor);
  bool hides = true;
  for (const float value : VectorView<const float>(out.row(18), 16)) hides = hides && is_finite(value);
  return hides;
}

/// Whether a training whose parameter is `bad` stops with NumericError.
inline bool training_refuses(float bad, ExecutorRef executor) {
  Model model(executor);
  model.down_lora.b()(3, 1) = bad;
  const Records records;
  TrainerConfig config;
  config.max_steps = 2;
  Trainer<Model, Records> trainer(model, config, records, static_cast<const Records*>(nullptr), {}, executor);
  try {
    trainer.run();
  } catch (const NumericError&) {
    return true;
  }
  return false;
}

inline bool merge_refuses(float bad, ExecutorRef executor) {
  Matrix<float> a = numbers<float>(3, 20, 11), b = numbers<float>(12, 3, 12);
  a(1, 19) = bad;
  const MergeTerm term{a.view(), b.view(), 0.5f};
  DenseLinear<bf16> layer(numbers<bf16>(12, 20, 13));
  try {
    (void)layer.merge(std::span(&term, 1), executor);
  } catch (const NumericError&) {
    return true;
  }
  return false;
}

}  // namespace bits_test
