#pragma once
/// LoRA on one linear layer, on the GPU:
///   y = base(x) + s·(x̃·Aᵀ)·Bᵀ;   x [n,in], A [r,in], B [out,r], y [n,out]; x̃ = m∘x/(1-p) in training, else x
///   (lora_bias: + s·c, c [out]: it joins the base's bias)
/// Saved for backward: S = x̃·Aᵀ [n,r] and the mask. Backward, given dy:
///   dS = s·dy·B,  dB += s·dyᵀ·S,  dA += dSᵀ·x̃,  dx = dy·W + m∘(dS·A)/(1-p)  (dc += s·Σdy)
/// The same as peft::Lora, from which it is uploaded and to which it goes back: A, B and their gradients are float; kernels
/// read copies of A and B in T, and S and dS are T.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "peft/core/rng.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/dropout_mask.hpp"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/lora_launch.hpp"
#include "peft/cuda/lora_route.hpp"
#include "peft/cuda/transfer.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// What cuda::Lora is made from and goes back to: peft::Lora<T>, whatever its T.
template <class H>
concept HostLora = requires(H& h, const H& c) {
  { c.in_features() } -> std::convertible_to<Index>;
  { c.out_features() } -> std::convertible_to<Index>;
  { c.r() } -> std::convertible_to<Index>;
  { c.scaling() } -> std::convertible_to<double>;
  { c.dropout() } -> std::convertible_to<float>;
  { c.a_view() } -> std::convertible_to<MatrixView<const float>>;
  { c.b_view() } -> std::convertible_to<MatrixView<const float>>;
  h.a().view();
  h.b().view();
};

namespace detail {
/// A layer whose product over spare columns takes another bias, too.
template <class L, class T>
concept WidenedWithOtherBias = DeviceSpareColumns<L, T> && requires(const L& l, DeviceMatrixView<const T> x,
                                                                    DeviceVectorView<const T> bias, DeviceMatrixView<T> y,
                                                                    Context& context) {
  l.forward_widened(x, Index{}, bias, y, context);
};
}  // namespace detail

/// One that may have a bias of B.
template <class H>
concept HostLoraWithBias = HostLora<H> && requires(H& h, const H& c) {
  { c.bias().empty() } -> std::convertible_to<bool>;
  { c.bias().value().data() } -> std::convertible_to<const float*>;
  { h.bias().value().data() } -> std::convertible_to<float*>;
};

/// T: float, f16 or bf16, the type of activations. Movable. The base layer is an argument of every call.
template <Scalar T>
  requires(!std::is_same_v<T, double>)
class Lora {
 public:
  using value_type = T;

  /// What a training forward leaves for backward. Reuse it from step to step: its memory is kept.
  struct Saved {
    DeviceMatrix<T> s;  ///< S = x̃·Aᵀ [n, r]
    DropoutMask dropout;
  };

  /// A, B and the bias of B, if there is one, zero. Throws ConfigError for sizes below 1 or a dropout outside [0, 1), CudaError.
  Lora(Index in_features, Index out_features, Index r, double scaling, float dropout, Context& context, bool with_bias = false)
      : scaling_(scaling), dropout_(dropout) {
    if (in_features < 1 || out_features < 1 || r < 1) {
      fail<ConfigError>("cuda::Lora: in_features {}, out_features {}, r {}; expected each at least 1", in_features,
                        out_features, r);
    }
    if (!is_finite(scaling)) fail<ConfigError>("cuda::Lora: scaling is {}; expected a finite number", scaling);
    if (!is_finite(dropout) || dropout < 0.0f || dropout >= 1.0f) {
      fail<ConfigError>("cuda::Lora: dropout is {}; expected a probability p with 0 <= p < 1", dropout);
    }
    in_ = in_features, out_ = out_features, r_ = r;
    a_ = DeviceBuffer<float>(r * in_features);
    b_ = DeviceBuffer<float>(out_features * r);
    a_.fill_zero(context.stream());
    b_.fill_zero(context.stream());
    if (with_bias) bias_ = DeviceBuffer<float>(out_features);
    bias_.fill_zero(context.stream());
    a_copy_ = DeviceMatrix<T>(r, in_features);
    b_copy_ = DeviceMatrix<T>(out_features, r);
    refresh(context);
  }
  /// A copy of the host's. Throws as the other.
  template <HostLora H>
  Lora(const H& host, Context& context)
      : Lora(host.in_features(), host.out_features(), host.r(), host.scaling(), host.dropout(), context, host_has_bias(host)) {
    upload(host, context);
  }

