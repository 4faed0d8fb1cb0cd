#pragma once
/// The inside of a bottleneck adapter, on the GPU, with the residual around it:
///   S = x·Dᵀ + e,  y = a + m∘c·(f(S)·Uᵀ + g)     x, y, a [n,d], S [n,b]; D [b,d], e [b], U [d,b], g [d]
/// with c a number, given or trained ("learned"), and m a dropout mask and its 1/(1-p). Saved for backward: S and the mask.
/// Backward, given dy, with d̂ = m∘dy:
///   dS = c·(d̂·U)∘f'(S),  dx = a' + dS·D,  dD += dSᵀ·x,  de += ΣdS,  dU += c·d̂ᵀ·f(S),  dg += c·Σd̂,
///   dc += Σ f(S)∘(d̂·U) + Σ g∘Σd̂
/// and a' what else flows to x: dy itself where a is x. The same as peft::Bottleneck, uploaded from peft::Adapter and given
/// back to it; what stands around it there is the host's to choose, by x and a: behind a branch x = a = h, beside it x = r and
/// a = h. Parameters and their gradients are float; kernels read copies of D and U in T, and S is T.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "peft/adapter_config.hpp"
#include "peft/core/rng.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/dropout_mask.hpp"
#include "peft/cuda/kernels/bottleneck.cuh"
#include "peft/cuda/lora_launch.hpp"
#include "peft/cuda/transfer.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

namespace detail {
/// Stands for any visitor of a host's parameters.
struct ParameterVisitor {
  void operator()(const ParameterInfo&, VectorView<float>, VectorView<float>) const {}
};
}  // namespace detail

/// What cuda::Bottleneck is made from and goes back to: peft::Adapter<T>, whatever its T but double.
template <class H>
concept HostAdapter = requires(H& h, const H& c) {
  { c.hidden_size() } -> std::convertible_to<Index>;
  { c.bottleneck_size() } -> std::convertible_to<Index>;
  { c.config() } -> std::convertible_to<const AdapterConfig&>;
  h.for_each_parameter(detail::ParameterVisitor{});
};

/// T: float, f16 or bf16, the type of activations. Movable.
template <Scalar T>
  requires(!std::is_same_v<T, double>)
class Bottleneck {
 public:
  using value_type = T;

  /// What a training forward leaves for backward. Reuse it from step to step: its memory is kept.
  struct Saved {
    DeviceMatrix<T> s;  ///< S [n, b]
    DropoutMask dropout;
  };

  /// All parameters zero, a trained c 1. Throws ConfigError for sizes below 1 and for what no kernel does (norms of the adapter's
  /// own, a factor for each unit), CudaError.
  Bottleneck(Index hidden_size, Index bottleneck_size, const AdapterConfig& config, Context& context) {
    config.validate();
    if (hidden_size < 1 || bottleneck_size < 1) {
      fail<ConfigError>("cuda::Bottleneck: hidden size {}, bottleneck {}; expected each at least 1", hidden_size,
                        bottleneck_size);
    }
    check_config(config);
    d_ = hidden_size, b_ = bottleneck_size;
    activation_ = *activation_named(config.non_linearity);
    dropout_ = config.dropout;
    is_scaling_trained_ = config.is_scaling_trained();
    scaling_ = constant_of(config);
    for_each_buffer([&](std::string_view, bool, Index rows, Index cols, DeviceBuffer<float>& value, DeviceBuffer<float>&) {
      value = DeviceBuffer<float>(rows * cols);
      value.fill_zero(context.stream());
    });
    if (is_scaling_trained_) {
      const float one = 1.0f;
      cuda::upload(VectorView<const float>(&one, 1), factor_.device_view(), context.stream(), "scaling");
    }
    down_copy_ = DeviceMatrix<T>(b_, d_);
    up_copy_ = DeviceMatrix<T>(d_, b_);
    refresh(context);
  }
  /// A copy of the host's, whose gradients it makes memory for. Throws as the other.
  template <HostAdapter H>
  Bottleneck(H& host, Context& context)
      : Bottleneck(Index{host.hidden_size()}, Index{host.bottleneck_size()}, host.config(), context) {
    upload(host, context);
  }

  Index hidden_size() const noexcept { return d_; }
  Index bottleneck_size() const noexcept { return b_; }
  Activation activation() const noexcept { return activation_; }
  float dropout() const noexcept { return dropout_; }
  /// c, or 1 where it is trained: it stands on the device then.
  float scaling() const noexcept { return scaling_; }
  bool is_scaling_trained() const noexcept { return is_scaling_trained_; }
  /// What the kernels read.
  DeviceMatrixView<const T> down_copy() const noexcept { return down_copy_.view(); }
  DeviceMatrixView<const T> up_copy() const noexcept { return up_copy_.view(); }

