#pragma once
/// A linear of a host's base whose own weight and bias can be trained beside its adapters: full fine-tuning, biases alone.

#include <string>
#include <string_view>
#include <utility>

#include "hosts/names.hpp"
#include "peft/dense_linear.hpp"
#include "peft/error.hpp"
#include "peft/parameter.hpp"

namespace peft_examples {

/// Adapters attach to `adapted()`. What train() chooses must be a peft::DenseLinear<T> of float or double.
template <Scalar T>
class TrainableLinear {
 public:
  using A = Accumulator<T>;
  using Saved = typename AdaptedLinear<T>::Saved;

  TrainableLinear(std::string name, peft::AnyLinear<T> base) : linear_(std::move(name), std::move(base)) {}

  AdaptedLinear<T>& adapted() noexcept { return linear_; }
  const AdaptedLinear<T>& adapted() const noexcept { return linear_; }
  const std::string& name() const noexcept { return linear_.name(); }
  Index in_features() const { return linear_.in_features(); }
  Index out_features() const { return linear_.out_features(); }
  /// The bias as the loader made it; empty where there is none.
  VectorView<const A> bias() const noexcept {
    const auto* dense = linear_.base().template get_if<peft::DenseLinear<T>>();
    return dense != nullptr ? dense->bias() : VectorView<const A>();
  }
  Index parameter_count() const { return in_features() * out_features() + bias().size; }
  bool is_trained() const noexcept { return trains_weight_ || trains_bias_; }

  /// wanted(name) says which of "….weight" and "….bias" are trained. Throws ConfigError where one is, and the layer keeps no
  /// gradient.
  template <class Wanted>
  void train(Wanted&& wanted) {
    const bool weight = wanted(std::string_view(name() + ".weight"));
    const bool bias = !this->bias().empty() && wanted(std::string_view(name() + ".bias"));
    if ((weight || bias) && dense() == nullptr) {
      peft::fail<peft::ConfigError>("training {} itself: its storage is not dense, in the type of the activations; adapters "
                                    "can be trained on it",
                                    name());
    }
    trains_weight_ = weight;
    trains_bias_ = bias;
    if (!is_trained()) return;
    // Gradients stand there before the first visit.
    if (trains_weight_) dense()->writable_weight();
    const Matrix<T> none(0, out_features()), no_input(0, in_features());
    if (trains_weight_) dense()->template backward_weight<T>(none.view(), no_input.view());
    if (trains_bias_) dense()->template backward_bias<T>(none.view());
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const peft::TrainContext<T>& context,
               ExecutorRef executor) const {
    linear_.forward(x, y, saved, context, executor);
  }
  /// As AdaptedLinear's, and the gradients of what is trained itself.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, const Saved& saved, MatrixView<T> dx, Accumulate mode,
                const peft::TrainContext<T>& context, ExecutorRef executor) {
    if (trains_weight_) dense()->template backward_weight<T>(dy, x, executor);
    if (trains_bias_) dense()->template backward_bias<T>(dy, executor);
    linear_.backward(dy, x, saved, dx, mode, context, executor);
  }

  /// What is trained itself; see parameter.hpp. Only where T is its own accumulator: 16-bit weights take no small steps.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    if constexpr (std::is_same_v<T, A>) {
      if (trains_weight_) {
        const MatrixView<T> weight = dense()->writable_weight();
        const std::string full = name() + ".weight";
        visit(peft::ParameterInfo{full, peft::ParameterRole::kOther, true, weight.rows, weight.cols},
              VectorView<A>(weight.data, weight.rows * weight.cols), dense()->weight_grad().flat());
      }
      if (trains_bias_) {
        const VectorView<A> bias = dense()->writable_bias();
        const std::string full = name() + ".bias";
        visit(peft::ParameterInfo{full, peft::ParameterRole::kBias, false, 1, bias.size, 1}, bias, dense()->bias_grad().view());
      }
    }
  }

 private:
  peft::DenseLinear<T>* dense() noexcept { return linear_.base().template get_if<peft::DenseLinear<T>>(); }

  AdaptedLinear<T> linear_;
  bool trains_weight_ = false;
  bool trains_bias_ = false;
};

}  // namespace peft_examples
