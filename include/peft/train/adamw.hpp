#pragma once
/// AdamW, equal to torch.optim.AdamW: per element, at step t with gradient g,
///   p ← p·(1 − lr·λ)                                  where the parameter decays
///   m ← β₁·m + (1 − β₁)·g,   v ← β₂·v + (1 − β₂)·g²
///   p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
/// m and v start at zero. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// Defaults as Hugging Face's Trainer sets them (torch's own differ in weight_decay = 0.01).
struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;  ///< for parameters whose ParameterInfo says `decay`
  /// LoRA+ (Hayou et al., 2024, arXiv 2402.12354): learning rate of B and of vectors, as a multiple of A's; 0: not used.
  double loraplus_lr_ratio = 0.0;
  /// With LoRA+: learning rate of parameters on embeddings, as a multiple of A's.
  double loraplus_embedding_ratio = 1.0;

  /// Throws ConfigError, naming the field.
  void validate() const {
    const auto in_unit = [](double value) { return value >= 0.0 && value < 1.0; };
    if (!in_unit(beta1)) fail<ConfigError>("AdamW: beta1 is {}; expected 0 <= beta1 < 1", beta1);
    if (!in_unit(beta2)) fail<ConfigError>("AdamW: beta2 is {}; expected 0 <= beta2 < 1", beta2);
    if (!is_finite(eps) || eps < 0.0) fail<ConfigError>("AdamW: eps is {}; expected a number from 0", eps);
    if (!is_finite(weight_decay) || weight_decay < 0.0) {
      fail<ConfigError>("AdamW: weight_decay is {}; expected a number from 0", weight_decay);
    }
    for (const auto& [name, value] : {std::pair<std::string_view, double>{"loraplus_lr_ratio", loraplus_lr_ratio},
                                      {"loraplus_embedding_ratio", loraplus_embedding_ratio}}) {
      if (!is_finite(value) || value < 0.0) fail<ConfigError>("AdamW: {} is {}; expected a number from 0", name, value);
    }
  }
};

/// The optimizer over whatever a visitor shows it. Moments belong to a parameter by its name, so the set may be visited
/// in another order after a resume. A: type of parameters, gradients and moments.
template <std::floating_point A>
class AdamW {
 public:
  /// The moments of one parameter.
  struct Moments {
    std::string name;
    Index rows = 0;
    Index cols = 0;
    Buffer<A> m;  ///< torch's exp_avg
    Buffer<A> v;  ///< torch's exp_avg_sq
  };

  /// Throws ConfigError.
  explicit AdamW(AdamWConfig config = {}) : config_(config) { config_.validate(); }

  const AdamWConfig& config() const noexcept { return config_; }
  /// Updates done so far (t).
  Index steps() const noexcept { return steps_; }

  /// One update of every parameter of `model` with gradient × `grad_scale` (clipping, loss scaling). Gradients are left
  /// as they are. Throws ConfigError where the set of parameters is not that of the steps before.
  template <class Model>
  void step(Model& model, double learning_rate, double grad_scale = 1.0, ExecutorRef executor = {}) {
    const bool first = moments_.empty();
    const double t = rounded(static_cast<double>(steps_ + 1));  // else -ffast-math makes a power of integers of it
    kernels::AdamWStep update;
    update.lr = learning_rate;
    update.beta1 = config_.beta1;
    update.beta2 = config_.beta2;
    update.eps = config_.eps;
    update.bias_correction1 = 1.0 - std::pow(config_.beta1, t);
    update.bias_correction2 = 1.0 - std::pow(config_.beta2, t);
    update.grad_scale = grad_scale;
    std::size_t next = 0;
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) {
      Moments& own = first ? add(info, value.size) : find(info, value.size, next);
      ++next;
      update.weight_decay = info.decay ? config_.weight_decay : 0.0;
      update.lr = rounded(learning_rate * rate_of(info));
      update_one(value, grad, own, update, executor);
    });
    if (next != moments_.size()) {
      fail<ConfigError>("AdamW: {} parameters were visited; expected {}, those of the steps before", next,
                        moments_.size());
    }
    ++steps_;
  }

  /// All moments, in the order of the first visit; empty before the first step.
  std::span<const Moments> moments() const noexcept { return moments_; }

  /// Continues from saved moments after `steps` updates.
  void restore(std::vector<Moments> moments, Index steps) noexcept {
    moments_ = std::move(moments);
    steps_ = steps;
  }

 private:
  /// 1, or LoRA+'s multiple.
  double rate_of(const ParameterInfo& info) const noexcept {
    if (config_.loraplus_lr_ratio == 0.0) return 1.0;
    if (info.role == ParameterRole::kEmbedding) return config_.loraplus_embedding_ratio;
    return info.role == ParameterRole::kLoraB || info.dimensions == 1 ? config_.loraplus_lr_ratio : 1.0;
  }

  Moments& add(const ParameterInfo& info, Index size) {
    for (const Moments& other : moments_) {
      if (other.name == info.name) fail<ConfigError>("AdamW: two parameters are named {}", info.name);
    }
    moments_.push_back({std::string(info.name), info.rows, info.cols, Buffer<A>::zeros(size), Buffer<A>::zeros(size)});
    return moments_.back();
  }

  Moments& find(const ParameterInfo& info, Index size, std::size_t likely) {
    Moments* found = nullptr;
    if (likely < moments_.size() && moments_[likely].name == info.name) {
      found = &moments_[likely];
    } else {
      for (Moments& candidate : moments_) {
        if (candidate.name == info.name) found = &candidate;
      }
    }
    if (found == nullptr) {
      fail<ConfigError>("AdamW: there is no state for parameter {}; the set of parameters must stay the same",
                        info.name);
    }
    if (found->m.size() != size || found->v.size() != size) {
      fail<ShapeError>("AdamW: parameter {} has {} elements; expected {}, those of its state", info.name, size,
                       found->m.size());
    }
    return *found;
  }

  static void update_one(VectorView<A> value, VectorView<A> grad, Moments& own, const kernels::AdamWStep& update,
                         ExecutorRef executor) {
    if constexpr (std::same_as<A, float>) {
      kernels::adamw_step(value.size, value.data, grad.data, own.m.data(), own.v.data(), update, executor);
    } else {
      const A step_size = update.lr / update.bias_correction1;
      const A root_correction2 = std::sqrt(update.bias_correction2);
      for (Index i = 0; i < value.size; ++i) {
        const A g = grad[i] * update.grad_scale;
        A& m = own.m[i];
        A& v = own.v[i];
        m += (1.0 - update.beta1) * (g - m);
        v = update.beta2 * v + (1.0 - update.beta2) * g * g;
        value[i] = value[i] * (1.0 - update.lr * update.weight_decay) -
                   step_size * m / (std::sqrt(v) / root_correction2 + update.eps);
      }
    }
  }

  AdamWConfig config_;
  Index steps_ = 0;
  std::vector<Moments> moments_;
};

PEFT_END_NAMESPACE
