#pragma once
/// Some rows of an embedding, trained (PEFT's trainable_token_indices):
///   x_i = rows[p] where id_i = tokens[p], else table[id_i];   rows [count, n] start as the table's
/// With a tied head the same rows are rows of its weight: TiedTokenRows.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"
#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE

/// The rows, shared by the embedding's part and a tied head's.
template <std::floating_point A>
struct TokenRows {
  std::vector<Index> tokens;
  TrainedMatrix<A> rows;  ///< [count, n]
  Matrix<A> base;         ///< the table's rows

  /// Place of the id in `tokens`, or −1.
  Index place_of(std::int32_t id) const noexcept {
    const auto found = std::find(tokens.begin(), tokens.end(), Index{id});
    return found == tokens.end() ? Index{-1} : static_cast<Index>(found - tokens.begin());
  }
};

/// The part of the embedding.
template <Scalar T = float>
class TrainableTokens {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  /// `base`: the table's rows of `tokens` [count, n]. Throws ConfigError for an id given twice, ShapeError for sizes that
  /// do not fit.
  TrainableTokens(std::vector<Index> tokens, Matrix<A> base) : shared_(std::make_shared<TokenRows<A>>()) {
    if (static_cast<Index>(tokens.size()) != base.rows()) {
      fail<ShapeError>("TrainableTokens: {} tokens and {} rows; expected as many", tokens.size(), base.rows());
    }
    std::vector<Index> sorted = tokens;
    std::sort(sorted.begin(), sorted.end());
    if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end()) {
      fail<ConfigError>("TrainableTokens: token {} is given twice; expected distinct ids", *twice);
    }
    shared_->tokens = std::move(tokens);
    shared_->rows = TrainedMatrix<A>(base.clone());
    shared_->base = std::move(base);
  }

  const std::shared_ptr<TokenRows<A>>& shared() const noexcept { return shared_; }
  TrainedMatrix<A>& rows() noexcept { return shared_->rows; }

  /// Visits token_adapter.trainable_tokens_delta; see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    shared_->rows.visit(visit, prefix, "token_adapter.trainable_tokens_delta", ParameterRole::kEmbedding, true, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    shared_->rows.visit(visit, prefix, "token_adapter.trainable_tokens_delta", ParameterRole::kEmbedding, true, false);
  }
  void zero_grad() noexcept { shared_->rows.zero_grad(); }

 private:
  std::shared_ptr<TokenRows<A>> shared_;
};

/// The same rows in a tied head: ΔW = P·(rows − base), P [out, count] one-hot, which is `count` columns of low rank.
template <Scalar T = float>
class TiedTokenRows {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  TiedTokenRows(Index out_features, std::shared_ptr<TokenRows<A>> shared) : out_(out_features), shared_(std::move(shared)) {
    for (const Index token : shared_->tokens) {
      if (token >= out_) fail<ConfigError>("TiedTokenRows: token {} is outside the head's {} rows", token, out_);
    }
  }

  Index in_features() const noexcept { return shared_->base.cols(); }
  Index out_features() const noexcept { return out_; }
  /// The rows are the embedding's parameters.
  template <class Visitor>
  void for_each_parameter(Visitor&&, std::string_view = {}) {}
  void zero_grad() noexcept {}

  // What a pass asks for; see low_rank_update.hpp.
  Index rank() const noexcept { return shared_->base.rows(); }
  void make_factors(Matrix<A>& a, Matrix<A>& b) const {
    a.resize_discard(rank(), in_features());
    b.resize_discard(out_, rank());
    b.fill_zero();
    for (Index p = 0; p < rank(); ++p) {
      for (Index k = 0; k < in_features(); ++k) a(p, k) = shared_->rows.value()(p, k) - shared_->base(p, k);
      b(shared_->tokens[static_cast<std::size_t>(p)], p) = A(1);
    }
  }
  Factors<A> factors(const Matrix<A>& a, const Matrix<A>& b) const noexcept { return {a.view(), b.view(), A(1)}; }
  void pull_back(const Matrix<A>&, const Matrix<A>&, const Matrix<A>& da, const Matrix<A>&) {
    for (Index i = 0; i < da.size(); ++i) shared_->rows.grad().data()[i] += da.data()[i];
  }

 private:
  Index out_;
  std::shared_ptr<TokenRows<A>> shared_;
};

PEFT_END_NAMESPACE
