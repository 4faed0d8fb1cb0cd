#pragma once
/// A small language model with everything a trainer meets: two trained matrices, a bias that does not decay, dropout
/// that goes by the row of the accumulated batch. For token t with target u (all sums in A):
///   h = tanh(W1·e_t + b),  z = W2·(m∘h/(1-p)),  loss = log Σ exp z − z_u;   e_t: row t of a fixed table

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/parameter.hpp"
#include "peft/train/batch.hpp"
#include "peft/train/training_data.hpp"

namespace train_test {

using peft::Index;
using peft::LossSum;
using peft::PackedBatch;
using peft::ParameterInfo;
using peft::ParameterRole;
using peft::VectorView;

template <class A>
class ToyModel {
 public:
  using accumulator_type = A;
  static constexpr Index kVocabulary = 11, kWidth = 6, kHidden = 9;

  explicit ToyModel(std::uint64_t seed = 5, float dropout = 0.25f) : dropout_(dropout) {
    peft::Philox random(seed);
    const auto fill = [&](std::vector<A>& values, Index count) {
      for (Index i = 0; i < count; ++i) values.push_back(static_cast<A>(0.4f * random.normal()));
    };
    fill(table_, kVocabulary * kWidth);
    fill(w1.value, kHidden * kWidth);
    fill(w2.value, kVocabulary * kHidden);
    fill(bias.value, kHidden);
    for (Parameter* one : {&w1, &w2, &bias}) one->grad.assign(one->value.size(), A(0));
  }

  void forward_backward(const PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        LossSum& sum) {
    batch.check();
    run(batch, static_cast<A>(grad_scale), true, seed, step, sum);
    if (after_backward) after_backward(step, sum);
  }
  void evaluate(const PackedBatch& batch, LossSum& sum) {
    batch.check();
    run(batch, A(0), false, 0, 0, sum);
  }

  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    visit(ParameterInfo{"w1.weight", ParameterRole::kLoraA, true, kHidden, kWidth}, w1.values(), w1.grads());
    visit(ParameterInfo{"w2.weight", ParameterRole::kLoraB, true, kVocabulary, kHidden}, w2.values(), w2.grads());
    visit(ParameterInfo{"bias", ParameterRole::kBias, false, 1, kHidden}, bias.values(), bias.grads());
  }

  struct Parameter {
    std::vector<A> value, grad;
    VectorView<A> values() { return {value.data(), static_cast<Index>(value.size())}; }
    VectorView<A> grads() { return {grad.data(), static_cast<Index>(grad.size())}; }
  };
  Parameter w1, w2, bias;
  /// Called after each sub-batch: tests break numbers here.
  std::function<void(std::uint32_t step, LossSum&)> after_backward;

 private:
  void run(const PackedBatch& batch, A grad_scale, bool train, std::uint64_t seed, std::uint32_t step, LossSum& sum) {
    const auto at = [](Index i) { return static_cast<std::size_t>(i); };
    for (Index row = 0; row < batch.tokens(); ++row) {
      const std::int32_t target = batch.targets[at(row)];
      if (target < 0) continue;
      const A* e = table_.data() + batch.ids[at(row)] * kWidth;
      std::uint8_t mask[2] = {0xFF, 0xFF};
      const bool drop = train && dropout_ > 0.0f;
      if (drop) peft::dropout_mask_row({seed, step, 1, batch.first_row}, row, kHidden, dropout_, mask);
      A h[kHidden], keep[kHidden], z[kVocabulary], dz[kVocabulary];
      for (Index i = 0; i < kHidden; ++i) {
        A dot = bias.value[at(i)];
        for (Index k = 0; k < kWidth; ++k) dot += w1.value[at(i * kWidth + k)] * e[k];
        h[i] = std::tanh(dot);
        const bool kept = (mask[i / 8] >> (i % 8)) & 1;
        keep[i] = !drop ? A(1) : kept ? A(1) / (A(1) - static_cast<A>(dropout_)) : A(0);
      }
      A highest = A(-1e30);
      Index best = 0;
      for (Index j = 0; j < kVocabulary; ++j) {
        z[j] = A(0);
        for (Index i = 0; i < kHidden; ++i) z[j] += w2.value[at(j * kHidden + i)] * keep[i] * h[i];
        if (z[j] > highest) {
          highest = z[j];
          best = j;
        }
      }
      A total = A(0);
      for (Index j = 0; j < kVocabulary; ++j) total += std::exp(z[j] - highest);
      sum.loss += static_cast<double>(highest + std::log(total) - z[target]);
      sum.tokens += 1;
      sum.correct += best == target ? 1 : 0;
      if (!train) continue;
      for (Index j = 0; j < kVocabulary; ++j) {
        dz[j] = grad_scale * (std::exp(z[j] - highest) / total - (j == target ? A(1) : A(0)));
      }
      for (Index i = 0; i < kHidden; ++i) {
        A dh = A(0);
        for (Index j = 0; j < kVocabulary; ++j) {
          dh += dz[j] * w2.value[at(j * kHidden + i)];
          w2.grad[at(j * kHidden + i)] += dz[j] * keep[i] * h[i];
        }
        const A dot = dh * keep[i] * (A(1) - h[i] * h[i]);
        bias.grad[at(i)] += dot;
        for (Index k = 0; k < kWidth; ++k) w1.grad[at(i * kWidth + k)] += dot * e[k];
      }
    }
  }

  std::vector<A> table_;
  float dropout_;
};

/// Records of a made-up language: the next token is (3·t + 1) mod 11, now and then another; the first `prompt` ids of
/// a record have no label.
class ToyData {
 public:
  ToyData(Index records, std::uint64_t seed, std::int32_t factor = 3) {
    peft::Philox random(seed, 77);
    for (Index r = 0; r < records; ++r) {
      const Index length = 3 + random.below(9);
      std::vector<std::int32_t> ids{static_cast<std::int32_t>(random.below(11))};
      while (static_cast<Index>(ids.size()) < length) {
        const bool odd = random.below(8) == 0;
        ids.push_back(odd ? static_cast<std::int32_t>(random.below(11)) : (factor * ids.back() + 1) % 11);
      }
      ids_.push_back(ids);
      prompt_.push_back(1 + random.below(2));
    }
  }

  Index records() const { return static_cast<Index>(ids_.size()); }
  Index tokens(Index r) const { return static_cast<Index>(ids_[static_cast<std::size_t>(r)].size()); }
  Index label_tokens(Index r) const { return tokens(r) - prompt_[static_cast<std::size_t>(r)]; }
  void append(Index r, PackedBatch& batch) const {
    const auto& ids = ids_[static_cast<std::size_t>(r)];
    for (Index i = 0; i < tokens(r); ++i) {
      const bool labelled = i + 1 < tokens(r) && i + 1 >= prompt_[static_cast<std::size_t>(r)];
      batch.ids.push_back(ids[static_cast<std::size_t>(i)]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.targets.push_back(labelled ? ids[static_cast<std::size_t>(i + 1)] : -1);
    }
    batch.offsets.push_back(batch.tokens());
  }

 private:
  std::vector<std::vector<std::int32_t>> ids_;
  std::vector<Index> prompt_;
};

}  // namespace train_test
