#pragma once
/// LoKr: a Kronecker product:
///   ΔW = s·W1 ⊗ W2;   W1 [out₁, in₁], W2 [out₂, in₂], out = out₁·out₂, in = in₁·in₂, s = alpha/r
/// W2 is W2a·W2b [out₂,r]·[r,in₂] where r is below half its larger side; W1 likewise with decompose_both. ΔW is made once
/// per pass. dW1[i,j] = Σ_kl dΔW[i·out₂+k, j·in₂+l]·W2[k,l], dW2 likewise.
/// Edalati et al., "KronA", 2022 (arXiv 2212.10650); LyCORIS.

#include <cstdint>
#include <string_view>
#include <utility>

#include "peft/core/rng.hpp"
#include "peft/error.hpp"
#include "peft/one_update.hpp"
#include "peft/small_product.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// dimension = first·second, first ≤ second, first as near to `factor` as it divides (−1: as near to the root), as PEFT
/// finds them.
inline std::pair<Index, Index> lokr_factorization(Index dimension, Index factor = -1) noexcept {
  if (factor > 0 && dimension % factor == 0) return {factor, dimension / factor};
  if (factor == -1) factor = dimension;
  Index m = 1, n = dimension;
  const Index length = m + n;
  while (m < n) {
    Index next = m + 1;
    while (dimension % next != 0) ++next;
    if (next + dimension / next > length || next > factor) break;
    m = next;
    n = dimension / next;
  }
  return m > n ? std::pair(n, m) : std::pair(m, n);
}

/// How LoKr starts (PEFT's init_weights).
enum class LokrStart : std::uint8_t {
  kDefault,  ///< W1 zero, the rest Kaiming-uniform
  kLycoris,  ///< W2 (or its second factor) zero, the rest Kaiming-uniform
  kRandom,   ///< all Kaiming-uniform
};

/// The update of one layer.
template <Scalar T = float>
class Lokr {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// All zero; see reset(). Throws ConfigError for sizes below 1 or a scaling that is not finite.
  Lokr(Index in_features, Index out_features, Index r, double scaling, bool decompose_both = false,
       Index decompose_factor = -1)
      : scaling_(scaling) {
    if (in_features < 1 || out_features < 1 || r < 1 || decompose_factor == 0 || decompose_factor < -1) {
      fail<ConfigError>("Lokr: in_features {}, out_features {}, r {}, decompose_factor {}; expected each at least 1 (the "
                        "last may be -1)",
                        in_features, out_features, r, decompose_factor);
    }
    if (!is_finite(scaling)) fail<ConfigError>("Lokr: scaling is {}; expected a finite number", scaling);
    const auto [in1, in2] = lokr_factorization(in_features, decompose_factor);
    const auto [out1, out2] = lokr_factorization(out_features, decompose_factor);
    w1_ = Side(out1, in1, r, decompose_both && 2 * r < std::max(out1, in1));
    w2_ = Side(out2, in2, r, 2 * r < std::max(out2, in2));
  }

  /// Numbers depend on (seed, stream) only.
  void reset(std::uint64_t seed, std::uint64_t stream = 0, LokrStart start = LokrStart::kDefault) {
    Philox random(seed, stream);
    const auto fill = [&random](TrainedMatrix<A>& matrix, bool zero) {
      const float bound = matrix.empty() ? 0.0f : quotient(1.0f, root(static_cast<float>(matrix.value().cols())));
      for (A& value : matrix.value().flat()) value = zero ? A(0) : static_cast<A>(random.uniform(-bound, bound));
    };
    const bool first_zero = start == LokrStart::kDefault, second_zero = start == LokrStart::kLycoris;
    fill(w1_.whole, first_zero);
    fill(w1_.a, first_zero);
    fill(w1_.b, false);
    fill(w2_.whole, second_zero);
    fill(w2_.a, false);
    fill(w2_.b, second_zero);
  }

