// Layers with a low-rank update: forward, the input's gradient, batches of mixed adapters. Every kernel that their launchers take.
#include "launches.hpp"
#include "peft/cuda/kernels/adapter_batch.cuh"
#include "peft/cuda/kernels/lora_forward.cuh"
#include "peft/cuda/kernels/lora_input_grad.cuh"
#include "peft/cuda/kernels/lora_shrink.cuh"

namespace {

using namespace peft;
using namespace peft::cuda::kernels;
using peft_proof::address;

constexpr Index kWidth = 4096;

template <class T>
void layer(const char* label) {
  for (const Index m : {Index{1}, Index{64}, Index{4096}}) {
    for (const Index r : {Index{16}, Index{64}}) {
      LoraShrinkArgs<T> shrink{};
      shrink.x = address<T>();
      shrink.a = address<T>();
      shrink.s = address<T>();
      shrink.mask = address<std::uint8_t>();
      shrink.workspace = address<float>();
      shrink.ldx = shrink.lda = shrink.in = kWidth;
      shrink.lds = shrink.r = r;
      shrink.m = m;
      shrink.mask_stride = kWidth / 8;
      PROVE(label, lora_shrink(shrink, nullptr));

      LoraForwardArgs<T> layer{};
      layer.x = address<T>();
      layer.w = address<T>();
      layer.s = address<T>();
      layer.b = address<T>();
      layer.y = address<T>();
      layer.ldx = layer.ldw = layer.ldy = layer.in = layer.out = kWidth;
      layer.lds = layer.ldb = layer.r = r;
      layer.m = m;
      PROVE(label, lora_forward(layer, nullptr));

      LoraInputGradArgs<T> dx{};
      dx.dy = address<T>();
      dx.w = address<T>();
      dx.ds = address<T>();
      dx.a = address<T>();
      dx.mask = address<std::uint8_t>();
      dx.dx = address<T>();
      dx.lddy = dx.ldw = dx.lda = dx.lddx = dx.in = dx.out = kWidth;
      dx.ldds = dx.r = r;
      dx.m = m;
      dx.mask_stride = kWidth / 8;
      PROVE(label, lora_input_grad(dx, nullptr));
    }
  }
}

template <class T>
void batch(const char* label) {
  for (const Index most_rows : {Index{4}, Index{256}}) {
    for (const Index rank : {Index{16}, Index{64}}) {
      AdapterBatchArgs<T> batch{};
      batch.segments = address<AdapterSegment<T>>();
      batch.rows = address<std::int32_t>();
      batch.s = address<T>();
      batch.workspace = address<float>();
      batch.segment_count = 8;
      batch.row_count = 8 * most_rows;
      batch.most_rows = most_rows;
      batch.most_rank = batch.lds = rank;
      PROVE(label, adapter_batch_shrink(AdapterShrinkArgs<T>{address<T>(), kWidth, kWidth, batch}, nullptr));
      PROVE(label, adapter_batch_expand(AdapterExpandArgs<T>{address<T>(), kWidth, kWidth, batch}, nullptr));
    }
  }
}

}  // namespace

void launches() {
  layer<f16>("lora f16");
  layer<bf16>("lora bf16");
  layer<float>("lora f32");
  batch<f16>("adapter batch f16");
  batch<bf16>("adapter batch bf16");
  batch<float>("adapter batch f32");
}
