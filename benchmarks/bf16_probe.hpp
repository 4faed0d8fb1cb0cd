#pragma once
/// NF4 over activations in bf16 by vdpbf16ps (AVX512-BF16), to be measured beside the library's kernels: table and x in bf16, 32
/// weights a look-up, sums in float. Lanes are eight codes of a row as in the library's own kernels of few rows. No kernel of the
/// library: docs/qlora.md has what was measured and why.

#include <cstdint>
#include <vector>

#include "peft/core/parallel.hpp"
#include "peft/nf4_tensor.hpp"

#if PEFT_X86_64
#include <immintrin.h>

namespace peft_benchmarks {

#define PEFT_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

inline bool has_bf16() noexcept { return __builtin_cpu_supports("avx512bf16"); }

/// Twelve chains of vdpbf16ps, 64 operations each; see fma_rounds_avx512.
PEFT_BF16_TARGET inline float bf16_rounds() noexcept {
  __m512 sums[12];
  const __m512bh half = (__m512bh)_mm512_set1_epi16(0x3F00);
  for (__m512& sum : sums) sum = _mm512_set1_ps(1.0f);
  for (int i = 0; i < 20000; ++i) {
    PEFT_UNROLL_PRAGMA(12) for (int c = 0; c < 12; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], half, half);
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}

/// Rows j, j + step, … (four) of codes by M rows of x [M][k] as arranged() has it; k a multiple of 128, blocks of 64.
template <int M>
PEFT_BF16_TARGET void bf16_columns(const peft::FourBitStorage& w, peft::Index k, const std::uint16_t* x, peft::Index j, peft::Index step,
                                   peft::Index n, float* y) noexcept {
  alignas(64) std::uint16_t both[32];
  for (int i = 0; i < 32; ++i) both[i] = peft::bf16(peft::kernels::table_of(peft::FourBitCode::kNf4).value[i % 16]).bits;
  const __m512i table = _mm512_load_si512(both);
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512 acc[M][4];
  for (int i = 0; i < M; ++i) {
    for (int c = 0; c < 4; ++c) acc[i][c] = _mm512_setzero_ps();
  }
  for (peft::Index first = 0; first < k; first += 128) {
    PEFT_UNROLL_PRAGMA(4) for (int c = 0; c < 4; ++c) {
      const peft::Index row = j + c * step;
      const std::uint8_t* const codes = w.codes.data + (row * k + first) / 2;
      __builtin_prefetch(codes + 1024);
      __m512i words = _mm512_loadu_si512(codes);
      __m512 sum[M];
      for (int i = 0; i < M; ++i) sum[i] = _mm512_setzero_ps();
      PEFT_UNROLL_PRAGMA(4) for (int part = 0; part < 4; ++part) {
        const __m512bh values = (__m512bh)_mm512_permutexvar_epi16(words, table);
        PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < M; ++i) {
          sum[i] = _mm512_dpbf16_ps(sum[i], values, (__m512bh)_mm512_loadu_si512(x + i * k + first + 32 * part));
        }
        words = _mm512_srli_epi16(words, 4);
      }
      const __m128i two = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.absmax.data + (row * k + first) / 64));
      const __m512 scale = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi32(0xFFFF, halves, _mm512_castsi128_si512(two)));
      PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < M; ++i) acc[i][c] = _mm512_fmadd_ps(sum[i], scale, acc[i][c]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int c = 0; c < 4; ++c) {
      alignas(64) float lanes[16];
      _mm512_store_ps(lanes, acc[i][c]);
      float total = 0;
      for (const float lane : lanes) total += lane;
      y[i * n + j + c * step] = total;
    }
  }
}

/// A row of x in bf16 in the order of the look-ups: of a 16-bit lane's four codes those shifted down by 4·part, whose lane is
/// 4·lane + (1, 0, 3, 2)[part] in the row.
inline void arranged(peft::Index k, const float* x, std::uint16_t* out) noexcept {
  for (peft::Index first = 0; first < k; first += 128) {
    for (peft::Index part = 0; part < 4; ++part) {
      for (peft::Index lane = 0; lane < 32; ++lane) out[first + 32 * part + lane] = peft::bf16(x[first + 4 * lane + (part ^ 1)]).bits;
    }
  }
}

/// y [m, n] = x·Wᵀ, m of 1, 4 or a multiple of 4. W once quantised, blocks of 64, n a multiple of 64.
inline void bf16_product(const peft::Nf4Tensor& w, peft::MatrixView<const float> x, float* y, std::vector<std::uint16_t>& memory) {
  const peft::Index k = w.cols(), n = w.rows();
  memory.resize(static_cast<std::size_t>(x.rows * k));
  for (peft::Index i = 0; i < x.rows; ++i) arranged(k, x.row(i), memory.data() + i * k);
  peft::parallel_for_ranges(peft::default_executor(), n, 64, [&](peft::Index first, peft::Index last) {
    const peft::Index streams = (last - first) / 4;
    for (peft::Index i = 0; i < x.rows; i += x.rows == 1 ? 1 : 4) {
      for (peft::Index j = first; j < first + streams; ++j) {
        const std::uint16_t* const rows = memory.data() + i * k;
        x.rows == 1 ? bf16_columns<1>(w.storage(), k, rows, j, streams, n, y) : bf16_columns<4>(w.storage(), k, rows, j, streams, n, y + i * n);
      }
    }
  });
}

}  // namespace peft_benchmarks
#endif
