#pragma once
/// A linear layer whose weight stays packed in a few bits per element:
///   y = x·Wᵀ + bias;   x [n,in], W [out,in] a tensor that decodes parts of itself, bias [out], y [n,out]
/// Nothing is saved for backward: dx = dy·W. W is never materialised: a panel of it is decoded when the matrix product packs
/// the panel, once for all rows, forward from the rows of W and backward from their parts, out of the same bytes. Those are
/// the tensor's: a mapped file is computed on as it is. Sums are in float over the decoded values. Where the tensor can be made
/// of other values, an update is merged: decoded, added, quantised again.

#include <algorithm>
#include <concepts>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"
#include "peft/linear.hpp"
#include "peft/low_rank_merge.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/quantization_error.hpp"

PEFT_BEGIN_NAMESPACE

/// What a PackedLinear stands on: a matrix that decodes parts of its rows, at once in any number of threads. kLayer names the
/// layer in messages; operand() is what products of a few rows read directly, put into a panel source by give_operand().
template <class W>
concept PackedTensor = requires(const W& w, Index i, float* out, kernels::PanelFill& fill,
                                const typename W::operand_type& operand) {
  { W::kLayer } -> std::convertible_to<std::string_view>;
  { w.shape().size() } -> std::convertible_to<std::size_t>;
  { w.rows() } -> std::convertible_to<Index>;
  { w.cols() } -> std::convertible_to<Index>;
  w.decode(kernels::table(), i, i, i, out);  // of row i, elements [first, first + count)
  { w.operand() } -> std::convertible_to<typename W::operand_type>;
  w.give_operand(operand, fill);
};

/// One that other values can take the place of, in the same form.
template <class W>
concept RequantizableTensor = PackedTensor<W> && requires(const W& w, MatrixView<const float> values, ExecutorRef executor) {
  { w.requantized(values, executor) } -> std::same_as<W>;
};
/// One that may have a quicker way to a whole panel, and says whether it took it.
template <class W>
concept DecodesPanels = requires(const W& w, Index i, float* panel) {
  { w.decode_panel(kernels::table(), i, i, i, i, panel, i, true) } -> std::same_as<bool>;
};
/// Whether products over W may take their activations in 8 bits.
template <class W>
concept TakesInt8Activations = requires(const W& w, typename W::operand_type& operand) { w.take_int8_activations(operand); };

/// Activations in float, bf16 or f16. The weight is frozen: gradients go through it, not into it. All members may run in any
/// number of threads at once.
template <PackedTensor W>
class PackedLinear {
 public:
  using value_type = float;
  using accumulator_type = float;
  /// Activations that it takes.
  template <class T>
  static constexpr bool kTakes = Scalar<T> && !std::same_as<T, double>;

  /// `weight` is [out, in]; `bias` has out elements or none. Throws ShapeError.
  explicit PackedLinear(W weight, Buffer<float> bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    if (weight_.shape().size() != 2) {
      fail<ShapeError>("{}: the weight has {} dimensions; expected two, [out, in]", W::kLayer, weight_.shape().size());
    }
    if (!bias_.empty() && bias_.size() != out_features()) {
      fail<ShapeError>("{}: bias has {} elements; expected out_features = {} or none", W::kLayer, bias_.size(),
                       out_features());
    }
    take_operand();
  }

  /// From now on x is taken in 8 bits (kernels/int8_activations.hpp), for inference: faster, for 0.4 % more error beside that of
  /// NF4, and refused by backward. Throws ConfigError where rows do not begin with a block. Not while others compute.
  void use_int8_activations()
    requires TakesInt8Activations<W>
  {
    weight_.take_int8_activations(operand_);
    int8_activations_ = true;  // only now: rows may have been refused
  }
  bool has_int8_activations() const noexcept { return int8_activations_; }
  /// Throws ConfigError where gradients may not pass.
  void check_backward() const {
    if (!int8_activations_) return;
    fail<ConfigError>("{}: a gradient over activations in 8 bits, whose rounding has none; they are for inference: train "
                      "without use_int8_activations()",
                      W::kLayer);
  }

  Index in_features() const noexcept { return weight_.cols(); }
  Index out_features() const noexcept { return weight_.rows(); }
  const W& weight() const noexcept { return weight_; }
  VectorView<const float> bias() const noexcept { return bias_.view(); }

