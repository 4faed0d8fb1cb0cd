#pragma once
/// The loss of a model on a set of records: mean cross-entropy over all their label tokens = sum.mean(); perplexity is
/// its exponential.

#include <atomic>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "peft/train/trainable_model.hpp"
#include "peft/train/training_data.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Whether someone asked the work to stop.
inline bool stop_requested(const std::atomic<bool>* stop) noexcept {
  return stop != nullptr && stop->load(std::memory_order_relaxed);
}

}  // namespace detail

/// Adds every record of `data` to `sum`, in order, in sub-batches of at most `max_tokens` tokens (at least one record);
/// `on_work(records done)` is called after each. Returns false, with `sum` incomplete, where `stop` became true.
template <TrainableModel M, TrainingData D, class OnWork>
bool evaluate_loss(M& model, const D& data, Index max_tokens, LossSum& sum, const std::atomic<bool>* stop,
                   OnWork&& on_work) {
  std::vector<Index> order(static_cast<std::size_t>(Index{data.records()}));
  std::iota(order.begin(), order.end(), Index{0});
  SubBatches<D> cut(data, order, max_tokens);
  PackedBatch batch;
  Index done = 0;
  while (!detail::stop_requested(stop)) {
    if (!cut.next(batch)) return true;
    model.evaluate(batch, sum);
    done += batch.sequences();
    on_work(done);
  }
  return false;
}

template <TrainableModel M, TrainingData D>
LossSum evaluate_loss(M& model, const D& data, Index max_tokens) {
  LossSum sum;
  evaluate_loss(model, data, max_tokens, sum, nullptr, [](Index) {});
  return sum;
}

PEFT_END_NAMESPACE
