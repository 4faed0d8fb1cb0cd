#pragma once
/// AdaLoRA's budget: after each optimizer step the columns of all modules are scored, and those below the budget have their
/// E set to zero. With I = |p·∂L/∂p| per number, smoothed Ī ← β₁Ī + (1−β₁)I and Ū ← β₂Ū + (1−β₂)|I − Ī|, the score of a
/// column is s(E_q) + mean_k s(A_qk) + mean_j s(B_jq), s = Ī·Ū. The budget falls from init_r to target_r per module with
/// the cube of what is left of the schedule. Zhang et al., ICLR 2023, equations 7 to 11.

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "peft/adalora.hpp"
#include "peft/adalora_config.hpp"
#include "peft/named_adapter.hpp"

PEFT_BEGIN_NAMESPACE

/// The allocator of one adapter; it belongs to one training, and with for_each_state it goes on in another process.
template <Scalar T>
class AdaLoraAllocator {
 public:
  using A = Accumulator<T>;

  /// Throws ConfigError unless the adapter is an AdaLoRA.
  explicit AdaLoraAllocator(NamedAdapter<T>& adapter) : adapter_(adapter) {
    const AdaLoraConfig* config = adapter.template config_as<AdaLoraConfig>();
    if (config == nullptr) {
      fail<ConfigError>("AdaLoraAllocator: adapter \"{}\" is of peft_type {}; expected ADALORA", adapter.name(),
                        adapter.any_config().peft_type());
    }
    config_ = *config;
    adapter.template for_each_module<AdaLora<T>>([&](const std::string& name, AdaLora<T>& module) {
      Module own{name, &module, {}, std::vector<A>(static_cast<std::size_t>(module.rank()), A(1))};
      module.for_each_weight([&own](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
        const auto size = static_cast<std::size_t>(value.size);
        own.scores[std::string(info.name)] = {std::vector<A>(size), std::vector<A>(size)};
      });
      modules_.push_back(std::move(own));
      initial_budget_ += module.rank();
    });
    // PEFT goes by the sorted names where scores are equal.
    std::sort(modules_.begin(), modules_.end(), [](const Module& x, const Module& y) { return x.name < y.name; });
    target_budget_ = config_.target_r * static_cast<Index>(modules_.size());
  }

  /// Adds weight · mean over all A and B of ‖P·Pᵀ − I‖_F to the gradients, and returns it: the loss's second term. `weight`
  /// is orth_reg_weight times what the step multiplies its loss by.
  double add_regularization(double weight) {
    double sum = 0;
    const auto count = static_cast<double>(2 * modules_.size());
    for (Module& module : modules_) sum = rounded(sum + module.lora->orthogonal_regularization(quotient(weight, count)));
    return quotient(rounded(weight * sum), count);
  }

  /// Columns that may live at `step`, and whether this step cuts down to them.
  std::pair<Index, bool> budget(Index step) const noexcept {
    if (step <= config_.tinit) return {initial_budget_, false};
    if (step > config_.total_step - config_.tfinal) return {target_budget_, true};
    const double left = 1.0 - quotient(static_cast<double>(step - config_.tinit),
                                       static_cast<double>(config_.total_step - config_.tfinal - config_.tinit));
    const double cube = rounded(rounded(left * left) * left);
    const double columns =
        rounded(static_cast<double>(initial_budget_ - target_budget_) * cube) + static_cast<double>(target_budget_);
    return {static_cast<Index>(columns), step % config_.deltaT == 0};
  }

  /// After optimizer step `step` (from 1), while the gradients stand: scores, and cuts where the schedule says so. The
  /// adapter's configuration then has the rank_pattern. The optimizer took the gradients times `grad_scale`.
  void update_and_allocate(Index step, double grad_scale = 1.0) {
    const Index last = config_.total_step - config_.tfinal;
    if (step < last) {
      update_scores(static_cast<A>(grad_scale));
      const auto [columns, cuts] = budget(step);
      if (cuts) cut(columns);
    } else if (cuts_[kFinal] == A(0)) {  // at `last`, or where that step was skipped
      cuts_[kFinal] = A(1);
      cut(budget(last).first);
    } else {
      mask();
    }
  }

