#pragma once
/// VeRA: frozen random projections that all modules share, and two trained vectors per module:
///   y = base(x) + b∘((d∘(x̃·Aᵀ))·Bᵀ);   A [r, in] and B [out, r] cut from the shared [r, max in] and [max out, r]
/// That is LoRA with A' = diag(d)·A and B' = diag(b)·B. dd_q = Σ dA'_q∘A_q, db_j = Σ dB'_j∘B_j.
/// Kopiczko, Blankevoort, Asano, "VeRA: Vector-based Random Matrix Adaptation", 2023 (arXiv 2310.11454).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "peft/core/rng.hpp"
#include "peft/error.hpp"
#include "peft/one_update.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// The shared projections: A: float, or double.
template <std::floating_point A>
struct VeraProjection {
  Matrix<A> a;  ///< [r, largest in_features]
  Matrix<A> b;  ///< [largest out_features, r]

  /// Kaiming-uniform over the fan-in with gain √2, as PEFT starts them; numbers depend on (`key`, sizes) only, and are
  /// not torch's: an adapter saved without its projections cannot be read here.
  static VeraProjection random(Index r, Index in_features, Index out_features, std::uint64_t key) {
    VeraProjection result{Matrix<A>(r, in_features), Matrix<A>(out_features, r)};
    std::uint64_t stream = 0;
    for (Matrix<A>* matrix : {&result.a, &result.b}) {
      Philox random(key, ++stream);
      const float bound = quotient(root(6.0f), root(static_cast<float>(matrix->cols())));
      for (A& value : matrix->flat()) value = random.uniform(-bound, bound);
    }
    return result;
  }
};

/// The projections as a part of an adapter: saved with it, not trained.
template <std::floating_point A>
struct VeraProjectionPart {
  std::shared_ptr<VeraProjection<A>> projection;

  template <class Visitor>
  void for_each_parameter(Visitor&&, std::string_view = {}) {}
  /// Under PEFT's whole keys: they stand beside the model's, not in it.
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view = {}) {
    Matrix<A>& a = projection->a;
    Matrix<A>& b = projection->b;
    visit(ParameterInfo{"base_model.vera_A", ParameterRole::kOther, false, a.rows(), a.cols(), 2, false}, a.flat(),
          VectorView<A>());
    visit(ParameterInfo{"base_model.vera_B", ParameterRole::kOther, false, b.rows(), b.cols(), 2, false}, b.flat(),
          VectorView<A>());
  }
  void zero_grad() noexcept {}
};

/// The update of one layer: d [r] and b [out].
template <Scalar T = float>
class Vera {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// d = d_initial, b = 0. Throws ConfigError where the projections are smaller than the layer, or for a dropout outside
  /// [0, 1).
  Vera(Index in_features, Index out_features, std::shared_ptr<const VeraProjection<A>> projection, double d_initial = 0.1,
       float dropout = 0.0f)
      : in_(in_features), dropout_(dropout), projection_(std::move(projection)) {
    if (in_ < 1 || out_features < 1 || projection_->a.cols() < in_ || projection_->b.rows() < out_features ||
        projection_->a.rows() != projection_->b.cols() || projection_->a.rows() < 1) {
      fail<ConfigError>("Vera: the shared projections are A [{}, {}] and B [{}, {}]; expected at least A [r, {}] and B [{}, r]",
                        projection_->a.rows(), projection_->a.cols(), projection_->b.rows(), projection_->b.cols(), in_,
                        out_features);
    }
    if (!is_finite(dropout) || dropout < 0.0f || dropout >= 1.0f) {
      fail<ConfigError>("Vera: dropout is {}; expected a probability p with 0 <= p < 1", dropout);
    }
    d_ = TrainedMatrix<A>::vector(projection_->a.rows());
    b_ = TrainedMatrix<A>::vector(out_features);
    std::fill(d_.value().flat().begin(), d_.value().flat().end(), static_cast<A>(d_initial));
  }

  Index in_features() const noexcept { return in_; }
  Index out_features() const noexcept { return b_.size(); }
  Index rank() const noexcept { return d_.size(); }
  float dropout() const noexcept { return dropout_; }
  const std::shared_ptr<const VeraProjection<A>>& projection() const noexcept { return projection_; }
  TrainedMatrix<A>& lambda_d() noexcept { return d_; }
  TrainedMatrix<A>& lambda_b() noexcept { return b_; }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "Vera::forward", executor);
  }
  /// Training, leaving S and the factors in `saved`. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved, const DropoutMask& dropout = {},
               ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, nullptr, dropout, "Vera::forward", executor);
  }
  /// Adds to the gradients; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, MatrixView<T> dx,
                Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, {}, dx, mode, "Vera::backward", executor);
  }

  /// Visits vera_lambda_b and vera_lambda_d; see parameter.hpp. The projections are no parameters.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }
  void zero_grad() noexcept {
    d_.zero_grad();
    b_.zero_grad();
  }

  // What a pass asks for; see low_rank_update.hpp.
  void make_factors(Matrix<A>& a, Matrix<A>& b) const {
    a.resize_discard(rank(), in_);
    b.resize_discard(out_features(), rank());
    for (Index q = 0; q < rank(); ++q) {
      for (Index k = 0; k < in_; ++k) a(q, k) = d_.value()(0, q) * projection_->a(q, k);
    }
    for (Index j = 0; j < out_features(); ++j) {
      for (Index q = 0; q < rank(); ++q) b(j, q) = b_.value()(0, j) * projection_->b(j, q);
    }
  }
  Factors<A> factors(const Matrix<A>& a, const Matrix<A>& b) const noexcept { return {a.view(), b.view(), A(1)}; }
  void pull_back(const Matrix<A>&, const Matrix<A>&, const Matrix<A>& da, const Matrix<A>& db) {
    for (Index q = 0; q < rank(); ++q) {
      A sum = 0;
      for (Index k = 0; k < in_; ++k) sum = rounded(sum + rounded(da(q, k) * projection_->a(q, k)));
      d_.grad()(0, q) += sum;
    }
    for (Index j = 0; j < out_features(); ++j) {
      A sum = 0;
      for (Index q = 0; q < rank(); ++q) sum = rounded(sum + rounded(db(j, q) * projection_->b(j, q)));
      b_.grad()(0, j) += sum;
    }
  }

 private:
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    b_.visit(visit, prefix, "vera_lambda_b", ParameterRole::kOther, true, with_grad);
    d_.visit(visit, prefix, "vera_lambda_d", ParameterRole::kOther, true, with_grad);
  }

  Index in_;
  float dropout_;
  std::shared_ptr<const VeraProjection<A>> projection_;
  TrainedMatrix<A> d_, b_;
};

PEFT_END_NAMESPACE
