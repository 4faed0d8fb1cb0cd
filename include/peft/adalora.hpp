#pragma once
/// AdaLoRA: LoRA in the form of a singular value decomposition, whose rank an allocator (adalora_allocator.hpp) shares out:
///   y = base(x) + s·(x̃·(E∘A)ᵀ)·Bᵀ;   A [r,in], E [r], B [out,r];   s = alpha/(r₀ + 1e-5), r₀ the rank at the start
/// A, B are kept near orthogonal by a term of the loss (orthogonal_regularization).
/// Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023 (arXiv 2303.10512).

#include <cstdint>
#include <string_view>
#include <utility>

#include "peft/core/rng.hpp"
#include "peft/error.hpp"
#include "peft/one_update.hpp"
#include "peft/small_product.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// The update of one layer.
template <Scalar T = float>
class AdaLora {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// All zero; see reset(). lora_alpha: PEFT's, r where it is not above 0; `initial_rank` is what s goes by where the
  /// update has fewer columns by now (a file of a finished training; 0: r). Throws ConfigError for sizes below 1 or a
  /// dropout outside [0, 1).
  AdaLora(Index in_features, Index out_features, Index r, double lora_alpha, float dropout = 0.0f, Index initial_rank = 0)
      : alpha_(lora_alpha > 0 ? lora_alpha : static_cast<double>(r)),
        initial_rank_(initial_rank > 0 ? initial_rank : r),
        dropout_(dropout) {
    if (in_features < 1 || out_features < 1 || r < 0) {
      fail<ConfigError>("AdaLora: in_features {}, out_features {}, r {}; expected each at least 1 (r: 0)",
                        in_features, out_features, r);
    }
    if (!is_finite(dropout) || dropout < 0.0f || dropout >= 1.0f) {
      fail<ConfigError>("AdaLora: dropout is {}; expected a probability p with 0 <= p < 1", dropout);
    }
    a_ = TrainedMatrix<A>::zeros(r, in_features);
    e_ = TrainedMatrix<A>::zeros(r, 1);
    b_ = TrainedMatrix<A>::zeros(out_features, r);
  }

  /// A and B normal with standard deviation 0.02, E = 0, as PEFT starts them. Numbers depend on (seed, stream) only.
  void reset(std::uint64_t seed, std::uint64_t stream = 0) {
    Philox random(seed, stream);
    e_.value().fill_zero();
    for (A& value : a_.value().flat()) value = 0.02f * random.normal();
    for (A& value : b_.value().flat()) value = 0.02f * random.normal();
  }

  Index in_features() const noexcept { return a_.value().cols(); }
  Index out_features() const noexcept { return b_.value().rows(); }
  Index rank() const noexcept { return a_.value().rows(); }
  float dropout() const noexcept { return dropout_; }
  double scaling() const noexcept { return quotient(alpha_, static_cast<double>(initial_rank_) + 1e-5); }
  TrainedMatrix<A>& a() noexcept { return a_; }
  TrainedMatrix<A>& e() noexcept { return e_; }
  TrainedMatrix<A>& b() noexcept { return b_; }
  const TrainedMatrix<A>& a() const noexcept { return a_; }
  const TrainedMatrix<A>& e() const noexcept { return e_; }
  const TrainedMatrix<A>& b() const noexcept { return b_; }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "AdaLora::forward", executor);
  }
  /// Training, leaving S and the factors in `saved`. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved, const DropoutMask& dropout = {},
               ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, nullptr, dropout, "AdaLora::forward", executor);
  }
  /// Adds to the gradients; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, MatrixView<T> dx,
                Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, {}, dx, mode, "AdaLora::backward", executor);
  }

  /// ‖A·Aᵀ − I‖_F + ‖Bᵀ·B − I‖_F, and `weight` times its gradient added to those of A and B.
  double orthogonal_regularization(double weight) {
    return orthogonality(a_, false, weight) + orthogonality(b_, true, weight);
  }

  /// Visits lora_A, lora_B and lora_E; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }
  void zero_grad() noexcept {
    a_.zero_grad();
    e_.zero_grad();
    b_.zero_grad();
  }

  // What a pass asks for; see low_rank_update.hpp.
  void make_factors(Matrix<A>& a, Matrix<A>&) const {
    a.resize_discard(rank(), in_features());
    for (Index q = 0; q < rank(); ++q) {
      for (Index k = 0; k < in_features(); ++k) a(q, k) = e_.value()(q, 0) * a_.value()(q, k);
    }
  }
  Factors<A> factors(const Matrix<A>& a, const Matrix<A>&) const noexcept {
    return {a.view(), b_.value().view(), static_cast<A>(scaling())};
  }
  void pull_back(const Matrix<A>&, const Matrix<A>&, const Matrix<A>& da, const Matrix<A>& db) {
    for (Index q = 0; q < rank(); ++q) {
      A sum = 0;
      for (Index k = 0; k < in_features(); ++k) {
        a_.grad()(q, k) += rounded(e_.value()(q, 0) * da(q, k));
        sum = rounded(sum + rounded(a_.value()(q, k) * da(q, k)));
      }
      e_.grad()(q, 0) += sum;
    }
    for (Index i = 0; i < db.size(); ++i) b_.grad().data()[i] += db.data()[i];
  }

 private:
  /// ‖P‖_F with P = X·Xᵀ − I, or Xᵀ·X − I; its gradient is 2·P·X/‖P‖, or 2·X·P/‖P‖.
  static double orthogonality(TrainedMatrix<A>& x, bool columns, double weight) {
    const Index r = columns ? x.value().cols() : x.value().rows();
    Matrix<A> p(r, r), step(x.value().rows(), x.value().cols());
    const MatrixView<const A> view = std::as_const(x).value().view();
    detail::small_product<A>(view, columns, view, !columns, p.view(), false);
    double squares = 0;
    for (Index i = 0; i < r; ++i) {
      p(i, i) -= A(1);
      for (Index j = 0; j < r; ++j) squares = rounded(squares + rounded(static_cast<double>(p(i, j)) * static_cast<double>(p(i, j))));
    }
    const double norm = root(squares);
    if (norm == 0.0) return 0.0;
    const MatrixView<const A> product = std::as_const(p).view();
    detail::small_product<A>(columns ? view : product, false, columns ? product : view, false, step.view(), false);
    const A factor = static_cast<A>(quotient(2.0 * weight, norm));
    for (Index i = 0; i < step.size(); ++i) x.grad().data()[i] += rounded(factor * step.data()[i]);
    return norm;
  }

  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    a_.visit(visit, prefix, "lora_A", ParameterRole::kLoraA, true, with_grad);
    b_.visit(visit, prefix, "lora_B", ParameterRole::kLoraB, true, with_grad);
    e_.visit(visit, prefix, "lora_E", ParameterRole::kOther, true, with_grad);
  }

  double alpha_;
  Index initial_rank_;
  float dropout_;
  TrainedMatrix<A> a_, e_, b_;
};

PEFT_END_NAMESPACE
