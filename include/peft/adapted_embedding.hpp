#pragma once
/// A host's embedding to which adapters attach by name:
///   x_i = table[id_i], or an adapter's own row for it, + Σ_a w_a·s_a·B_a·A_a[:, id_i]
/// Rows of an adapter count by its weight: table + w·(row − table). Nothing is saved for backward.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "peft/core/parallel.hpp"
#include "peft/lora_embedding.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/row_table.hpp"
#include "peft/selection.hpp"
#include "peft/trainable_tokens.hpp"
#include "peft/trained_embedding.hpp"

PEFT_BEGIN_NAMESPACE

/// The table [vocabulary, n] stays as it is stored. Forward and backward are const: what training changes are the gradients
/// inside the selection's adapters.
template <Scalar T>
class AdaptedEmbedding {
 public:
  using value_type = T;
  using A = Accumulator<T>;

  AdaptedEmbedding(std::string module_name, RowTable<T> table)
      : module_(std::move(module_name)), table_(std::move(table)) {}
  /// A table in memory that `keep_alive` owns.
  AdaptedEmbedding(std::string module_name, MatrixView<const T> table, std::shared_ptr<const void> keep_alive)
      : AdaptedEmbedding(std::move(module_name), RowTable<T>(table, std::move(keep_alive))) {}

  const std::string& name() const noexcept { return module_.name(); }
  const ModuleId& module() const noexcept { return module_; }
  const RowTable<T>& table() const noexcept { return table_; }
  Index vocabulary() const noexcept { return table_.rows(); }
  Index width() const noexcept { return table_.cols(); }

  /// x [tokens, n] is overwritten. Throws ShapeError, also for an id outside the table that no active adapter has a row for.
  void forward(VectorView<const std::int32_t> ids, MatrixView<T> x, const Selection<T>& selection,
               ExecutorRef executor) const {
    if (!has_rows(selection) && table_.is_in_memory()) {
      ops::embedding_forward<T, T>(ids, table_.view(), x, executor);
    } else {
      check_ids(ids, selection);
      ops::detail::check_shape("AdaptedEmbedding::forward", "x", x, ids.size, width());
      parallel_for_ranges(executor, ids.size, 64, [&](Index first, Index last) {
        Buffer<A> base(width()), row(width());
        for (Index i = first; i < last; ++i) write_row(ids[i], selection, base.view(), row.view(), x.row(i));
      });
    }
    selection.template for_each_part<LoraEmbedding<T>>(module_, [&](const LoraEmbedding<T>& lora, const auto& active) {
      lora.add_forward(ids, active.weight, x, executor);
    });
  }

  /// Adds to the gradients of the selection's parts; dx [tokens, n]. Throws ShapeError.
  void backward(VectorView<const std::int32_t> ids, MatrixView<const T> dx, const Selection<T>& selection,
                ExecutorRef executor) const {
    ops::detail::check_shape("AdaptedEmbedding::backward", "dx", dx, ids.size, width());
    selection.template for_each_part<TrainedEmbedding<T>>(module_, [&](TrainedEmbedding<T>& own, const auto& active) {
      if (!own.table().is_trained()) return;
      for (Index i = 0; i < ids.size; ++i) {
        if (ids[i] < own.table().value().rows()) add_row(own.table().grad().row(ids[i]), dx.row(i), active.weight);
      }
    });
    selection.template for_each_part<TrainableTokens<T>>(module_, [&](TrainableTokens<T>& own, const auto& active) {
      for (Index i = 0; i < ids.size; ++i) {
        const Index place = own.shared()->place_of(ids[i]);
        if (place >= 0) add_row(own.rows().grad().row(place), dx.row(i), active.weight);
      }
    });
    selection.template for_each_part<LoraEmbedding<T>>(module_, [&](LoraEmbedding<T>& lora, const auto& active) {
      lora.backward(ids, active.weight, dx, executor);
    });
  }

  /// Whether backward has something to add to: a part that is trained.
  bool is_trained(const Selection<T>& selection) const {
    bool any = false;
    selection.template for_each_part<TrainedEmbedding<T>>(
        module_, [&any](const TrainedEmbedding<T>& own, const auto&) { any = any || own.table().is_trained(); });
    selection.template for_each_part<TrainableTokens<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    selection.template for_each_part<LoraEmbedding<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    return any;
  }
  /// Whether the selection has a part on this embedding.
  bool is_adapted(const Selection<T>& selection) const {
    bool any = has_rows(selection);
    selection.template for_each_part<LoraEmbedding<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    return any;
  }

 private:
  bool has_rows(const Selection<T>& selection) const {
    bool any = false;
    selection.template for_each_part<TrainedEmbedding<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    selection.template for_each_part<TrainableTokens<T>>(module_, [&any](const auto&, const auto&) { any = true; });
    return any;
  }
  void check_ids(VectorView<const std::int32_t> ids, const Selection<T>& selection) const {
    Index rows = vocabulary();
    selection.template for_each_part<TrainedEmbedding<T>>(
        module_, [&rows](const TrainedEmbedding<T>& own, const auto&) { rows = std::max(rows, own.table().value().rows()); });
    ops::detail::check_ids(name().c_str(), ids, rows);
  }
  /// `base` and `row`: memory for a row each.
  void write_row(std::int32_t id, const Selection<T>& selection, VectorView<A> base, VectorView<A> row, T* out) const {
    if (id < vocabulary()) {
      table_.read_row(id, base.data);
    } else {
      std::fill(base.begin(), base.end(), A(0));
    }
    std::copy(base.begin(), base.end(), row.begin());
    bool is_first = true;
    const auto mix = [&](const A* own, double weight) {
      const auto w = static_cast<A>(weight);
      const bool take = std::exchange(is_first, false) && w == A(1);
      for (Index j = 0; j < row.size; ++j) row[j] = take ? own[j] : row[j] + rounded(w * rounded(own[j] - base[j]));
    };
    selection.template for_each_part<TrainedEmbedding<T>>(module_, [&](const TrainedEmbedding<T>& own, const auto& active) {
      if (id < own.table().value().rows()) mix(own.table().value().row(id), active.weight);
    });
    selection.template for_each_part<TrainableTokens<T>>(module_, [&](TrainableTokens<T>& own, const auto& active) {
      const Index place = own.shared()->place_of(id);
      if (place >= 0) mix(own.rows().value().row(place), active.weight);
    });
    for (Index j = 0; j < row.size; ++j) out[j] = static_cast<T>(row[j]);
  }
  void add_row(A* grad, const T* dx, double weight) const noexcept {
    for (Index j = 0; j < width(); ++j) grad[j] += rounded(static_cast<A>(weight) * static_cast<A>(dx[j]));
  }

  ModuleId module_;
  RowTable<T> table_;
};

PEFT_END_NAMESPACE
