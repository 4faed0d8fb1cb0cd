#pragma once
/// LoRA on an embedding:
///   x_i = table[id_i] + s·B·A[:, id_i]      A [r, vocabulary], B [n, r], x [tokens, n]
/// dB += s·Σ dx_i·A[:, id_i]ᵀ, dA[:, id] += s·Bᵀ·Σ_{id_i = id} dx_i. No dropout, as in PEFT.

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/error.hpp"
#include "peft/low_rank_factors.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// The update of one embedding.
template <Scalar T = float>
class LoraEmbedding {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  /// All zero; see reset(). Throws ConfigError for sizes below 1 or a scaling that is not finite.
  LoraEmbedding(Index vocabulary, Index width, Index r, double scaling) : scaling_(scaling) {
    if (vocabulary < 1 || width < 1 || r < 1) {
      fail<ConfigError>("LoraEmbedding: vocabulary {}, width {}, r {}; expected each at least 1", vocabulary, width, r);
    }
    if (!is_finite(scaling)) fail<ConfigError>("LoraEmbedding: scaling is {}; expected a finite number", scaling);
    a_ = TrainedMatrix<A>::zeros(r, vocabulary);
    b_ = TrainedMatrix<A>::zeros(width, r);
  }
  /// A = 0, B normal, as PEFT starts them. Numbers depend on (seed, stream) only.
  void reset(std::uint64_t seed, std::uint64_t stream = 0) {
    Philox random(seed, stream);
    a_.value().fill_zero();
    for (A& value : b_.value().flat()) value = random.normal();
  }

  Index vocabulary() const noexcept { return a_.value().cols(); }
  Index width() const noexcept { return b_.value().rows(); }
  Index r() const noexcept { return a_.value().rows(); }
  double scaling() const noexcept { return scaling_; }
  TrainedMatrix<A>& a() noexcept { return a_; }
  TrainedMatrix<A>& b() noexcept { return b_; }

  /// x += weight·s·B·A[:, ids]. Throws ShapeError for an id outside the vocabulary.
  void add_forward(VectorView<const std::int32_t> ids, double weight, MatrixView<T> x, ExecutorRef executor) const {
    const Matrix<A> s = columns(ids);
    const BasicLowRankTerm<A> term{0, ids.size, s.view(), b_.value().view(), static_cast<A>(scaling_ * weight)};
    detail::add_terms<T>(MatrixView<const T>(x), std::span(&term, 1), x, executor);
  }
  /// Adds to the gradients. Throws ShapeError for an id outside the vocabulary.
  void backward(VectorView<const std::int32_t> ids, double weight, MatrixView<const T> dx, ExecutorRef executor) {
    const Matrix<A> s = columns(ids);
    const auto scale = static_cast<A>(scaling_ * weight);
    Matrix<A> ds(ids.size, r());
    detail::gradient_b<T>(dx, s.view(), scale, b_.grad().view(), executor);
    detail::project_gradient<T>(dx, std::as_const(b_).value().view(), scale, ds.view(), executor);
    Matrix<A>& grad = a_.grad();
    for (Index i = 0; i < ids.size; ++i) {
      for (Index q = 0; q < r(); ++q) grad(q, ids[i]) += ds(i, q);
    }
  }

  /// Visits lora_embedding_A and lora_embedding_B; see parameter.hpp.
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
    b_.zero_grad();
  }

 private:
  /// S_i = A[:, id_i].
  Matrix<A> columns(VectorView<const std::int32_t> ids) const {
    Matrix<A> s(ids.size, r());
    for (Index i = 0; i < ids.size; ++i) {
      if (ids[i] < 0 || ids[i] >= vocabulary()) {
        fail<ShapeError>("LoraEmbedding: id {} at position {} is outside the vocabulary of {}", ids[i], i, vocabulary());
      }
      for (Index q = 0; q < r(); ++q) s(i, q) = a_.value()(q, ids[i]);
    }
    return s;
  }
  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    a_.visit(visit, prefix, "lora_embedding_A", ParameterRole::kEmbedding, true, with_grad);
    b_.visit(visit, prefix, "lora_embedding_B", ParameterRole::kEmbedding, true, with_grad);
  }

  double scaling_;
  TrainedMatrix<A> a_, b_;
};

PEFT_END_NAMESPACE
