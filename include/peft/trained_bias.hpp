#pragma once
/// A trained bias instead of a layer's own (PEFT's bias = "all" and "lora_only", BitFit):
///   y = base(x) + (c − bias);   c [out] starts as the base's bias. dc = Σ dy.
/// Ben Zaken, Goldberg, Ravfogel, "BitFit", ACL 2022 (arXiv 2106.10199).

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"
#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE

/// The bias of one layer. In PEFT's files it is "base_layer.bias" on a module that another method adapts too, else "bias".
template <Scalar T = float>
class TrainedBias {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;
  using Saved = UpdateSaved<T>;

  /// Starts at `base_bias` [out]. Throws ConfigError where that is empty.
  TrainedBias(Index in_features, Buffer<A> base_bias, std::string key = "bias")
      : in_(in_features), base_(std::move(base_bias)), key_(std::move(key)) {
    if (base_.empty()) fail<ConfigError>("TrainedBias: the base layer has no bias; expected one to be trained");
    bias_ = TrainedMatrix<A>::vector(base_.size());
    std::copy(base_.begin(), base_.end(), bias_.value().data());
  }

  Index in_features() const noexcept { return in_; }
  Index out_features() const noexcept { return base_.size(); }
  /// c [1, out].
  TrainedMatrix<A>& bias() noexcept { return bias_; }
  const TrainedMatrix<A>& bias() const noexcept { return bias_; }

  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    bias_.visit(visit, prefix, key_, ParameterRole::kBias, false, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    bias_.visit(visit, prefix, key_, ParameterRole::kBias, false, false);
  }
  void zero_grad() noexcept { bias_.zero_grad(); }

  // What a pass asks for; see linear_update.hpp: one column of ones.
  UpdateKind update_kind() const noexcept { return UpdateKind::kTerms; }
  void forward_terms(MatrixView<const T> x, const kernels::MaskBits&, double weight, Saved& saved,
                     std::vector<BasicLowRankTerm<A>>& terms, ExecutorRef) const {
    saved.b.resize_discard(base_.size(), 1);
    for (Index j = 0; j < base_.size(); ++j) saved.b(j, 0) = bias_.value()(0, j) - base_[j];
    terms.push_back({0, x.rows, detail::ones_column<A>(x.rows), std::as_const(saved.b).view(), static_cast<A>(weight)});
  }
  void backward_terms(MatrixView<const T> dy, MatrixView<const T>, const kernels::MaskBits&, double weight, const Saved&,
                      MatrixView<A>, VectorView<A>, std::vector<BasicInputGradTerm<A>>&, ExecutorRef executor) {
    detail::gradient_b<T>(dy, detail::ones_column<A>(dy.rows), static_cast<A>(weight),
                          MatrixView<A>(bias_.grad().data(), base_.size(), 1), executor);
  }
  void add_bias(double weight, VectorView<A> bias) const {
    for (Index j = 0; j < bias.size; ++j) {
      bias[j] += rounded(static_cast<A>(weight) * rounded(bias_.value()(0, j) - base_[j]));
    }
  }

 private:
  Index in_;
  Buffer<A> base_;
  std::string key_;
  TrainedMatrix<A> bias_;
};

PEFT_END_NAMESPACE
