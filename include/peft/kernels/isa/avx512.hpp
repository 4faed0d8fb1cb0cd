#pragma once
/// The vocabulary of AVX-512 (F, BW, DQ, VL): sixteen floats. Tile 14 × 32: 28 accumulators, two of B; A is broadcast
/// from memory.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "peft/config.hpp"
#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/kernels/kernel_types.hpp"

PEFT_BEGIN_NAMESPACE
PEFT_TARGET_BEGIN_AVX512
namespace kernels::avx512 {

using V = __m512;
inline constexpr Index W = 16;
inline constexpr int MR = 14;
inline constexpr int NV = 2;

// Full masks: g++ 12 takes the unmasked forms' undefined third operand for an uninitialised variable and warns in every
// consumer; with a full mask the same instruction comes out.
inline constexpr __mmask16 kAll = 0xFFFF;
inline constexpr __mmask8 kAll8 = 0xFF;

PEFT_ALWAYS_INLINE V vload(const float* p) noexcept { return _mm512_loadu_ps(p); }
PEFT_ALWAYS_INLINE void vstore(float* p, V v) noexcept { _mm512_storeu_ps(p, v); }
PEFT_ALWAYS_INLINE __mmask16 part_mask(Index n) noexcept {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFFu : (1u << n) - 1u);
}
PEFT_ALWAYS_INLINE V vload_part(const float* p, Index n) noexcept { return _mm512_maskz_loadu_ps(part_mask(n), p); }
PEFT_ALWAYS_INLINE void vstore_part(float* p, V v, Index n) noexcept { _mm512_mask_storeu_ps(p, part_mask(n), v); }
PEFT_ALWAYS_INLINE V vload_bf16(const std::uint16_t* p) noexcept {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, half), 16));
}
PEFT_ALWAYS_INLINE V vload_f16(const std::uint16_t* p) noexcept {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
PEFT_ALWAYS_INLINE void vstore_bf16(std::uint16_t* p, V v) noexcept {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i high = _mm512_maskz_srli_epi32(kAll, u, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_maskz_srli_epi32(kAll, _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(_mm512_and_si512(u, _mm512_set1_epi32(0x7FFFFFFF)),
                                                _mm512_set1_epi32(0x7F800000));
  rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(kAll, rounded));
}
PEFT_ALWAYS_INLINE void vstore_f16(std::uint16_t* p, V v) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT));
}
PEFT_ALWAYS_INLINE V vset1(float x) noexcept { return _mm512_set1_ps(x); }
PEFT_ALWAYS_INLINE V vfma(V a, V b, V c) noexcept { return _mm512_fmadd_ps(a, b, c); }

