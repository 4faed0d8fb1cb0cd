#pragma once
/// LoRA on one linear layer:
///   y = base(x) + s·(x̃·Aᵀ)·Bᵀ;   x [n,in], A [r,in], B [out,r], y [n,out]; x̃ = m∘x/(1-p) in training, else x
///   (lora_bias: + s·c, c [out])
/// Saved for backward: S = x̃·Aᵀ [n,r] and the dropout's key; x stays the caller's. Backward, given dy:
///   dS = s·dy·B,  dB += s·dyᵀ·S,  dA += dSᵀ·x̃,  dx (+)= dy·W + m∘(dS·A)/(1-p)
/// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/rounded.hpp"
#include "peft/dropout_mask.hpp"
#include "peft/error.hpp"
#include "peft/lora_config.hpp"
#include "peft/low_rank_factors.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/parameter.hpp"
#include "peft/trained_matrix.hpp"
#include "peft/update_saved.hpp"

PEFT_BEGIN_NAMESPACE

/// The low-rank update of one layer: two matrices, a scale and a dropout probability. T is the activation type; A, B
/// and their gradients are float (double for double), as Python PEFT keeps them whatever the base. A value type: the
/// base layer is an argument of every call. Works over any LinearLike; backward needs a PanelSource or a
/// BackwardLinear.
template <Scalar T = float>
class Lora {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// What a training forward leaves for backward. Reuse it from step to step: its memory is kept.
  using Saved = LowRankSaved<T>;

  /// A and B zero; see reset(). Throws ConfigError for sizes below 1 or a dropout outside [0, 1).
  Lora(Index in_features, Index out_features, Index r, double scaling, float dropout = 0.0f)
      : scaling_(scaling), dropout_(dropout) {
    if (in_features < 1 || out_features < 1 || r < 1) {
      fail<ConfigError>("Lora: in_features {}, out_features {}, r {}; expected each at least 1", in_features,
                        out_features, r);
    }
    if (!is_finite(scaling)) fail<ConfigError>("Lora: scaling is {}; expected a finite number", scaling);
    if (!is_finite(dropout) || dropout < 0.0f || dropout >= 1.0f) {
      fail<ConfigError>("Lora: dropout is {}; expected a probability p with 0 <= p < 1", dropout);
    }
    a_ = Matrix<accumulator_type>::zeros(r, in_features);
    b_ = Matrix<accumulator_type>::zeros(out_features, r);
  }
  /// Rank, scale, dropout and start from `config` (its target_modules and patterns are not looked at).
  Lora(Index in_features, Index out_features, const LoraConfig& config, std::uint64_t seed = 0)
      : Lora(in_features, out_features, config.r, lora_scaling(config.lora_alpha, config.r, config.use_rslora),
             config.lora_dropout) {
    if (config.lora_bias) add_bias();
    reset(config, seed);
  }

  /// The start that `config.init_lora_weights` asks for: true = A Kaiming-uniform(a = √5), that is uniform in ±1/√in,
  /// and B = 0; "gaussian" = A normal with standard deviation 1/r, B = 0; false = A in ±1/√in, B in ±1/√r. Numbers
  /// depend on (seed, stream) only; `stream` tells modules apart.
  void reset(const LoraConfig& config, std::uint64_t seed, std::uint64_t stream = 0) {
    Philox random(seed, stream);
    const auto uniform = [&random](Matrix<accumulator_type>& matrix) {
      const float bound = quotient(1.0f, root(static_cast<float>(matrix.cols())));
      for (accumulator_type& value : matrix.flat()) value = random.uniform(-bound, bound);
    };
    b_.fill_zero();
    bias_.value().fill_zero();
    if (const bool* kaiming = std::get_if<bool>(&config.init_lora_weights)) {
      uniform(a_);
      if (!*kaiming) uniform(b_);
    } else if (std::get<std::string>(config.init_lora_weights) == "gaussian") {
      const float deviation = 1.0f / static_cast<float>(r());
      for (accumulator_type& value : a_.flat()) value = deviation * random.normal();
    } else {
      fail<ConfigError>("Lora: init_lora_weights = \"{}\" needs more than a seed; expected true, false or \"gaussian\" here; "
                        "see lora_initialization.hpp",
                        std::get<std::string>(config.init_lora_weights));
    }
  }

