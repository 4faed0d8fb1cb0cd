#pragma once
/// A linear layer whose weight is plain memory, owned or mapped from a file:
///   y = x·Wᵀ + bias;   x [n,in], W [out,in] stored as W, bias [out], y [n,out]
/// Nothing is saved for backward: dx = dy·W, and, for full tuning, dW += dyᵀ·x (x is the caller's).

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/error.hpp"
#include "peft/linear.hpp"
#include "peft/low_rank_merge.hpp"
#include "peft/low_rank_product.hpp"

PEFT_BEGIN_NAMESPACE

/// Weights stored as W: float, bf16, f16 (activations in any of the three, sums in float) or double (activations in
/// double, plain loops: the reference). Has every refinement of LinearLike. forward and backward_input may run in any
/// number of threads at once; merge, restore and backward_weight may not run beside them.
template <Scalar W>
class DenseLinear {
  static constexpr bool kDouble = std::same_as<W, double>;

 public:
  using value_type = std::conditional_t<kDouble, double, float>;
  using weight_type = W;
  using accumulator_type = Accumulator<W>;
  /// Activations that it takes.
  template <class T>
  static constexpr bool kTakes = Scalar<T> && std::same_as<T, double> == kDouble;

  /// Owns `weight` [out, in]; `bias` has out elements or none. Throws ShapeError.
  explicit DenseLinear(Matrix<W> weight, Buffer<accumulator_type> bias = {})
      : owned_(std::move(weight)), weight_(std::as_const(owned_).view()), bias_(std::move(bias)) {
    check_bias();
  }
  /// Views `weight` [out, in] in memory that `keep_alive` owns (a mapped file). Throws ShapeError.
  DenseLinear(MatrixView<const W> weight, std::shared_ptr<const void> keep_alive, Buffer<accumulator_type> bias = {})
      : keep_alive_(std::move(keep_alive)), weight_(weight), bias_(std::move(bias)) {
    check_bias();
  }

  Index in_features() const noexcept { return weight_.cols; }
  Index out_features() const noexcept { return weight_.rows; }
  MatrixView<const W> weight() const noexcept { return weight_; }
  VectorView<const accumulator_type> bias() const noexcept { return bias_.view(); }
  /// Whether the weight stands in someone else's memory.
  bool is_mapped() const noexcept { return keep_alive_ != nullptr; }

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
  void forward_low_rank(std::type_identity_t<MatrixView<const T>> x,
                        std::span<const BasicLowRankTerm<accumulator_type>> terms, MatrixView<T> y,
                        ExecutorRef executor = default_executor()) const {
    detail::check_shape("DenseLinear::forward", "x", x, x.rows, in_features());
    detail::check_shape("DenseLinear::forward", "y", y, x.rows, out_features());
    if constexpr (kDouble) {
      for (Index i = 0; i < y.rows; ++i) {
        for (Index j = 0; j < y.cols; ++j) {
          double sum = bias_.empty() ? 0.0 : bias_[j];
          for (Index k = 0; k < x.cols; ++k) sum += x(i, k) * weight_(j, k);
          y(i, j) = sum;
        }
      }
      detail::add_terms<T>(x, terms, y, executor);
    } else {
      detail::panel_forward<T>(*this, x, terms, y, executor);
    }
  }