  Index in_features() const noexcept { return in_; }
  Index out_features() const noexcept { return out_; }
  Index r() const noexcept { return r_; }
  double scaling() const noexcept { return scaling_; }
  float dropout() const noexcept { return dropout_; }
  DeviceMatrixView<float> a() noexcept { return {a_.data(), r_, in_}; }
  DeviceMatrixView<const float> a() const noexcept { return {a_.data(), r_, in_}; }
  DeviceMatrixView<float> b() noexcept { return {b_.data(), out_, r_}; }
  DeviceMatrixView<const float> b() const noexcept { return {b_.data(), out_, r_}; }
  bool has_bias() const noexcept { return !bias_.empty(); }
  /// Of B, [out]; empty without lora_bias.
  DeviceVectorView<float> bias() noexcept { return bias_.device_view(); }
  DeviceVectorView<const float> bias() const noexcept { return bias_.device_view(); }
  /// What the kernels read.
  DeviceMatrixView<const T> a_copy() const noexcept { return a_copy_.view(); }
  DeviceMatrixView<const T> b_copy() const noexcept { return b_copy_.view(); }
  /// Gradients, added to by backward; empty before ensure_grads().
  DeviceMatrixView<float> grad_a() noexcept { return {grad_a_.data(), grad_a_.empty() ? 0 : r_, in_}; }
  DeviceMatrixView<float> grad_b() noexcept { return {grad_b_.data(), grad_b_.empty() ? 0 : out_, r_}; }
  DeviceVectorView<float> grad_bias() noexcept { return grad_bias_.device_view(); }

  /// A, B and its bias of the host's, which has the same sizes. Throws ShapeError, ConfigError, CudaError.
  template <HostLora H>
  void upload(const H& host, Context& context) {
    check_host("cuda::Lora::upload", host);
    cuda::upload(MatrixView<const float>(host.a_view()), a(), context.stream(), "lora_A");
    cuda::upload(MatrixView<const float>(host.b_view()), b(), context.stream(), "lora_B");
    if constexpr (HostLoraWithBias<H>) {
      cuda::upload(VectorView<const float>(host.bias().value().data(), bias_.size()), bias(), context.stream(), "lora_B's bias");
    }
    refresh(context);
  }
  /// A, B and its bias to the host's. Throws ShapeError, ConfigError, CudaError.
  template <HostLora H>
  void download(H& host, Context& context) const {
    check_host("cuda::Lora::download", host);
    cuda::download(a(), host.a().view(), context.stream(), "lora_A");
    cuda::download(b(), host.b().view(), context.stream(), "lora_B");
    if constexpr (HostLoraWithBias<H>) {
      cuda::download(bias(), VectorView<float>(host.bias().value().data(), bias_.size()), context.stream(), "lora_B's bias");
    }
  }
  /// Makes the copies in T anew: after every change of A or B (an optimizer's step).
  void refresh(Context& context) {
    detail::launch_convert(std::as_const(*this).a(), 1.0f, a_copy_.view(), context);
    detail::launch_convert(std::as_const(*this).b(), 1.0f, b_copy_.view(), context);
    tag_ = next_tag();
  }
  /// Memory for gradients, zero, where there is none yet. Throws CudaError.
  void ensure_grads(Context& context) {
    if (!grad_a_.empty()) return;
    grad_a_ = DeviceBuffer<float>(r_ * in_);
    grad_b_ = DeviceBuffer<float>(out_ * r_);
    grad_bias_ = DeviceBuffer<float>(bias_.size());
    zero_grad(context);
  }
  void zero_grad(Context& context) {
    grad_a_.fill_zero(context.stream());
    grad_b_.fill_zero(context.stream());
    grad_bias_.fill_zero(context.stream());
  }

  /// Writes s·B into the spare columns behind the base's W: from then on forward() over that base and over an x with spare
  /// columns may be one product over in + r columns. Again after refresh(), and after another adapter did. Throws ShapeError.
  template <DeviceSpareColumns<T> L>
  void install(L& base, Context& context) const {
    check_base("cuda::Lora::install", base);
    detail::launch_convert(b(), static_cast<float>(scaling_), DeviceMatrixView<T>(base.low_rank_columns(r_)), context);
    base.set_columns_tag(tag_);
  }

