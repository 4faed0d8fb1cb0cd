#pragma once
/// EVA's start of a LoRA from the records that it will be trained on: forward passes of the base, batch by batch, until the
/// principal components of all modules' inputs have settled. Paischer et al., 2024 (lora_eva.hpp).

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/input_observer.hpp"
#include "peft/lora_eva.hpp"
#include "peft/train/trainable_model.hpp"
#include "peft/train/training_data.hpp"

PEFT_BEGIN_NAMESPACE

/// How the records are gone through.
struct EvaPasses {
  Index records_per_batch = 4;  ///< at least; more where a batch has too few rows for the components
  Index max_batches = 100;      ///< of that many what has not settled is taken as it is
  std::uint64_t seed = 0;       ///< of the records' order
};

template <Scalar T>
struct EvaStart {
  std::shared_ptr<NamedAdapter<T>> adapter;  ///< with ranks as they were shared out
  Index batches = 0;
  bool has_settled = false;  ///< false: max_batches, or two passes over the records, were not enough
};

namespace detail {

/// Rows of a packed batch that count: tokens that are labels where config.use_label_mask says so, else all.
inline std::vector<std::uint8_t> eva_rows(const PackedBatch& batch, bool labels_only) {
  std::vector<std::uint8_t> rows(batch.ids.size(), labels_only ? std::uint8_t{0} : std::uint8_t{1});
  if (!labels_only) return rows;
  for (std::size_t i = 0; i + 1 < rows.size(); ++i) {  // a target stands at the row before its own
    if (batch.targets[i] >= 0) rows[i + 1] = 1;
  }
  return rows;
}

}  // namespace detail

/// The adapter `name` of `config`, whose init_lora_weights is "eva", on the sites of `model` (which has select() and
/// evaluate()); the model is left without a selection. `seed`: of what does not come from the data. on_batch(done) hears of each
/// batch; where it returns false the work ends, and what has not settled is taken as it is. Throws ConfigError for a
/// configuration that does not fit, and where the records have fewer rows than a module wants components.
template <Scalar T, class M, TrainingData D>
EvaStart<T> start_from_inputs(std::string name, const LoraConfig& config, const AdapterSites<T>& sites, M& model, const D& data,
                              const EvaPasses& passes, std::uint64_t seed, const std::function<bool(Index)>& on_batch = {}) {
  EvaCollector<T> collector(make_adapter<T>(name, config, sites, seed));
  std::vector<std::uint8_t> rows;
  Matrix<T> taken;
  const auto see = [&](std::string_view module, MatrixView<const T> x) {
    if (!collector.wants(module)) return;
    if (static_cast<std::size_t>(x.rows) != rows.size()) return collector.add(module, x);  // the head sees labels only
    const Index count = std::count(rows.begin(), rows.end(), std::uint8_t{1});
    taken.resize_discard(count, x.cols);
    for (Index i = 0, to = 0; i < x.rows; ++i) {
      if (rows[static_cast<std::size_t>(i)] != 0) std::copy_n(x.row(i), x.cols, taken.row(to++));
    }
    collector.add(module, std::as_const(taken).view());
  };
  model.select(observe_inputs<T>(sites.linears, [&](const std::string& site) { return collector.rank_of(site) >= 0; }, see));
  EvaStart<T> result;
  const std::vector<Index> order = epoch_order(data.records(), passes.seed, 0);
  std::size_t next = 0, begun = 0;
  PackedBatch batch;
  LossSum ignored;
  while (!result.has_settled && result.batches < passes.max_batches && begun < 2 * order.size()) {
    batch.clear();
    do {
      data.append(order[next], batch);
      next = (next + 1) % order.size();
      ++begun;
      rows = detail::eva_rows(batch, config.eva_config.use_label_mask);
    } while (begun < 2 * order.size() && (batch.sequences() < passes.records_per_batch ||
             std::count(rows.begin(), rows.end(), std::uint8_t{1}) < collector.most_components()));
    model.evaluate(batch, ignored);
    result.has_settled = collector.end_of_batch();
    ++result.batches;
    if (on_batch && !on_batch(result.batches)) break;
  }
  model.select({});
  const auto found = collector.finish({sites.linears.begin(), sites.linears.end()});
  // What the configuration says beside the linears (biases, copies, embeddings) starts as ever.
  result.adapter = make_adapter<T>(std::move(name), found->config(), sites, seed);
  result.adapter->for_each_module([&](const std::string& module, Lora<T>& lora) {
    if (const Lora<T>* start = found->find(ModuleId(module))) {
      std::copy_n(start->a().data(), lora.a().size(), lora.a().data());
    }
  });
  return result;
}

PEFT_END_NAMESPACE