// Compilers see plain arithmetic in these intrinsics: they contract it (g++ does by default), regroup it, and with
// -ffast-math take estimates for quotients and roots and lose NaN in minima. So sums and products are made opaque, and
// the others are named as instructions: the same bits from every compiler with every flag. vfma is one instruction
// already.
PEFT_ALWAYS_INLINE V vopaque(V v) noexcept {
  PEFT_OPAQUE_VECTOR(v);
  return v;
}
PEFT_ALWAYS_INLINE V vadd(V a, V b) noexcept { return vopaque(_mm512_add_ps(a, b)); }
PEFT_ALWAYS_INLINE V vsub(V a, V b) noexcept { return vopaque(_mm512_sub_ps(a, b)); }
PEFT_ALWAYS_INLINE V vmul(V a, V b) noexcept { return vopaque(_mm512_mul_ps(a, b)); }
PEFT_ALWAYS_INLINE V vdiv(V a, V b) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION("vdivps", r, a, b);
  return r;
}
PEFT_ALWAYS_INLINE V vmin(V a, V b) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION("vminps", r, a, b);
  return r;
}
PEFT_ALWAYS_INLINE V vmax(V a, V b) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION("vmaxps", r, a, b);
  return r;
}
PEFT_ALWAYS_INLINE V vsqrt(V a) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION1("vsqrtps", r, a);
  return r;
}
PEFT_ALWAYS_INLINE V vround(V a) noexcept {
  return _mm512_maskz_roundscale_ps(kAll, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PEFT_ALWAYS_INLINE V vpow2(V n) noexcept {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_add_epi32(_mm512_maskz_cvtps_epi32(kAll, n), _mm512_set1_epi32(127)), 23));
}
PEFT_ALWAYS_INLINE V vzero_where(V x, float equal, V v) noexcept {
  return _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(_mm512_set1_ps(equal))),
                             v);
}
PEFT_ALWAYS_INLINE V vwhere_positive(V x, V a, V b) noexcept {
  return _mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(_mm512_castps_si512(x), _mm512_setzero_si512()), b, a);
}
PEFT_ALWAYS_INLINE __m256 lower_half(V a) noexcept { return _mm512_maskz_extractf32x8_ps(kAll8, a, 0); }
PEFT_ALWAYS_INLINE __m256 upper_half(V a) noexcept { return _mm512_maskz_extractf32x8_ps(kAll8, a, 1); }
PEFT_ALWAYS_INLINE float vsum(V a) noexcept {
  const __m256 low = lower_half(a);
  const __m256 high = upper_half(a);
  __m256 eight = _mm256_add_ps(low, high);
  PEFT_OPAQUE_VECTOR(eight);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  PEFT_OPAQUE_VECTOR(s);
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  PEFT_OPAQUE_VECTOR(s);
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
PEFT_ALWAYS_INLINE float vlargest(V a) noexcept {
  const __m256 low = lower_half(a);
  const __m256 high = upper_half(a);
  const __m256 eight = _mm256_max_ps(low, high);
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
PEFT_ALWAYS_INLINE void vsum_squares(V a, double* lanes) noexcept {
  const __m512d low = _mm512_maskz_cvtps_pd(kAll8, lower_half(a));
  const __m512d high = _mm512_maskz_cvtps_pd(kAll8, upper_half(a));
  _mm512_storeu_pd(lanes, _mm512_fmadd_pd(low, low, _mm512_loadu_pd(lanes)));
  _mm512_storeu_pd(lanes + 8, _mm512_fmadd_pd(high, high, _mm512_loadu_pd(lanes + 8)));
}
PEFT_ALWAYS_INLINE bool vany_non_finite(V a) noexcept {
  const __m512i exponent = _mm512_set1_epi32(0x7F800000);
  return _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(a), exponent), exponent) != 0;
}
PEFT_ALWAYS_INLINE V vmask(const std::uint8_t* bits, Index column, Index columns, float scale) noexcept {
  unsigned kept = column < columns ? bits[column / 8] : 0u;
  if (column + 8 < columns) kept |= static_cast<unsigned>(bits[column / 8 + 1]) << 8;
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(kept), _mm512_set1_ps(scale));
}
/// Transposes a 16 × 16 block held in sixteen vectors.
PEFT_ALWAYS_INLINE void vtranspose(V* r) noexcept {
  V t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_maskz_unpacklo_ps(kAll, r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_maskz_unpackhi_ps(kAll, r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {  // r[4i + j]: column j of each 4 × 4 block of rows 4i…4i+3
    r[4 * i] = _mm512_maskz_shuffle_ps(kAll, t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm512_maskz_shuffle_ps(kAll, t[4 * i], t[4 * i + 2], 0xEE);
    r[4 * i + 2] = _mm512_maskz_shuffle_ps(kAll, t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm512_maskz_shuffle_ps(kAll, t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {  // the 4 × 4 arrangement of 128-bit lanes, transposed
    const V a = _mm512_maskz_shuffle_f32x4(kAll, r[j], r[4 + j], 0x88);
    const V b = _mm512_maskz_shuffle_f32x4(kAll, r[j], r[4 + j], 0xDD);
    const V c = _mm512_maskz_shuffle_f32x4(kAll, r[8 + j], r[12 + j], 0x88);
    const V d = _mm512_maskz_shuffle_f32x4(kAll, r[8 + j], r[12 + j], 0xDD);
    t[j] = _mm512_maskz_shuffle_f32x4(kAll, a, c, 0x88);
    t[8 + j] = _mm512_maskz_shuffle_f32x4(kAll, a, c, 0xDD);
    t[4 + j] = _mm512_maskz_shuffle_f32x4(kAll, b, d, 0x88);
    t[12 + j] = _mm512_maskz_shuffle_f32x4(kAll, b, d, 0xDD);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Unsigned words, for Philox; see scalar.hpp.
using U = __m512i;
PEFT_ALWAYS_INLINE U uset1(std::uint32_t x) noexcept { return _mm512_set1_epi32(static_cast<int>(x)); }
PEFT_ALWAYS_INLINE U ucount_from(std::uint32_t first) noexcept {
  return _mm512_add_epi32(uset1(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
PEFT_ALWAYS_INLINE U uxor(U a, U b) noexcept { return _mm512_xor_si512(a, b); }
PEFT_ALWAYS_INLINE void umultiply(U a, std::uint32_t factor, U& high, U& low) noexcept {
  constexpr __mmask16 kOdd = 0xAAAA;
  const U f = uset1(factor);
  const U even = _mm512_maskz_mul_epu32(kAll8, a, f);
  const U odd = _mm512_maskz_mul_epu32(kAll8, _mm512_maskz_srli_epi64(kAll8, a, 32), f);
  high = _mm512_mask_mov_epi32(_mm512_maskz_srli_epi64(kAll8, even, 32), kOdd, odd);
  low = _mm512_mask_mov_epi32(even, kOdd, _mm512_maskz_slli_epi64(kAll8, odd, 32));
}
PEFT_ALWAYS_INLINE void ustore_keep_bits(const U* w, std::uint32_t threshold, std::uint8_t* out) noexcept {
  const U least = uset1(threshold);
  U bits = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) {
    const __mmask16 low = _mm512_cmpge_epu32_mask(_mm512_and_si512(w[i], uset1(0xFFFFu)), least);
    const __mmask16 high = _mm512_cmpge_epu32_mask(_mm512_maskz_srli_epi32(kAll, w[i], 16), least);
    bits = _mm512_mask_or_epi32(bits, low, bits, uset1(1u << (2 * i)));
    bits = _mm512_mask_or_epi32(bits, high, bits, uset1(2u << (2 * i)));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_maskz_cvtepi32_epi8(kAll, bits));
}

// Sixteen words looked up, and codes of four bits; see scalar.hpp.
PEFT_ALWAYS_INLINE U uadd(U a, U b) noexcept { return _mm512_add_epi32(a, b); }
PEFT_ALWAYS_INLINE V vof(U bits) noexcept { return _mm512_castsi512_ps(bits); }
PEFT_ALWAYS_INLINE U uabove(V a, V b, std::uint32_t step) noexcept {
  return _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), uset1(step));
}
using Table = __m512i;
PEFT_ALWAYS_INLINE Table utable(const void* words) noexcept { return _mm512_loadu_si512(words); }
PEFT_ALWAYS_INLINE U ulookup(Table table, U index) noexcept {
  return _mm512_maskz_permutexvar_epi32(kAll, index, table);
}
PEFT_ALWAYS_INLINE void uload_nibbles(const std::uint8_t* p, U& first, U& second) noexcept {
  const U shift = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
  const U words = _mm512_maskz_broadcast_i32x4(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const U lower = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  first = _mm512_maskz_srlv_epi32(kAll, _mm512_maskz_permutexvar_epi32(kAll, lower, words), shift);
  const U upper = _mm512_add_epi32(lower, _mm512_set1_epi32(2));
  second = _mm512_maskz_srlv_epi32(kAll, _mm512_maskz_permutexvar_epi32(kAll, upper, words), shift);
}
PEFT_ALWAYS_INLINE void ustore_nibbles(U first, U second, std::uint8_t* out) noexcept {
  // In 64 bits stand a first code and, above 32 of them, the second one.
  const U a = _mm512_or_si512(_mm512_maskz_slli_epi64(kAll8, first, 4), _mm512_maskz_srli_epi64(kAll8, first, 32));
  const U b = _mm512_or_si512(_mm512_maskz_slli_epi64(kAll8, second, 4), _mm512_maskz_srli_epi64(kAll8, second, 32));
  const __m128i low = _mm512_maskz_cvtepi64_epi8(kAll8, a), high = _mm512_maskz_cvtepi64_epi8(kAll8, b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi64(low, high));
}

PEFT_ALWAYS_INLINE U uload(const std::uint8_t* p) noexcept { return _mm512_loadu_si512(p); }
PEFT_ALWAYS_INLINE U uload_part(const std::uint8_t* p, Index words) noexcept {
  return _mm512_maskz_loadu_epi32(part_mask(words), p);
}
PEFT_ALWAYS_INLINE U unext_nibble(U words) noexcept { return _mm512_maskz_srli_epi32(kAll, words, 4); }
PEFT_ALWAYS_INLINE V vspread(const float* p, Index parts) noexcept {
  if (parts == 1) return vset1(*p);
  const U halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const U quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const V numbers = _mm512_maskz_broadcast_f32x4(kAll, _mm_loadu_ps(p));
  return _mm512_maskz_permutexvar_ps(kAll, parts == 2 ? halves : quarters, numbers);
}
PEFT_ALWAYS_INLINE V vfirst(V v, Index n) noexcept { return _mm512_maskz_mov_ps(part_mask(n), v); }

// Words of bits, and look-ups in long tables, for codes of 8 bits; see scalar.hpp.
PEFT_ALWAYS_INLINE U ubits(V v) noexcept { return _mm512_castps_si512(v); }
PEFT_ALWAYS_INLINE U uand(U a, U b) noexcept { return _mm512_and_si512(a, b); }
PEFT_ALWAYS_INLINE U usign(U a) noexcept { return _mm512_maskz_srai_epi32(kAll, a, 31); }
template <int kBits>
PEFT_ALWAYS_INLINE U ushift_right(U a) noexcept {
  return _mm512_maskz_srli_epi32(kAll, a, kBits);
}
PEFT_ALWAYS_INLINE U ubetween(U a, std::uint32_t least, std::uint32_t most) noexcept {
  return _mm512_maskz_min_epu32(kAll, _mm512_maskz_max_epu32(kAll, a, uset1(least)), uset1(most));
}
PEFT_ALWAYS_INLINE U ulookup_word(const std::uint32_t* table, U index) noexcept {
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), kAll, index, table, 4);
}
// Eight look-ups among 32 words and a choice by the index's upper bits: faster by a tenth than a gather (Zen 4).
PEFT_ALWAYS_INLINE V vlookup(const float* table, U index) noexcept {
  const __mmask16 bit5 = _mm512_test_epi32_mask(index, uset1(32)), bit6 = _mm512_test_epi32_mask(index, uset1(64));
  const __mmask16 bit7 = _mm512_test_epi32_mask(index, uset1(128));
  V part[8];
  PEFT_UNROLL_PRAGMA(8) for (int i = 0; i < 8; ++i) {
    part[i] = _mm512_maskz_permutex2var_ps(kAll, vload(table + 32 * i), index, vload(table + 32 * i + 16));
  }
  PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < 4; ++i) part[i] = _mm512_mask_blend_ps(bit5, part[2 * i], part[2 * i + 1]);
  PEFT_UNROLL_PRAGMA(2) for (int i = 0; i < 2; ++i) part[i] = _mm512_mask_blend_ps(bit6, part[2 * i], part[2 * i + 1]);
  return _mm512_mask_blend_ps(bit7, part[0], part[1]);
}
PEFT_ALWAYS_INLINE U uload_bytes(const std::uint8_t* p) noexcept {
  return _mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PEFT_ALWAYS_INLINE void ustore_bytes(U a, std::uint8_t* out) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_maskz_cvtepi32_epi8(kAll, a));
}

// Signed bytes as words, and whole numbers of blocks; see scalar.hpp.
PEFT_ALWAYS_INLINE U uload_signed(const std::uint8_t* p) noexcept {
  return _mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PEFT_ALWAYS_INLINE U uor(U a, U b) noexcept { return _mm512_or_si512(a, b); }
PEFT_ALWAYS_INLINE U ushift_left4(U a) noexcept { return _mm512_maskz_slli_epi32(kAll, a, 4); }
PEFT_ALWAYS_INLINE U uright_by(U a, U count) noexcept { return _mm512_maskz_srlv_epi32(kAll, a, count); }
PEFT_ALWAYS_INLINE V vwhole(U a) noexcept { return _mm512_maskz_cvtepi32_ps(kAll, a); }
PEFT_ALWAYS_INLINE float half_at(const std::uint8_t* p) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Activations in 8 bits, kept as 16; see avx2.hpp.
using Q = std::int16_t;
inline constexpr Index kQBytes = 256;
using QTable = __m512i;
inline constexpr __mmask64 kAllBytes = ~__mmask64{0};
inline constexpr __mmask32 kAllHalves = ~__mmask32{0};
PEFT_ALWAYS_INLINE QTable qtable(const std::int8_t* value) noexcept {
  return _mm512_maskz_broadcast_i32x4(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(value)));
}
PEFT_ALWAYS_INLINE void utranspose(U* r) noexcept {
  V v[W];
  PEFT_UNROLL_PRAGMA(16) for (Index i = 0; i < W; ++i) v[i] = vof(r[i]);
  vtranspose(v);
  PEFT_UNROLL_PRAGMA(16) for (Index i = 0; i < W; ++i) r[i] = ubits(v[i]);
}
PEFT_ALWAYS_INLINE void qstore_eight(const float* whole, Q* q) noexcept {
  const __m256i order = _mm256_setr_epi32(1, 5, 3, 7, 0, 4, 2, 6);
  const __m256i words = _mm256_permutevar8x32_epi32(_mm256_cvtps_epi32(_mm256_loadu_ps(whole)), order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm256_maskz_cvtepi32_epi16(kAll8, words));
}
PEFT_ALWAYS_INLINE void qstore(QTable table, U words, std::uint8_t* panel) noexcept {
  const __m512i nibble = _mm512_set1_epi8(15), upper_codes = _mm512_maskz_srli_epi16(kAllHalves, words, 4);
  const __m512i lower = _mm512_maskz_shuffle_epi8(kAllBytes, table, _mm512_and_si512(words, nibble));
  const __m512i upper = _mm512_maskz_shuffle_epi8(kAllBytes, table, _mm512_and_si512(upper_codes, nibble));
  const __m512i lower_even = _mm512_maskz_slli_epi16(kAllHalves, lower, 8);
  const __m512i upper_even = _mm512_maskz_slli_epi16(kAllHalves, upper, 8);
  _mm512_store_si512(panel, _mm512_maskz_srai_epi16(kAllHalves, lower_even, 8));
  _mm512_store_si512(panel + 64, _mm512_maskz_srai_epi16(kAllHalves, lower, 8));
  _mm512_store_si512(panel + 128, _mm512_maskz_srai_epi16(kAllHalves, upper_even, 8));
  _mm512_store_si512(panel + 192, _mm512_maskz_srai_epi16(kAllHalves, upper, 8));
}
PEFT_ALWAYS_INLINE U qbegin(std::int32_t) noexcept { return _mm512_setzero_si512(); }
PEFT_ALWAYS_INLINE U qmultiply(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < 4; ++i) {
    int pair;
    std::memcpy(&pair, q + 2 * i, sizeof(pair));
    sum = _mm512_add_epi32(sum, _mm512_maskz_madd_epi16(kAll, _mm512_load_si512(panel + 64 * i), _mm512_set1_epi32(pair)));
  }
  return sum;
}
inline constexpr Index kQTogether = 2;
PEFT_ALWAYS_INLINE U qbegin_lanes(const std::int32_t*) noexcept { return _mm512_setzero_si512(); }
PEFT_ALWAYS_INLINE U qmultiply_lanes(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < 4; ++i) {
    const __m512i weights = _mm512_load_si512(panel + 64 * i);
    sum = _mm512_add_epi32(sum, _mm512_maskz_madd_epi16(kAll, weights, _mm512_loadu_si512(q + 32 * i)));
  }
  return sum;
}

#include "peft/kernels/isa/body.inc"

}  // namespace kernels::avx512
PEFT_TARGET_END
PEFT_END_NAMESPACE
