#pragma once
/// A linear layer that is trained itself, of the encoders that make prefixes and prompts:
///   y = x·Wᵀ + b;   x [n,in], W [out,in], b [out], y [n,out]
/// Nothing is saved for backward (x is the caller's): dW += dyᵀ·x,  db += Σ_i dy_i,  dx = dy·W

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "peft/core/accumulate.hpp"
#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE
namespace encoders {

/// C (+)= op(A)·op(B) + bias; `bias` may be empty. Double runs plain loops: it is the reference.
template <std::floating_point A>
void product(MatrixView<const A> a, bool a_transposed, MatrixView<const A> b, bool b_transposed, VectorView<const A> bias,
             Accumulate mode, MatrixView<A> c, ExecutorRef executor) {
  if (c.empty()) return;
  const Index k = a_transposed ? a.rows : a.cols;
  if constexpr (std::same_as<A, double>) {
    for (Index i = 0; i < c.rows; ++i) {
      for (Index j = 0; j < c.cols; ++j) {
        double sum = bias.empty() ? 0.0 : bias[j];
        for (Index q = 0; q < k; ++q) sum += (a_transposed ? a(q, i) : a(i, q)) * (b_transposed ? b(j, q) : b(q, j));
        c(i, j) = mode == Accumulate::kAdd ? c(i, j) + sum : sum;
      }
    }
  } else {
    kernels::GemmProblem problem;
    problem.m = c.rows;
    problem.n = c.cols;
    problem.k = k;
    problem.a = {a.data, a.stride, DType::kF32, a_transposed};
    problem.b.dense = {b.data, b.stride, DType::kF32, b_transposed};
    problem.bias = bias.empty() ? nullptr : bias.data;
    problem.accumulate = mode == Accumulate::kAdd;
    problem.c = c.data;
    problem.c_stride = c.stride;
    kernels::gemm(problem, executor);
  }
}

/// db_j += Σ_i dy_ij, in the order of i.
template <std::floating_point A>
void add_column_sums(MatrixView<const A> dy, VectorView<A> db) noexcept {
  for (Index j = 0; j < dy.cols; ++j) {
    A sum = 0;
    for (Index i = 0; i < dy.rows; ++i) sum = rounded(sum + dy(i, j));
    db[j] = rounded(db[j] + sum);
  }
}

/// One matrix of an encoder with its gradient.
template <std::floating_point A>
struct EncoderParameter {
  explicit EncoderParameter(Index rows, Index cols)
      : value(Matrix<A>::zeros(rows, cols)), grad(Matrix<A>::zeros(rows, cols)) {}

  /// Uniform in ±bound.
  void fill_uniform(Philox& random, float bound) {
    for (A& number : value.flat()) number = static_cast<A>(random.uniform(-bound, bound));
  }
  /// Standard normal, as torch.nn.Embedding starts.
  void fill_normal(Philox& random) {
    for (A& number : value.flat()) number = static_cast<A>(random.normal());
  }
  template <class Visitor>
  void visit(Visitor& visitor, std::string_view prefix, std::string_view name, ParameterRole role, bool decay) {
    std::string full(prefix);
    full += name;
    visitor(ParameterInfo{full, role, decay, value.rows(), value.cols()}, value.flat(), grad.flat());
  }

  Matrix<A> value;
  Matrix<A> grad;
};

/// W and b with their gradients.
template <std::floating_point A>
class TrainableLinear {
 public:
  TrainableLinear(Index in_features, Index out_features) : weight_(out_features, in_features), bias_(1, out_features) {}

  Index in_features() const noexcept { return weight_.value.cols(); }
  Index out_features() const noexcept { return weight_.value.rows(); }

  /// Weight and bias uniform in ±1/√in, as torch.nn.Linear starts.
  void reset(Philox& random) {
    const float bound = quotient(1.0f, root(static_cast<float>(in_features())));
    weight_.fill_uniform(random, bound);
    bias_.fill_uniform(random, bound);
  }
  void fill_zero() noexcept {
    weight_.value.fill_zero();
    bias_.value.fill_zero();
  }

  void forward(MatrixView<const A> x, MatrixView<A> y, ExecutorRef executor) const {
    product<A>(x, false, weight_.value.view(), true, bias_.value.flat(), Accumulate::kOverwrite, y, executor);
  }
  /// Adds to the gradients; dx is overwritten.
  void backward(MatrixView<const A> dy, MatrixView<const A> x, MatrixView<A> dx, ExecutorRef executor) {
    product<A>(dy, true, x, false, {}, Accumulate::kAdd, weight_.grad.view(), executor);
    add_column_sums<A>(dy, bias_.grad.flat());
    product<A>(dy, false, std::as_const(weight_.value).view(), false, {}, Accumulate::kOverwrite, dx, executor);
  }

  void zero_grad() noexcept {
    weight_.grad.fill_zero();
    bias_.grad.fill_zero();
  }
  /// Visits `prefix` + "weight" and "bias".
  template <class Visitor>
  void for_each_parameter(Visitor& visit, std::string_view prefix) {
    weight_.visit(visit, prefix, "weight", ParameterRole::kOther, true);
    bias_.visit(visit, prefix, "bias", ParameterRole::kBias, false);
  }

 private:
  EncoderParameter<A> weight_;
  EncoderParameter<A> bias_;
};

}  // namespace encoders
PEFT_END_NAMESPACE
