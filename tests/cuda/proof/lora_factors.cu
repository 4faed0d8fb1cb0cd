// Gradients of low-rank factors, and bottleneck adapters, whose gradients are made with them.
#include "launches.hpp"
#include "peft/cuda/kernels/bias_sum.cuh"
#include "peft/cuda/kernels/bottleneck.cuh"
#include "peft/cuda/kernels/lora_backward.cuh"
#include "peft/cuda/kernels/lora_factor_grad.cuh"

namespace {

using namespace peft;
using namespace peft::cuda::kernels;
using peft_proof::address;

constexpr Index kWidth = 4096;

template <class T>
void factors_of(const char* label) {
  for (const Index m : {Index{1}, Index{64}, Index{4096}}) {
    for (const Index r : {Index{16}, Index{64}}) {
      LoraBackwardArgs<T> factors{};
      factors.dy = address<T>();
      factors.s = address<T>();
      factors.b = address<T>();
      factors.ds = address<T>();
      factors.db = address<float>();
      factors.workspace = address<float>();
      factors.lddy = factors.out = kWidth;
      factors.lds = factors.ldb = factors.ldds = factors.lddb = factors.r = r;
      factors.m = m;
      PROVE(label, lora_backward(factors, nullptr));

      LoraFactorGradArgs<T> da{};
      da.ds = address<T>();
      da.x = address<T>();
      da.mask = address<std::uint8_t>();
      da.da = address<float>();
      da.workspace = address<float>();
      da.ldx = da.ldda = da.in = kWidth;
      da.ldds = da.r = r;
      da.m = m;
      da.mask_stride = kWidth / 8;
      PROVE(label, lora_factor_grad(da, nullptr));
    }
  }
}

template <class T>
void bottleneck(const char* label) {
  for (const Index m : {Index{1}, Index{4096}}) {
    for (const Index b : {Index{64}, Index{256}}) {
      BottleneckForwardArgs<T> forward{};
      forward.x = address<T>();
      forward.down = address<T>();
      forward.down_bias = address<float>();
      forward.up = address<T>();
      forward.up_bias = address<float>();
      forward.residual = address<T>();
      forward.s = address<T>();
      forward.y = address<T>();
      forward.workspace = address<float>();
      forward.ldx = forward.ldd = forward.ldr = forward.ldy = forward.d = kWidth;
      forward.ldu = forward.lds = forward.b = b;
      forward.m = m;
      forward.activation = Activation::kGelu;
      PROVE(label, bottleneck_forward(forward, nullptr));

      BottleneckBackwardArgs<T> backward{};
      backward.dy = address<T>();
      backward.x = address<T>();
      backward.down = address<T>();
      backward.up = address<T>();
      backward.s = address<T>();
      backward.dx = address<T>();
      backward.d_down = address<float>();
      backward.d_down_bias = address<float>();
      backward.d_up = address<float>();
      backward.d_up_bias = address<float>();
      backward.workspace = address<float>();
      backward.lddy = backward.ldx = backward.ldd = backward.lddx = backward.d = kWidth;
      backward.ldu = backward.lds = backward.b = b;
      backward.m = m;
      backward.activation = Activation::kGelu;
      PROVE(label, bottleneck_backward(backward, nullptr));

      // With a dropout mask, and with c in device memory.
      forward.mask = backward.mask = address<std::uint8_t>();
      forward.mask_stride = backward.mask_stride = kWidth / 8;
      forward.scale_from = backward.scale_from = address<float>();
      backward.up_bias = address<float>();
      backward.d_scale = address<float>();
      PROVE("trained bottleneck", bottleneck_forward(forward, nullptr));
      PROVE("trained bottleneck", bottleneck_backward(backward, nullptr));
    }
  }
  const MaskRowsArgs<T> unaligned{address<T>(sizeof(T)), kWidth, address<T>(), kWidth, address<std::uint8_t>(), kWidth / 8, 1.0f, 64, kWidth};
  PROVE("unaligned mask", mask_rows(unaligned, nullptr));
  PROVE("bias", bias_sum(BiasSumArgs<T>{address<T>(), address<float>(), 1.0f, address<T>(), kWidth}, nullptr));
}

}  // namespace

void launches() {
  factors_of<f16>("factors f16");
  factors_of<bf16>("factors bf16");
  factors_of<float>("factors f32");
  bottleneck<f16>("bottleneck f16");
  bottleneck<bf16>("bottleneck bf16");
  bottleneck<float>("bottleneck f32");
}
