#pragma once
/// A linear layer whose weight stands in the GPU's memory as T: y = x·Wᵀ + bias; W [out, in], bias [out].
/// W may have spare columns, in which one adapter's s·B stands: one product over in + r columns is then the adapted layer.
/// Models DeviceLinearLike and every refinement.

#include <span>
#include <utility>

#include "peft/cuda/context.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/linear_terms.hpp"
#include "peft/cuda/lora_launch.hpp"
#include "peft/cuda/lora_route.hpp"
#include "peft/cuda/transfer.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// T: float, f16 or bf16. Movable. Forward passes of several contexts may run at once.
template <Scalar T>
  requires(!std::is_same_v<T, double>)
class DenseLinear {
 public:
  using value_type = T;

  /// Not initialised. Throws ShapeError for sizes below 1, CudaError.
  DenseLinear(Index in_features, Index out_features, Index spare = 0, bool with_bias = false)
      : weight_(out_features, in_features, spare), bias_(with_bias ? out_features : 0) {
    if (in_features < 1 || out_features < 1) {
      fail<ShapeError>("cuda::DenseLinear: in_features {}, out_features {}; expected each at least 1", in_features,
                       out_features);
    }
  }
  /// Copies of a host's weight [out, in] and bias ([out] or empty). Throws ShapeError, CudaError.
  template <Scalar W, Scalar B = W>
  DenseLinear(MatrixView<const W> weight, VectorView<const B> bias, Context& context, Index spare = 0)
      : DenseLinear(weight.cols, weight.rows, spare, !bias.empty()) {
    upload(weight, weight_.view(), context.stream(), "the weight");
    if (bias.empty()) return;
    if (bias.size != out_features()) {
      fail<ShapeError>("cuda::DenseLinear: the bias has {} elements; expected {}", bias.size, out_features());
    }
    upload(MatrixView<const B>(bias.data, 1, bias.size), DeviceMatrixView<T>(bias_.data(), 1, bias_.size()), context.stream(),
           "the bias");
  }

  Index in_features() const noexcept { return weight_.cols(); }
  Index out_features() const noexcept { return weight_.rows(); }
  DeviceMatrixView<T> weight() noexcept { return weight_.view(); }
  DeviceMatrixView<const T> weight() const noexcept { return weight_.view(); }
  DeviceVectorView<T> bias() noexcept { return bias_.device_view(); }
  DeviceVectorView<const T> bias() const noexcept { return bias_.device_view(); }

  /// y = x·Wᵀ + bias, by cuBLASLt. Throws ShapeError, CudaError.
  void forward(DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) const {
    detail::check_forward("cuda::DenseLinear::forward", *this, x, y);
    product(x, weight(), bias(), y, context);
  }

  /// y = x·Wᵀ + bias + Σ scale·S·Bᵀ, by the route that choose_lora_route names. Throws ShapeError, CudaError.
  void forward_low_rank(DeviceMatrixView<const T> x, std::span<const DeviceLowRankTerm<T>> terms, DeviceMatrixView<T> y,
                        Context& context) const {
    forward_low_rank(x, terms, bias(), y, context);
  }
  /// The same with another bias, [out] or empty.
  void forward_low_rank(DeviceMatrixView<const T> x, std::span<const DeviceLowRankTerm<T>> terms,
                        DeviceVectorView<const T> bias, DeviceMatrixView<T> y, Context& context) const {
    detail::check_bias("cuda::DenseLinear::forward_low_rank", *this, bias);
    const bool whole = !terms.empty() && terms[0].first_row == 0 && terms[0].rows == x.rows && terms[0].s.cols > 0;
    const LoraRoute route = choose_lora_route({dtype_of<T>(), context.device().sm, x.rows, false});
    if (whole && route == LoraRoute::kFused) {
      forward_fused(x, terms[0], bias, y, context);
      add_terms(terms.subspan(1), y, context);
    } else {
      detail::check_forward("cuda::DenseLinear::forward_low_rank", *this, x, y);
      product(x, weight(), bias, y, context);
      add_terms(terms, y, context);
    }
  }
  /// By our kernel: one accumulator over in + r columns. The term is over all rows.
  void forward_fused(DeviceMatrixView<const T> x, const DeviceLowRankTerm<T>& term, DeviceMatrixView<T> y,
                     Context& context) const {
    forward_fused(x, term, bias(), y, context);
  }
  void forward_fused(DeviceMatrixView<const T> x, const DeviceLowRankTerm<T>& term, DeviceVectorView<const T> bias,
                     DeviceMatrixView<T> y, Context& context) const {
    detail::check_forward("cuda::DenseLinear::forward_fused", *this, x, y);
    detail::check_bias("cuda::DenseLinear::forward_fused", *this, bias);
    detail::check_term("cuda::DenseLinear::forward_fused", *this, term, y);
    detail::launch_lora_forward<T>(x, weight(), bias.empty() ? nullptr : bias.data, term.s, term.b, term.scale, y, context);
  }
  /// y += Σ scale·S·Bᵀ, by cuBLASLt.
  void add_terms(std::span<const DeviceLowRankTerm<T>> terms, DeviceMatrixView<T> y, Context& context) const {
    detail::add_terms("cuda::DenseLinear::add_terms", *this, terms, y, context);
  }

