#pragma once
/// The weight and bias of a host's norm, to which adapters attach by name (LN-tuning, modules_to_save, biases):
///   values = base + Σ_a w_a·(own_a − base)
/// The host asks for them before its norm and hands the gradients back after it.

#include <string>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/rounded.hpp"
#include "peft/selection.hpp"
#include "peft/trained_norm.hpp"

PEFT_BEGIN_NAMESPACE

/// The base's values are the host's memory and outlive this; the bias may be empty.
template <Scalar T>
class AdaptedNorm {
 public:
  using value_type = T;
  using A = Accumulator<T>;

  /// What the norm runs with; valid as long as the base and the selection that it came from.
  struct Values {
    VectorView<const A> weight, bias;
    Buffer<A> memory[2];  ///< where several adapters are mixed
  };

  AdaptedNorm(std::string module_name, VectorView<const A> weight, VectorView<const A> bias = {})
      : module_(std::move(module_name)), weight_(weight), bias_(bias) {}

  const std::string& name() const noexcept { return module_.name(); }
  const ModuleId& module() const noexcept { return module_; }
  VectorView<const A> weight() const noexcept { return weight_; }
  VectorView<const A> bias() const noexcept { return bias_; }

  Values values(const Selection<T>& selection) const {
    Values result{weight_, bias_, {}};
    mix(selection, [](TrainedNorm<T>& own) -> TrainedMatrix<A>& { return own.weight(); }, weight_, result.weight,
        result.memory[0]);
    mix(selection, [](TrainedNorm<T>& own) -> TrainedMatrix<A>& { return own.bias(); }, bias_, result.bias,
        result.memory[1]);
    return result;
  }

  /// Whether the selection has a part on this norm: then its gradients are wanted.
  bool is_adapted(const Selection<T>& selection) const {
    bool any = false;
    selection.template for_each_part<TrainedNorm<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    return any;
  }

  /// Shares the gradients of the values out: += w·d. dbias may be empty.
  void add_gradients(const Selection<T>& selection, VectorView<const A> dweight, VectorView<const A> dbias) const {
    selection.template for_each_part<TrainedNorm<T>>(module_, [&](TrainedNorm<T>& own, const auto& active) {
      add(own.weight(), dweight, active.weight);
      add(own.bias(), dbias, active.weight);
    });
  }

 private:
  template <class Get>
  void mix(const Selection<T>& selection, Get&& get, VectorView<const A> base, VectorView<const A>& values,
           Buffer<A>& memory) const {
    selection.template for_each_part<TrainedNorm<T>>(module_, [&](TrainedNorm<T>& own, const auto& active) {
      const TrainedMatrix<A>& trained = get(own);
      if (trained.empty()) return;
      if (memory.empty() && values.data == base.data && active.weight == 1.0) {
        values = trained.flat();
        return;
      }
      Buffer<A> mixed(base.size);
      for (Index j = 0; j < base.size; ++j) {
        const A step = rounded(static_cast<A>(active.weight) * rounded(trained.value().data()[j] - base[j]));
        mixed[j] = values[j] + step;
      }
      memory = std::move(mixed);
      values = std::as_const(memory).view();
    });
  }
  static void add(TrainedMatrix<A>& own, VectorView<const A> d, double weight) {
    if (own.empty() || d.empty()) return;
    for (Index j = 0; j < d.size; ++j) own.grad().data()[j] += rounded(static_cast<A>(weight) * d[j]);
  }

  ModuleId module_;
  VectorView<const A> weight_, bias_;
};

PEFT_END_NAMESPACE
