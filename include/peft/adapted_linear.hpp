#pragma once
/// A linear layer of a host to which adapters attach by name:
///   y = base(x) + Σ_a w_a·s_a·(x̃_a·A_aᵀ)·B_aᵀ   over the active adapters a that adapt this module
/// Saved for backward: S_a [n, r_a] and the dropout's key per adapter; x stays the host's. Each module and each adapter
/// has its own dropout mask, as in Python PEFT.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/parallel.hpp"
#include "peft/lora.hpp"
#include "peft/selection.hpp"

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

  /// What a training forward leaves for backward: one entry per active adapter of this module. Reuse it.
  struct Saved {
    std::vector<typename Lora<T>::Saved> adapters;
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
  /// then no base product is run. dx may be x's own memory. x, `saved` and `context` are those of the forward.
  /// Throws ShapeError; ConfigError where dx is wanted of a base that can only run forward.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, const Saved& saved, MatrixView<T> dx, Accumulate mode,
                const TrainContext<T>& context, ExecutorRef executor) const {
    check(x, "dy", dy);
    if (dx.data != nullptr) detail::check_shape(name(), "dx", dx, x.rows, x.cols);
    if (dx.data != nullptr && !base_.can_train()) {
      fail<ConfigError>(
          "{}: its base layer can only run forward; the gradient of its input needs peft::PanelSource (fill_panel "
          "and bias) or peft::BackwardLinear (backward_input)",
          name());
    }
    std::vector<Step> steps;
    Index total_rank = 0;
    context.selection.for_each_on(module_, [&](Lora<T>& lora, double weight, std::size_t) {
      steps.push_back({&lora, weight, {}, {}});
      total_rank += lora.r();
    });
    if (steps.size() != saved.adapters.size()) {
      fail<ShapeError>("{}: backward got what a forward saved with {} adapters; expected {}, the selection's", name(),
                       saved.adapters.size(), steps.size());
    }
    Matrix<accumulator_type> ds(x.rows, total_rank);
    std::vector<BasicInputGradTerm<accumulator_type>> terms;
    Index column = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      Step& step = steps[i];
      const auto& kept = saved.adapters[i];
      detail::check_shape(name(), "S", kept.s.view(), x.rows, step.lora->r());
      step.mask = kept.dropout.bits(x.rows, x.cols, step.lora->dropout(), step.scratch, executor);
      const MatrixView<accumulator_type> own = ds.view().column_range(column, step.lora->r());
      step.lora->accumulate_gradients(dy, x, step.mask, kept.s.view(), step.weight, own, executor);
      terms.push_back({own, step.lora->a_view(), step.mask});
      column += step.lora->r();
    }
    if (dx.data != nullptr) base_.backward_low_rank(dy, terms, dx, mode, executor);
  }

  /// The terms by which the selection changes this module's weight: W + Σ scale·B·A.
  std::vector<BasicMergeTerm<accumulator_type>> merge_terms(const Selection<T>& selection) const {
    std::vector<BasicMergeTerm<accumulator_type>> terms;
    selection.for_each_on(module_, [&](Lora<T>& lora, double weight, std::size_t) {
      terms.push_back({lora.a_view(), lora.b_view(), static_cast<accumulator_type>(lora.scaling() * weight)});
    });
    return terms;
  }

 private:
  struct Step {
    Lora<T>* lora;
    double weight;
    kernels::MaskBits mask;
    Buffer<std::uint8_t> scratch;
  };

  void run_forward(MatrixView<const T> x, MatrixView<T> y, const Selection<T>& selection, Saved& saved,
                   const TrainContext<T>* training, ExecutorRef executor) const {
    check(x, "y", y);
    std::size_t count = 0;
    std::vector<BasicLowRankTerm<accumulator_type>> terms;
    const auto step = [&](Lora<T>& lora, double weight, std::size_t position) {
      if (saved.adapters.size() <= count) saved.adapters.emplace_back();
      typename Lora<T>::Saved& kept = saved.adapters[count++];
      kept.dropout =
          training != nullptr && training->dropout ? DropoutMask(dropout_key(*training, position)) : DropoutMask();
      kept.s.resize_discard(x.rows, lora.r());
      Buffer<std::uint8_t> scratch;
      lora.project(x, kept.dropout.bits(x.rows, x.cols, lora.dropout(), scratch, executor), kept.s.view(), executor);
      terms.push_back(lora.forward_term(std::as_const(kept.s).view(), weight));
    };
    if (!merged_) selection.for_each_on(module_, step);
    saved.adapters.resize(count);
    if (terms.empty()) {
      base_.forward(x, y, executor);
    } else {
      base_.forward_low_rank(x, terms, y, executor);
    }
  }

  /// The module's number in the key is its name's hash: the same masks however many modules are adapted. A second
  /// adapter on the module gets another.
  DropoutKey dropout_key(const TrainContext<T>& context, std::size_t position) const noexcept {
    const auto folded = static_cast<std::uint32_t>(module_.hash() ^ (module_.hash() >> 32));
    return {context.seed, context.step, folded + static_cast<std::uint32_t>(position) * 0x9E3779B9u, context.first_row};
  }

  template <class Y>
  void check(MatrixView<const T> x, std::string_view what, MatrixView<Y> y) const {
    detail::check_shape(name(), "x", x, x.rows, in_features());
    detail::check_shape(name(), what, y, x.rows, out_features());
  }

  ModuleId module_;
  AnyLinear<T> base_;
  bool merged_ = false;
};

static_assert(LinearLike<AdaptedLinear<float>> && LinearLike<AdaptedLinear<bf16>> && LinearLike<AdaptedLinear<double>>);

PEFT_END_NAMESPACE