  /// visit(name, rows, cols, VectorView<A>) for what a training needs to go on: scores, and which columns live. Where a
  /// visitor has put in what another allocator of the same adapter showed, call restored().
  template <class Visitor>
  void for_each_state(Visitor&& visit) {
    const auto show = [&](const std::string& name, std::vector<A>& values) {
      const auto size = static_cast<Index>(values.size());
      visit(name, Index{1}, size, VectorView<A>(values.data(), size));
    };
    for (Module& module : modules_) {
      for (auto& [name, scores] : module.scores) {
        show(fmt::format("{}.{}.sensitivity", module.name, name), scores.sensitivity);
        show(fmt::format("{}.{}.uncertainty", module.name, name), scores.uncertainty);
      }
      show(module.name + ".kept", module.kept);
    }
    show("cuts", cuts_);
  }
  /// Brings the adapter's rank_pattern up to the state.
  void restored() {
    if (cuts_[kAny] != A(0)) publish();
  }

 private:
  struct Scores {
    std::vector<A> sensitivity, uncertainty;
  };
  struct Module {
    std::string name;
    AdaLora<T>* lora;
    std::map<std::string, Scores> scores{};  ///< by "lora_A", "lora_B", "lora_E"
    std::vector<A> kept{};                   ///< per column 1, or 0 where it was cut
  };
  static constexpr std::size_t kAny = 0, kFinal = 1;  ///< places in cuts_

  void update_scores(A grad_scale) {
    for (Module& module : modules_) {
      module.lora->for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) {
        Scores& own = module.scores[std::string(info.name)];
        const A b1 = static_cast<A>(config_.beta1), b2 = static_cast<A>(config_.beta2);
        const A c1 = static_cast<A>(1.0 - config_.beta1), c2 = static_cast<A>(1.0 - config_.beta2);
        for (Index i = 0; i < value.size; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const A now = std::abs(rounded(value[i] * rounded(grad[i] * grad_scale)));
          own.sensitivity[at] = rounded(b1 * own.sensitivity[at]) + rounded(c1 * now);
          own.uncertainty[at] = rounded(b2 * own.uncertainty[at]) + rounded(c2 * std::abs(rounded(now - own.sensitivity[at])));
        }
      });
    }
  }
  /// Score of column q.
  static A score(const Module& module, Index q) {
    const auto product = [](const Scores& own, Index i) {
      const auto at = static_cast<std::size_t>(i);
      return rounded(own.sensitivity[at] * own.uncertainty[at]);
    };
    const Scores &a = module.scores.at("lora_A"), &b = module.scores.at("lora_B"), &e = module.scores.at("lora_E");
    const Index in = module.lora->in_features(), out = module.lora->out_features(), r = module.lora->rank();
    A of_a = 0, of_b = 0;
    for (Index k = 0; k < in; ++k) of_a = rounded(of_a + product(a, q * in + k));
    for (Index j = 0; j < out; ++j) of_b = rounded(of_b + product(b, j * r + q));
    return product(e, q) + rounded(quotient(of_a, static_cast<A>(in)) + quotient(of_b, static_cast<A>(out)));
  }
  void cut(Index columns) {
    const Index drop = initial_budget_ - columns;
    std::vector<A> all;
    for (const Module& module : modules_) {
      for (Index q = 0; q < module.lora->rank(); ++q) all.push_back(score(module, q));
    }
    A threshold = A(0);
    if (drop > 0) {
      std::vector<A> sorted = all;
      std::nth_element(sorted.begin(), sorted.begin() + (drop - 1), sorted.end());
      threshold = sorted[static_cast<std::size_t>(drop - 1)];
    }
    std::size_t next = 0;
    for (Module& module : modules_) {
      for (A& kept : module.kept) kept = drop <= 0 || all[next++] > threshold ? A(1) : A(0);
    }
    cuts_[kAny] = A(1);
    mask();
    publish();
  }
  void mask() {
    for (Module& module : modules_) {
      Matrix<A>& e = module.lora->e().value();
      for (Index q = 0; q < e.rows(); ++q) {
        if (module.kept[static_cast<std::size_t>(q)] == A(0)) e(q, 0) = A(0);
      }
    }
  }
  void publish() {
    config_.rank_pattern.clear();
    for (const Module& module : modules_) {
      std::vector<bool> kept;
      for (const A flag : module.kept) kept.push_back(flag != A(0));
      config_.rank_pattern.emplace_back(module.name + ".lora_E", std::move(kept));
    }
    adapter_.set_config(config_);
  }

  NamedAdapter<T>& adapter_;
  AdaLoraConfig config_{};
  std::vector<Module> modules_;
  std::vector<A> cuts_{A(0), A(0)};  // whether any cut was made, and the last one
  Index initial_budget_ = 0;
  Index target_budget_ = 0;
};

PEFT_END_NAMESPACE
