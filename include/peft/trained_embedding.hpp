#pragma once
/// A whole embedding table as a part of an adapter: trained (modules_to_save), or frozen and only carried (a table that
/// grew by new tokens, saved beside the adapter).

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"

PEFT_BEGIN_NAMESPACE

/// Rows [vocabulary, n] instead of the host's. In PEFT's files it is "weight", or "base_layer.weight" where a LoRA stands
/// on the embedding too.
template <Scalar T = float>
class TrainedEmbedding {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  /// Throws ConfigError for an empty table.
  explicit TrainedEmbedding(Matrix<A> table, bool is_trained = true, std::string key = "weight")
      : table_(std::make_shared<TrainedMatrix<A>>(std::move(table))), key_(std::move(key)) {
    if (table_->empty()) fail<ConfigError>("TrainedEmbedding: the table is empty");
    if (!is_trained) table_->freeze();
  }

  TrainedMatrix<A>& table() noexcept { return *table_; }
  const TrainedMatrix<A>& table() const noexcept { return *table_; }
  /// The table, for a tied head's part (TiedEmbedding).
  const std::shared_ptr<TrainedMatrix<A>>& shared() const noexcept { return table_; }

  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    table_->visit(visit, prefix, key_, ParameterRole::kEmbedding, true, true);
  }
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix = {}) {
    table_->visit(visit, prefix, key_, ParameterRole::kEmbedding, true, false);
  }
  void zero_grad() noexcept { table_->zero_grad(); }

 private:
  std::shared_ptr<TrainedMatrix<A>> table_;
  std::string key_;
};

PEFT_END_NAMESPACE
