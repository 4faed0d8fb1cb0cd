#pragma once
/// LoHa: the element-wise product of two low-rank matrices:
///   ΔW = s·(W1a·W1b)∘(W2a·W2b);   W1a, W2a [out,r], W1b, W2b [r,in], s = alpha/r
/// As r² columns: ΔW = s·B·A with the row-wise Khatri-Rao products B[j, pr+q] = W1a[j,p]·W2a[j,q] and
/// A[pr+q, k] = W1b[p,k]·W2b[q,k]. Where r² ≥ in, ΔW itself is made.
/// Hyeon-Woo et al., "FedPara", ICLR 2022 (arXiv 2108.06098); LyCORIS.

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
class Loha {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// All zero; see reset(). Throws ConfigError for sizes below 1 or a scaling that is not finite.
  Loha(Index in_features, Index out_features, Index r, double scaling) : scaling_(scaling) {
    if (in_features < 1 || out_features < 1 || r < 1) {
      fail<ConfigError>("Loha: in_features {}, out_features {}, r {}; expected each at least 1", in_features, out_features,
                        r);
    }
    if (!is_finite(scaling)) fail<ConfigError>("Loha: scaling is {}; expected a finite number", scaling);
    w1_a_ = TrainedMatrix<A>::zeros(out_features, r);
    w1_b_ = TrainedMatrix<A>::zeros(r, in_features);
    w2_a_ = TrainedMatrix<A>::zeros(out_features, r);
    w2_b_ = TrainedMatrix<A>::zeros(r, in_features);
  }

  /// Kaiming-uniform(a = √5), W2b = 0 unless `all_random`, as PEFT starts them. Numbers depend on (seed, stream) only.
  void reset(std::uint64_t seed, std::uint64_t stream = 0, bool all_random = false) {
    Philox random(seed, stream);
    for (TrainedMatrix<A>* matrix : {&w1_a_, &w1_b_, &w2_a_, &w2_b_}) {
      if (matrix == &w2_b_ && !all_random) {
        matrix->value().fill_zero();
        continue;
      }
      const float bound = quotient(1.0f, root(static_cast<float>(matrix->value().cols())));
      for (A& value : matrix->value().flat()) value = random.uniform(-bound, bound);
    }
  }

  Index in_features() const noexcept { return w1_b_.value().cols(); }
  Index out_features() const noexcept { return w1_a_.value().rows(); }
  Index r() const noexcept { return w1_b_.value().rows(); }
  double scaling() const noexcept { return scaling_; }
  TrainedMatrix<A>& w1_a() noexcept { return w1_a_; }
  TrainedMatrix<A>& w1_b() noexcept { return w1_b_; }
  TrainedMatrix<A>& w2_a() noexcept { return w2_a_; }
  TrainedMatrix<A>& w2_b() noexcept { return w2_b_; }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "Loha::forward", executor);
  }
  /// Training, leaving S and the factors in `saved`. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved,
               ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, nullptr, {}, "Loha::forward", executor);
  }
  /// Adds to the gradients; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, MatrixView<T> dx,
                Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, {}, dx, mode, "Loha::backward", executor);
  }

  /// Visits hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }
  void zero_grad() noexcept {
    for (TrainedMatrix<A>* matrix : {&w1_a_, &w1_b_, &w2_a_, &w2_b_}) matrix->zero_grad();
  }

  // What a pass asks for; see low_rank_update.hpp.
  Index rank() const noexcept { return is_whole() ? in_features() : r() * r(); }
  void make_factors(Matrix<A>& a, Matrix<A>& b) const {
    const Index n = r();
    if (is_whole()) {
      Matrix<A> second(out_features(), in_features());
      b.resize_discard(out_features(), in_features());
      detail::small_product<A>(w1_a_.value().view(), false, w1_b_.value().view(), false, b.view(), false);
      detail::small_product<A>(w2_a_.value().view(), false, w2_b_.value().view(), false, second.view(), false);
      for (Index i = 0; i < b.size(); ++i) b.data()[i] *= second.data()[i];
      return;
    }
    a.resize_discard(n * n, in_features());
    b.resize_discard(out_features(), n * n);
    for (Index p = 0; p < n; ++p) {
      for (Index q = 0; q < n; ++q) {
        for (Index k = 0; k < in_features(); ++k) a(p * n + q, k) = w1_b_.value()(p, k) * w2_b_.value()(q, k);
      }
    }
    for (Index j = 0; j < out_features(); ++j) {
      for (Index p = 0; p < n; ++p) {
        for (Index q = 0; q < n; ++q) b(j, p * n + q) = w1_a_.value()(j, p) * w2_a_.value()(j, q);
      }
    }
  }
  Factors<A> factors(const Matrix<A>& a, const Matrix<A>& b) const noexcept {
    return {is_whole() ? MatrixView<const A>() : a.view(), b.view(), static_cast<A>(scaling_)};
  }
  void pull_back(const Matrix<A>&, const Matrix<A>&, const Matrix<A>& da, const Matrix<A>& db) {
    if (is_whole()) {
      pull_whole(w1_a_, w1_b_, w2_a_, w2_b_, db);
      pull_whole(w2_a_, w2_b_, w1_a_, w1_b_, db);
      return;
    }
    const Index n = r();
    for (Index j = 0; j < out_features(); ++j) {
      for (Index p = 0; p < n; ++p) {
        for (Index q = 0; q < n; ++q) {
          w1_a_.grad()(j, p) += rounded(db(j, p * n + q) * w2_a_.value()(j, q));
          w2_a_.grad()(j, q) += rounded(db(j, p * n + q) * w1_a_.value()(j, p));
        }
      }
    }
    for (Index p = 0; p < n; ++p) {
      for (Index q = 0; q < n; ++q) {
        for (Index k = 0; k < in_features(); ++k) {
          w1_b_.grad()(p, k) += rounded(da(p * n + q, k) * w2_b_.value()(q, k));
          w2_b_.grad()(q, k) += rounded(da(p * n + q, k) * w1_b_.value()(p, k));
        }
      }
    }
  }

 private:
  bool is_whole() const noexcept { return r() * r() >= in_features(); }
  /// d(a·b) = dΔW∘(other_a·other_b): da += d·bᵀ, db += aᵀ·d.
  void pull_whole(TrainedMatrix<A>& a, TrainedMatrix<A>& b, const TrainedMatrix<A>& other_a,
                  const TrainedMatrix<A>& other_b, const Matrix<A>& whole) {
    Matrix<A> d(out_features(), in_features());
    detail::small_product<A>(other_a.value().view(), false, other_b.value().view(), false, d.view(), false);
    for (Index i = 0; i < d.size(); ++i) d.data()[i] *= whole.data()[i];
    const MatrixView<const A> view = std::as_const(d).view();
    detail::small_product<A>(view, false, std::as_const(b).value().view(), true, a.grad().view(), true);
    detail::small_product<A>(std::as_const(a).value().view(), true, view, false, b.grad().view(), true);
  }
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    w1_a_.visit(visit, prefix, "hada_w1_a", ParameterRole::kOther, true, with_grad);
    w1_b_.visit(visit, prefix, "hada_w1_b", ParameterRole::kOther, true, with_grad);
    w2_a_.visit(visit, prefix, "hada_w2_a", ParameterRole::kOther, true, with_grad);
    w2_b_.visit(visit, prefix, "hada_w2_b", ParameterRole::kOther, true, with_grad);
  }

  double scaling_;
  TrainedMatrix<A> w1_a_, w1_b_, w2_a_, w2_b_;
};

PEFT_END_NAMESPACE