  /// The host's parameters; it has the same sizes, non-linearity and scaling. Throws ShapeError, ConfigError, CudaError.
  template <HostAdapter H>
  void upload(H& host, Context& context) {
    check_host("cuda::Bottleneck::upload", host);
    for_each_of(host, [&](std::string_view name, VectorView<float> value, DeviceBuffer<float>& own) {
      cuda::upload(VectorView<const float>(value), own.device_view(), context.stream(), name);
    });
    refresh(context);
  }
  /// The parameters to the host's. Throws as upload.
  template <HostAdapter H>
  void download(H& host, Context& context) const {
    check_host("cuda::Bottleneck::download", host);
    const_cast<Bottleneck*>(this)->for_each_of(host, [&](std::string_view name, VectorView<float> value,
                                                         const DeviceBuffer<float>& own) {
      cuda::download(own.device_view(), value, context.stream(), name);
    });
  }
  /// Makes the copies in T anew: after every change of D or U (an optimizer's step).
  void refresh(Context& context) {
    detail::launch_convert(DeviceMatrixView<const float>(down_.data(), b_, d_), 1.0f, down_copy_.view(), context);
    detail::launch_convert(DeviceMatrixView<const float>(up_.data(), d_, b_), 1.0f, up_copy_.view(), context);
  }
  /// Memory for gradients, zero, where there is none yet. Throws CudaError.
  void ensure_grads(Context& context) {
    if (!grad_down_.empty()) return;
    for_each_buffer([](std::string_view, bool, Index rows, Index cols, DeviceBuffer<float>&, DeviceBuffer<float>& grad) {
      grad = DeviceBuffer<float>(rows * cols);
    });
    zero_grad(context);
  }
  void zero_grad(Context& context) {
    for_each_buffer([&](std::string_view, bool, Index, Index, DeviceBuffer<float>&, DeviceBuffer<float>& grad) {
      grad.fill_zero(context.stream());
    });
  }

  /// Scratch that any pass over up to `rows` rows takes: for Context::reserve.
  Index scratch_bytes(Index rows) const {
    const int sm = current_sm();
    return detail::most_bytes(rows, [this, sm](Index n) {
      return std::max(kernels::bottleneck_forward_workspace<T>(n, d_, b_, 0, sm),
                      kernels::bottleneck_backward_workspace<T>(n, d_, b_, 0, sm, dropout_ > 0.0f, is_scaling_trained_));
    });
  }
  /// Memory of `saved` for up to `rows` rows, so that no forward has to take it. Throws CudaError.
  void reserve(Saved& saved, Index rows) const {
    if (saved.s.cols() != b_) saved.s = DeviceMatrix<T>(0, b_);
    if (rows > saved.s.rows()) saved.s.resize_rows_discard(rows);
    if (dropout_ > 0.0f) saved.dropout.reserve(rows, d_);
  }

  /// Inference: y = a + c·(f(x·Dᵀ + e)·Uᵀ + g); without memory `a` is left out. y may be a, not x. Throws ShapeError, CudaError.
  void forward(DeviceMatrixView<const T> x, DeviceMatrixView<const T> a, DeviceMatrixView<T> y, Context& context) const {
    forward_with(x, a, y, DeviceMatrixView<T>(), DeviceMaskBits(), context);
  }
  /// Training: the same with the mask of `key` (none without dropout, or without a key) over the update, leaving it and S in
  /// `saved`, for which reserve() was called. Throws ShapeError, CudaError.
  void forward(DeviceMatrixView<const T> x, DeviceMatrixView<const T> a, DeviceMatrixView<T> y, Saved& saved,
               const DropoutKey* key, Context& context) const {
    if (saved.s.cols() != b_ || saved.s.rows() < x.rows) {
      fail<CudaError>("cuda::Bottleneck::forward: S has memory for [{}, {}]; expected Bottleneck::reserve for [{}, {}] before",
                      saved.s.rows(), saved.s.cols(), x.rows, b_);
    }
    saved.dropout.clear();
    if (key != nullptr) saved.dropout.make(*key, x.rows, d_, dropout_, context);
    forward_with(x, a, y, saved.s.view().row_range(0, x.rows), saved.dropout.view(), context);
  }

