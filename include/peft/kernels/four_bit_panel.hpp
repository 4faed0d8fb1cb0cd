#pragma once
/// Panels of a weight in four bits, decoded from its codes as the matrix product packs them: B = op(W), W [n, k]. The scales of
/// a panel's blocks are made first, from 8 bits where they are quantised too, and then the codes decoded against them.

#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/quantize_four_bit.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// Rows of W and codes of a row that are decoded at once: the matrix product's panels are no larger.
inline constexpr Index kPartRows = 32, kPartDepth = 256;

}  // namespace detail

/// B = Wᵀ: panel[i*ld + j] = W[n0 + j][k0 + i], j < nc, i < kc; `k` is the length of W's rows and k0 a multiple of 8.
inline void four_bit_columns(const KernelTable& t, const FourBitOperand& w, Index k, Index n0, Index nc, Index k0, Index kc,
                             float* panel, Index ld) noexcept {
  using namespace detail;
  float scales[(kPartDepth / kSmallestFourBitBlock + 1) * kPartRows];
  for (Index j = 0; j < nc; j += kPartRows) {
    for (Index i = 0; i < kc; i += kPartDepth) {
      FourBitPart part;
      part.n = smaller(kPartRows, nc - j), part.depth = smaller(kPartDepth, kc - i);
      part.codes = w.codes + ((n0 + j) * k + k0 + i) / 2, part.row_bytes = k / 2;
      part.value = w.value, part.scales = scales, part.scale_stride = kPartRows;
      part.block = w.block, part.phase = (k0 + i) % w.block;
      part.out = panel + i * ld + j, part.ld = ld;
      const Index blocks = ceil_div(part.phase + part.depth, w.block), first = ((n0 + j) * k + k0 + i) / w.block;
      for (Index r = 0; r < part.n; ++r) {
        for (Index b = 0; b < blocks; ++b) scales[b * kPartRows + r] = w.scales[first + r * (k / w.block) + b];
      }
      t.turn_4bit(part);
    }
  }
}

/// B = W: panel[i*ld + j] = W[k0 + i][n0 + j], j < nc, i < kc; `k` is the length of W's rows and n0 even.
inline void four_bit_rows(const KernelTable& t, const FourBitOperand& w, Index k, Index n0, Index nc, Index k0, Index kc,
                          float* panel, Index ld) noexcept {
  using namespace detail;
  float scales[kPartDepth];
  for (Index j = 0, count = 0; j < nc; j += count) {
    count = smaller(nc - j, w.block - (n0 + j) % w.block);
    for (Index i = 0; i < kc; i += kPartDepth) {
      FourBitPart part;
      part.n = smaller(kPartDepth, kc - i), part.depth = count;
      part.codes = w.codes + ((k0 + i) * k + n0 + j) / 2, part.row_bytes = k / 2;
      part.value = w.value, part.scales = scales;
      part.out = panel + i * ld + j, part.ld = ld;
      const Index first = ((k0 + i) * k + n0 + j) / w.block;
      for (Index r = 0; r < part.n; ++r) scales[r] = w.scales[first + r * (k / w.block)];
      t.rows_4bit(part);
    }
  }
}

}  // namespace kernels
PEFT_END_NAMESPACE
