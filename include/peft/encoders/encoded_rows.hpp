#pragma once
/// Rows that a method gives to its host: trained themselves, or made by an encoder that is trained. Rows and gradients are
/// in Accumulator<T>; the host reads them as T (bf16 and f16 get a copy that encode() refreshes).

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE
namespace encoders {

template <Scalar T, class Encoder>
class EncodedRows {
 public:
  using A = Accumulator<T>;

  /// Rows that are trained themselves, zero.
  EncodedRows(Index rows, Index cols) : rows_(Matrix<A>::zeros(rows, cols)) { refresh(); }
  /// Rows that `encoder` makes.
  explicit EncodedRows(Encoder encoder) : rows_(Matrix<A>::zeros(encoder.rows(), encoder.cols())) {
    encoder_.emplace(std::move(encoder));
    refresh();
  }

  bool has_encoder() const noexcept { return encoder_.has_value(); }
  /// Whether parameters may have changed since encode().
  bool is_stale() const noexcept { return stale_; }

  /// Makes the rows of the parameters as they are now. Their place in memory stays.
  void encode(const DropoutKey* dropout, ExecutorRef executor) {
    if (encoder_) encoder_->forward(rows_.view(), dropout, executor);
    refresh();
    stale_ = false;
  }
  MatrixView<const A> wide() const noexcept { return rows_.view(); }
  MatrixView<const T> view() const noexcept {
    if constexpr (std::is_same_v<T, A>) {
      return rows_.view();
    } else {
      return narrow_.view();
    }
  }
  /// For rows that are trained themselves: the parameter, to be written before encode().
  MatrixView<A> parameter() noexcept {
    stale_ = true;
    return rows_.view();
  }

  /// Where the gradient of the rows is added.
  MatrixView<A> grad() {
    if (grad_.empty()) grad_ = Matrix<A>::zeros(rows_.rows(), rows_.cols());
    return grad_.view();
  }
  /// Hands what was added to grad() on to the encoder, where there is one.
  void backward(ExecutorRef executor) {
    stale_ = true;
    if (!encoder_) return;
    encoder_->backward(grad(), executor);
    grad_.fill_zero();
  }

  void zero_grad() noexcept {
    grad_.fill_zero();
    if (encoder_) encoder_->zero_grad();
  }
  /// `prefix` + "prompt_embeddings", or the encoder's under `prefix` + "prompt_encoder.".
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix) {
    stale_ = true;
    std::string name(prefix);
    if (encoder_) {
      encoder_->for_each_parameter(visit, name + "prompt_encoder.");
      return;
    }
    grad();
    name += "prompt_embeddings";
    visit(ParameterInfo{name, ParameterRole::kOther, true, rows_.rows(), rows_.cols()}, rows_.flat(), grad_.flat());
  }

 private:
  void refresh() {
    if constexpr (!std::is_same_v<T, A>) {
      narrow_.resize_discard(rows_.rows(), rows_.cols());
      kernels::convert(rows_.size(), rows_.data(), DType::kF32, narrow_.data(), dtype_of<T>());
    }
  }

  Matrix<A> rows_;
  Matrix<A> grad_;
  Matrix<T> narrow_;
  std::optional<Encoder> encoder_;
  bool stale_ = true;
};

}  // namespace encoders
PEFT_END_NAMESPACE