  /// One side of the product: whole, or as a·b.
  struct Side {
    Side() = default;
    Side(Index out_features, Index in_features, Index r, bool is_factored) : out(out_features), in(in_features) {
      if (is_factored) {
        a = TrainedMatrix<A>::zeros(out, r);
        b = TrainedMatrix<A>::zeros(r, in);
      } else {
        whole = TrainedMatrix<A>::zeros(out, in);
      }
    }
    bool is_factored() const noexcept { return whole.empty(); }
    Matrix<A> product() const {
      if (!is_factored()) return whole.value().clone();
      Matrix<A> result(out, in);
      detail::small_product<A>(a.value().view(), false, b.value().view(), false, result.view(), false);
      return result;
    }
    void pull_back(const Matrix<A>& d) {
      if (!is_factored()) {
        for (Index i = 0; i < d.size(); ++i) whole.grad().data()[i] += d.data()[i];
        return;
      }
      detail::small_product<A>(d.view(), false, std::as_const(b).value().view(), true, a.grad().view(), true);
      detail::small_product<A>(std::as_const(a).value().view(), true, d.view(), false, b.grad().view(), true);
    }
    template <class Visit>
    void for_each(Visit&& visit) {
      visit(whole, "");
      visit(a, "_a");
      visit(b, "_b");
    }
    Index out = 0, in = 0;
    TrainedMatrix<A> whole, a, b;
  };

  Index in_features() const noexcept { return w1_.in * w2_.in; }
  Index out_features() const noexcept { return w1_.out * w2_.out; }
  double scaling() const noexcept { return scaling_; }
  Side& w1() noexcept { return w1_; }
  Side& w2() noexcept { return w2_; }

  /// Inference. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, nullptr, nullptr, {}, "Lokr::forward", executor);
  }
  /// Training, leaving S and the factors in `saved`. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved,
               ExecutorRef executor = default_executor()) const {
    detail::forward_one<T>(base, *this, x, y, &saved, nullptr, {}, "Lokr::forward", executor);
  }
  /// Adds to the gradients; dx (+)= the input's gradient, or nothing where dx.data is null. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, Saved& saved, MatrixView<T> dx,
                Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    detail::backward_one<T>(base, *this, dy, x, saved, {}, dx, mode, "Lokr::backward", executor);
  }

  /// Visits lokr_w1 or lokr_w1_a and lokr_w1_b, then the same of w2; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }
  void zero_grad() noexcept {
    for (Side* side : {&w1_, &w2_}) side->for_each([](TrainedMatrix<A>& matrix, std::string_view) { matrix.zero_grad(); });
  }

  // What a pass asks for; see low_rank_update.hpp. A is the identity, B is ΔW/s.
  Index rank() const noexcept { return in_features(); }
  void make_factors(Matrix<A>&, Matrix<A>& b) const {
    const Matrix<A> first = w1_.product(), second = w2_.product();
    b.resize_discard(out_features(), in_features());
    for (Index i = 0; i < w1_.out; ++i) {
      for (Index k = 0; k < w2_.out; ++k) {
        A* row = b.row(i * w2_.out + k);
        for (Index j = 0; j < w1_.in; ++j) {
          for (Index l = 0; l < w2_.in; ++l) row[j * w2_.in + l] = first(i, j) * second(k, l);
        }
      }
    }
  }
  Factors<A> factors(const Matrix<A>&, const Matrix<A>& b) const noexcept {
    return {{}, b.view(), static_cast<A>(scaling_)};
  }
  void pull_back(const Matrix<A>&, const Matrix<A>&, const Matrix<A>&, const Matrix<A>& db) {
    const Matrix<A> first = w1_.product(), second = w2_.product();
    Matrix<A> d1 = Matrix<A>::zeros(w1_.out, w1_.in), d2 = Matrix<A>::zeros(w2_.out, w2_.in);
    for (Index i = 0; i < w1_.out; ++i) {
      for (Index k = 0; k < w2_.out; ++k) {
        const A* row = db.row(i * w2_.out + k);
        for (Index j = 0; j < w1_.in; ++j) {
          A sum = 0;
          for (Index l = 0; l < w2_.in; ++l) {
            const A d = row[j * w2_.in + l];
            sum = rounded(sum + rounded(d * second(k, l)));
            d2(k, l) += rounded(d * first(i, j));
          }
          d1(i, j) += sum;
        }
      }
    }
    w1_.pull_back(d1);
    w2_.pull_back(d2);
  }

 private:
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    for (const auto& [side, name] : {std::pair<Side*, std::string_view>{&w1_, "lokr_w1"}, {&w2_, "lokr_w2"}}) {
      side->for_each([&, &stem = name](TrainedMatrix<A>& matrix, std::string_view suffix) {
        matrix.visit(visit, prefix, std::string(stem) + std::string(suffix), ParameterRole::kOther, true, with_grad);
      });
    }
  }

  double scaling_;
  Side w1_, w2_;
};

PEFT_END_NAMESPACE
