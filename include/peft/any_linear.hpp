#pragma once
/// Any linear layer behind one type: what a host's modules hold when their storage is chosen at run time, and what an
/// AdaptedLinear stands on. Every refinement of the layer inside is used where it is present and asked for by name
/// (has_panels(), can_train(), can_merge()). One virtual call per product; nothing is saved.

#include <concepts>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "peft/core/parallel.hpp"
#include "peft/core/type_key.hpp"
#include "peft/error.hpp"
#include "peft/linear.hpp"
#include "peft/low_rank_merge.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/quantization_error.hpp"
#include "peft/weight_rows.hpp"

PEFT_BEGIN_NAMESPACE

/// What AnyLinear::merge replaced: the undo of the layer inside.
class AnyMergeUndo {
 public:
  AnyMergeUndo() = default;
  bool is_empty() const noexcept { return state_ == nullptr; }
  const std::shared_ptr<void>& state() const noexcept { return state_; }
  /// What quantising the new weight lost of it; none where the layer's weight is not quantised.
  const std::optional<QuantizationError>& error() const noexcept { return error_; }

  /// Of the undo of a layer, with the error that it tells.
  template <class Undo>
  static AnyMergeUndo of(Undo undo) {
    AnyMergeUndo result;
    if constexpr (requires { QuantizationError(undo.error); }) result.error_ = undo.error;
    result.state_ = std::make_shared<Undo>(std::move(undo));
    return result;
  }

 private:
  std::shared_ptr<void> state_;
  std::optional<QuantizationError> error_{};
};

/// Owns a layer that models LinearLike<L, T>, or refers to a host's (borrow). Movable.
template <Scalar T>
class AnyLinear {
  using A = Accumulator<T>;

 public:
  using value_type = T;

  template <class L>
    requires(!std::same_as<std::remove_cvref_t<L>, AnyLinear> && LinearLike<std::remove_cvref_t<L>, T> &&
             !std::is_lvalue_reference_v<L>)
  AnyLinear(L&& layer)  // NOLINT(google-explicit-constructor): made to be given a layer
      : layer_(std::make_unique<Owned<std::remove_cvref_t<L>>>(std::move(layer))) {}

  /// Refers to `layer`, which must outlive this.
  template <LinearLike<T> L>
  static AnyLinear borrow(L& layer) {
    return AnyLinear(std::make_unique<Borrowed<L>>(layer));
  }

  Index in_features() const { return layer_->in_features(); }
  Index out_features() const { return layer_->out_features(); }

  /// y = x·Wᵀ + bias.
  void forward(MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor = default_executor()) const {
    layer_->forward_low_rank(x, {}, y, executor);
  }
  /// y = x·Wᵀ + bias + Σ scale·S·Bᵀ.
  void forward_low_rank(MatrixView<const T> x, std::span<const BasicLowRankTerm<A>> terms, MatrixView<T> y,
                        ExecutorRef executor) const {
    layer_->forward_low_rank(x, terms, y, executor);
  }
  /// dx (+)= dy·W + Σ mask ∘ (dS·A). Throws ConfigError where the layer can only run forward.
  void backward_low_rank(MatrixView<const T> dy, std::span<const BasicInputGradTerm<A>> terms, MatrixView<T> dx,
                         Accumulate mode, ExecutorRef executor) const {
    layer_->backward_low_rank(dy, terms, dx, mode, executor);
  }
  /// dx (+)= dy·W. Throws ConfigError where the layer can only run forward.
  void backward_input(MatrixView<const T> dy, MatrixView<T> dx, Accumulate mode = Accumulate::kOverwrite,
                      ExecutorRef executor = default_executor()) const {
    layer_->backward_low_rank(dy, {}, dx, mode, executor);
  }

  /// Whether the layer is a PanelSource.
  bool has_panels() const noexcept { return layer_->has_panels(); }
  /// Whether it is a PanelSource or a BackwardLinear.
  bool can_train() const noexcept { return layer_->can_train(); }
  bool can_merge() const noexcept { return layer_->can_merge(); }
  /// Whether it takes any change in place (RewritableLinear).
  bool can_rewrite() const noexcept { return layer_->can_rewrite(); }
  /// Whether a weight that merge() or rewrite() makes is quantised, and their undo says what that lost.
  bool requantizes() const noexcept { return layer_->requantizes(); }
  /// Whether its weight can be read (ReadableWeight).
  bool can_read() const noexcept { return layer_->can_read(); }
  bool has_weight_grad() const noexcept { return layer_->has_weight_grad(); }

