#pragma once
/// LoRA's kernels over device views: the arguments of each filled in one place, and a refusal named with its sizes. Shapes are
/// the caller's to check.

#include <algorithm>

#include "peft/cuda/check.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/device_view.hpp"
#include "peft/cuda/kernels/bias_sum.cuh"
#include "peft/cuda/kernels/column_sums.cuh"
#include "peft/cuda/kernels/convert.cuh"
#include "peft/cuda/kernels/lora_backward.cuh"
#include "peft/cuda/kernels/lora_factor_grad.cuh"
#include "peft/cuda/kernels/lora_forward.cuh"
#include "peft/cuda/kernels/lora_input_grad.cuh"
#include "peft/cuda/kernels/lora_shrink.cuh"
#include "peft/cuda/mask_bits.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda::detail {

/// to = scale·from, rounded once.
template <class To, class From>
void launch_convert(DeviceMatrixView<const From> from, float scale, DeviceMatrixView<To> to, Context& context) {
  kernels::ConvertArgs<To, From> args{};
  args.src = from.data, args.lds = from.stride;
  args.dst = to.data, args.ldd = to.stride;
  args.rows = from.rows, args.cols = from.cols;
  args.scale = scale;
  check(kernels::convert(args, context.stream()), "convert kernel: [{}, {}]", from.rows, from.cols);
}

/// y = x·Wᵀ + bias + scale·S·Bᵀ.
template <class T>
void launch_lora_forward(DeviceMatrixView<const T> x, DeviceMatrixView<const T> w, const T* bias, DeviceMatrixView<const T> s,
                         DeviceMatrixView<const T> b, float scale, DeviceMatrixView<T> y, Context& context) {
  kernels::LoraForwardArgs<T> args{};
  args.x = x.data, args.ldx = x.stride;
  args.w = w.data, args.ldw = w.stride;
  args.bias = bias;
  args.s = s.data, args.lds = s.stride;
  args.b = b.data, args.ldb = b.stride;
  args.scale = scale;
  args.y = y.data, args.ldy = y.stride;
  args.m = x.rows, args.out = w.rows, args.in = w.cols, args.r = s.cols;
  args.sm = context.device().sm;
  check(kernels::lora_forward(args, context.stream()), "lora_forward kernel: x [{}, {}], W [{}, {}], r {}", args.m, args.in,
        args.out, args.in, args.r);
}

/// The most bytes that bytes_of(n) is for n from 1 to `rows`: fewer rows may be cut into more parts, whose sums need more.
template <class BytesOf>
Index most_bytes(Index rows, const BytesOf& bytes_of) {
  Index most = 0;
  for (Index n = 1; n <= rows; ++n) most = std::max(most, static_cast<Index>(bytes_of(n)));
  return Context::padded(most);
}

/// S = (mask∘x)·Aᵀ.
template <class T>
void launch_lora_shrink(DeviceMatrixView<const T> x, const DeviceMaskBits& mask, DeviceMatrixView<const T> a,
                        DeviceMatrixView<T> s, Context& context) {
  Context::Scratch scratch(context);
  kernels::LoraShrinkArgs<T> args{};
  args.x = x.data, args.ldx = x.stride;
  args.a = a.data, args.lda = a.stride;
  args.s = s.data, args.lds = s.stride;
  args.m = x.rows, args.in = x.cols, args.r = a.rows;
  args.workspace = scratch.take<float>(kernels::lora_shrink_workspace<T>(args.m, args.in, args.r) / 4, "lora_shrink kernel");
  args.sm = context.device().sm;
  args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
  check(kernels::lora_shrink(args, context.stream()), "lora_shrink kernel: x [{}, {}], r {}", args.m, args.in, args.r);
}