  /// dx (+)= dy·W. Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void backward_input(std::type_identity_t<MatrixView<const T>> dy, MatrixView<T> dx,
                      Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) const {
    detail::check_shape("DenseLinear::backward_input", "dy", dy, dy.rows, out_features());
    detail::check_shape("DenseLinear::backward_input", "dx", dx, dy.rows, in_features());
    if constexpr (kDouble) {
      for (Index i = 0; i < dx.rows; ++i) {
        for (Index k = 0; k < dx.cols; ++k) {
          double sum = mode == Accumulate::kAdd ? dx(i, k) : 0.0;
          for (Index j = 0; j < dy.cols; ++j) sum += dy(i, j) * weight_(j, k);
          dx(i, k) = sum;
        }
      }
    } else {
      detail::panel_backward<T>(*this, dy, {}, dx, mode, executor);
    }
  }

  /// dW += dyᵀ·x into weight_grad(). Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void backward_weight(MatrixView<const T> dy, std::type_identity_t<MatrixView<const T>> x,
                       ExecutorRef executor = default_executor()) {
    detail::check_shape("DenseLinear::backward_weight", "dy", dy, dy.rows, out_features());
    detail::check_shape("DenseLinear::backward_weight", "x", x, dy.rows, in_features());
    if (weight_grad_.empty()) weight_grad_ = Matrix<accumulator_type>::zeros(out_features(), in_features());
    if constexpr (kDouble) {
      for (Index j = 0; j < dy.cols; ++j) {
        for (Index k = 0; k < x.cols; ++k) {
          for (Index i = 0; i < dy.rows; ++i) weight_grad_(j, k) += dy(i, j) * x(i, k);
        }
      }
    } else {
      if (dy.empty() || x.empty()) return;
      kernels::GemmProblem problem;
      problem.m = dy.cols;
      problem.n = x.cols;
      problem.k = dy.rows;
      problem.a = detail::operand_of<T>(dy, true);
      problem.b = {&x, fill_from_view<T>, detail::operand_of<T>(x)};
      problem.accumulate = true;
      problem.c = weight_grad_.data();
      problem.c_stride = weight_grad_.cols();
      kernels::gemm(problem, executor);
    }
  }
  /// [out, in], or empty before the first backward_weight.
  Matrix<accumulator_type>& weight_grad() noexcept { return weight_grad_; }
  /// dbias += Σ dy over the rows, into bias_grad(). Throws ShapeError, also where there is no bias.
  template <Scalar T>
    requires kTakes<T>
  void backward_bias(MatrixView<const T> dy, ExecutorRef executor = default_executor()) {
    detail::check_shape("DenseLinear::backward_bias", "dy", dy, dy.rows, bias_.size());
    if (bias_grad_.empty()) bias_grad_ = Buffer<accumulator_type>::zeros(bias_.size());
    constexpr Index kColumns = 256;  // every column has one owner
    parallel_for_ranges(executor, dy.cols, kColumns, [&](Index first, Index last) {
      if constexpr (kDouble) {
        for (Index i = 0; i < dy.rows; ++i) {
          for (Index j = first; j < last; ++j) bias_grad_[j] += dy(i, j);
        }
      } else {
        const kernels::KernelTable& t = kernels::table();
        float row[kColumns];
        for (Index i = 0; i < dy.rows; ++i) {
          t.widen(last - first, dy.row(i) + first, dtype_of<T>(), row);
          t.add(last - first, row, bias_grad_.data() + first);
        }
      }
    });
  }
  /// [out], or empty before the first backward_bias.
  Buffer<accumulator_type>& bias_grad() noexcept { return bias_grad_; }

  /// The weight for writing (full tuning); one in someone else's memory is copied first, and that memory let go.
  MatrixView<W> writable_weight() {
    if (owned_.data() == nullptr || weight_.data != owned_.data()) {
      owned_ = Matrix<W>(weight_.rows, weight_.cols);
      for (Index i = 0; i < weight_.rows; ++i) std::copy_n(weight_.row(i), weight_.cols, owned_.row(i));
      weight_ = std::as_const(owned_).view();
      keep_alive_ = nullptr;
    }
    return owned_.view();
  }
  /// The bias for writing; empty where there is none.
  VectorView<accumulator_type> writable_bias() noexcept { return bias_.view(); }

  /// The weight a panel at a time; see PanelSource.
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, Order order) const noexcept
    requires(!kDouble)
  {
    if (order == Order::kForward) {
      fill<Order::kForward>(this, n0, nc, k0, kc, panel, ld);
    } else {
      fill<Order::kBackward>(this, n0, nc, k0, kc, panel, ld);
    }
  }
  /// The same with the storage named, so that the GEMM packs from it directly.
  kernels::PanelFill panel_fill(Order order) const noexcept
    requires(!kDouble)
  {
    const bool forward = order == Order::kForward;
    return {this, forward ? fill<Order::kForward> : fill<Order::kBackward>, detail::operand_of<W>(weight_, forward)};
  }

  /// What merge() replaced.
  struct MergeUndo {
    Matrix<W> owned;
    std::shared_ptr<const void> keep_alive;
    MatrixView<const W> weight;
    Buffer<accumulator_type> bias;  ///< of rewrite() with a bias
    bool has_bias = false;
  };

  /// W += Σ scale·B·A, rounded once to W. The old weight is kept whole in the result: owned memory is moved there,
  /// mapped memory referred to. Throws ShapeError, and NumericError where an element would not be finite; then nothing
  /// changed.
  [[nodiscard]] MergeUndo merge(std::span<const BasicMergeTerm<accumulator_type>> terms,
                                ExecutorRef executor = default_executor()) {
    Matrix<W> merged(out_features(), in_features());
    const std::size_t row_bytes = static_cast<std::size_t>(in_features()) * sizeof(W);
    parallel_for_ranges(executor, row_bytes > 0 ? out_features() : 0, detail::kMergeRows, [&](Index first, Index last) {
      for (Index j = first; j < last; ++j) std::memcpy(static_cast<void*>(merged.row(j)), weight_.row(j), row_bytes);
    });
    detail::add_merge_terms<W>(terms, merged.view(), "DenseLinear::merge", executor);
    MergeUndo undo{std::move(owned_), std::move(keep_alive_), weight_, {}, false};
    owned_ = std::move(merged);
    keep_alive_ = nullptr;
    weight_ = std::as_const(owned_).view();
    return undo;
  }
  /// W' = diag(row_gain)·W·diag(column_gain) + Σ scale·B·A and the bias, rounded once to W; the old weight and bias are
  /// kept in the result. Throws as merge().
  [[nodiscard]] MergeUndo rewrite(const BasicLayerChange<accumulator_type>& change,
                                  ExecutorRef executor = default_executor()) {
    detail::check_change(change, out_features(), in_features(), "DenseLinear::rewrite");
    Matrix<W> merged(out_features(), in_features());
    detail::write_changed_rows<W>(
        change, merged.view(), "DenseLinear::rewrite", executor,
        [this](Index first, MatrixView<accumulator_type> rows) {
          for (Index i = 0; i < rows.rows; ++i) {
            for (Index k = 0; k < rows.cols; ++k) rows(i, k) = static_cast<accumulator_type>(weight_(first + i, k));
          }
        });
    MergeUndo undo{std::move(owned_), std::move(keep_alive_), weight_, {}, false};
    owned_ = std::move(merged);
    keep_alive_ = nullptr;
    weight_ = std::as_const(owned_).view();
    if (!change.bias.empty()) {
      Buffer<accumulator_type> bias(out_features());
      std::copy(change.bias.begin(), change.bias.end(), bias.begin());
      undo.bias = std::exchange(bias_, std::move(bias));
      undo.has_bias = true;
    }
    return undo;
  }
  /// Brings back what merge() or rewrite() replaced, bit for bit.
  void restore(MergeUndo undo) noexcept {
    if (undo.has_bias) bias_ = std::move(undo.bias);
    owned_ = std::move(undo.owned);
    keep_alive_ = std::move(undo.keep_alive);
    weight_ = undo.weight;
  }

 private:
  void check_bias() const {
    if (!bias_.empty() && bias_.size() != out_features()) {
      fail<ShapeError>("DenseLinear: bias has {} elements; expected out_features = {} or none", bias_.size(),
                       out_features());
    }
    detail::check_shape("DenseLinear", "weight", weight_, weight_.rows, weight_.cols);
  }

  template <Order order>
  static void fill(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
    const MatrixView<const W>& w = static_cast<const DenseLinear*>(context)->weight_;
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) {
        panel[i * ld + j] = static_cast<float>(order == Order::kForward ? w(n0 + j, k0 + i) : w(k0 + i, n0 + j));
      }
    }
  }

  template <Scalar T>
  static void fill_from_view(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
    const auto& view = *static_cast<const MatrixView<const T>*>(context);
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) panel[i * ld + j] = static_cast<float>(view(k0 + i, n0 + j));
    }
  }

  Matrix<W> owned_;
  std::shared_ptr<const void> keep_alive_;
  MatrixView<const W> weight_;
  Buffer<accumulator_type> bias_;
  Matrix<accumulator_type> weight_grad_;
  Buffer<accumulator_type> bias_grad_;
};

PEFT_END_NAMESPACE
