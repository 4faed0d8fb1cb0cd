#pragma once
/// The vocabulary of AVX2 with FMA and F16C: eight floats. Tile 6 × 16: twelve accumulators, two of B, one of A and one
/// spare of sixteen registers.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "peft/config.hpp"
#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/kernels/kernel_types.hpp"

PEFT_BEGIN_NAMESPACE
PEFT_TARGET_BEGIN_AVX2
namespace kernels::avx2 {

using V = __m256;
inline constexpr Index W = 8;
inline constexpr int MR = 6;
inline constexpr int NV = 2;

PEFT_ALWAYS_INLINE V vload(const float* p) noexcept { return _mm256_loadu_ps(p); }
PEFT_ALWAYS_INLINE void vstore(float* p, V v) noexcept { _mm256_storeu_ps(p, v); }
PEFT_ALWAYS_INLINE __m256i part_mask(Index n) noexcept {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PEFT_ALWAYS_INLINE V vload_part(const float* p, Index n) noexcept { return _mm256_maskload_ps(p, part_mask(n)); }
PEFT_ALWAYS_INLINE void vstore_part(float* p, V v, Index n) noexcept { _mm256_maskstore_ps(p, part_mask(n), v); }
PEFT_ALWAYS_INLINE V vload_bf16(const std::uint16_t* p) noexcept {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
PEFT_ALWAYS_INLINE V vload_f16(const std::uint16_t* p) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PEFT_ALWAYS_INLINE void vstore_bf16(std::uint16_t* p, V v) noexcept {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x7FFFFFFF)),
                                         _mm256_set1_epi32(0x7F800000));
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(chosen, chosen), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
PEFT_ALWAYS_INLINE void vstore_f16(std::uint16_t* p, V v) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
PEFT_ALWAYS_INLINE V vset1(float x) noexcept { return _mm256_set1_ps(x); }
PEFT_ALWAYS_INLINE V vfma(V a, V b, V c) noexcept { return _mm256_fmadd_ps(a, b, c); }

// Compilers see plain arithmetic in these intrinsics: they contract it (g++ does by default), regroup it, and with
// -ffast-math take estimates for quotients and roots and lose NaN in minima. So sums and products are made opaque, and
// the others are named as instructions: the same bits from every compiler with every flag. vfma is one instruction
// already.
PEFT_ALWAYS_INLINE V vopaque(V v) noexcept {
  PEFT_OPAQUE_VECTOR(v);
  return v;
}
PEFT_ALWAYS_INLINE V vadd(V a, V b) noexcept { return vopaque(_mm256_add_ps(a, b)); }
PEFT_ALWAYS_INLINE V vsub(V a, V b) noexcept { return vopaque(_mm256_sub_ps(a, b)); }
PEFT_ALWAYS_INLINE V vmul(V a, V b) noexcept { return vopaque(_mm256_mul_ps(a, b)); }
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
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PEFT_ALWAYS_INLINE V vpow2(V n) noexcept {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
PEFT_ALWAYS_INLINE V vzero_where(V x, float equal, V v) noexcept {
  const __m256i same = _mm256_cmpeq_epi32(_mm256_castps_si256(x), _mm256_castps_si256(_mm256_set1_ps(equal)));
  return _mm256_andnot_ps(_mm256_castsi256_ps(same), v);
}
PEFT_ALWAYS_INLINE V vwhere_positive(V x, V a, V b) noexcept {
  const __m256i positive = _mm256_cmpgt_epi32(_mm256_castps_si256(x), _mm256_setzero_si256());
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(positive));
}
PEFT_ALWAYS_INLINE float vsum(V a) noexcept {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  PEFT_OPAQUE_VECTOR(s);
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  PEFT_OPAQUE_VECTOR(s);
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
PEFT_ALWAYS_INLINE float vlargest(V a) noexcept {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
PEFT_ALWAYS_INLINE void vsum_squares(V a, double* lanes) noexcept {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
  _mm256_storeu_pd(lanes, _mm256_fmadd_pd(low, low, _mm256_loadu_pd(lanes)));
  _mm256_storeu_pd(lanes + 4, _mm256_fmadd_pd(high, high, _mm256_loadu_pd(lanes + 4)));
}
PEFT_ALWAYS_INLINE bool vany_non_finite(V a) noexcept {
  const __m256i exponent = _mm256_set1_epi32(0x7F800000);
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(a), exponent);
  return _mm256_movemask_epi8(_mm256_cmpeq_epi32(bits, exponent)) != 0;
}
PEFT_ALWAYS_INLINE V vmask(const std::uint8_t* bits, Index column, Index columns, float scale) noexcept {
  if (column >= columns) return _mm256_setzero_ps();
  const __m256i byte = _mm256_set1_epi32(bits[column / 8]);
  const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(byte, select), select);
  return _mm256_and_ps(_mm256_castsi256_ps(kept), _mm256_set1_ps(scale));
}
/// Transposes an 8 × 8 block held in eight vectors.
PEFT_ALWAYS_INLINE void vtranspose(V* r) noexcept {
  V t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// Unsigned words, for Philox; see scalar.hpp.
using U = __m256i;
PEFT_ALWAYS_INLINE U uset1(std::uint32_t x) noexcept { return _mm256_set1_epi32(static_cast<int>(x)); }
PEFT_ALWAYS_INLINE U ucount_from(std::uint32_t first) noexcept {
  return _mm256_add_epi32(uset1(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PEFT_ALWAYS_INLINE U uxor(U a, U b) noexcept { return _mm256_xor_si256(a, b); }
PEFT_ALWAYS_INLINE void umultiply(U a, std::uint32_t factor, U& high, U& low) noexcept {
  const U f = uset1(factor);
  const U even = _mm256_mul_epu32(a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), f);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}
PEFT_ALWAYS_INLINE void ustore_keep_bits(const U* w, std::uint32_t threshold, std::uint8_t* out) noexcept {
  const U least = uset1(threshold - 1u);  // 0 gives −1: all halves are above it, as signed numbers
  U bits = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    const U low = _mm256_cmpgt_epi32(_mm256_and_si256(w[i], uset1(0xFFFFu)), least);
    const U high = _mm256_cmpgt_epi32(_mm256_srli_epi32(w[i], 16), least);
    bits = _mm256_or_si256(bits, _mm256_and_si256(low, uset1(1u << (2 * i))));
    bits = _mm256_or_si256(bits, _mm256_and_si256(high, uset1(2u << (2 * i))));
  }
  const __m256i bytes = _mm256_shuffle_epi8(bits, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                                   0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const int first = _mm256_extract_epi32(bytes, 0), second = _mm256_extract_epi32(bytes, 4);
  std::memcpy(out, &first, 4);
  std::memcpy(out + 4, &second, 4);
}

// Sixteen words looked up, and codes of four bits; see scalar.hpp. A lookup among eight words ignores the index's fourth
// bit, which then chooses between the halves.
PEFT_ALWAYS_INLINE U uadd(U a, U b) noexcept { return _mm256_add_epi32(a, b); }
PEFT_ALWAYS_INLINE V vof(U bits) noexcept { return _mm256_castsi256_ps(bits); }
PEFT_ALWAYS_INLINE U uabove(V a, V b, std::uint32_t step) noexcept {
  return _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)), uset1(step));
}
struct Table {
  __m256i lower, upper;
};
PEFT_ALWAYS_INLINE Table utable(const void* words) noexcept {
  const __m256i* const halves = static_cast<const __m256i*>(words);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
PEFT_ALWAYS_INLINE U ulookup(const Table& table, U index) noexcept {
  const __m256 lower = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table.lower, index));
  const __m256 upper = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table.upper, index));
  return _mm256_castps_si256(_mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
}
PEFT_ALWAYS_INLINE void uload_nibbles(const std::uint8_t* p, U& first, U& second) noexcept {
  const U shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
  int words[2];
  std::memcpy(words, p, sizeof(words));
  first = _mm256_srlv_epi32(_mm256_set1_epi32(words[0]), shift);
  second = _mm256_srlv_epi32(_mm256_set1_epi32(words[1]), shift);
}
PEFT_ALWAYS_INLINE void ustore_nibbles(U first, U second, std::uint8_t* out) noexcept {
  // In 64 bits stand a first code and, above 32 of them, the second one.
  const U a = _mm256_or_si256(_mm256_slli_epi64(first, 4), _mm256_srli_epi64(first, 32));
  const U b = _mm256_or_si256(_mm256_slli_epi64(second, 4), _mm256_srli_epi64(second, 32));
  std::uint64_t pairs[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs), a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + 4), b);
  for (int i = 0; i < 8; ++i) out[i] = static_cast<std::uint8_t>(pairs[i]);
}