/// dS = scale·dy·B, dB += scale·dyᵀ·S.
template <class T>
void launch_lora_backward(DeviceMatrixView<const T> dy, DeviceMatrixView<const T> s, DeviceMatrixView<const T> b, float scale,
                          DeviceMatrixView<T> ds, DeviceMatrixView<float> db, Context& context) {
  Context::Scratch scratch(context);
  kernels::LoraBackwardArgs<T> args{};
  args.dy = dy.data, args.lddy = dy.stride;
  args.s = s.data, args.lds = s.stride;
  args.b = b.data, args.ldb = b.stride;
  args.scale = scale;
  args.ds = ds.data, args.ldds = ds.stride;
  args.db = db.data, args.lddb = db.stride;
  args.m = dy.rows, args.out = dy.cols, args.r = s.cols;
  args.workspace =
      scratch.take<float>(kernels::lora_backward_workspace<T>(args.m, args.out, args.r) / 4, "lora_backward kernel");
  args.sm = context.device().sm;
  check(kernels::lora_backward(args, context.stream()), "lora_backward kernel: dy [{}, {}], r {}", args.m, args.out, args.r);
}

/// dx = dy·W + mask∘(dS·A).
template <class T>
void launch_lora_input_grad(DeviceMatrixView<const T> dy, DeviceMatrixView<const T> w, DeviceMatrixView<const T> ds,
                            DeviceMatrixView<const T> a, const DeviceMaskBits& mask, DeviceMatrixView<T> dx, Context& context) {
  kernels::LoraInputGradArgs<T> args{};
  args.dy = dy.data, args.lddy = dy.stride;
  args.w = w.data, args.ldw = w.stride;
  args.ds = ds.data, args.ldds = ds.stride;
  args.a = a.data, args.lda = a.stride;
  args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
  args.dx = dx.data, args.lddx = dx.stride;
  args.m = dy.rows, args.out = w.rows, args.in = w.cols, args.r = ds.cols;
  args.sm = context.device().sm;
  check(kernels::lora_input_grad(args, context.stream()), "lora_input_grad kernel: dy [{}, {}], W [{}, {}], r {}", args.m,
        args.out, args.out, args.in, args.r);
}

/// dA += dSᵀ·(mask∘x).
template <class T>
void launch_lora_factor_grad(DeviceMatrixView<const T> ds, DeviceMatrixView<const T> x, const DeviceMaskBits& mask,
                             DeviceMatrixView<float> da, Context& context) {
  Context::Scratch scratch(context);
  kernels::LoraFactorGradArgs<T> args{};
  args.ds = ds.data, args.ldds = ds.stride;
  args.x = x.data, args.ldx = x.stride;
  args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
  args.da = da.data, args.ldda = da.stride;
  args.m = x.rows, args.in = x.cols, args.r = ds.cols;
  args.workspace =
      scratch.take<float>(kernels::lora_factor_grad_workspace<T>(args.m, args.in, args.r) / 4, "lora_factor_grad kernel");
  args.sm = context.device().sm;
  check(kernels::lora_factor_grad(args, context.stream()), "lora_factor_grad kernel: x [{}, {}], r {}", args.m, args.in,
        args.r);
}

/// to = bias + scale·add, rounded once; an empty bias is zeros.
template <class T>
void launch_bias_sum(DeviceVectorView<const T> bias, DeviceVectorView<const float> add, float scale, DeviceVectorView<T> to,
                     Context& context) {
  const kernels::BiasSumArgs<T> args{bias.empty() ? nullptr : bias.data, add.data, scale, to.data, to.size};
  check(kernels::bias_sum(args, context.stream()), "bias_sum kernel: {} elements", to.size);
}

/// to += scale·Σ rows of dy.
template <class T>
void launch_column_sum(DeviceMatrixView<const T> dy, float scale, DeviceVectorView<float> to, Context& context) {
  Context::Scratch scratch(context);
  kernels::ColumnSumArgs<T> args{};
  args.a = dy.data, args.lda = dy.stride;
  args.m = dy.rows, args.n = dy.cols;
  args.scale = scale;
  args.out = to.data;
  args.workspace = scratch.take<float>(kernels::column_sum_workspace<T>(args.m, args.n) / 4, "column_sum kernel");
  check(kernels::column_sum(args, context.stream()), "column_sum kernel: dy [{}, {}]", args.m, args.n);
}

}  // namespace cuda::detail
PEFT_END_NAMESPACE
