// Weights in four bits: products, their gradient, quantising, packing, dequantising. Every kernel that their launchers take.
#include "launches.hpp"
#include "peft/cuda/kernels/four_bit_dequantize.cuh"
#include "peft/cuda/kernels/four_bit_linear.cuh"
#include "peft/cuda/kernels/four_bit_quantize.cuh"

namespace {

using namespace peft;
using namespace peft::cuda::kernels;
using peft_proof::address;

constexpr Index kWidth = 4096, kRank = 16;

FourBitPacked weight(bool nested, int block_size) {
  FourBitPacked w{};
  w.codes = address<const std::uint8_t>();
  w.absmax = nested ? nullptr : address<const float>();
  w.nested_codes = nested ? address<const std::uint8_t>() : nullptr;
  w.nested_map = nested ? address<const float>() : nullptr;
  w.nested_absmax = nested ? address<const float>() : nullptr;
  w.block_size = block_size;
  w.out = w.in = kWidth;
  return w;
}

template <class T>
void product(const char* forward, const char* gradient, const FourBitPacked& w, Index m, std::size_t offset) {
  FourBitForwardArgs<T> y{};
  y.w = w;
  y.x = address<T>(offset);
  y.s = address<T>();
  y.b = address<T>();
  y.y = address<T>();
  y.workspace = address<float>();
  y.ldx = y.ldy = kWidth;
  y.lds = y.ldb = y.r = kRank;
  y.m = m;
  PROVE(forward, four_bit_forward(y, nullptr));
  FourBitInputGradArgs<T> dx{};
  dx.w = w;
  dx.dy = address<T>(offset);
  dx.ds = address<T>();
  dx.a = address<T>();
  dx.mask = address<std::uint8_t>();
  dx.dx = address<T>();
  dx.workspace = address<float>();
  dx.lddy = dx.lddx = dx.lda = kWidth;
  dx.ldds = dx.r = kRank;
  dx.mask_stride = kWidth / 8;
  dx.m = m;
  PROVE(gradient, four_bit_input_grad(dx, nullptr));
}

template <class T>
void products(const char* thin, const char* few, const char* many, const char* gradient, const char* unaligned) {
  for (const bool nested : {false, true}) {
    const FourBitPacked w = weight(nested, 64);
    product<T>(thin, gradient, w, 1, 0);
    product<T>(few, gradient, w, 4, 0);
    for (const Index m : {Index{16}, Index{24}, Index{64}, Index{2048}}) product<T>(many, gradient, w, m, 0);
    product<T>(unaligned, unaligned, w, 64, sizeof(T));
  }
}

template <class T>
void conversions(const char* label) {
  FourBitQuantizeArgs<T> quantize{};
  quantize.w = address<T>();
  quantize.codes = address<std::uint8_t>();
  quantize.absmax = address<float>();
  quantize.ldw = quantize.rows = quantize.cols = kWidth;
  quantize.block_size = 64;
  PROVE(label, four_bit_quantize(quantize, nullptr));
  FourBitDequantizeArgs<T> flat{};
  flat.codes = address<std::uint8_t>();
  flat.absmax = address<float>();
  flat.out = address<T>();
  flat.rows = flat.cols = flat.ldo = kWidth;
  flat.block_size = 64;
  PROVE(label, four_bit_dequantize(flat, nullptr));
  FourBitPanelArgs<T> panel{};
  panel.w = weight(true, 64);
  panel.rows = panel.ldo = kWidth;
  panel.out = address<T>();
  PROVE(label, four_bit_dequantize_packed(panel, nullptr));
}

}  // namespace

void launches() {
  products<f16>("nf4 f16, 1 row", "nf4 f16, 4 rows", "nf4 f16, 16 rows and more", "nf4 f16, gradient", "nf4 f16, unaligned");
  products<bf16>("nf4 bf16, 1 row", "nf4 bf16, 4 rows", "nf4 bf16, 16 rows and more", "nf4 bf16, gradient", "nf4 bf16, unaligned");
  products<float>("nf4 f32, 1 row", "nf4 f32, 4 rows", "nf4 f32, 16 rows and more", "nf4 f32, gradient", "nf4 f32, unaligned");
  conversions<f16>("nf4 f16, conversions");
  conversions<bf16>("nf4 bf16, conversions");
  conversions<float>("nf4 f32, conversions");
  FourBitPackArgs pack{};
  pack.flat_codes = pack.codes = address<std::uint8_t>();
  pack.flat_absmax = pack.absmax = address<float>();
  pack.out = pack.in = kWidth;
  pack.block_size = 64;
  for (const Index in : {kWidth, kWidth + 1}) {
    pack.in = in;
    PROVE("nf4, packing", four_bit_pack(pack, nullptr));
    PROVE("nf4, packing", four_bit_unpack(pack, nullptr));
  }
}