  /// Scratch that any pass over up to `rows` rows and `base` takes: for Context::reserve.
  template <DeviceLinearLike<T> L>
  Index scratch_bytes(const L& base, Index rows) const {
    const Index sums = detail::most_bytes(rows, [this](Index n) {
      return std::max<Index>({kernels::lora_shrink_workspace<T>(n, in_, r_), kernels::lora_backward_workspace<T>(n, out_, r_),
                              kernels::lora_factor_grad_workspace<T>(n, in_, r_),
                              has_bias() ? kernels::column_sum_workspace<T>(n, out_) : 0});
    });
    return Context::padded(bias_.size() * static_cast<Index>(sizeof(T))) +
           Context::padded(rows * aligned_stride<T>(r_) * static_cast<Index>(sizeof(T))) +
           std::max(sums, Context::padded(scratch_bytes_of(base, rows)));
  }
  /// Memory of `saved` for up to `rows` rows, so that no forward has to take it. Throws CudaError.
  void reserve(Saved& saved, Index rows) const {
    if (saved.s.cols() != r_) saved.s = DeviceMatrix<T>(0, r_);
    if (rows > saved.s.rows()) saved.s.resize_rows_discard(rows);
    if (dropout_ > 0.0f) saved.dropout.reserve(rows, in_);
  }

  /// Inference: y = base(x) + s·(x·Aᵀ)·Bᵀ. Throws ShapeError, CudaError.
  template <DeviceLinearLike<T> L>
  void forward(const L& base, DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) const {
    constexpr std::string_view kWho = "cuda::Lora::forward";
    check_pass(kWho, base, x, "y", y);
    if (x.rows == 0) return;
    Context::Scratch scratch(context);
    const DeviceVectorView<const T> bias = joined_bias(kWho, base, scratch, context);
    if (takes_columns(base, x, context)) {
      detail::launch_lora_shrink<T>(x, {}, a_copy(), x.spare_columns(r_), context);
      forward_widened(base, x, bias, y, context);
      return;
    }
    const Index stride = aligned_stride<T>(r_);
    const DeviceMatrixView<T> s(scratch.take<T>(x.rows * stride, kWho), x.rows, r_, stride);
    detail::launch_lora_shrink<T>(x, {}, a_copy(), s, context);
    forward_with(base, x, s, bias, y, context);
  }

  /// Training: y = base(x) + s·(x̃·Aᵀ)·Bᵀ, leaving S and the mask of `key` (none without dropout) in `saved`, for which
  /// reserve() was called. Throws ShapeError, CudaError.
  template <DeviceLinearLike<T> L>
  void forward(const L& base, DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Saved& saved, const DropoutKey* key,
               Context& context) const {
    constexpr std::string_view kWho = "cuda::Lora::forward";
    check_pass(kWho, base, x, "y", y);
    if (saved.s.cols() != r_ || saved.s.rows() < x.rows) {
      fail<CudaError>("{}: S has memory for [{}, {}]; expected Lora::reserve for [{}, {}] before", kWho, saved.s.rows(),
                      saved.s.cols(), x.rows, r_);
    }
    saved.dropout.clear();
    if (x.rows == 0) return;
    if (key != nullptr) saved.dropout.make(*key, x.rows, in_, dropout_, context);
    Context::Scratch scratch(context);
    const DeviceVectorView<const T> bias = joined_bias(kWho, base, scratch, context);
    const DeviceMatrixView<T> s = saved.s.view().row_range(0, x.rows);
    detail::launch_lora_shrink<T>(x, saved.dropout.view(), a_copy(), s, context);
    if (!takes_columns(base, x, context)) {
      forward_with(base, x, s, bias, y, context);
      return;
    }
    const DeviceMatrixView<T> columns = x.spare_columns(r_);
    constexpr auto kSize = sizeof(T);
    check(cudaMemcpy2DAsync(columns.data, static_cast<std::size_t>(columns.stride) * kSize, s.data,
                            static_cast<std::size_t>(s.stride) * kSize, static_cast<std::size_t>(r_) * kSize,
                            static_cast<std::size_t>(x.rows), cudaMemcpyDeviceToDevice, context.stream()),
          "{}: S [{}, {}] beside x", kWho, x.rows, r_);
    forward_widened(base, x, bias, y, context);
  }