  /// Columns that stand behind W's, for one adapter's s·B.
  Index spare_columns() const noexcept { return weight_.spare(); }
  /// Which state of which adapter stands there; 0: none.
  std::uint64_t columns_tag() const noexcept { return columns_tag_; }
  void set_columns_tag(std::uint64_t tag) noexcept { columns_tag_ = tag; }
  /// The first r of them, to be written: whose they were is forgotten. Throws ShapeError.
  DeviceMatrixView<T> low_rank_columns(Index r) {
    if (r < 1 || r > weight_.spare()) {
      fail<ShapeError>("cuda::DenseLinear: {} low-rank columns behind W [{}, {}]; expected 1 to {}, as it was made with", r,
                       out_features(), in_features(), weight_.spare());
    }
    columns_tag_ = 0;
    return weight_.view().spare_columns(r);
  }
  /// y = [x | S]·[W | s·B]ᵀ + bias, one product of cuBLASLt; S stands in the first r spare columns of x.
  void forward_widened(DeviceMatrixView<const T> x, Index r, DeviceMatrixView<T> y, Context& context) const {
    forward_widened(x, r, bias(), y, context);
  }
  /// The same with another bias, [out] or empty.
  void forward_widened(DeviceMatrixView<const T> x, Index r, DeviceVectorView<const T> bias, DeviceMatrixView<T> y,
                       Context& context) const {
    detail::check_bias("cuda::DenseLinear::forward_widened", *this, bias);
    detail::check_forward("cuda::DenseLinear::forward_widened", *this, x, y);
    if (r < 1 || r > weight_.spare() || r > x.spare) {
      fail<ShapeError>(
          "cuda::DenseLinear::forward_widened: {} low-rank columns; W has {} spare ones and x {}; expected both to "
          "have them",
          r, weight_.spare(), x.spare);
    }
    product(x.widened(r), weight().widened(r), bias, y, context);
  }

  /// dx = dy·W. Throws ShapeError, CudaError.
  void backward_input(DeviceMatrixView<const T> dy, DeviceMatrixView<T> dx, Context& context) const {
    detail::check_backward("cuda::DenseLinear::backward_input", *this, dy, dx);
    context.matmul()(Transpose::kNo, dy, Transpose::kNo, weight(), 1.0f, 0.0f, static_cast<const T*>(nullptr), dx,
                     context.stream());
  }
  /// dx = dy·W + Σ mask∘(dS·A). One term may have a mask. Throws ShapeError, CudaError, ConfigError for more.
  void backward_low_rank(DeviceMatrixView<const T> dy, std::span<const DeviceInputGradTerm<T>> terms, DeviceMatrixView<T> dx,
                         Context& context) const {
    constexpr std::string_view kWho = "cuda::DenseLinear::backward_low_rank";
    detail::check_backward(kWho, *this, dy, dx);
    std::size_t fused = detail::masked_term(kWho, *this, dy.rows, terms);
    const LoraRoute route = choose_lora_route({dtype_of<T>(), context.device().sm, dy.rows, false});
    if (fused == terms.size() && !terms.empty() && route == LoraRoute::kFused) fused = 0;
    if (fused != terms.size()) {
      detail::launch_lora_input_grad<T>(dy, weight(), terms[fused].ds, terms[fused].a, terms[fused].mask, dx, context);
    } else {
      backward_input(dy, dx, context);
    }
    detail::add_input_grad_terms(terms, fused, dx, context);
  }

 private:
  static void product(DeviceMatrixView<const T> x, DeviceMatrixView<const T> w, DeviceVectorView<const T> bias,
                      DeviceMatrixView<T> y, Context& context) {
    context.matmul()(Transpose::kNo, x, Transpose::kYes, w, 1.0f, 0.0f, bias.empty() ? nullptr : bias.data, y, context.stream());
  }

  DeviceMatrix<T> weight_;
  DeviceBuffer<T> bias_;
  std::uint64_t columns_tag_ = 0;
};

static_assert(DeviceFusedLowRank<DenseLinear<f16>> && DeviceBackwardLinear<DenseLinear<f16>> &&
              DeviceFusedInputGrad<DenseLinear<f16>> && DeviceOtherBias<DenseLinear<f16>> && DeviceSpareColumns<DenseLinear<f16>>);

}  // namespace cuda
PEFT_END_NAMESPACE
