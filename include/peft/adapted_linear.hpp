#pragma once
/// A linear layer of a host to which adapters attach by name:
///   y = base(x) + Σ_a w_a·s_a·(x̃_a·A_aᵀ)·B_aᵀ   over the active adapters a that adapt this module
/// and likewise for updates of other kinds than low-rank terms: docs/METHODS.md. Saved for backward: S_a [n, r_a] and the
/// dropout's key per adapter; x stays the host's. Each module and each adapter has its own dropout mask, as in Python
/// PEFT.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/parallel.hpp"
#include "peft/lora.hpp"
#include "peft/selection.hpp"
#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE

/// What a training step tells every layer.
template <Scalar T>
struct TrainContext {
  Selection<T> selection{};
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  Index first_row = 0;  ///< row of the accumulated batch that the first row of x stands for
  bool dropout = true;  ///< false: evaluation
};

/// A base layer with a module path. Models LinearLike itself. Forward and backward are const: what training changes are
/// the gradients inside the selection's adapters, so one thread trains an adapter at a time.
template <Scalar T>
class AdaptedLinear {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// What a training forward leaves for backward: one entry per active update of this module. Reuse it.
  struct Saved {
    std::vector<UpdateSaved<T>> adapters;
    PassSaved<T> pass;
  };

  AdaptedLinear(std::string module_name, AnyLinear<T> base) : module_(std::move(module_name)), base_(std::move(base)) {}

  Index in_features() const { return base_.in_features(); }
  Index out_features() const { return base_.out_features(); }
  const std::string& name() const noexcept { return module_.name(); }
  const ModuleId& module() const noexcept { return module_; }
  AnyLinear<T>& base() noexcept { return base_; }
  const AnyLinear<T>& base() const noexcept { return base_; }
  /// Whether adapters stand in the base weight itself (merge_adapter): forward then is the base's, as in PEFT.
  bool is_merged() const noexcept { return merged_; }
  void set_merged(bool merged) noexcept { merged_ = merged; }

  /// With the selection of the calling thread's SelectionScope, on the default executor.
  void forward(MatrixView<const T> x, MatrixView<T> y) const {
    forward(x, y, SelectionScope<T>::current(), default_executor());
  }

  /// Inference: no dropout, nothing is kept. Throws ShapeError.
  void forward(MatrixView<const T> x, MatrixView<T> y, const Selection<T>& selection, ExecutorRef executor) const {
    Saved scratch;
    run_forward(x, y, selection, scratch, nullptr, executor);
  }

