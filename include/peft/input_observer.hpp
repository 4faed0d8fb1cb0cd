#pragma once
/// Sees what goes into the linear layers of a model, whatever the host: parts of an adapter that change nothing, one per
/// module. Select it (Selection) and run the model: see(module, x [rows, in_features]) is called in every pass.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapted_linear.hpp"
#include "peft/named_adapter.hpp"

PEFT_BEGIN_NAMESPACE

template <Scalar T>
class InputObserver {
 public:
  using See = std::function<void(std::string_view module, MatrixView<const T> x)>;

  InputObserver(std::string module, Index in_features, Index out_features, std::shared_ptr<const See> see)
      : module_(std::move(module)), in_features_(in_features), out_features_(out_features), see_(std::move(see)) {}

  Index in_features() const noexcept { return in_features_; }
  Index out_features() const noexcept { return out_features_; }
  /// What a pass over the layer calls: no term comes of it.
  void forward_terms(MatrixView<const T> x, const kernels::MaskBits&, double, UpdateSaved<T>&,
                     std::vector<BasicLowRankTerm<Accumulator<T>>>&, ExecutorRef) const {
    (*see_)(module_, x);
  }
  /// It has none.
  template <class Visitor>
  void for_each_parameter(Visitor&&, std::string_view = {}) {}

 private:
  std::string module_;
  Index in_features_, out_features_;
  std::shared_ptr<const See> see_;
};

/// A selection of observers alone, on those of the sites that wanted(name) says. A pass then is the base model's.
template <Scalar T, class Wanted>
Selection<T> observe_inputs(std::span<AdaptedLinear<T>* const> sites, Wanted&& wanted, typename InputObserver<T>::See see) {
  const auto shared = std::make_shared<const typename InputObserver<T>::See>(std::move(see));
  auto adapter = std::make_shared<NamedAdapter<T>>("inputs", LoraConfig{});
  for (const AdaptedLinear<T>* site : sites) {
    if (!wanted(site->name())) continue;
    adapter->add(site->module(), InputObserver<T>(site->name(), site->in_features(), site->out_features(), shared));
  }
  return Selection<T>({{std::move(adapter), 1.0, nullptr}});
}

PEFT_END_NAMESPACE
