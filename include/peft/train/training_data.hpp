#pragma once
/// What the trainer asks of its data, in what order it goes through the records, and how it cuts an accumulated batch
/// into sub-batches that fit in memory.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/train/batch.hpp"

PEFT_BEGIN_NAMESPACE

/// Tokenised records:
///   records()            how many
///   tokens(i)            ids of record i, at least 1
///   label_tokens(i)      how many of its positions have a target
///   append(i, batch)     adds record i to the batch as its next sequence
template <class D>
concept TrainingData = requires(const D& data, Index record, PackedBatch& batch) {
  { data.records() } -> std::convertible_to<Index>;
  { data.tokens(record) } -> std::convertible_to<Index>;
  { data.label_tokens(record) } -> std::convertible_to<Index>;
  data.append(record, batch);
};

/// The order of the records in epoch `epoch`, counted from 0: a shuffle (Fisher and Yates) that depends on (records,
/// seed, epoch) only.
inline std::vector<Index> epoch_order(Index records, std::uint64_t seed, Index epoch) {
  std::vector<Index> order(static_cast<std::size_t>(records));
  std::iota(order.begin(), order.end(), Index{0});
  Philox random(seed, static_cast<std::uint64_t>(epoch));
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
  }
  return order;
}

/// Goes through `order` sub-batch by sub-batch: as many records in a row as stay within `max_tokens`, at least one.
/// Rows are numbered through, so that a dropout mask does not depend on the cut.
template <TrainingData D>
class SubBatches {
 public:
  SubBatches(const D& data, std::span<const Index> order, Index max_tokens) noexcept
      : data_(data), order_(order), max_tokens_(max_tokens) {}

  /// Fills `batch` with the next sub-batch; false where there is none.
  bool next(PackedBatch& batch) {
    if (next_ == order_.size()) return false;
    batch.clear();
    batch.first_row = first_row_;
    batch.first_sequence = static_cast<Index>(next_);
    do {
      data_.append(order_[next_++], batch);
    } while (next_ < order_.size() && batch.tokens() + data_.tokens(order_[next_]) <= max_tokens_);
    first_row_ += batch.tokens();
    return true;
  }

 private:
  const D& data_;
  std::span<const Index> order_;
  Index max_tokens_;
  std::size_t next_ = 0;
  Index first_row_ = 0;
};

PEFT_END_NAMESPACE
