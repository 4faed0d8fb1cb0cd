#pragma once
/// A linear layer whose weight has four bits per element, on the GPU: y = x·Wᵀ + bias, dx = dy·W from one packed copy. W is
/// never made as a whole, unless a batch is so large that decoding it once, into scratch memory, is faster.
/// Models DeviceLinearLike, DeviceFusedLowRank, DeviceOtherBias, DeviceBackwardLinear and DeviceFusedInputGrad.

#include <algorithm>
#include <span>
#include <utility>

#include "peft/cuda/four_bit_launch.hpp"
#include "peft/cuda/four_bit_product.hpp"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/linear_terms.hpp"
#include "peft/cuda/lora_launch.hpp"
#include "peft/cuda/nf4_tensor.hpp"
#include "peft/cuda/transfer.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// T: float, f16 or bf16, the type of activations. Movable. Forward passes of several contexts may run at once.
template <FourBitCode kCode, Scalar T>
  requires(!std::is_same_v<T, double>)
class FourBitLinear {
 public:
  using value_type = T;

  explicit FourBitLinear(FourBitTensor<kCode> weight) : weight_(std::move(weight)) { check_weight(); }
  /// With a bias [out], copied. Throws ShapeError, CudaError.
  FourBitLinear(FourBitTensor<kCode> weight, VectorView<const float> bias, Context& context)
      : weight_(std::move(weight)), bias_(bias.size) {
    check_weight();
    if (bias.empty()) return;
    if (bias.size != out_features()) {
      fail<ShapeError>("cuda::FourBitLinear: the bias has {} elements; expected {}", bias.size, out_features());
    }
    upload(MatrixView<const float>(bias.data, 1, bias.size), DeviceMatrixView<T>(bias_.data(), 1, bias_.size()),
           context.stream(), "the bias");
  }

  Index in_features() const noexcept { return weight_.cols(); }
  Index out_features() const noexcept { return weight_.rows(); }
  const FourBitTensor<kCode>& weight() const noexcept { return weight_; }
  DeviceVectorView<const T> bias() const noexcept { return bias_.device_view(); }

  /// Scratch of any pass over up to `rows` rows.
  Index scratch_bytes(Index rows) const {
    const int sm = current_sm();
    const kernels::FourBitPacked& w = weight_.packed();
    Index bytes = detail::most_bytes(rows, [&](Index n) {
      return std::max<Index>(kernels::four_bit_forward_workspace<T>(w, n, sm),
                             kernels::four_bit_input_grad_workspace<T>(w, n, sm));
    });
    if (choose_four_bit_product({dtype_of<T>(), sm, rows}) == FourBitProduct::kPanel) {
      bytes = std::max(bytes, Context::padded(panel_bytes()));
    }
    return bytes;
  }
  /// That of the panel's route.
  Index panel_bytes() const noexcept {
    return rows_at_once() * aligned_stride<T>(in_features()) * static_cast<Index>(sizeof(T));
  }

  /// y = x·Wᵀ + bias. Throws ShapeError, CudaError.
  void forward(DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) const {
    forward_low_rank(x, {}, y, context);
  }
  /// y = x·Wᵀ + bias + Σ scale·S·Bᵀ. Throws ShapeError, CudaError.
  void forward_low_rank(DeviceMatrixView<const T> x, std::span<const DeviceLowRankTerm<T>> terms, DeviceMatrixView<T> y,
                        Context& context) const {
    forward_low_rank(x, terms, bias(), y, context);
  }
  /// The same with another bias, [out] or empty.
  void forward_low_rank(DeviceMatrixView<const T> x, std::span<const DeviceLowRankTerm<T>> terms,
                        DeviceVectorView<const T> bias, DeviceMatrixView<T> y, Context& context) const {
    if (choose_four_bit_product({dtype_of<T>(), context.device().sm, x.rows}) == FourBitProduct::kPanel) {
      forward_panel(x, bias, y, context);
      add_terms(terms, y, context);
      return;
    }
    const bool whole = !terms.empty() && terms[0].first_row == 0 && terms[0].rows == x.rows;
    forward_packed(x, whole ? terms[0] : DeviceLowRankTerm<T>{0, x.rows, {}, {}, 1.0f}, bias, y, context);
    add_terms(whole ? terms.subspan(1) : terms, y, context);
  }
  /// By our kernel, with the term, which is over all rows or has an empty S.
  void forward_packed(DeviceMatrixView<const T> x, const DeviceLowRankTerm<T>& term, DeviceMatrixView<T> y,
                      Context& context) const {
    forward_packed(x, term, bias(), y, context);
  }
  void forward_packed(DeviceMatrixView<const T> x, const DeviceLowRankTerm<T>& term, DeviceVectorView<const T> bias,
                      DeviceMatrixView<T> y, Context& context) const {
    detail::check_forward("cuda::FourBitLinear::forward", *this, x, y);
    detail::check_bias("cuda::FourBitLinear::forward", *this, bias);
    if (term.s.cols > 0) detail::check_term("cuda::FourBitLinear::forward", *this, term, y);
    if (x.rows == 0) return;
    detail::launch_four_bit_forward<T>(x, weight_.packed(), bias.empty() ? nullptr : bias.data, term.s, term.b, term.scale, y,
                                       context);
  }
  /// By cuBLASLt over W's rows decoded into scratch memory, a panel at a time.
  void forward_panel(DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) const {
    forward_panel(x, bias(), y, context);
  }
  void forward_panel(DeviceMatrixView<const T> x, DeviceVectorView<const T> bias, DeviceMatrixView<T> y, Context& context) const {
    detail::check_forward("cuda::FourBitLinear::forward", *this, x, y);
    detail::check_bias("cuda::FourBitLinear::forward", *this, bias);
    if (x.rows == 0) return;
    Context::Scratch scratch(context);
    const Index stride = aligned_stride<T>(in_features()), at_once = rows_at_once();
    T* memory = scratch.take<T>(at_once * stride, "cuda::FourBitLinear::forward");
    for (Index first = 0; first < out_features(); first += at_once) {
      const Index count = std::min(at_once, out_features() - first);
      const DeviceMatrixView<T> panel(memory, count, in_features(), stride);
      weight_.dequantize_rows(first, panel, context);
      context.matmul()(Transpose::kNo, x, Transpose::kYes, DeviceMatrixView<const T>(panel), 1.0f, 0.0f,
                       bias.empty() ? nullptr : bias.data + first, y.column_range(first, count), context.stream());
    }
  }
  /// y += Σ scale·S·Bᵀ, by cuBLASLt.
  void add_terms(std::span<const DeviceLowRankTerm<T>> terms, DeviceMatrixView<T> y, Context& context) const {
    detail::add_terms("cuda::FourBitLinear::forward", *this, terms, y, context);
  }