  /// W += Σ scale·B·A in place. Throws ConfigError where the layer is no MergeableLinear.
  [[nodiscard]] AnyMergeUndo merge(std::span<const BasicMergeTerm<A>> terms) { return layer_->merge(terms); }
  /// W and bias as `change` says, in place. Throws ConfigError where the layer is no RewritableLinear.
  [[nodiscard]] AnyMergeUndo rewrite(const BasicLayerChange<A>& change) { return layer_->rewrite(change); }
  /// rows [count, in] = W's rows [first, first + count). Throws ConfigError where the layer is no ReadableWeight.
  void read_weight_rows(Index first, MatrixView<A> rows) const { layer_->read_weight_rows(first, rows); }
  /// The bias [out]; empty where there is none.
  Buffer<A> read_bias() const { return layer_->read_bias(); }
  /// Brings back what merge() or rewrite() replaced.
  void restore(AnyMergeUndo undo) { layer_->restore(undo.state().get()); }
  /// A merged copy in float; the layer stays as it is. Throws ConfigError where the layer is no PanelSource.
  Matrix<float> merged_weight(std::span<const MergeTerm> terms, ExecutorRef executor = default_executor()) const {
    return layer_->merged_weight(terms, executor);
  }
  /// A copy of the weight after `change`. Throws ConfigError where the layer is no ReadableWeight, NumericError.
  Matrix<A> changed_weight(const BasicLayerChange<A>& change, ExecutorRef executor = default_executor()) const {
    return layer_->changed_weight(change, executor);
  }
  /// dW += dyᵀ·x. Throws ConfigError where the layer has no WeightGrad.
  void backward_weight(MatrixView<const T> dy, MatrixView<const T> x) { layer_->backward_weight(dy, x); }

  /// The layer inside, where it is an L; else nullptr.
  template <class L>
  L* get_if() noexcept {
    return static_cast<L*>(layer_->address(detail::type_key<L>()));
  }
  template <class L>
  const L* get_if() const noexcept {
    return static_cast<const L*>(layer_->address(detail::type_key<L>()));
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index in_features() const = 0;
    virtual Index out_features() const = 0;
    virtual void forward_low_rank(MatrixView<const T>, std::span<const BasicLowRankTerm<A>>, MatrixView<T>,
                                  ExecutorRef) const = 0;
    virtual void backward_low_rank(MatrixView<const T>, std::span<const BasicInputGradTerm<A>>, MatrixView<T>,
                                   Accumulate, ExecutorRef) const = 0;
    virtual bool has_panels() const noexcept = 0;
    virtual bool can_train() const noexcept = 0;
    virtual bool can_merge() const noexcept = 0;
    virtual bool has_weight_grad() const noexcept = 0;
    virtual AnyMergeUndo merge(std::span<const BasicMergeTerm<A>>) = 0;
    virtual void restore(void*) = 0;
    virtual Matrix<float> merged_weight(std::span<const MergeTerm>, ExecutorRef) const = 0;
    virtual void backward_weight(MatrixView<const T>, MatrixView<const T>) = 0;
    virtual bool can_rewrite() const noexcept = 0;
    virtual AnyMergeUndo rewrite(const BasicLayerChange<A>&) = 0;
    virtual bool requantizes() const noexcept = 0;
    virtual bool can_read() const noexcept = 0;
    virtual void read_weight_rows(Index, MatrixView<A>) const = 0;
    virtual Buffer<A> read_bias() const = 0;
    virtual Matrix<A> changed_weight(const BasicLayerChange<A>&, ExecutorRef) const = 0;
    virtual void* address(const void* key) noexcept = 0;
  };

  template <class L>
  struct Model : Interface {
    static constexpr bool kPanels = PanelSource<L> && !std::same_as<T, double>;
    static constexpr bool kTrain = TrainableBase<L, T> || detail::FusedInputGrad<L, T>;

    virtual L& layer() const noexcept = 0;

