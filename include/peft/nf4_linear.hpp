#pragma once
/// A linear layer whose weight has four bits per element:
///   y = x·Wᵀ + bias;   x [n,in], W [out,in] a FourBitTensor, bias [out], y [n,out]
/// Nothing is saved for backward: dx = dy·W. W is never materialised: a panel of it is decoded when the matrix product packs
/// the panel, once for all rows, forward from the rows of W and backward from their parts, out of the same bytes. Those are
/// the bytes of the tensor, in bitsandbytes' layout (four_bit_storage.hpp): a mapped checkpoint is computed on as it is.
/// Sums are in float over the dequantised values, which are bitsandbytes', bit for bit.

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/error.hpp"
#include "peft/kernels/scratch.hpp"
#include "peft/linear.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/nf4_tensor.hpp"

PEFT_BEGIN_NAMESPACE

/// Activations in float, bf16 or f16. The weight is frozen: gradients go through it, not into it. All members may run in any
/// number of threads at once.
template <FourBitCode kCode>
class FourBitLinear {
 public:
  using value_type = float;
  using accumulator_type = float;
  /// Activations that it takes.
  template <class T>
  static constexpr bool kTakes = Scalar<T> && !std::same_as<T, double>;

  /// `weight` is [out, in]; `bias` has out elements or none. Throws ShapeError.
  explicit FourBitLinear(FourBitTensor<kCode> weight, Buffer<float> bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    if (weight_.shape().size() != 2) {
      fail<ShapeError>("FourBitLinear: the weight has {} dimensions; expected two, [out, in]", weight_.shape().size());
    }
    if (!bias_.empty() && bias_.size() != out_features()) {
      fail<ShapeError>("FourBitLinear: bias has {} elements; expected out_features = {} or none", bias_.size(),
                       out_features());
    }
    operand_ = {weight_.storage().codes.data, kernels::table_of(kCode).value, weight_.scales(), weight_.block_size()};
  }

  Index in_features() const noexcept { return weight_.cols(); }
  Index out_features() const noexcept { return weight_.rows(); }
  const FourBitTensor<kCode>& weight() const noexcept { return weight_; }
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
    detail::check_shape("FourBitLinear::forward", "x", x, x.rows, in_features());
    detail::check_shape("FourBitLinear::forward", "y", y, x.rows, out_features());
    detail::panel_forward<T>(*this, x, terms, y, executor);
  }

  /// dx (+)= dy·W. Throws ShapeError.
  template <Scalar T>
    requires kTakes<T>
  void backward_input(std::type_identity_t<MatrixView<const T>> dy, MatrixView<T> dx,
                      Accumulate mode = Accumulate::kOverwrite, ExecutorRef executor = default_executor()) const {
    detail::check_shape("FourBitLinear::backward_input", "dy", dy, dy.rows, out_features());
    detail::check_shape("FourBitLinear::backward_input", "dx", dx, dy.rows, in_features());
    detail::panel_backward<T>(*this, dy, {}, dx, mode, executor);
  }

  /// The panels, and, for products of a few rows, the codes themselves, which are then decoded in registers.
  kernels::PanelFill panel_fill(Order order) const noexcept {
    kernels::PanelFill result;
    result.context = this;
    result.fill = order == Order::kForward ? fill<Order::kForward> : fill<Order::kBackward>;
    if (order == Order::kForward && in_features() % weight_.block_size() == 0) result.four_bit = &operand_;
    return result;
  }

  /// The weight a panel at a time; see PanelSource.
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, Order order) const {
    const kernels::KernelTable& t = kernels::table();
    const kernels::FourBitTable& table = kernels::table_of(kCode);
    const std::uint8_t* const codes = weight_.storage().codes.data;
    const kernels::BlockScales scales = weight_.scales();
    const Index in = in_features(), block = weight_.block_size();
    if (order == Order::kBackward) {
      for (Index k = 0; k < kc; ++k) {
        kernels::dequantize_four_bit_range(t, table, codes, scales, block, (k0 + k) * in + n0, nc, panel + k * ld);
      }
      return;
    }
    // Rows of W are columns of the panel: decoded along the row, then turned round within the first cache.
    for (Index first = 0; first < nc; first += kTurn) {
      const Index rows = std::min(kTurn, nc - first);
      float* const decoded = kernels::scratch(kernels::ScratchSlot::kTile, rows * kc);
      for (Index j = 0; j < rows; ++j) {
        kernels::dequantize_four_bit_range(t, table, codes, scales, block, (n0 + first + j) * in + k0, kc, decoded + j * kc);
      }
      t.pack_transposed(decoded, kc, DType::kF32, rows, rows, kc, panel + first, ld);
    }
  }

 private:
  template <Order order>
  static void fill(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
    static_cast<const FourBitLinear*>(context)->fill_panel(n0, nc, k0, kc, panel, ld, order);
  }

  static constexpr Index kTurn = 32;  // at 256 deep 32 KiB

  FourBitTensor<kCode> weight_;
  kernels::FourBitOperand operand_;
  Buffer<float> bias_;
};

using Nf4Linear = FourBitLinear<FourBitCode::kNf4>;
using Fp4Linear = FourBitLinear<FourBitCode::kFp4>;

PEFT_END_NAMESPACE
