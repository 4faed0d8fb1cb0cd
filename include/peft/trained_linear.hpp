#pragma once
/// A trained copy of a whole linear layer (modules_to_save, full fine-tuning):
///   y = x·Wᵀ + c instead of the base's;   W [out,in] and c [out] start as the base's. dW = dyᵀ·x, dc = Σ dy.

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/dense_linear.hpp"
#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"
#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE

/// The copy. W and c are float (double for double), whatever the base stores.
template <Scalar T = float>
class TrainedLinear {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// W [out, in]; `bias` [out] or empty. Throws ShapeError where they do not fit, ConfigError for an empty W.
  explicit TrainedLinear(Matrix<A> weight, Buffer<A> bias = {}) : weight_(std::move(weight)) {
    if (weight_.empty()) fail<ConfigError>("TrainedLinear: the weight is empty");
    if (!bias.empty()) {
      if (bias.size() != out_features()) {
        fail<ShapeError>("TrainedLinear: bias has {} elements; expected {}", bias.size(), out_features());
      }
      bias_ = TrainedMatrix<A>::vector(bias.size());
      std::copy(bias.begin(), bias.end(), bias_.value().data());
    }
    // Over the parameter's own memory, which stays where it is when this moves.
    layer_ = std::make_unique<AnyLinear<T>>(DenseLinear<A>(std::as_const(weight_).value().view(), nullptr));
  }
  /// A copy of `base`. Throws ConfigError where it does not show its weight.
  static TrainedLinear copy_of(const AnyLinear<T>& base) {
    Matrix<A> weight(base.out_features(), base.in_features());
    base.read_weight_rows(0, weight.view());
    return TrainedLinear(std::move(weight), base.read_bias());
  }

  Index in_features() const noexcept { return weight_.value().cols(); }
  Index out_features() const noexcept { return weight_.value().rows(); }
  TrainedMatrix<A>& weight() noexcept { return weight_; }
  /// [1, out]; empty where the layer has none.
  TrainedMatrix<A>& bias() noexcept { return bias_; }

  /// Visits weight and bias; see parameter.hpp.
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

  // What a pass asks for; see linear_update.hpp: the weight replaces the base's, the bias is a column of ones.
  const AnyLinear<T>* replacement() const noexcept { return layer_.get(); }
  void backward_replacement(MatrixView<const T> dy, MatrixView<const T> x, double weight, ExecutorRef executor) {
    detail::add_weight_gradient<T>(dy, x, static_cast<A>(weight), weight_.grad().view(), executor);
  }
  void forward_terms(MatrixView<const T> x, const kernels::MaskBits&, double weight, Saved&,
                     std::vector<BasicLowRankTerm<A>>& terms, ExecutorRef) const {
    if (bias_.empty()) return;
    const MatrixView<const A> column(bias_.value().data(), out_features(), 1);
    terms.push_back({0, x.rows, detail::ones_column<A>(x.rows), column, static_cast<A>(weight)});
  }
  void backward_terms(MatrixView<const T> dy, MatrixView<const T>, const kernels::MaskBits&, double weight, const Saved&,
                      MatrixView<A>, VectorView<A>, std::vector<BasicInputGradTerm<A>>&, ExecutorRef executor) {
    if (bias_.empty()) return;
    detail::gradient_b<T>(dy, detail::ones_column<A>(dy.rows), static_cast<A>(weight),
                          MatrixView<A>(bias_.grad().data(), out_features(), 1), executor);
  }
  void add_bias(double weight, VectorView<A> bias) const {
    if (bias_.empty()) return;
    for (Index j = 0; j < bias.size; ++j) bias[j] += rounded(static_cast<A>(weight) * bias_.value()(0, j));
  }

 private:
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    weight_.visit(visit, prefix, "weight", ParameterRole::kOther, true, with_grad);
    bias_.visit(visit, prefix, "bias", ParameterRole::kBias, false, with_grad);
  }

  TrainedMatrix<A> weight_;
  TrainedMatrix<A> bias_;
  std::unique_ptr<AnyLinear<T>> layer_;
};

PEFT_END_NAMESPACE
