#pragma once
/// A small model of the library's own parts, for bits_probe: for a token t with target u
///   e = table[t];  h = rms_norm(e);  f = swiglu(gate(h), up(h));  z = head(e + down(f));  loss = log Σ exp z − z_u
/// gate, up and down are frozen layers with LoRA and dropout.

#include <cstdint>
#include <vector>

#include "bits/bits_support.hpp"
#include "peft/dense_linear.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "peft/lora.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/ops/rms_norm.hpp"
#include "peft/ops/swiglu.hpp"
#include "peft/train/trainer.hpp"

namespace bits_test {

class Model {
 public:
  using accumulator_type = float;
  static constexpr Index kVocabulary = 61, kWidth = 40, kHidden = 72;

  explicit Model(ExecutorRef executor) : executor_(executor) {}

  void forward_backward(const PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        LossSum& sum) {
    run(batch, grad_scale, true, seed, step, sum);
  }
  void evaluate(const PackedBatch& batch, LossSum& sum) { run(batch, 0.0, false, 0, 0, sum); }

  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    gate_lora.for_each_parameter(visit, "gate.");
    up_lora.for_each_parameter(visit, "up.");
    down_lora.for_each_parameter(visit, "down.");
  }

 private:
  static Lora<float> made(Index in, Index out, std::uint64_t seed) {
    return Lora<float>(
        in, out, LoraConfig{.r = 5, .lora_alpha = 8, .target_modules = {"x"}, .lora_dropout = 0.1f}, seed);
  }

  void run(const PackedBatch& batch, double grad_scale, bool train, std::uint64_t seed, std::uint32_t step,
           LossSum& sum) {
    const Index n = batch.tokens();
    const VectorView<const std::int32_t> ids(batch.ids.data(), n), targets(batch.targets.data(), n);
    Matrix<float> e(n, kWidth), h(n, kWidth), g(n, kHidden), u(n, kHidden), f(n, kHidden), out(n, kWidth);
    const auto mask = [&](std::uint32_t module) {
      return train ? DropoutMask(DropoutKey{seed, step, module, batch.first_row}) : DropoutMask();
    };
    Lora<float>::Saved of_gate, of_up, of_down;
    ops::embedding_forward<bf16, float>(ids, table_.view(), e.view(), executor_);
    ops::rms_norm_forward<float>(e.view(), norm_.flat(), 1e-5f, h.view(), executor_);
    gate_lora.forward(gate_, h.view(), g.view(), of_gate, mask(0), executor_);
    up_lora.forward(up_, h.view(), u.view(), of_up, mask(1), executor_);
    ops::swiglu_forward<float>(g.view(), u.view(), f.view(), executor_);
    down_lora.forward(down_, f.view(), out.view(), of_down, mask(2), executor_);
    ops::add<float>(e.view(), out.view(), executor_);
    if (!train) {
      loss_.forward(head_, out.view(), targets, sum, executor_);
      return;
    }
    Matrix<float> d_out(n, kWidth), df(n, kHidden), dg(n, kHidden), du(n, kHidden), dh(n, kWidth);
    loss_.forward_backward(head_, out.view(), targets, grad_scale, d_out.view(), sum, executor_);
    down_lora.backward(down_, d_out.view(), f.view(), of_down, df.view(), Accumulate::kOverwrite, executor_);
    ops::swiglu_backward<float>(df.view(), g.view(), u.view(), dg.view(), du.view(), executor_);
    up_lora.backward(up_, du.view(), h.view(), of_up, dh.view(), Accumulate::kOverwrite, executor_);
    gate_lora.backward(gate_, dg.view(), h.view(), of_gate, dh.view(), Accumulate::kAdd, executor_);
  }

 public:
  Lora<float> gate_lora = made(kWidth, kHidden, 1), up_lora = made(kWidth, kHidden, 2),
              down_lora = made(kHidden, kWidth, 3);

 private:
  ExecutorRef executor_;
  Matrix<bf16> table_ = numbers<bf16>(kVocabulary, kWidth, 101);
  Matrix<float> norm_ = numbers<float>(1, kWidth, 102);
  DenseLinear<bf16> gate_{numbers<bf16>(kHidden, kWidth, 103)}, up_{numbers<bf16>(kHidden, kWidth, 104)};
  DenseLinear<f16> down_{numbers<f16>(kWidth, kHidden, 105)};
  DenseLinear<float> head_{numbers<float>(kVocabulary, kWidth, 106)};
  LinearCrossEntropy<float> loss_;
};

/// Fourteen records of 3 to 12 tokens; the first of each has no label.
class Records {
 public:
  Index records() const { return 14; }
  Index tokens(Index i) const { return 3 + i * 5 % 10; }
  Index label_tokens(Index i) const { return tokens(i) - 2; }
  void append(Index i, PackedBatch& batch) const {
    for (Index t = 0; t < tokens(i); ++t) {
      batch.ids.push_back(id(i, t));
      batch.positions.push_back(static_cast<std::int32_t>(t));
      batch.targets.push_back(t > 0 && t + 1 < tokens(i) ? id(i, t + 1) : -1);
    }
    batch.offsets.push_back(batch.tokens());
  }

 private:
  static std::int32_t id(Index record, Index token) {
    return static_cast<std::int32_t>((record * 31 + token * token * 7 + token) % Model::kVocabulary);
  }
};

}  // namespace bits_test
