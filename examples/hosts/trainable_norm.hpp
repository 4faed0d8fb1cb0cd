#pragma once
/// A layer norm of a host's base whose weight and bias can be trained: full fine-tuning, LN-tuning.

#include <string>
#include <string_view>
#include <utility>

#include "hosts/names.hpp"
#include "peft/ops/layer_norm.hpp"
#include "peft/parameter.hpp"

namespace peft_examples {

template <Scalar T>
class TrainableNorm {
 public:
  using A = Accumulator<T>;

  /// weight and bias [hidden].
  TrainableNorm(std::string name, Buffer<A> weight, Buffer<A> bias, float eps)
      : name_(std::move(name)), weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {}

  const std::string& name() const noexcept { return name_; }
  VectorView<const A> weight() const noexcept { return weight_.view(); }
  VectorView<const A> bias() const noexcept { return bias_.view(); }
  float eps() const noexcept { return eps_; }
  Index parameter_count() const noexcept { return weight_.size() + bias_.size(); }
  bool is_trained() const noexcept { return !weight_grad_.empty() || !bias_grad_.empty(); }

  /// wanted(name) says which of "….weight" and "….bias" are trained.
  template <class Wanted>
  void train(Wanted&& wanted) {
    const auto grad = [&](const char* ending, const Buffer<A>& value) {
      return wanted(std::string_view(name_ + ending)) ? Buffer<A>::zeros(value.size()) : Buffer<A>();
    };
    weight_grad_ = grad(".weight", weight_);
    bias_grad_ = grad(".bias", bias_);
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) const {
    peft::ops::layer_norm_forward<T>(x, weight_.view(), bias_.view(), eps_, y, executor);
  }
  /// dx is overwritten and may be dy.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<T> dx, ExecutorRef executor) {
    peft::ops::layer_norm_backward<T>(dy, x, std::as_const(weight_).view(), eps_, Accumulate::kOverwrite, dx,
                                      weight_grad_.view(), bias_grad_.view(), executor);
  }

  /// What is trained; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    const auto one = [&](const char* ending, peft::ParameterRole role, Buffer<A>& value, Buffer<A>& grad) {
      if (grad.empty()) return;
      const std::string full = name_ + ending;
      visit(peft::ParameterInfo{full, role, false, 1, value.size(), 1}, value.view(), grad.view());
    };
    one(".weight", peft::ParameterRole::kOther, weight_, weight_grad_);
    one(".bias", peft::ParameterRole::kBias, bias_, bias_grad_);
  }

 private:
  std::string name_;
  Buffer<A> weight_, bias_, weight_grad_, bias_grad_;
  float eps_;
};

}  // namespace peft_examples