  /// Adds to the gradients (ensure_grads() before); dx = the gradient of the input, or nothing where dx.data is null. x and
  /// `saved` are those of the forward. Throws ShapeError, CudaError.
  template <DeviceLinearLike<T> L>
  void backward(const L& base, DeviceMatrixView<const T> dy, DeviceMatrixView<const T> x, const Saved& saved,
                DeviceMatrixView<T> dx, Context& context) {
    constexpr std::string_view kWho = "cuda::Lora::backward";
    check_pass(kWho, base, x, "dy", dy);
    if (dx.data != nullptr) detail::check_shape(kWho, "dx", dx, x.rows, in_);
    if (grad_a_.empty()) fail<CudaError>("{}: there is no memory for gradients; expected Lora::ensure_grads before", kWho);
    if (saved.s.cols() != r_ || saved.s.rows() < x.rows) {
      fail<ShapeError>("{}: S is [{}, {}]; expected that of the forward, [{}, {}]", kWho, saved.s.rows(), saved.s.cols(),
                       x.rows, r_);
    }
    if (x.rows == 0) return;
    Context::Scratch scratch(context);
    const Index stride = aligned_stride<T>(r_);
    const DeviceMatrixView<T> ds(scratch.take<T>(x.rows * stride, kWho), x.rows, r_, stride);
    const DeviceMatrixView<const T> s = saved.s.view().row_range(0, x.rows);
    const DeviceMaskBits& mask = saved.dropout.view();
    detail::launch_lora_backward<T>(dy, s, b_copy(), static_cast<float>(scaling_), ds, grad_b(), context);
    detail::launch_lora_factor_grad<T>(ds, x, mask, grad_a(), context);
    if (has_bias()) detail::launch_column_sum<T>(dy, static_cast<float>(scaling_), grad_bias(), context);
    if (dx.data == nullptr) return;
    if constexpr (DeviceFusedInputGrad<L, T>) {
      const DeviceInputGradTerm<T> term{ds, a_copy(), mask};
      base.backward_low_rank(dy, std::span(&term, 1), dx, context);
    } else {
      static_assert(DeviceBackwardLinear<L, T>,
                    "training over this base needs backward_input (cuda::DeviceBackwardLinear) or backward_low_rank "
                    "(cuda::DeviceFusedInputGrad)");
      if (mask.bits != nullptr) {
        fail<ConfigError>("{}: dropout over a base that adds no masked terms; expected a cuda::DeviceFusedInputGrad, or no "
                          "dropout",
                          kWho);
      }
      base.backward_input(dy, dx, context);
      context.matmul()(Transpose::kNo, DeviceMatrixView<const T>(ds), Transpose::kNo, a_copy(), 1.0f, 1.0f,
                       static_cast<const T*>(nullptr), dx, context.stream());
    }
  }