  /// y = x·Wᵀ + bias. Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void forward(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y,
               ExecutorRef executor = default_executor()) const {
    forward_low_rank<T>(x, {}, y, executor);
  }

  /// y = x·Wᵀ + bias + Σ scale·S·Bᵀ in one product with K = in + Σr. Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void forward_low_rank(std::type_identity_t<MatrixView<const T>> x, std::span<const LowRankTerm> terms, MatrixView<T> y,
                        ExecutorRef executor = default_executor()) const {
    detail::check_shape(W::kLayer, "x", x, x.rows, in_features());
    detail::check_shape(W::kLayer, "y", y, x.rows, out_features());
    detail::panel_forward<T>(*this, x, terms, y, executor);
  }

  /// dx (+)= dy·W. Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void backward_input(std::type_identity_t<MatrixView<const T>> dy, MatrixView<T> dx,
                      Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) const {
    detail::check_shape(W::kLayer, "dy", dy, dy.rows, out_features());
    detail::check_shape(W::kLayer, "dx", dx, dy.rows, in_features());
    detail::panel_backward<T>(*this, dy, {}, dx, mode, executor);
  }

  /// What merge() or rewrite() replaced, and what quantising the new weight lost of it.
  struct MergeUndo {
    W weight;
    Buffer<float> bias;  ///< of rewrite() with a bias
    bool has_bias = false;
    QuantizationError error{};
  };

  /// W := quantised(W + Σ scale·B·A), summed in float over the decoded values. The old bytes are kept in the result. Throws
  /// ShapeError, and NumericError where an element would not be finite; then nothing changed.
  [[nodiscard]] MergeUndo merge(std::span<const MergeTerm> terms, ExecutorRef executor = default_executor())
    requires RequantizableTensor<W>
  {
    LayerChange change;
    change.terms = terms;
    return rewrite(change, executor);
  }
  /// W := quantised(diag(row_gain)·W·diag(column_gain) + Σ scale·B·A), or of the change's own weight, and the bias. Throws as
  /// merge().
  [[nodiscard]] MergeUndo rewrite(const LayerChange& change, ExecutorRef executor = default_executor())
    requires RequantizableTensor<W>
  {
    constexpr std::string_view kWhere = "PackedLinear::rewrite";
    detail::check_change(change, out_features(), in_features(), kWhere);
    Matrix<float> values(out_features(), in_features());
    const kernels::KernelTable& t = kernels::table();
    detail::write_changed_rows<float>(change, values.view(), kWhere, executor, [&](Index first, MatrixView<float> rows) {
      for (Index i = 0; i < rows.rows; ++i) weight_.decode(t, first + i, 0, rows.cols, rows.row(i));
    });
    const MatrixView<const float> changed = std::as_const(values).view();
    W packed = weight_.requantized(changed, executor);
    MergeUndo undo{weight_, {}, false, quantization_error(changed, packed, executor)};
    weight_ = std::move(packed);
    take_operand();
    if (!change.bias.empty()) {
      Buffer<float> bias(out_features());
      std::copy(change.bias.begin(), change.bias.end(), bias.begin());
      undo.bias = std::exchange(bias_, std::move(bias));
      undo.has_bias = true;
    }
    return undo;
  }
  /// Brings back what merge() or rewrite() replaced, bit for bit.
  void restore(MergeUndo undo) noexcept
    requires RequantizableTensor<W>
  {
    if (undo.has_bias) bias_ = std::move(undo.bias);
    weight_ = std::move(undo.weight);
    take_operand();
  }

  /// The panels, and, for products of a few rows, the codes themselves, which are then decoded in registers.
  kernels::PanelFill panel_fill(Order order) const noexcept {
    kernels::PanelFill result;
    result.context = this;
    result.fill = order == Order::kForward ? fill<Order::kForward> : fill<Order::kBackward>;
    if (order == Order::kForward) weight_.give_operand(operand_, result);
    return result;
  }

  /// The weight a panel at a time; see PanelSource.
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, Order order) const {
    const kernels::KernelTable& t = kernels::table();
    if constexpr (DecodesPanels<W>) {
      if (weight_.decode_panel(t, n0, nc, k0, kc, panel, ld, order == Order::kForward)) return;
    }
    if (order == Order::kBackward) {
      for (Index k = 0; k < kc; ++k) weight_.decode(t, k0 + k, n0, nc, panel + k * ld);
      return;
    }
    // Rows of W are columns of the panel: decoded along the row, then turned round within the first cache.
    for (Index first = 0; first < nc; first += kTurn) {
      const Index rows = std::min(kTurn, nc - first);
      float* const decoded = kernels::scratch(kernels::ScratchSlot::kTile, rows * kc);
      for (Index j = 0; j < rows; ++j) weight_.decode(t, n0 + first + j, k0, kc, decoded + j * kc);
      t.pack_transposed(decoded, kc, DType::kF32, rows, rows, kc, panel + first, ld);
    }
  }

 private:
  void take_operand() {
    operand_ = weight_.operand();
    if constexpr (TakesInt8Activations<W>) {
      if (int8_activations_) weight_.take_int8_activations(operand_);
    }
  }
  template <Order order>
  static void fill(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
    static_cast<const PackedLinear*>(context)->fill_panel(n0, nc, k0, kc, panel, ld, order);
  }

  static constexpr Index kTurn = 32;  // at 256 deep 32 KiB

  W weight_;
  typename W::operand_type operand_;
  bool int8_activations_ = false;
  Buffer<float> bias_;
};

PEFT_END_NAMESPACE
