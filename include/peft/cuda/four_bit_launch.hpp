#pragma once
/// The kernels of products with 4-bit weights over device views: arguments filled in one place, refusals named with their
/// sizes. Shapes are the caller's to check.

#include "peft/cuda/check.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/device_view.hpp"
#include "peft/cuda/kernels/four_bit_linear.cuh"
#include "peft/cuda/mask_bits.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda::detail {

/// y = x·Wᵀ + bias + scale·S·Bᵀ; an empty S: without.
template <class T>
void launch_four_bit_forward(DeviceMatrixView<const T> x, const kernels::FourBitPacked& w, const T* bias,
                             DeviceMatrixView<const T> s, DeviceMatrixView<const T> b, float scale, DeviceMatrixView<T> y,
                             Context& context) {
  Context::Scratch scratch(context);
  kernels::FourBitForwardArgs<T> args{};
  args.x = x.data, args.ldx = x.stride;
  args.w = w;
  args.bias = bias;
  args.s = s.data, args.lds = s.stride;
  args.b = b.data, args.ldb = b.stride;
  args.scale = scale;
  args.y = y.data, args.ldy = y.stride;
  args.m = x.rows, args.r = s.cols;
  args.sm = context.device().sm;
  args.workspace =
      scratch.take<float>(kernels::four_bit_forward_workspace<T>(w, args.m, args.sm) / 4, "four_bit_forward kernel");
  check(kernels::four_bit_forward(args, context.stream()), "four_bit_forward kernel: x [{}, {}], W [{}, {}], r {}", x.rows,
        x.cols, w.out, w.in, args.r);
}

/// dx = dy·W + mask∘(dS·A); an empty dS: without.
template <class T>
void launch_four_bit_input_grad(DeviceMatrixView<const T> dy, const kernels::FourBitPacked& w, DeviceMatrixView<const T> ds,
                                DeviceMatrixView<const T> a, const DeviceMaskBits& mask, DeviceMatrixView<T> dx,
                                Context& context) {
  Context::Scratch scratch(context);
  kernels::FourBitInputGradArgs<T> args{};
  args.dy = dy.data, args.lddy = dy.stride;
  args.w = w;
  args.ds = ds.data, args.ldds = ds.stride;
  args.a = a.data, args.lda = a.stride;
  args.mask = mask.bits, args.mask_stride = mask.stride_bytes, args.mask_scale = mask.scale;
  args.dx = dx.data, args.lddx = dx.stride;
  args.m = dy.rows, args.r = ds.cols;
  args.sm = context.device().sm;
  args.workspace =
      scratch.take<float>(kernels::four_bit_input_grad_workspace<T>(w, args.m, args.sm) / 4, "four_bit_input_grad kernel");
  check(kernels::four_bit_input_grad(args, context.stream()), "four_bit_input_grad kernel: dy [{}, {}], W [{}, {}], r {}",
        dy.rows, dy.cols, w.out, w.in, args.r);
}

}  // namespace cuda::detail
PEFT_END_NAMESPACE
