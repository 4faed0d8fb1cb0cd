#pragma once
/// The MLP that makes a prefix while it is trained (Li and Liang, 2021, section 4.3), as Python PEFT's PrefixEncoder:
///   P = tanh(E·W₁ᵀ + b₁)·W₂ᵀ + b₂;   E [n, token_dim], W₁ [hidden, token_dim], W₂ [out, hidden], P [n, out]
/// Saved for backward: t = tanh(…) [n, hidden].

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "peft/encoders/trainable_linear.hpp"

PEFT_BEGIN_NAMESPACE
namespace encoders {

template <std::floating_point A>
class PrefixEncoder {
 public:
  using accumulator_type = A;

  /// n rows of `out` numbers; parameters zero, see reset().
  PrefixEncoder(Index n, Index token_dim, Index hidden, Index out)
      : embedding_(n, token_dim), first_(token_dim, hidden), second_(hidden, out) {}

  Index rows() const noexcept { return embedding_.value.rows(); }
  Index cols() const noexcept { return second_.out_features(); }

  /// As PEFT starts: E normal, the linears as torch's; `zero_output`: W₂ and b₂ zero, so that P is 0.
  void reset(std::uint64_t seed, bool zero_output) {
    Philox random(seed, 0);
    embedding_.fill_normal(random);
    first_.reset(random);
    second_.reset(random);
    if (zero_output) second_.fill_zero();
  }

  /// Writes P. There is no dropout in this encoder.
  void forward(MatrixView<A> out, const DropoutKey*, ExecutorRef executor) {
    tanh_.resize_discard(rows(), first_.out_features());
    first_.forward(embedding_.value.view(), tanh_.view(), executor);
    for (A& value : tanh_.flat()) value = rounded(std::tanh(rounded(value)));
    second_.forward(std::as_const(tanh_).view(), out, executor);
  }
  /// Adds to the gradients, given dP of the last forward.
  void backward(MatrixView<const A> d_out, ExecutorRef executor) {
    Matrix<A> d_tanh(tanh_.rows(), tanh_.cols()), d_embedding(rows(), embedding_.value.cols());
    second_.backward(d_out, std::as_const(tanh_).view(), d_tanh.view(), executor);
    for (Index i = 0; i < d_tanh.size(); ++i) {
      const A t = tanh_.flat()[i];
      d_tanh.flat()[i] = rounded(d_tanh.flat()[i] * rounded(A(1) - rounded(t * t)));
    }
    first_.backward(std::as_const(d_tanh).view(), embedding_.value.view(), d_embedding.view(), executor);
    for (Index i = 0; i < d_embedding.size(); ++i) embedding_.grad.flat()[i] += d_embedding.flat()[i];
  }

  void zero_grad() noexcept {
    embedding_.grad.fill_zero();
    first_.zero_grad();
    second_.zero_grad();
  }
  /// Under PEFT's names: embedding.weight, transform.0.…, transform.2.….
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix) {
    const std::string start(prefix);
    embedding_.visit(visit, start, "embedding.weight", ParameterRole::kOther, true);
    first_.for_each_parameter(visit, start + "transform.0.");
    second_.for_each_parameter(visit, start + "transform.2.");
  }

 private:
  EncoderParameter<A> embedding_;
  TrainableLinear<A> first_;
  TrainableLinear<A> second_;
  Matrix<A> tanh_;
};

}  // namespace encoders
PEFT_END_NAMESPACE