PEFT_ALWAYS_INLINE U uload(const std::uint8_t* p) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
PEFT_ALWAYS_INLINE U uload_part(const std::uint8_t* p, Index words) noexcept {
  std::uint32_t copy[8] = {};
  std::memcpy(copy, p, static_cast<std::size_t>(words) * sizeof(std::uint32_t));
  return uload(reinterpret_cast<const std::uint8_t*>(copy));
}
PEFT_ALWAYS_INLINE U unext_nibble(U words) noexcept { return _mm256_srli_epi32(words, 4); }
PEFT_ALWAYS_INLINE V vspread(const float* p, Index parts) noexcept {
  return parts == 1 ? vset1(*p) : _mm256_insertf128_ps(vset1(p[0]), _mm_set1_ps(p[1]), 1);
}
PEFT_ALWAYS_INLINE V vfirst(V v, Index n) noexcept { return _mm256_and_ps(v, _mm256_castsi256_ps(part_mask(n))); }

// Words of bits, and look-ups in long tables, for codes of 8 bits; see scalar.hpp.
PEFT_ALWAYS_INLINE U ubits(V v) noexcept { return _mm256_castps_si256(v); }
PEFT_ALWAYS_INLINE U uand(U a, U b) noexcept { return _mm256_and_si256(a, b); }
PEFT_ALWAYS_INLINE U usign(U a) noexcept { return _mm256_srai_epi32(a, 31); }
template <int kBits>
PEFT_ALWAYS_INLINE U ushift_right(U a) noexcept {
  return _mm256_srli_epi32(a, kBits);
}
PEFT_ALWAYS_INLINE U ubetween(U a, std::uint32_t least, std::uint32_t most) noexcept {
  return _mm256_min_epu32(_mm256_max_epu32(a, uset1(least)), uset1(most));
}
PEFT_ALWAYS_INLINE U ulookup_word(const std::uint32_t* table, U index) noexcept {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
}
PEFT_ALWAYS_INLINE V vlookup(const float* table, U index) noexcept { return _mm256_i32gather_ps(table, index, 4); }
PEFT_ALWAYS_INLINE U uload_bytes(const std::uint8_t* p) noexcept {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
PEFT_ALWAYS_INLINE void ustore_bytes(U a, std::uint8_t* out) noexcept {
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(halves, halves));
}

