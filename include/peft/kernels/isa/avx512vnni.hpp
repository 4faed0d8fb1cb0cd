#pragma once
/// AVX-512 with VNNI and VBMI: the kernels of AVX-512 (avx512.hpp), but for activations in 8 bits, whose bytes are looked up
/// sixty-four and multiplied four at a time. A weight is its byte + 128, since vpdpbusd's first factor has no sign; 128·Σq is
/// taken off where a sum begins.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "peft/config.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/isa/avx512.hpp"
#include "peft/kernels/kernel_types.hpp"

PEFT_BEGIN_NAMESPACE
PEFT_TARGET_BEGIN_AVX512VNNI
namespace kernels::avx512vnni {

// Its names give way to those that are declared here.
using namespace avx512;

using Q = std::int8_t;
inline constexpr Index kQBytes = 128;
using QTable = __m512i;
/// Four times over: a look-up's index is the lower six bits of a byte, of which two are the neighbouring code's.
PEFT_ALWAYS_INLINE QTable qtable(const std::int8_t* value) noexcept {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
  return _mm512_maskz_broadcast_i32x4(kAll, _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
}
PEFT_ALWAYS_INLINE void qstore_eight(const float* whole, Q* q) noexcept {
  const __m128i order = _mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i bytes = _mm256_maskz_cvtepi32_epi8(kAll8, _mm256_cvtps_epi32(_mm256_loadu_ps(whole)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_shuffle_epi8(bytes, order));
}
PEFT_ALWAYS_INLINE void qstore(QTable table, U words, std::uint8_t* panel) noexcept {
  _mm512_store_si512(panel, _mm512_maskz_permutexvar_epi8(kAllBytes, words, table));
  const __m512i upper = _mm512_maskz_srli_epi16(kAllHalves, words, 4);
  _mm512_store_si512(panel + 64, _mm512_maskz_permutexvar_epi8(kAllBytes, upper, table));
}
PEFT_ALWAYS_INLINE U qbegin(std::int32_t offset) noexcept { return _mm512_set1_epi32(offset); }
PEFT_ALWAYS_INLINE U qmultiply(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  int odd, even;
  std::memcpy(&odd, q, sizeof(odd));
  std::memcpy(&even, q + 4, sizeof(even));
  sum = _mm512_dpbusd_epi32(sum, _mm512_load_si512(panel), _mm512_set1_epi32(odd));
  return _mm512_dpbusd_epi32(sum, _mm512_load_si512(panel + 64), _mm512_set1_epi32(even));
}
inline constexpr Index kQTogether = 4;
PEFT_ALWAYS_INLINE U qbegin_lanes(const std::int32_t* offsets) noexcept { return _mm512_loadu_si512(offsets); }
PEFT_ALWAYS_INLINE U qmultiply_lanes(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  sum = _mm512_dpbusd_epi32(sum, _mm512_load_si512(panel), _mm512_loadu_si512(q));
  return _mm512_dpbusd_epi32(sum, _mm512_load_si512(panel + 64), _mm512_loadu_si512(q + 64));
}

#include "peft/kernels/isa/int8.inc"

}  // namespace kernels::avx512vnni
PEFT_TARGET_END

namespace kernels::avx512vnni {

constexpr KernelTable own_table() {
  KernelTable table = avx512::kTable;
  table.int8_bytes = sizeof(Q);
  table.quantize_int8 = quantize_int8;
  table.four_bit_int8 = four_bit_int8;
  return table;
}
inline constexpr KernelTable kTable = own_table();

}  // namespace kernels::avx512vnni
PEFT_END_NAMESPACE