  /// dx = dy·W. Throws ShapeError, CudaError.
  void backward_input(DeviceMatrixView<const T> dy, DeviceMatrixView<T> dx, Context& context) const {
    backward_low_rank(dy, {}, dx, context);
  }
  /// dx = dy·W + Σ mask∘(dS·A). One term may have a mask. Throws ShapeError, CudaError, ConfigError for more.
  void backward_low_rank(DeviceMatrixView<const T> dy, std::span<const DeviceInputGradTerm<T>> terms, DeviceMatrixView<T> dx,
                         Context& context) const {
    constexpr std::string_view kWho = "cuda::FourBitLinear::backward_low_rank";
    detail::check_backward(kWho, *this, dy, dx);
    const std::size_t masked = detail::masked_term(kWho, *this, dy.rows, terms);
    if (dy.rows == 0) return;
    const bool in_panels = choose_four_bit_product({dtype_of<T>(), context.device().sm, dy.rows}) == FourBitProduct::kPanel &&
                           masked == terms.size() && rows_at_once() == out_features();
    std::size_t fused = terms.size();
    if (in_panels) {
      backward_panel(dy, dx, context);
    } else {
      fused = masked < terms.size() ? masked : 0;
      const DeviceInputGradTerm<T> term = terms.empty() ? DeviceInputGradTerm<T>{} : terms[fused];
      detail::launch_four_bit_input_grad<T>(dy, weight_.packed(), term.ds, term.a, term.mask, dx, context);
    }
    detail::add_input_grad_terms(terms, fused, dx, context);
  }

 private:
  /// By cuBLASLt over all of W, decoded into scratch memory: in parts, dx would be rounded between them.
  void backward_panel(DeviceMatrixView<const T> dy, DeviceMatrixView<T> dx, Context& context) const {
    Context::Scratch scratch(context);
    const Index stride = aligned_stride<T>(in_features());
    const DeviceMatrixView<T> panel(scratch.take<T>(out_features() * stride, "cuda::FourBitLinear::backward"), out_features(),
                                    in_features(), stride);
    weight_.dequantize_rows(0, panel, context);
    context.matmul()(Transpose::kNo, dy, Transpose::kNo, DeviceMatrixView<const T>(panel), 1.0f, 0.0f,
                     static_cast<const T*>(nullptr), dx, context.stream());
  }
  Index rows_at_once() const noexcept {
    return panel_rows(out_features(), aligned_stride<T>(in_features()) * static_cast<Index>(sizeof(T)));
  }
  void check_weight() const {
    if (in_features() < 1 || out_features() < 1) {
      fail<ShapeError>("cuda::FourBitLinear: the weight is [{}, {}]; expected sizes from 1", out_features(), in_features());
    }
  }

  FourBitTensor<kCode> weight_;
  DeviceBuffer<T> bias_;
};

template <Scalar T>
using Nf4Linear = FourBitLinear<FourBitCode::kNf4, T>;
template <Scalar T>
using Fp4Linear = FourBitLinear<FourBitCode::kFp4, T>;

static_assert(DeviceFusedLowRank<Nf4Linear<f16>> && DeviceBackwardLinear<Nf4Linear<f16>> &&
              DeviceFusedInputGrad<Nf4Linear<f16>> && DeviceOtherBias<Nf4Linear<f16>>);

}  // namespace cuda
PEFT_END_NAMESPACE