  Index in_features() const noexcept { return a_.cols(); }
  Index out_features() const noexcept { return b_.rows(); }
  Index r() const noexcept { return a_.rows(); }
  double scaling() const noexcept { return scaling_; }
  float dropout() const noexcept { return dropout_; }
  Matrix<accumulator_type>& a() noexcept { return a_; }
  const Matrix<accumulator_type>& a() const noexcept { return a_; }
  Matrix<accumulator_type>& b() noexcept { return b_; }
  const Matrix<accumulator_type>& b() const noexcept { return b_; }
  /// Gradients, added to by backward; empty until something asks for them.
  Matrix<accumulator_type>& grad_a() {
    ensure_grads();
    return grad_a_;
  }
  Matrix<accumulator_type>& grad_b() {
    ensure_grads();
    return grad_b_;
  }
  /// The bias of B [1, out] (`lora_bias`); empty where there is none.
  TrainedMatrix<accumulator_type>& bias() noexcept { return bias_; }
  const TrainedMatrix<accumulator_type>& bias() const noexcept { return bias_; }
  /// Gives B a bias, zero.
  void add_bias() { bias_ = TrainedMatrix<accumulator_type>::vector(out_features()); }
  void zero_grad() noexcept {
    grad_a_.fill_zero();
    grad_b_.fill_zero();
    bias_.zero_grad();
  }

