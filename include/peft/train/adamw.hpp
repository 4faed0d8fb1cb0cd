#pragma once
/// AdamW, equal to torch.optim.AdamW: per element, at step t with gradient g,
///   p ← p·(1 − lr·λ)                                  where the parameter decays
///   m ← β₁·m + (1 − β₁)·g,   v ← β₂·v + (1 − β₂)·g²
///   p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
/// m and v start at zero. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
/// In 8 bits m and v are stored as bitsandbytes' AdamW8bit does (Dettmers et al., "8-bit Optimizers via Block-wise
/// Quantization", 2022): blocks of 256 elements on dynamic maps, small parameters in 32 bits. They may stand in a file instead
/// of memory (paged): the numbers are the same, bit for bit.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/parameter.hpp"
#include "peft/train/moments_memory.hpp"

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
  int optim_bits = 32;         ///< of the moments: 32 or 8; those of double are 64 or none
  Index min_8bit_size = 4096;  ///< parameters of fewer elements keep 32 bits
  /// Where moments do not stand in memory.
  std::optional<PagedMemory> paged{};

  /// Throws ConfigError, naming the field.
  void validate() const {
    const auto in_unit = [](double value) { return value >= 0.0 && value < 1.0; };
    if (!in_unit(beta1)) fail<ConfigError>("AdamW: beta1 is {}; expected 0 <= beta1 < 1", beta1);
    if (!in_unit(beta2)) fail<ConfigError>("AdamW: beta2 is {}; expected 0 <= beta2 < 1", beta2);
    if (!is_finite(eps) || eps < 0.0) fail<ConfigError>("AdamW: eps is {}; expected a number from 0", eps);
    if (!is_finite(weight_decay) || weight_decay < 0.0) {
      fail<ConfigError>("AdamW: weight_decay is {}; expected a number from 0", weight_decay);
    }
    if (optim_bits != 32 && optim_bits != 8) fail<ConfigError>("AdamW: optim_bits is {}; expected 32 or 8", optim_bits);
    if (min_8bit_size < 0) fail<ConfigError>("AdamW: min_8bit_size is {}; expected a number from 0", min_8bit_size);
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
  /// Throws ConfigError.
  explicit AdamW(AdamWConfig config = {}) : config_(std::move(config)), memory_(config_.paged) {
    config_.validate();
    if (!std::same_as<A, float> && config_.optim_bits == 8) {
      fail<ConfigError>("AdamW: optim_bits is 8 for parameters in double; expected 32: 8 bits are for float");
    }
  }

  const AdamWConfig& config() const noexcept { return config_; }
  /// Updates done so far (t).
  Index steps() const noexcept { return steps_; }

  /// One update of every parameter of `model` with gradient × `grad_scale` (clipping, loss scaling). Gradients are left
  /// as they are. Throws ConfigError where the set of parameters is not that of the steps before, or the budget of a file is too
  /// small, and changes nothing then; IoError where the file's disk is full, or fails.
  template <class Model>
  void step(Model& model, double learning_rate, double grad_scale = 1.0, ExecutorRef executor = {}) {
    order_places(model);
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
      const std::size_t position = next++;
      update.weight_decay = info.decay ? config_.weight_decay : 0.0;
      update.lr = rounded(learning_rate * rate_of(info));
      update_one(position, value, grad, update, executor);
    });
    ++steps_;
  }

  /// All moments, in the order of the first visit; empty before the first step. They refer to this optimizer's memory.
  std::vector<Moments<A>> moments() const {
    std::vector<Moments<A>> result;
    for (const Place& place : memory_.places()) result.push_back(memory_.moments(place));
    return result;
  }

  /// Of paged moments: gives back the memory of bytes that were read, say to save them.
  void release(std::span<const std::byte> bytes) const noexcept { memory_.release(bytes); }

  /// Continues from saved moments, which are copied, after `steps` updates. `done` is called with their bytes as soon as they
  /// are not needed any longer. Throws ConfigError where a parameter's moments are not of the kind that this optimizer keeps,
  /// and changes nothing then; IoError as step() does.
  template <class Done>
  void restore(std::span<const Moments<A>> saved, Index steps, Done&& done) {
    std::vector<Place> places;
    for (const Moments<A>& one : saved) {
      places.push_back(place_of(one.name, one.rows, one.cols, one.rows * one.cols));
      check_kind(places.back(), one);
    }
    MomentsMemory<A> memory(config_.paged);
    if (!places.empty()) memory.take(std::move(places));
    for (std::size_t i = 0; i < saved.size(); ++i) memory.assign(memory.places()[i], saved[i], done);
    memory_ = std::move(memory);
    steps_ = steps;
  }
  void restore(std::span<const Moments<A>> saved, Index steps) {
    restore(saved, steps, [](std::span<const std::byte>) {});
  }

 private:
  using Place = typename MomentsMemory<A>::Place;

  /// 1, or LoRA+'s multiple.
  double rate_of(const ParameterInfo& info) const noexcept {
    if (config_.loraplus_lr_ratio == 0.0) return 1.0;
    if (info.role == ParameterRole::kEmbedding) return config_.loraplus_embedding_ratio;
    return info.role == ParameterRole::kLoraB || info.dimensions == 1 ? config_.loraplus_lr_ratio : 1.0;
  }

  Place place_of(std::string_view name, Index rows, Index cols, Index size) const {
    return {std::string(name), rows, cols, size, config_.optim_bits == 8 && size >= config_.min_8bit_size && size > 0};
  }

  static void check_kind(const Place& place, const Moments<A>& saved) {
    if (saved.is_8bit() != place.is_8bit) {
      fail<ConfigError>("AdamW: the saved moments of parameter {} are in {} bits; expected {}: go on with the optimizer that "
                        "the run began with",
                        place.name, saved.is_8bit() ? 8 : 32, place.is_8bit ? 8 : 32);
    }
    const Index m = place.is_8bit ? saved.m_8bit.codes.size : saved.m.size;
    const Index v = place.is_8bit ? saved.v_8bit.codes.size : saved.v.size;
    const Index blocks = place.is_8bit ? MomentsMemory<A>::blocks(place.size) : 0;
    if (m != place.size || v != place.size || saved.m_8bit.absmax.size != blocks || saved.v_8bit.absmax.size != blocks) {
      fail<ShapeError>("AdamW: the saved moments of parameter {} have {} and {} elements, and {} and {} maxima; expected {} "
                       "and {}",
                       place.name, m, v, saved.m_8bit.absmax.size, saved.v_8bit.absmax.size, place.size, blocks);
    }
  }

  /// Sets order_ to the places of the model's parameters as they are visited; takes memory in the first step.
  template <class Model>
  void order_places(Model& model) {
    std::vector<Place> added;
    order_.clear();
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      const std::size_t position = order_.size();
      if (!memory_.empty()) {
        order_.push_back(find(info, value.size, position));
        return;
      }
      for (const Place& other : added) {
        if (other.name == info.name) fail<ConfigError>("AdamW: two parameters are named {}", info.name);
      }
      added.push_back(place_of(info.name, info.rows, info.cols, value.size));
      order_.push_back(position);
    });
    if (!added.empty()) memory_.take(std::move(added));
    if (order_.size() != memory_.places().size()) {
      fail<ConfigError>("AdamW: {} parameters were visited; expected {}, those of the steps before", order_.size(),
                        memory_.places().size());
    }
  }

  std::size_t find(const ParameterInfo& info, Index size, std::size_t likely) const {
    const std::vector<Place>& places = memory_.places();
    std::size_t found = places.size();
    if (likely < places.size() && places[likely].name == info.name) {
      found = likely;
    } else {
      for (std::size_t i = 0; i < places.size(); ++i) {
        if (places[i].name == info.name) found = i;
      }
    }
    if (found == places.size()) {
      fail<ConfigError>("AdamW: there is no state for parameter {}; the set of parameters must stay the same",
                        info.name);
    }
    if (places[found].size != size) {
      fail<ShapeError>("AdamW: parameter {} has {} elements; expected {}, those of its state", info.name, size,
                       places[found].size);
    }
    return found;
  }

  /// The parameter visited at `position`, window after window.
  void update_one(std::size_t position, VectorView<A> value, VectorView<A> grad, const kernels::AdamWStep& update,
                  ExecutorRef executor) {
    const Place& place = memory_.places()[order_[position]];
    const Index window = memory_.window(place);
    for (Index first = 0; first < place.size; first += window) {
      memory_.enter(place, first);
      if (first + window < place.size) {
        memory_.prefetch(place, first + window);
      } else if (position + 1 < order_.size()) {
        memory_.prefetch(memory_.places()[order_[position + 1]], 0);
      }
      const Index count = std::min(window, place.size - first);
      update_range(place, first, value.slice(first, count), grad.slice(first, count), update, executor);
      memory_.leave(place, first);
    }
  }

  void update_range(const Place& place, Index first, VectorView<A> value, VectorView<A> grad, const kernels::AdamWStep& update,
                    ExecutorRef executor) {
    if constexpr (std::same_as<A, float>) {
      if (place.is_8bit) {
        kernels::adamw_step(value.size, value.data, grad.data, memory_.eight_bit(place).from(first), update, executor);
      } else {
        kernels::adamw_step(value.size, value.data, grad.data, memory_.m(place) + first, memory_.v(place) + first, update,
                            executor);
      }
    } else {
      const A step_size = update.lr / update.bias_correction1;
      const A root_correction2 = std::sqrt(update.bias_correction2);
      for (Index i = 0; i < value.size; ++i) {
        const A g = grad[i] * update.grad_scale;
        A& m = memory_.m(place)[first + i];
        A& v = memory_.v(place)[first + i];
        m += (1.0 - update.beta1) * (g - m);
        v = update.beta2 * v + (1.0 - update.beta2) * g * g;
        value[i] = value[i] * (1.0 - update.lr * update.weight_decay) -
                   step_size * m / (std::sqrt(v) / root_correction2 + update.eps);
      }
    }
  }

  AdamWConfig config_;
  Index steps_ = 0;
  MomentsMemory<A> memory_;
  std::vector<std::size_t> order_;  // of the places, as the parameters are visited
};

PEFT_END_NAMESPACE