  /// Adds to the gradients (ensure_grads() before); dx = a' + dS·D, or nothing where dx has no memory, and without a' where that
  /// has none. dx may be a', neither dy nor x. x and `saved` are those of the forward. Throws ShapeError, CudaError.
  void backward(DeviceMatrixView<const T> dy, DeviceMatrixView<const T> x, const Saved& saved, DeviceMatrixView<const T> a_grad,
                DeviceMatrixView<T> dx, Context& context) {
    constexpr std::string_view kWho = "cuda::Bottleneck::backward";
    detail::check_shape(kWho, "x", x, x.rows, d_);
    detail::check_shape(kWho, "dy", dy, x.rows, d_);
    if (dx.data != nullptr) {
      detail::check_shape(kWho, "dx", dx, x.rows, d_);
      detail::check_no_alias(kWho, "dx", dx, "dy", dy);
      detail::check_no_alias(kWho, "dx", dx, "x", x);
      check_residual(kWho, "a's gradient", a_grad, "dx", dx);
    }
    if (grad_down_.empty()) {
      fail<CudaError>("{}: there is no memory for gradients; expected Bottleneck::ensure_grads before", kWho);
    }
    if (saved.s.cols() != b_ || saved.s.rows() < x.rows) {
      fail<ShapeError>("{}: S is [{}, {}]; expected that of the forward, [{}, {}]", kWho, saved.s.rows(), saved.s.cols(),
                       x.rows, b_);
    }
    if (x.rows == 0) return;
    Context::Scratch scratch(context);
    kernels::BottleneckBackwardArgs<T> args{};
    args.dy = dy.data, args.lddy = dy.stride;
    args.x = x.data, args.ldx = x.stride;
    args.down = down_copy_.data(), args.ldd = down_copy_.stride();
    args.up = up_copy_.data(), args.ldu = up_copy_.stride();
    args.residual = a_grad.data, args.ldr = a_grad.stride;
    args.scale = scaling_;
    args.activation = activation_;
    args.s = saved.s.data(), args.lds = saved.s.stride();
    args.dx = dx.data, args.lddx = dx.stride;
    args.d_down = grad_down_.data();
    args.d_down_bias = grad_down_bias_.data();
    args.d_up = grad_up_.data();
    args.d_up_bias = grad_up_bias_.data();
    args.m = x.rows, args.d = d_, args.b = b_;
    args.sm = context.device().sm;
    const DeviceMaskBits& mask = saved.dropout.view();
    args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
    args.scale_from = factor_.data();
    args.up_bias = up_bias_.data();
    args.d_scale = grad_factor_.data();
    args.workspace = scratch.take<std::byte>(
        kernels::bottleneck_backward_workspace<T>(x.rows, d_, b_, 0, args.sm, mask.bits != nullptr, is_scaling_trained_), kWho);
    check(kernels::bottleneck_backward(args, context.stream()), "bottleneck_backward kernels: x [{}, {}], bottleneck {}", x.rows,
          d_, b_);
  }