  /// Visits A ("lora_A.weight" after `prefix`), B and its bias, if there is one: (ParameterInfo, DeviceVectorView<float> value, … gradient). The gradients
  /// are empty before ensure_grads().
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    const std::string a_name = std::string(prefix) + "lora_A.weight", b_name = std::string(prefix) + "lora_B.weight";
    visit(ParameterInfo{a_name, ParameterRole::kLoraA, true, r_, in_}, a_.device_view(), grad_a_.device_view());
    visit(ParameterInfo{b_name, ParameterRole::kLoraB, true, out_, r_}, b_.device_view(), grad_b_.device_view());
    if (!has_bias()) return;
    const std::string bias_name = std::string(prefix) + "lora_B.bias";
    visit(ParameterInfo{bias_name, ParameterRole::kLoraB, false, 1, out_}, bias_.device_view(), grad_bias_.device_view());
  }

 private:
  static std::uint64_t next_tag() noexcept {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }

  template <class H>
  void check_host(std::string_view who, const H& host) const {
    if (host.in_features() != in_ || host.out_features() != out_ || host.r() != r_) {
      fail<ShapeError>("{}: the host's update is [{}, {}] with r {}; expected [{}, {}] (out, in) with r {}", who,
                       Index{host.out_features()}, Index{host.in_features()}, Index{host.r()}, out_, in_, r_);
    }
    if (host_has_bias(host) != has_bias()) {
      fail<ConfigError>("{}: the host's update has {} bias (lora_bias); expected {}", who, has_bias() ? "no" : "a",
                        has_bias() ? "one" : "none");
    }
  }
  template <class H>
  static bool host_has_bias(const H& host) {
    if constexpr (HostLoraWithBias<H>) return !host.bias().empty();
    return false;
  }

  /// bias of the base + s·c, in scratch memory: made in every pass, for either may have changed. Empty without c. Throws
  /// ConfigError for a base that takes no other bias.
  template <class L>
  DeviceVectorView<const T> joined_bias(std::string_view who, const L& base, Context::Scratch& scratch, Context& context) const {
    if (!has_bias()) return {};
    if constexpr (DeviceOtherBias<L, T>) {
      const DeviceVectorView<T> joined(scratch.take<T>(out_, who), out_);
      detail::launch_bias_sum<T>(base.bias(), bias(), static_cast<float>(scaling_), joined, context);
      return joined;
    } else {
      fail<ConfigError>("{}: a bias (lora_bias) over a base that takes no other; expected a cuda::DeviceOtherBias, or none", who);
    }
  }
  template <class L>
  void check_base(std::string_view who, const L& base) const {
    if (base.in_features() != in_ || base.out_features() != out_) {
      fail<ShapeError>("{}: the base layer is [{}, {}]; expected [{}, {}] (out, in) as the update", who,
                       Index{base.out_features()}, Index{base.in_features()}, out_, in_);
    }
  }
  template <class L, class Y>
  void check_pass(std::string_view who, const L& base, DeviceMatrixView<const T> x, std::string_view what,
                  DeviceMatrixView<Y> y) const {
    check_base(who, base);
    detail::check_shape(who, "x", x, x.rows, in_);
    detail::check_shape(who, what, y, x.rows, out_);
  }

  /// Whether s·B stands behind the base's W, x has room for S, and one product over both is the route.
  template <class L>
  bool takes_columns(const L& base, DeviceMatrixView<const T> x, const Context& context) const {
    if constexpr (DeviceSpareColumns<L, T>) {
      if (base.columns_tag() != tag_ || x.spare < r_) return false;
      if (has_bias() && !detail::WidenedWithOtherBias<L, T>) return false;
      return choose_lora_route({dtype_of<T>(), context.device().sm, x.rows, true}) == LoraRoute::kSpareColumns;
    } else {
      return false;
    }
  }
  /// With `bias` in the place of the base's where there is one.
  template <class L>
  void forward_widened(const L& base, DeviceMatrixView<const T> x, DeviceVectorView<const T> bias, DeviceMatrixView<T> y,
                       Context& context) const {
    if constexpr (DeviceSpareColumns<L, T>) {
      if constexpr (detail::WidenedWithOtherBias<L, T>) {
        if (!bias.empty()) return base.forward_widened(x, r_, bias, y, context);
      }
      base.forward_widened(x, r_, y, context);
    }
  }
  template <class L>
  void forward_with(const L& base, DeviceMatrixView<const T> x, DeviceMatrixView<const T> s, DeviceVectorView<const T> bias,
                    DeviceMatrixView<T> y, Context& context) const {
    if constexpr (DeviceFusedLowRank<L, T>) {
      const DeviceLowRankTerm<T> term{0, x.rows, s, b_copy(), static_cast<float>(scaling_)};
      if constexpr (DeviceOtherBias<L, T>) {
        if (!bias.empty()) return base.forward_low_rank(x, std::span(&term, 1), bias, y, context);
      }
      base.forward_low_rank(x, std::span(&term, 1), y, context);
    } else {
      base.forward(x, y, context);
      context.matmul()(Transpose::kNo, s, Transpose::kYes, b_copy(), static_cast<float>(scaling_), 1.0f,
                       static_cast<const T*>(nullptr), y, context.stream());
    }
  }

  Index in_ = 0, out_ = 0, r_ = 0;
  double scaling_ = 1;
  float dropout_ = 0;
  DeviceBuffer<float> a_, b_, bias_, grad_a_, grad_b_, grad_bias_;  // bias_: empty without lora_bias
  DeviceMatrix<T> a_copy_, b_copy_;
  std::uint64_t tag_ = 0;  // of this state of B, for those who hold s·B
};

}  // namespace cuda
PEFT_END_NAMESPACE