  /// Training. Throws ShapeError; ConfigError where the base holds merged adapters.
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const TrainContext<T>& context,
               ExecutorRef executor) const {
    if (merged_) fail<ConfigError>("{}: adapters are merged into its weight; unmerge before training", name());
    run_forward(x, y, context.selection, saved, &context, executor);
  }

  /// Adds to the gradients of the selection's adapters; dx (+)= the input's gradient, or nothing where dx.data is null:
  /// then no base product is run. dx may be x's own memory. x, `saved` and `context` are those of the forward; where no
  /// adapter is on the module, nothing reads x, and its data may be null.
  /// Throws ShapeError; ConfigError where dx is wanted of a base that can only run forward.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, const Saved& saved, MatrixView<T> dx, Accumulate mode,
                const TrainContext<T>& context, ExecutorRef executor) const {
    const std::vector<detail::ActiveUpdate<T>> active = updates_of(context.selection, &context);
    if (x.data != nullptr || !active.empty()) detail::check_shape(name(), "x", x, x.rows, in_features());
    detail::check_shape(name(), "dy", dy, x.rows, out_features());
    if (dx.data != nullptr) detail::check_shape(name(), "dx", dx, x.rows, in_features());
    if (dx.data != nullptr && !base_.can_train()) {
      fail<ConfigError>(
          "{}: its base layer can only run forward; the gradient of its input needs peft::PanelSource (fill_panel "
          "and bias) or peft::BackwardLinear (backward_input)",
          name());
    }
    if (active.size() != saved.adapters.size()) {
      fail<ShapeError>("{}: backward got what a forward saved with {} adapters; expected {}, the selection's", name(),
                       saved.adapters.size(), active.size());
    }
    for (std::size_t i = 0; i < active.size(); ++i) {
      if (active[i].update->rank() > 0) {
        detail::check_shape(name(), "S", saved.adapters[i].s.view(), x.rows, active[i].update->rank());
      }
    }
    detail::UpdatePass<T>(base_, active, name(), executor).backward(dy, x, saved.adapters, saved.pass, dx, mode);
  }

  /// Whether the selection has an update for this module.
  bool is_adapted(const Selection<T>& selection) const {
    bool any = false;
    selection.for_each_on(module_, [&any](detail::LinearUpdate<T>&, const auto&, std::size_t) { any = true; });
    return any;
  }
  /// The selection's updates of this module, without dropout.
  std::vector<detail::ActiveUpdate<T>> updates_of(const Selection<T>& selection) const {
    return updates_of(selection, nullptr);
  }
  /// How the selection changes this module's weight and bias; it owns what its view() views. Throws ConfigError for an aLoRA,
  /// which is in no weight.
  detail::OwnedChange<T> merge_change(const Selection<T>& selection, ExecutorRef executor = default_executor()) const {
    for (const auto& entry : selection.active()) {
      const LoraConfig* config = entry.adapter->template config_as<LoraConfig>();
      if (config == nullptr || config->alora_invocation_tokens.empty() || entry.adapter->find(module_) == nullptr) continue;
      fail<ConfigError>("{}: adapter \"{}\" acts from its invocation tokens on; expected one that acts everywhere to merge it",
                        name(), entry.adapter->name());
    }
    const auto active = updates_of(selection);
    return detail::UpdatePass<T>(base_, active, name(), executor).change();
  }

 private:
  std::vector<detail::ActiveUpdate<T>> updates_of(const Selection<T>& selection, const TrainContext<T>* training) const {
    std::vector<detail::ActiveUpdate<T>> active;
    selection.for_each_on(module_, [&](detail::LinearUpdate<T>& update, const auto& entry, std::size_t position) {
      detail::ActiveUpdate<T> one{&update, entry.weight, {}, {}};
      if (training != nullptr && training->dropout) one.dropout = DropoutMask(dropout_key(*training, position));
      if (entry.rows != nullptr) one.rows = *entry.rows;
      active.push_back(one);
    });
    return active;
  }

  void run_forward(MatrixView<const T> x, MatrixView<T> y, const Selection<T>& selection, Saved& saved,
                   const TrainContext<T>* training, ExecutorRef executor) const {
    detail::check_shape(name(), "x", x, x.rows, in_features());
    detail::check_shape(name(), "y", y, x.rows, out_features());
    std::vector<detail::ActiveUpdate<T>> active;
    if (!merged_) active = updates_of(selection, training);
    saved.adapters.resize(active.size());
    if (active.empty()) {
      base_.forward(x, y, executor);
    } else {
      detail::UpdatePass<T>(base_, active, name(), executor).forward(x, y, saved.adapters, saved.pass, training != nullptr);
    }
  }

  /// The module's number in the key is its name's hash: the same masks however many modules are adapted. A second
  /// adapter on the module gets another.
  DropoutKey dropout_key(const TrainContext<T>& context, std::size_t position) const noexcept {
    const auto folded = static_cast<std::uint32_t>(module_.hash() ^ (module_.hash() >> 32));
    return {context.seed, context.step, folded + static_cast<std::uint32_t>(position) * 0x9E3779B9u, context.first_row};
  }

  ModuleId module_;
  AnyLinear<T> base_;
  bool merged_ = false;
};

static_assert(LinearLike<AdaptedLinear<float>> && LinearLike<AdaptedLinear<bf16>> && LinearLike<AdaptedLinear<double>>);

PEFT_END_NAMESPACE
