#pragma once
/// A norm's weight and bias as a part of an adapter: LN-tuning (Zhao et al., "Tuning LayerNorm in Attention", 2023, arXiv
/// 2312.11420), modules_to_save, and the biases of bias = "all".

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// Values [n] instead of the host's; one that is empty stays the host's.
template <Scalar T = float>
class TrainedNorm {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  /// Copies; either may be empty. `key` stands before "weight" and "bias" in the file: "ln_tuning_layers." of LN-tuning.
  TrainedNorm(VectorView<const A> weight, VectorView<const A> bias, std::string key = {}) : key_(std::move(key)) {
    if (weight.empty() && bias.empty()) fail<ConfigError>("TrainedNorm: there is neither a weight nor a bias to be trained");
    const auto copy = [](VectorView<const A> values, TrainedMatrix<A>& to) {
      if (values.empty()) return;
      to = TrainedMatrix<A>::vector(values.size);
      std::copy(values.begin(), values.end(), to.value().data());
    };
    copy(weight, weight_);
    copy(bias, bias_);
  }

  TrainedMatrix<A>& weight() noexcept { return weight_; }
  TrainedMatrix<A>& bias() noexcept { return bias_; }

  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }
  void zero_grad() noexcept {
    weight_.zero_grad();
    bias_.zero_grad();
  }

 private:
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    weight_.visit(visit, prefix, key_ + "weight", ParameterRole::kOther, false, with_grad);
    bias_.visit(visit, prefix, key_ + "bias", ParameterRole::kBias, false, with_grad);
  }

  std::string key_;
  TrainedMatrix<A> weight_, bias_;
};

PEFT_END_NAMESPACE