  /// Visits the parameters with AdapterHub's names after `prefix` (a trained "scaling", "adapter_down.0.weight",
  /// "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias"), as peft::Adapter: (ParameterInfo, DeviceVectorView<float> value, … gradient). The
  /// gradients are empty before ensure_grads().
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    for_each_buffer([&](std::string_view name, bool is_weight, Index rows, Index cols, DeviceBuffer<float>& value,
                        DeviceBuffer<float>& grad) {
      const std::string full = std::string(prefix) + std::string(name);
      visit(ParameterInfo{full, is_weight ? ParameterRole::kOther : ParameterRole::kBias, is_weight, rows, cols},
            value.device_view(), grad.device_view());
    });
  }

 private:
  static void check_config(const AdapterConfig& config) {
    const auto refuse = [](std::string_view field, const auto& got, std::string_view expected) {
      fail<ConfigError>("cuda::Bottleneck: {} is {}; expected {} on the GPU, whose kernel does no more", field, got, expected);
    };
    if (config.ln_before) refuse("ln_before", true, "false");
    if (config.ln_after) refuse("ln_after", true, "false");
    if (config.is_scaling_trained() && std::get<std::string>(config.scaling) == "channel") {
      refuse("scaling", "\"channel\"", "a number or \"learned\"");
    }
  }
  static float constant_of(const AdapterConfig& config) {
    return config.is_scaling_trained() ? 1.0f : static_cast<float>(std::get<double>(config.scaling));
  }
  template <class H>
  void check_host(std::string_view who, const H& host) const {
    check_config(host.config());
    if (host.hidden_size() != d_ || host.bottleneck_size() != b_) {
      fail<ShapeError>("{}: the host's adapter has hidden size {}, bottleneck {}; expected {} and {}", who,
                       Index{host.hidden_size()}, Index{host.bottleneck_size()}, d_, b_);
    }
    const AdapterConfig& config = host.config();
    if (*activation_named(config.non_linearity) != activation_ || config.is_scaling_trained() != is_scaling_trained_ ||
        constant_of(config) != scaling_) {
      const auto text = [](bool is_trained, float scaling) {
        return is_trained ? std::string("\"learned\"") : fmt::format("{}", scaling);
      };
      fail<ConfigError>("{}: the host's adapter has non_linearity {} and scaling {}; expected {} and {}", who,
                        config.non_linearity, text(config.is_scaling_trained(), constant_of(config)), name_of(activation_),
                        text(is_scaling_trained_, scaling_));
    }
  }

  /// (name, whether it is a weight, rows, columns, value, gradient) in AdapterHub's order.
  template <class Visit>
  void for_each_buffer(Visit&& visit) {
    if (is_scaling_trained_) visit("scaling", true, Index{1}, Index{1}, factor_, grad_factor_);
    visit("adapter_down.0.weight", true, b_, d_, down_, grad_down_);
    visit("adapter_down.0.bias", false, Index{1}, b_, down_bias_, grad_down_bias_);
    visit("adapter_up.weight", true, d_, b_, up_, grad_up_);
    visit("adapter_up.bias", false, Index{1}, d_, up_bias_, grad_up_bias_);
  }
  /// (name, the host's values, ours), by name.
  template <class H, class Visit>
  void for_each_of(H& host, Visit&& visit) {
    host.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
      bool found = false;
      for_each_buffer([&](std::string_view name, bool, Index, Index, DeviceBuffer<float>& own, DeviceBuffer<float>&) {
        if (name != info.name) return;
        visit(name, value, own);
        found = true;
      });
      if (!found) fail<ConfigError>("cuda::Bottleneck: the host's adapter has a parameter {}; expected those of D, e, U, g and c",
                                    info.name);
    });
  }

  /// Throws ShapeError unless what is added has the result's shape, and is apart from it or the same memory.
  static void check_residual(std::string_view who, std::string_view what, DeviceMatrixView<const T> added,
                             std::string_view result_name, DeviceMatrixView<T> result) {
    if (added.data == nullptr) return;
    detail::check_shape(who, what, added, result.rows, result.cols);
    if (added.data == result.data && (result.rows <= 1 || added.stride == result.stride)) return;
    detail::check_no_alias(who, result_name, result, what, added);
  }

  /// S where it has memory.
  void forward_with(DeviceMatrixView<const T> x, DeviceMatrixView<const T> a, DeviceMatrixView<T> y, DeviceMatrixView<T> s,
                    const DeviceMaskBits& mask, Context& context) const {
    constexpr std::string_view kWho = "cuda::Bottleneck::forward";
    detail::check_shape(kWho, "x", x, x.rows, d_);
    detail::check_shape(kWho, "y", y, x.rows, d_);
    detail::check_no_alias(kWho, "y", y, "x", x);
    check_residual(kWho, "a", a, "y", y);
    if (x.rows == 0) return;
    Context::Scratch scratch(context);
    kernels::BottleneckForwardArgs<T> args{};
    args.x = x.data, args.ldx = x.stride;
    args.down = down_copy_.data(), args.ldd = down_copy_.stride();
    args.down_bias = down_bias_.data();
    args.up = up_copy_.data(), args.ldu = up_copy_.stride();
    args.up_bias = up_bias_.data();
    args.residual = a.data, args.ldr = a.stride;
    args.scale = scaling_;
    args.activation = activation_;
    args.s = s.data, args.lds = s.stride;
    args.y = y.data, args.ldy = y.stride;
    args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
    args.scale_from = factor_.data();
    args.m = x.rows, args.d = d_, args.b = b_;
    args.sm = context.device().sm;
    args.workspace = scratch.take<std::byte>(kernels::bottleneck_forward_workspace<T>(x.rows, d_, b_, 0, args.sm), kWho);
    check(kernels::bottleneck_forward(args, context.stream()), "bottleneck_forward kernels: x [{}, {}], bottleneck {}", x.rows,
          d_, b_);
  }

  Index d_ = 0, b_ = 0;
  Activation activation_ = Activation::kRelu;
  float scaling_ = 1, dropout_ = 0;
  bool is_scaling_trained_ = false;
  DeviceBuffer<float> factor_, down_, down_bias_, up_, up_bias_;  // factor_: a trained c, else empty
  DeviceBuffer<float> grad_factor_, grad_down_, grad_down_bias_, grad_up_, grad_up_bias_;
  DeviceMatrix<T> down_copy_, up_copy_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
