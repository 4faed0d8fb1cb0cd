#pragma once
/// The network that makes P-tuning's vectors while they are trained (Liu et al., 2021), as Python PEFT's PromptEncoder:
///   MLP:   P = W₃·relu(W₂·relu(W₁·E))        LSTM:   P = W₂·relu(W₁·lstm(E)),  lstm in both directions
///   E [n, dim], P [n, dim]; every W with its bias
/// Saved for backward: the outputs of the inner linears, after relu; what the LSTM keeps.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/encoders/bidirectional_lstm.hpp"
#include "peft/encoders/trainable_linear.hpp"
#include "peft/prompt_encoder_config.hpp"

PEFT_BEGIN_NAMESPACE
namespace encoders {

template <std::floating_point A>
class PromptEncoder {
 public:
  using accumulator_type = A;

  /// Parameters zero, see reset(). Throws ConfigError for a configuration that is out of range, or an MLP with fields of
  /// the LSTM: PEFT ignores them.
  explicit PromptEncoder(const PromptEncoderConfig& config)
      : embedding_((check(config), config.num_virtual_tokens), config.token_dim) {
    const Index dim = config.token_dim, hidden = config.encoder_hidden_size;
    if (config.encoder_reparameterization_type == PromptEncoderReparameterizationType::kLstm) {
      lstm_.emplace(dim, hidden, config.encoder_num_layers, config.encoder_dropout);
      head_.emplace_back(2 * hidden, 2 * hidden);
      head_.emplace_back(2 * hidden, dim);
    } else {
      head_.emplace_back(dim, hidden);
      head_.emplace_back(hidden, hidden);
      head_.emplace_back(hidden, dim);
    }
    inner_.resize(head_.size() - 1);
  }

  Index rows() const noexcept { return embedding_.value.rows(); }
  Index cols() const noexcept { return embedding_.value.cols(); }

  /// As PEFT starts: E normal, the rest as torch's modules.
  void reset(std::uint64_t seed) {
    Philox random(seed, 0);
    embedding_.fill_normal(random);
    if (lstm_) lstm_->reset(random);
    for (TrainableLinear<A>& linear : head_) linear.reset(random);
  }

  /// Writes P. `dropout`: nullptr in evaluation; else the step's key, of which the LSTM makes a mask per layer.
  void forward(MatrixView<A> out, const DropoutKey* dropout, ExecutorRef executor) {
    MatrixView<const A> x = embedding_.value.view();
    if (lstm_) x = input_of_head_ = lstm_->forward(x, dropout, executor);
    for (std::size_t i = 0; i < head_.size(); ++i) {
      if (i + 1 == head_.size()) {
        head_[i].forward(x, out, executor);
        break;
      }
      inner_[i].resize_discard(rows(), head_[i].out_features());
      head_[i].forward(x, inner_[i].view(), executor);
      for (A& value : inner_[i].flat()) value = value > A(0) ? value : A(0);
      x = std::as_const(inner_[i]).view();
    }
  }
  /// Adds to the gradients, given dP of the last forward.
  void backward(MatrixView<const A> d_out, ExecutorRef executor) {
    Matrix<A> upper, lower;
    MatrixView<const A> d = d_out;
    for (std::size_t i = head_.size(); i-- > 0;) {
      lower.resize_discard(rows(), head_[i].in_features());
      head_[i].backward(d, input_of(i), lower.view(), executor);
      if (i > 0) {
        for (Index j = 0; j < lower.size(); ++j) {
          if (!(inner_[i - 1].flat()[j] > A(0))) lower.flat()[j] = A(0);
        }
      }
      std::swap(upper, lower);
      d = std::as_const(upper).view();
    }
    if (lstm_) {
      lower.resize_discard(rows(), cols());
      lstm_->backward(d, lower.view(), executor);
      d = std::as_const(lower).view();
    }
    for (Index i = 0; i < embedding_.grad.size(); ++i) embedding_.grad.flat()[i] += d.data[i];
  }

  void zero_grad() noexcept {
    embedding_.grad.fill_zero();
    if (lstm_) lstm_->zero_grad();
    for (TrainableLinear<A>& linear : head_) linear.zero_grad();
  }
  /// Under PEFT's names: embedding.weight, lstm_head.…, mlp_head.0.…, mlp_head.2.…, ….
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix) {
    const std::string start(prefix);
    embedding_.visit(visit, start, "embedding.weight", ParameterRole::kOther, true);
    if (lstm_) lstm_->for_each_parameter(visit, start + "lstm_head.");
    for (std::size_t i = 0; i < head_.size(); ++i) {
      head_[i].for_each_parameter(visit, start + "mlp_head." + std::to_string(2 * i) + ".");
    }
  }

 private:
  static void check(const PromptEncoderConfig& config) {
    config.validate();
    detail::require_set("PromptEncoderConfig", "token_dim", config.token_dim);
    detail::require_set("PromptEncoderConfig", "encoder_hidden_size", config.encoder_hidden_size);
    if (config.encoder_reparameterization_type != PromptEncoderReparameterizationType::kMlp) return;
    if (config.encoder_num_layers != 2 || config.encoder_dropout != 0.0f) {
      fail<ConfigError>("PromptEncoderConfig: encoder_num_layers is {} and encoder_dropout {} with an MLP, which has "
                        "neither; expected 2 and 0, their defaults, or the LSTM",
                        config.encoder_num_layers, config.encoder_dropout);
    }
  }
  MatrixView<const A> input_of(std::size_t i) const noexcept {
    if (i > 0) return inner_[i - 1].view();
    return lstm_ ? input_of_head_ : embedding_.value.view();
  }

  EncoderParameter<A> embedding_;
  std::optional<BidirectionalLstm<A>> lstm_;
  std::vector<TrainableLinear<A>> head_;
  std::vector<Matrix<A>> inner_;
  MatrixView<const A> input_of_head_;
};

}  // namespace encoders
PEFT_END_NAMESPACE
