#pragma once
/// (IA)³: a trained factor per output, or per input of a feed-forward module:
///   y = l∘base(x), l [out]        or        y = base(l∘x), l [in]
/// The bias is scaled too in the first form, as in PEFT. dl = Σ dy∘base(x), or Σ x∘(dy·W).
/// Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022.

#include <algorithm>
#include <string_view>

#include "peft/error.hpp"
#include "peft/one_update.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// The factors of one layer; they start at 1.
template <Scalar T = float>
class Ia3 {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// Throws ConfigError for sizes below 1.
  Ia3(Index in_features, Index out_features, bool is_feedforward)
      : in_(in_features), out_(out_features), is_feedforward_(is_feedforward) {
    if (in_ < 1 || out_ < 1) {
      fail<ConfigError>("Ia3: in_features {}, out_features {}; expected each at least 1", in_, out_);
    }
    l_ = is_feedforward ? TrainedMatrix<A>::zeros(1, in_) : TrainedMatrix<A>::zeros(out_, 1);
    std::fill(l_.value().flat().begin(), l_.value().flat().end(), A(1));
  }

  Index in_features() const noexcept { return in_; }
  Index out_features() const noexcept { return out_; }
  bool is_feedforward() const noexcept { return is_feedforward_; }
  /// [out, 1], or [1, in] of a feed-forward module.
  TrainedMatrix<A>& l() noexcept { return l_; }
  const TrainedMatrix<A>& l() const noexcept { return l_; }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "Ia3::forward", executor);
  }
  /// Training. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved, PassSaved<T>& pass,
               ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, &pass, {}, "Ia3::forward", executor);
  }
  /// Adds to the gradient of l; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, const PassSaved<T>& pass,
                MatrixView<T> dx, Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, pass, dx, mode, "Ia3::backward", executor);
  }

  /// Visits ia3_l; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    l_.visit(visit, prefix, "ia3_l", ParameterRole::kOther, true, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    l_.visit(visit, prefix, "ia3_l", ParameterRole::kOther, true, false);
  }
  void zero_grad() noexcept { l_.zero_grad(); }

  // What a pass asks for; see linear_update.hpp.
  UpdateKind update_kind() const noexcept {
    return is_feedforward_ ? UpdateKind::kInputGain : UpdateKind::kOutputGain;
  }
  bool gain_covers_bias() const noexcept { return true; }
  void make_gain(const AnyLinear<T>&, Saved& saved, ExecutorRef) const {
    saved.gain.resize_discard(1, l_.size());
    std::copy(l_.flat().begin(), l_.flat().end(), saved.gain.data());
  }
  void pull_gain(const Saved&, VectorView<const A> grad) {
    Matrix<A>& own = l_.grad();
    for (Index j = 0; j < grad.size; ++j) own.data()[j] += grad[j];
  }

 private:
  Index in_;
  Index out_;
  bool is_feedforward_;
  TrainedMatrix<A> l_;
};

PEFT_END_NAMESPACE