// Signed bytes as words, and whole numbers of blocks; see scalar.hpp.
PEFT_ALWAYS_INLINE U uload_signed(const std::uint8_t* p) noexcept {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
PEFT_ALWAYS_INLINE U uor(U a, U b) noexcept { return _mm256_or_si256(a, b); }
PEFT_ALWAYS_INLINE U ushift_left4(U a) noexcept { return _mm256_slli_epi32(a, 4); }
PEFT_ALWAYS_INLINE U uright_by(U a, U count) noexcept { return _mm256_srlv_epi32(a, count); }
PEFT_ALWAYS_INLINE V vwhole(U a) noexcept { return _mm256_cvtepi32_ps(a); }
PEFT_ALWAYS_INLINE float half_at(const std::uint8_t* p) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Activations in 8 bits, kept as 16: pairs of products are added exactly, where vpmaddubsw's sums of bytes could saturate. Of
// the bytes of a word, the even ones and the odd ones make a vector of pairs each; see int8.inc.
using Q = std::int16_t;
inline constexpr Index kQBytes = 128;
using QTable = __m256i;
PEFT_ALWAYS_INLINE QTable qtable(const std::int8_t* value) noexcept {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(value)));
}
PEFT_ALWAYS_INLINE void utranspose(U* r) noexcept {
  V v[W];
  PEFT_UNROLL_PRAGMA(8) for (Index i = 0; i < W; ++i) v[i] = vof(r[i]);
  vtranspose(v);
  PEFT_UNROLL_PRAGMA(8) for (Index i = 0; i < W; ++i) r[i] = ubits(v[i]);
}
PEFT_ALWAYS_INLINE void qstore_eight(const float* whole, Q* q) noexcept {
  const __m256i order = _mm256_setr_epi32(1, 5, 3, 7, 0, 4, 2, 6);
  const __m256i words = _mm256_permutevar8x32_epi32(_mm256_cvtps_epi32(_mm256_loadu_ps(whole)), order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q),
                   _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
PEFT_ALWAYS_INLINE void qstore(QTable table, U words, std::uint8_t* panel) noexcept {
  __m256i* const out = reinterpret_cast<__m256i*>(panel);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i lower = _mm256_shuffle_epi8(table, _mm256_and_si256(words, nibble));
  const __m256i upper = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(words, 4), nibble));
  _mm256_store_si256(out, _mm256_srai_epi16(_mm256_slli_epi16(lower, 8), 8));
  _mm256_store_si256(out + 1, _mm256_srai_epi16(lower, 8));
  _mm256_store_si256(out + 2, _mm256_srai_epi16(_mm256_slli_epi16(upper, 8), 8));
  _mm256_store_si256(out + 3, _mm256_srai_epi16(upper, 8));
}
PEFT_ALWAYS_INLINE U qbegin(std::int32_t) noexcept { return _mm256_setzero_si256(); }
PEFT_ALWAYS_INLINE U qmultiply(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < 4; ++i) {
    int pair;
    std::memcpy(&pair, q + 2 * i, sizeof(pair));
    const __m256i weights = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel) + i);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, _mm256_set1_epi32(pair)));
  }
  return sum;
}
inline constexpr Index kQTogether = 2;
PEFT_ALWAYS_INLINE U qbegin_lanes(const std::int32_t*) noexcept { return _mm256_setzero_si256(); }
PEFT_ALWAYS_INLINE U qmultiply_lanes(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  const __m256i* const weights = reinterpret_cast<const __m256i*>(panel);
  const __m256i* const x = reinterpret_cast<const __m256i*>(q);
  PEFT_UNROLL_PRAGMA(4) for (int i = 0; i < 4; ++i) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_load_si256(weights + i), _mm256_loadu_si256(x + i)));
  }
  return sum;
}

#include "peft/kernels/isa/body.inc"

}  // namespace kernels::avx2
PEFT_TARGET_END
PEFT_END_NAMESPACE