  /// Inference: y = base(x) + s·(x·Aᵀ)·Bᵀ. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    Saved scratch;
    forward(base, x, y, scratch, DropoutMask(), executor);
  }

  /// Training: y = base(x) + s·(x̃·Aᵀ)·Bᵀ, leaving S and the mask's key in `saved`. Throws ShapeError.
  template <LinearLike<T> L>
  void forward(const L& base, MatrixView<const T> x, MatrixView<T> y, Saved& saved, const DropoutMask& dropout = {},
               ExecutorRef executor = default_executor()) const {
    check("Lora::forward", base, x, "y", y);
    saved.dropout = dropout;
    saved.s.resize_discard(x.rows, r());
    Buffer<std::uint8_t> scratch;
    project(x, dropout.bits(x.rows, x.cols, dropout_, scratch, executor), saved.s.view(), executor);
    const BasicLowRankTerm<accumulator_type> terms[] = {forward_term(saved.s.view(), 1.0), bias_term(x.rows, 1.0)};
    forward_low_rank<T>(base, x, std::span(terms, bias_.empty() ? 1 : 2), y, executor);
  }

  /// Adds to grad_a() and grad_b(); dx (+)= the gradient of the input, or nothing where dx.data is null: then the
  /// base's product is not run. x and `saved` are those of the forward. Throws ShapeError.
  template <LinearLike<T> L>
  void backward(const L& base, MatrixView<const T> dy, MatrixView<const T> x, const Saved& saved, MatrixView<T> dx,
                Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) {
    check("Lora::backward", base, x, "dy", dy);
    if (dx.data != nullptr) detail::check_shape("Lora::backward", "dx", dx, x.rows, x.cols);
    detail::check_shape("Lora::backward", "S", saved.s.view(), x.rows, r());
    Buffer<std::uint8_t> scratch;
    const kernels::MaskBits mask = saved.dropout.bits(x.rows, x.cols, dropout_, scratch, executor);
    Matrix<accumulator_type> ds(x.rows, r());
    accumulate_gradients(dy, x, mask, saved.s.view(), 1.0, ds.view(), executor);
    if (dx.data == nullptr) return;
    const BasicInputGradTerm<accumulator_type> term{std::as_const(ds).view(), a_view(), mask};
    backward_low_rank<T>(base, dy, std::span(&term, 1), dx, mode, executor);
  }

  /// Adds to grad_a() and grad_b() only: for a layer whose input needs no gradient (the model's first), over a base
  /// that need not be trainable. Throws ShapeError.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, const Saved& saved,
                ExecutorRef executor = default_executor()) {
    detail::check_shape("Lora::backward", "x", x, x.rows, in_features());
    detail::check_shape("Lora::backward", "dy", dy, x.rows, out_features());
    detail::check_shape("Lora::backward", "S", saved.s.view(), x.rows, r());
    Buffer<std::uint8_t> scratch;
    const kernels::MaskBits mask = saved.dropout.bits(x.rows, x.cols, dropout_, scratch, executor);
    Matrix<accumulator_type> ds(x.rows, r());
    accumulate_gradients(dy, x, mask, saved.s.view(), 1.0, ds.view(), executor);
  }

  // The steps of the above, for those who mix several updates on one layer (AdaptedLinear). `weight` multiplies the
  // scale. Shapes are the caller's to check.

  /// S = x̃·Aᵀ.
  void project(MatrixView<const T> x, const kernels::MaskBits& mask, MatrixView<accumulator_type> s,
               ExecutorRef executor) const {
    detail::project<T>(x, mask, a_view(), s, executor);
  }
  /// The term of forward_low_rank over all rows of `s`.
  BasicLowRankTerm<accumulator_type> forward_term(MatrixView<const accumulator_type> s, double weight) const noexcept {
    return {0, s.rows, s, b_view(), static_cast<accumulator_type>(scaling_ * weight)};
  }
  /// The bias as a term: one column of ones.
  BasicLowRankTerm<accumulator_type> bias_term(Index rows, double weight) const noexcept {
    return {0, rows, detail::ones_column<accumulator_type>(rows), bias_view(),
            static_cast<accumulator_type>(scaling_ * weight)};
  }
  /// dS = weight·s·dy·B; dB += weight·s·dyᵀ·S; dA += dSᵀ·x̃; the bias's gradient += weight·s·Σ dy.
  void accumulate_gradients(MatrixView<const T> dy, MatrixView<const T> x, const kernels::MaskBits& mask,
                            MatrixView<const accumulator_type> s, double weight, MatrixView<accumulator_type> ds,
                            ExecutorRef executor) {
    ensure_grads();
    const auto scale = static_cast<accumulator_type>(scaling_ * weight);
    detail::project_gradient<T>(dy, b_view(), scale, ds, executor);
    detail::gradient_b<T>(dy, s, scale, grad_b_.view(), executor);
    detail::gradient_a<T>(ds, x, mask, grad_a_.view(), executor);
    if (bias_.empty()) return;
    detail::gradient_b<T>(dy, detail::ones_column<accumulator_type>(dy.rows), scale,
                          MatrixView<accumulator_type>(bias_.grad().data(), out_features(), 1), executor);
  }
  MatrixView<const accumulator_type> a_view() const noexcept { return a_.view(); }
  MatrixView<const accumulator_type> b_view() const noexcept { return b_.view(); }
  /// [out, 1].
  MatrixView<const accumulator_type> bias_view() const noexcept { return {bias_.value().data(), out_features(), 1}; }

  /// Visits A ("lora_A.weight" after `prefix`), B and its bias; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    ensure_grads();
    visit_all(visit, prefix, true);
  }
  /// The same without gradients, which an adapter that only serves never gets: their views are empty.
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    visit_all(visit, prefix, false);
  }

 private:
  void ensure_grads() {
    if (!grad_a_.empty()) return;
    grad_a_ = Matrix<accumulator_type>::zeros(a_.rows(), a_.cols());
    grad_b_ = Matrix<accumulator_type>::zeros(b_.rows(), b_.cols());
  }

  template <class L, class Y>
  void check(std::string_view who, const L& base, MatrixView<const T> x, std::string_view what, MatrixView<Y> y) const {
    if (base.in_features() != in_features() || base.out_features() != out_features()) {
      fail<ShapeError>("{}: the base layer is [{}, {}]; expected [{}, {}] (out, in) as the update", who,
                       Index{base.out_features()}, Index{base.in_features()}, out_features(), in_features());
    }
    detail::check_shape(who, "x", x, x.rows, in_features());
    detail::check_shape(who, what, y, x.rows, out_features());
  }

  template <class Visitor>
  void visit_all(Visitor& visit, std::string_view prefix, bool with_grad) {
    visit_one(visit, prefix, "lora_A.weight", ParameterRole::kLoraA, a_, grad_a_, with_grad);
    visit_one(visit, prefix, "lora_B.weight", ParameterRole::kLoraB, b_, grad_b_, with_grad);
    bias_.visit(visit, prefix, "lora_B.bias", ParameterRole::kLoraB, false, with_grad);
  }
  template <class Visitor>
  static void visit_one(Visitor& visit, std::string_view prefix, std::string_view name, ParameterRole role,
                        Matrix<accumulator_type>& value, Matrix<accumulator_type>& grad, bool with_grad) {
    std::string full(prefix);
    full += name;
    visit(ParameterInfo{full, role, true, value.rows(), value.cols()}, value.flat(),
          with_grad ? grad.flat() : VectorView<accumulator_type>());
  }

  TrainedMatrix<accumulator_type> bias_;
  Matrix<accumulator_type> a_;
  Matrix<accumulator_type> b_;
  Matrix<accumulator_type> grad_a_;
  Matrix<accumulator_type> grad_b_;
  double scaling_ = 1;
  float dropout_ = 0;
};

PEFT_END_NAMESPACE