    Index in_features() const final { return static_cast<Index>(layer().in_features()); }
    Index out_features() const final { return static_cast<Index>(layer().out_features()); }
    void forward_low_rank(MatrixView<const T> x, std::span<const BasicLowRankTerm<A>> terms, MatrixView<T> y,
                          ExecutorRef executor) const final {
      if (terms.empty()) {
        if constexpr (ExecutorForward<L, T> || !kPanels) {
          detail::plain_forward<T>(std::as_const(layer()), x, y, executor);
          return;
        }
      }
      peft::forward_low_rank<T>(std::as_const(layer()), x, terms, y, executor);
    }
    void backward_low_rank(MatrixView<const T> dy, std::span<const BasicInputGradTerm<A>> terms, MatrixView<T> dx,
                           Accumulate mode, ExecutorRef executor) const final {
      if constexpr (kTrain) {
        peft::backward_low_rank<T>(std::as_const(layer()), dy, terms, dx, mode, executor);
      } else {
        fail<ConfigError>("AnyLinear::backward: the [{}, {}] layer inside can only run forward; training over it needs "
                          "peft::PanelSource (fill_panel and bias) or peft::BackwardLinear (backward_input)",
                          out_features(), in_features());
      }
    }
    bool has_panels() const noexcept final { return kPanels; }
    bool can_train() const noexcept final { return kTrain; }
    bool can_merge() const noexcept final { return MergeableLinear<L, T>; }
    bool has_weight_grad() const noexcept final { return WeightGrad<L, T>; }
    AnyMergeUndo merge(std::span<const BasicMergeTerm<A>> terms) final {
      if constexpr (MergeableLinear<L, T>) {
        return AnyMergeUndo::of(layer().merge(terms));
      } else {
        fail<ConfigError>("AnyLinear::merge: the [{}, {}] layer inside cannot take an update in place; expected a "
                          "peft::MergeableLinear (merge and restore)",
                          out_features(), in_features());
      }
    }
    void restore(void* undo) final {
      if constexpr (MergeableLinear<L, T>) {
        using Undo = decltype(layer().merge(std::span<const BasicMergeTerm<A>>{}));
        if (undo != nullptr) layer().restore(std::move(*static_cast<Undo*>(undo)));
      }
    }
    Matrix<float> merged_weight(std::span<const MergeTerm> terms, ExecutorRef executor) const final {
      if constexpr (kPanels) {
        return peft::merged_weight(std::as_const(layer()), terms, executor);
      } else {
        fail<ConfigError>("AnyLinear::merged_weight: the [{}, {}] layer inside does not show its weight; expected a "
                          "peft::PanelSource (fill_panel and bias)",
                          out_features(), in_features());
      }
    }
    void backward_weight(MatrixView<const T> dy, MatrixView<const T> x) final {
      if constexpr (WeightGrad<L, T>) {
        layer().backward_weight(dy, x);
      } else {
        fail<ConfigError>("AnyLinear::backward_weight: the [{}, {}] layer inside keeps no weight gradient; expected a "
                          "peft::WeightGrad (backward_weight)",
                          out_features(), in_features());
      }
    }
    bool can_rewrite() const noexcept final { return RewritableLinear<L, T>; }
    AnyMergeUndo rewrite(const BasicLayerChange<A>& change) final {
      if constexpr (RewritableLinear<L, T>) {
        return AnyMergeUndo::of(layer().rewrite(change));
      } else {
        fail<ConfigError>("AnyLinear::rewrite: the [{}, {}] layer inside takes low-rank terms at most; expected a "
                          "peft::RewritableLinear (rewrite and restore) for an update with gains, a bias or a whole weight",
                          out_features(), in_features());
      }
    }
    bool requantizes() const noexcept final {
      return requires(L& l, const BasicLayerChange<A>& change) { QuantizationError(l.rewrite(change).error); };
    }
    bool can_read() const noexcept final { return ReadableWeight<L, T>; }
    void read_weight_rows(Index first, MatrixView<A> rows) const final {
      if constexpr (ReadableWeight<L, T>) {
        peft::read_weight_rows<T>(std::as_const(layer()), first, rows);
      } else {
        fail<ConfigError>("AnyLinear::read_weight_rows: the [{}, {}] layer inside does not show its weight; expected a "
                          "peft::PanelSource (fill_panel and bias) or a peft::BackwardLinear (backward_input)",
                          out_features(), in_features());
      }
    }
    Matrix<A> changed_weight(const BasicLayerChange<A>& change, ExecutorRef executor) const final {
      if constexpr (ReadableWeight<L, T>) {
        return peft::changed_weight<T>(std::as_const(layer()), change, executor);
      } else {
        fail<ConfigError>("AnyLinear::changed_weight: the [{}, {}] layer inside does not show its weight; expected a "
                          "peft::PanelSource (fill_panel and bias) or a peft::BackwardLinear (backward_input)",
                          out_features(), in_features());
      }
    }
    Buffer<A> read_bias() const final { return peft::read_bias<T>(std::as_const(layer())); }
    void* address(const void* key) noexcept final {
      return key == detail::type_key<L>() ? static_cast<void*>(std::addressof(layer())) : nullptr;
    }
  };

  template <class L>
  struct Owned final : Model<L> {
    explicit Owned(L&& given) : held(std::move(given)) {}
    L& layer() const noexcept override { return held; }
    mutable L held;  // const access goes through std::as_const; merge and restore need the layer itself
  };

  template <class L>
  struct Borrowed final : Model<L> {
    explicit Borrowed(L& given) : held(given) {}
    L& layer() const noexcept override { return held; }
    L& held;
  };

  explicit AnyLinear(std::unique_ptr<Interface> layer) noexcept : layer_(std::move(layer)) {}

  std::unique_ptr<Interface> layer_;
};

PEFT_END_NAMESPACE
