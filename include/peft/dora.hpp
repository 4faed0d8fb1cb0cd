#pragma once
/// DoRA: LoRA with a trained length per output row:
///   y = base(x) + (g − 1)∘(x̃·Wᵀ) + g∘(s·(x̃·Aᵀ)·Bᵀ),   g = m/n,  n_j = ‖row j of W + s·B·A‖₂
/// x [n,in], A [r,in], B [out,r], m, g [out]. n is detached: no gradient goes through it, as in the paper's section 4.3.
/// A row of length 0 has g = 0. Without dropout the base runs once; with it a second time on x̃, as in PEFT.
/// Gradients: dm = (Σ dy∘(x̃·Wᵀ + s·S·Bᵀ))/n; A, B as LoRA's with g∘B for B.
/// Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (arXiv 2402.09353).

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/lora.hpp"
#include "peft/one_update.hpp"

PEFT_BEGIN_NAMESPACE

/// The update of one layer. Works over any base whose weight can be read (PanelSource, BackwardLinear).
template <Scalar T = float>
class Dora {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// All zero: see reset_magnitude(). Throws ConfigError as Lora does.
  Dora(Index in_features, Index out_features, Index r, double scaling, float dropout = 0.0f)
      : lora_(in_features, out_features, r, scaling, dropout), magnitude_(TrainedMatrix<A>::vector(out_features)) {}
  /// Over a LoRA that exists.
  explicit Dora(Lora<T> lora)
      : lora_(std::move(lora)), magnitude_(TrainedMatrix<A>::vector(lora_.out_features())) {}

  Index in_features() const noexcept { return lora_.in_features(); }
  Index out_features() const noexcept { return lora_.out_features(); }
  Index rank() const noexcept { return lora_.r(); }
  float dropout() const noexcept { return lora_.dropout(); }
  Lora<T>& lora() noexcept { return lora_; }
  const Lora<T>& lora() const noexcept { return lora_; }
  /// m [1, out].
  TrainedMatrix<A>& magnitude() noexcept { return magnitude_; }
  const TrainedMatrix<A>& magnitude() const noexcept { return magnitude_; }

  /// m = n, so that the layer starts as the base with its LoRA. Throws ConfigError where the base shows no weight.
  void reset_magnitude(const AnyLinear<T>& base, ExecutorRef executor = default_executor()) {
    row_norms(base, magnitude_.value().flat(), executor);
  }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "Dora::forward", executor);
  }
  /// Training. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved, PassSaved<T>& pass,
               const DropoutMask& dropout = {}, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, &pass, dropout, "Dora::forward", executor);
  }
  /// Adds to the gradients; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, const PassSaved<T>& pass,
                MatrixView<T> dx, Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, pass, dx, mode, "Dora::backward", executor);
  }

  /// Visits lora_A.weight, lora_B.weight and lora_magnitude_vector; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    lora_.for_each_parameter(visit, prefix);
    magnitude_.visit(visit, prefix, "lora_magnitude_vector", ParameterRole::kOther, false, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    lora_.for_each_weight(visit, prefix);
    magnitude_.visit(visit, prefix, "lora_magnitude_vector", ParameterRole::kOther, false, false);
  }
  void zero_grad() noexcept {
    lora_.zero_grad();
    magnitude_.zero_grad();
  }

  // What a pass asks for; see linear_update.hpp.
  UpdateKind update_kind() const noexcept { return UpdateKind::kOutputGain; }
  bool gain_covers_bias() const noexcept { return false; }
  void make_gain(const AnyLinear<T>& base, Saved& saved, ExecutorRef executor) const {
    saved.norm.resize_discard(1, out_features());
    saved.gain.resize_discard(1, out_features());
    row_norms(base, saved.norm.flat(), executor);
    for (Index j = 0; j < out_features(); ++j) {
      saved.gain(0, j) = over(magnitude_.value()(0, j), saved.norm(0, j));
    }
  }
  void pull_gain(const Saved& saved, VectorView<const A> grad) {
    Matrix<A>& own = magnitude_.grad();
    for (Index j = 0; j < out_features(); ++j) own(0, j) += over(grad[j], saved.norm(0, j));
  }
  void forward_terms(MatrixView<const T> x, const kernels::MaskBits& mask, double weight, Saved& saved,
                     std::vector<BasicLowRankTerm<A>>& terms, ExecutorRef executor) const {
    saved.s.resize_discard(x.rows, rank());
    lora_.project(x, mask, saved.s.view(), executor);
    scale_b(saved);
    terms.push_back({0, x.rows, std::as_const(saved.s).view(), std::as_const(saved.b).view(), scale(weight)});
  }
  void backward_terms(MatrixView<const T> dy, MatrixView<const T> x, const kernels::MaskBits& mask, double weight,
                      const Saved& saved, MatrixView<A> ds, VectorView<A> gain_grad,
                      std::vector<BasicInputGradTerm<A>>& terms, ExecutorRef executor) {
    Matrix<A> db = Matrix<A>::zeros(out_features(), rank());  // of g∘B
    detail::gradient_b<T>(dy, saved.s.view(), scale(weight), db.view(), executor);
    Matrix<A>& grad_b = lora_.grad_b();
    for (Index j = 0; j < out_features(); ++j) {
      A sum = 0;
      for (Index q = 0; q < rank(); ++q) {
        grad_b(j, q) += rounded(saved.gain(0, j) * db(j, q));
        sum = rounded(sum + rounded(lora_.b()(j, q) * db(j, q)));
      }
      gain_grad[j] += sum;
    }
    detail::project_gradient<T>(dy, saved.b.view(), scale(weight), ds, executor);
    detail::gradient_a<T>(ds, x, mask, lora_.grad_a().view(), executor);
    terms.push_back({ds, lora_.a_view(), mask});
  }
  /// After make_gain on `scratch`.
  void merge_terms(double weight, Saved& scratch, std::vector<BasicMergeTerm<A>>& terms) const {
    scale_b(scratch);
    terms.push_back({lora_.a_view(), std::as_const(scratch.b).view(), scale(weight)});
  }

 private:
  A scale(double weight) const noexcept { return static_cast<A>(lora_.scaling() * weight); }
  static A over(A value, A norm) noexcept { return norm > A(0) ? quotient(value, norm) : A(0); }
  /// saved.b = g∘B.
  void scale_b(Saved& saved) const {
    saved.b.resize_discard(out_features(), rank());
    for (Index j = 0; j < out_features(); ++j) {
      for (Index q = 0; q < rank(); ++q) saved.b(j, q) = saved.gain(0, j) * lora_.b()(j, q);
    }
  }
  void row_norms(const AnyLinear<T>& base, VectorView<A> norms, ExecutorRef executor) const {
    const BasicMergeTerm<A> term{lora_.a_view(), lora_.b_view(), static_cast<A>(lora_.scaling())};
    weight_row_norms<T>(base, std::span(&term, 1), norms, base.has_panels(), executor);
  }

  Lora<T> lora_;
  TrainedMatrix<A> magnitude_;
};

PEFT_END_NAMESPACE
