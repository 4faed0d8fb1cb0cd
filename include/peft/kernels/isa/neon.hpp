#pragma once
/// The vocabulary of AArch64's NEON: four floats. Tile 8 × 12: 24 accumulators, three of B, two of A of 32 registers.

#include "peft/config.hpp"
#if PEFT_AARCH64
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/kernels/kernel_types.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels::neon {

using V = float32x4_t;
inline constexpr Index W = 4;
inline constexpr int MR = 8;
inline constexpr int NV = 3;

PEFT_ALWAYS_INLINE V vload(const float* p) noexcept { return vld1q_f32(p); }
PEFT_ALWAYS_INLINE void vstore(float* p, V v) noexcept { vst1q_f32(p, v); }
PEFT_ALWAYS_INLINE V vload_part(const float* p, Index n) noexcept {
  if (n >= W) return vload(p);
  float copy[W] = {};
  for (Index i = 0; i < n; ++i) copy[i] = p[i];
  return vload(copy);
}
PEFT_ALWAYS_INLINE void vstore_part(float* p, V v, Index n) noexcept {
  if (n >= W) return vstore(p, v);
  float copy[W];
  vstore(copy, v);
  for (Index i = 0; i < n; ++i) p[i] = copy[i];
}
PEFT_ALWAYS_INLINE V vload_bf16(const std::uint16_t* p) noexcept {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
PEFT_ALWAYS_INLINE V vload_f16(const std::uint16_t* p) noexcept {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
PEFT_ALWAYS_INLINE void vstore_bf16(std::uint16_t* p, V v) noexcept {
  const uint32x4_t u = vreinterpretq_u32_f32(v), high = vshrq_n_u32(u, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
  const uint32x4_t nan = vcgtq_u32(vandq_u32(u, vdupq_n_u32(0x7FFFFFFF)), vdupq_n_u32(0x7F800000));
  vst1_u16(p, vmovn_u32(vbslq_u32(nan, vorrq_u32(high, vdupq_n_u32(0x40)), rounded)));
}
PEFT_ALWAYS_INLINE void vstore_f16(std::uint16_t* p, V v) noexcept {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
PEFT_ALWAYS_INLINE V vset1(float x) noexcept { return vdupq_n_f32(x); }
PEFT_ALWAYS_INLINE V vfma(V a, V b, V c) noexcept { return vfmaq_f32(c, a, b); }

// Compilers see plain arithmetic in these intrinsics; see avx2.hpp.
PEFT_ALWAYS_INLINE V vopaque(V v) noexcept {
  PEFT_OPAQUE_VECTOR(v);
  return v;
}
PEFT_ALWAYS_INLINE V vadd(V a, V b) noexcept { return vopaque(vaddq_f32(a, b)); }
PEFT_ALWAYS_INLINE V vsub(V a, V b) noexcept { return vopaque(vsubq_f32(a, b)); }
PEFT_ALWAYS_INLINE V vmul(V a, V b) noexcept { return vopaque(vmulq_f32(a, b)); }
PEFT_ALWAYS_INLINE V vdiv(V a, V b) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION("fdiv", r, a, b);
  return r;
}
/// All bits where a > b, which no NaN is.
PEFT_ALWAYS_INLINE uint32x4_t above(V a, V b) noexcept {
  uint32x4_t r;
  PEFT_VECTOR_INSTRUCTION("fcmgt", r, a, b);
  return r;
}
// NEON's own minima are NaN where either number is; x86-64's are b, which is what the kernels are written for.
PEFT_ALWAYS_INLINE V vmin(V a, V b) noexcept { return vbslq_f32(above(b, a), a, b); }
PEFT_ALWAYS_INLINE V vmax(V a, V b) noexcept { return vbslq_f32(above(a, b), a, b); }
PEFT_ALWAYS_INLINE V vsqrt(V a) noexcept {
  V r;
  PEFT_VECTOR_INSTRUCTION1("fsqrt", r, a);
  return r;
}
PEFT_ALWAYS_INLINE V vround(V a) noexcept { return vrndnq_f32(a); }
PEFT_ALWAYS_INLINE V vpow2(V n) noexcept {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
PEFT_ALWAYS_INLINE V vzero_where(V x, float equal, V v) noexcept {
  const uint32x4_t same = vceqq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(vdupq_n_f32(equal)));
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), same));
}
PEFT_ALWAYS_INLINE V vwhere_positive(V x, V a, V b) noexcept {
  return vbslq_f32(vcgtq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0)), a, b);
}
PEFT_ALWAYS_INLINE float vsum(V a) noexcept {
  V halves = vopaque(vaddq_f32(a, vextq_f32(a, a, 2)));
  return vgetq_lane_f32(vopaque(vaddq_f32(halves, vextq_f32(halves, halves, 1))), 0);
}
PEFT_ALWAYS_INLINE float vlargest(V a) noexcept {
  const V halves = vmax(a, vextq_f32(a, a, 2));
  return vgetq_lane_f32(vmax(halves, vextq_f32(halves, halves, 1)), 0);
}
PEFT_ALWAYS_INLINE void vsum_squares(V a, double* lanes) noexcept {
  const float64x2_t low = vcvt_f64_f32(vget_low_f32(a)), high = vcvt_high_f64_f32(a);
  vst1q_f64(lanes, vfmaq_f64(vld1q_f64(lanes), low, low));
  vst1q_f64(lanes + 2, vfmaq_f64(vld1q_f64(lanes + 2), high, high));
}
PEFT_ALWAYS_INLINE bool vany_non_finite(V a) noexcept {
  const uint32x4_t exponent = vdupq_n_u32(0x7F800000);
  return vmaxvq_u32(vceqq_u32(vandq_u32(vreinterpretq_u32_f32(a), exponent), exponent)) != 0;
}
PEFT_ALWAYS_INLINE V vmask(const std::uint8_t* bits, Index column, Index columns, float scale) noexcept {
  if (column >= columns) return vdupq_n_f32(0.0f);
  constexpr std::uint32_t kSelect[W] = {1, 2, 4, 8};
  const uint32x4_t four = vdupq_n_u32(static_cast<std::uint32_t>(bits[column / 8]) >> (column % 8));
  const uint32x4_t kept = vtstq_u32(four, vld1q_u32(kSelect));
  return vreinterpretq_f32_u32(vandq_u32(kept, vreinterpretq_u32_f32(vdupq_n_f32(scale))));
}
/// Transposes a 4 × 4 block held in four vectors.
PEFT_ALWAYS_INLINE void vtranspose(V* r) noexcept {
  const float32x4x2_t low = vzipq_f32(r[0], r[2]), high = vzipq_f32(r[1], r[3]);
  const float32x4x2_t first = vzipq_f32(low.val[0], high.val[0]), second = vzipq_f32(low.val[1], high.val[1]);
  r[0] = first.val[0], r[1] = first.val[1], r[2] = second.val[0], r[3] = second.val[1];
}

// Unsigned words, for Philox; see scalar.hpp.
using U = uint32x4_t;
PEFT_ALWAYS_INLINE U uset1(std::uint32_t x) noexcept { return vdupq_n_u32(x); }
PEFT_ALWAYS_INLINE U ucount_from(std::uint32_t first) noexcept {
  constexpr std::uint32_t kCount[W] = {0, 1, 2, 3};
  return vaddq_u32(vdupq_n_u32(first), vld1q_u32(kCount));
}
PEFT_ALWAYS_INLINE U uxor(U a, U b) noexcept { return veorq_u32(a, b); }
PEFT_ALWAYS_INLINE void umultiply(U a, std::uint32_t factor, U& high, U& low) noexcept {
  const uint32x2_t f = vdup_n_u32(factor);
  const uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), f));
  const uint32x4_t second = vreinterpretq_u32_u64(vmull_u32(vget_high_u32(a), f));
  low = vuzp1q_u32(first, second);
  high = vuzp2q_u32(first, second);
}
/// The low byte of each word.
PEFT_ALWAYS_INLINE void ustore_bytes(U a, std::uint8_t* out) noexcept {
  const uint16x4_t halves = vmovn_u32(a);
  const std::uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
  std::memcpy(out, &bytes, sizeof(bytes));
}
PEFT_ALWAYS_INLINE void ustore_keep_bits(const U* w, std::uint32_t threshold, std::uint8_t* out) noexcept {
  const U least = vdupq_n_u32(threshold);
  U bits = vdupq_n_u32(0);
  for (int i = 0; i < 4; ++i) {
    const U low = vcgeq_u32(vandq_u32(w[i], vdupq_n_u32(0xFFFFu)), least), high = vcgeq_u32(vshrq_n_u32(w[i], 16), least);
    bits = vorrq_u32(bits, vandq_u32(low, vdupq_n_u32(1u << (2 * i))));
    bits = vorrq_u32(bits, vandq_u32(high, vdupq_n_u32(2u << (2 * i))));
  }
  ustore_bytes(bits, out);
}

// Sixteen words looked up, and codes of four bits; see scalar.hpp. The table is one of 64 bytes.
PEFT_ALWAYS_INLINE U uadd(U a, U b) noexcept { return vaddq_u32(a, b); }
PEFT_ALWAYS_INLINE V vof(U bits) noexcept { return vreinterpretq_f32_u32(bits); }
PEFT_ALWAYS_INLINE U uabove(V a, V b, std::uint32_t step) noexcept { return vandq_u32(above(a, b), vdupq_n_u32(step)); }
using Table = uint8x16x4_t;
PEFT_ALWAYS_INLINE Table utable(const void* words) noexcept {
  const std::uint8_t* const p = static_cast<const std::uint8_t*>(words);
  return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
PEFT_ALWAYS_INLINE U ulookup(const Table& table, U index) noexcept {
  const U bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), vandq_u32(index, vdupq_n_u32(15)), vdupq_n_u32(0x04040404u));
  return vreinterpretq_u32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
}
PEFT_ALWAYS_INLINE void uload_nibbles(const std::uint8_t* p, U& first, U& second) noexcept {
  constexpr std::int32_t kFirst[W] = {-4, 0, -12, -8}, kSecond[W] = {-20, -16, -28, -24};
  std::uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  first = vshlq_u32(vdupq_n_u32(word), vld1q_s32(kFirst));
  second = vshlq_u32(vdupq_n_u32(word), vld1q_s32(kSecond));
}
PEFT_ALWAYS_INLINE void ustore_nibbles(U first, U second, std::uint8_t* out) noexcept {
  // Even lanes are upper halves of bytes.
  const U upper = vuzp1q_u32(first, second), lower = vuzp2q_u32(first, second);
  ustore_bytes(vorrq_u32(vshlq_n_u32(upper, 4), lower), out);
}

PEFT_ALWAYS_INLINE U uload(const std::uint8_t* p) noexcept { return vreinterpretq_u32_u8(vld1q_u8(p)); }
PEFT_ALWAYS_INLINE U uload_part(const std::uint8_t* p, Index words) noexcept {
  std::uint32_t copy[W] = {};
  std::memcpy(copy, p, static_cast<std::size_t>(words) * sizeof(std::uint32_t));
  return vld1q_u32(copy);
}
PEFT_ALWAYS_INLINE U unext_nibble(U words) noexcept { return vshrq_n_u32(words, 4); }
/// A vector of words is 32 weights, of one block always.
PEFT_ALWAYS_INLINE V vspread(const float* p, Index) noexcept { return vdupq_n_f32(*p); }
PEFT_ALWAYS_INLINE V vfirst(V v, Index n) noexcept {
  const U kept = vcltq_u32(ucount_from(0), vdupq_n_u32(static_cast<std::uint32_t>(n)));
  return vreinterpretq_f32_u32(vandq_u32(kept, vreinterpretq_u32_f32(v)));
}

// Words of bits, and look-ups in long tables, for codes of 8 bits; see scalar.hpp.
PEFT_ALWAYS_INLINE U ubits(V v) noexcept { return vreinterpretq_u32_f32(v); }
PEFT_ALWAYS_INLINE U uand(U a, U b) noexcept { return vandq_u32(a, b); }
PEFT_ALWAYS_INLINE U usign(U a) noexcept { return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), 31)); }
template <int kBits>
PEFT_ALWAYS_INLINE U ushift_right(U a) noexcept {
  return vshrq_n_u32(a, kBits);
}
PEFT_ALWAYS_INLINE U ubetween(U a, std::uint32_t least, std::uint32_t most) noexcept {
  return vminq_u32(vmaxq_u32(a, vdupq_n_u32(least)), vdupq_n_u32(most));
}
PEFT_ALWAYS_INLINE U ulookup_word(const std::uint32_t* table, U index) noexcept {
  const std::uint32_t words[W] = {table[vgetq_lane_u32(index, 0)], table[vgetq_lane_u32(index, 1)],
                                  table[vgetq_lane_u32(index, 2)], table[vgetq_lane_u32(index, 3)]};
  return vld1q_u32(words);
}
PEFT_ALWAYS_INLINE V vlookup(const float* table, U index) noexcept {
  const float values[W] = {table[vgetq_lane_u32(index, 0)], table[vgetq_lane_u32(index, 1)], table[vgetq_lane_u32(index, 2)],
                           table[vgetq_lane_u32(index, 3)]};
  return vld1q_f32(values);
}
PEFT_ALWAYS_INLINE U uload_bytes(const std::uint8_t* p) noexcept {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)))));
}

// Signed bytes as words, and whole numbers of blocks; see scalar.hpp.
PEFT_ALWAYS_INLINE U uload_signed(const std::uint8_t* p) noexcept {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(word))))));
}
PEFT_ALWAYS_INLINE U uor(U a, U b) noexcept { return vorrq_u32(a, b); }
PEFT_ALWAYS_INLINE U ushift_left4(U a) noexcept { return vshlq_n_u32(a, 4); }
PEFT_ALWAYS_INLINE U uright_by(U a, U count) noexcept { return vshlq_u32(a, vnegq_s32(vreinterpretq_s32_u32(count))); }
PEFT_ALWAYS_INLINE V vwhole(U a) noexcept { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
PEFT_ALWAYS_INLINE float half_at(const std::uint8_t* p) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

// Activations in 8 bits, kept as 16. The bytes of four words are turned round, so that a vector is one code of four rows; see
// int8.inc.
using Q = std::int16_t;
inline constexpr Index kQBytes = 64;
using QTable = int8x16_t;
PEFT_ALWAYS_INLINE QTable qtable(const std::int8_t* value) noexcept { return vld1q_s8(value); }
PEFT_ALWAYS_INLINE void utranspose(U* r) noexcept {
  V v[W] = {vof(r[0]), vof(r[1]), vof(r[2]), vof(r[3])};
  vtranspose(v);
  for (Index i = 0; i < W; ++i) r[i] = ubits(v[i]);
}
PEFT_ALWAYS_INLINE void qstore_eight(const float* whole, Q* q) noexcept {
  const int32x4_t low = vcvtnq_s32_f32(vld1q_f32(whole)), high = vcvtnq_s32_f32(vld1q_f32(whole + 4));
  vst1q_s16(q, vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
}
PEFT_ALWAYS_INLINE void qstore(QTable table, U words, std::uint8_t* panel) noexcept {
  constexpr std::uint8_t kTurned[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t bytes = vqtbl1q_u8(vreinterpretq_u8_u32(words), vld1q_u8(kTurned));
  const int8x16_t upper = vqtbl1q_s8(table, vshrq_n_u8(bytes, 4));
  const int8x16_t lower = vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(15)));
  // Of a byte the upper code is the first.
  const int32x4x2_t pairs = vzipq_s32(vreinterpretq_s32_s8(upper), vreinterpretq_s32_s8(lower));
  std::int16_t* const out = reinterpret_cast<std::int16_t*>(panel);
  for (int i = 0; i < 2; ++i) {
    const int8x16_t codes = vreinterpretq_s8_s32(pairs.val[i]);
    vst1q_s16(out + 16 * i, vmovl_s8(vget_low_s8(codes)));
    vst1q_s16(out + 16 * i + 8, vmovl_high_s8(codes));
  }
}
PEFT_ALWAYS_INLINE U qbegin(std::int32_t) noexcept { return vdupq_n_u32(0); }
PEFT_ALWAYS_INLINE U qmultiply(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  const std::int16_t* const weights = reinterpret_cast<const std::int16_t*>(panel);
  const int16x8_t x = vld1q_s16(q), w0 = vld1q_s16(weights), w1 = vld1q_s16(weights + 8), w2 = vld1q_s16(weights + 16),
                  w3 = vld1q_s16(weights + 24);
  int32x4_t total = vreinterpretq_s32_u32(sum);
  total = vmlal_laneq_s16(total, vget_low_s16(w0), x, 0);
  total = vmlal_high_laneq_s16(total, w0, x, 1);
  total = vmlal_laneq_s16(total, vget_low_s16(w1), x, 2);
  total = vmlal_high_laneq_s16(total, w1, x, 3);
  total = vmlal_laneq_s16(total, vget_low_s16(w2), x, 4);
  total = vmlal_high_laneq_s16(total, w2, x, 5);
  total = vmlal_laneq_s16(total, vget_low_s16(w3), x, 6);
  return vreinterpretq_u32_s32(vmlal_high_laneq_s16(total, w3, x, 7));
}
inline constexpr Index kQTogether = 1;
PEFT_ALWAYS_INLINE U qbegin_lanes(const std::int32_t*) noexcept { return vdupq_n_u32(0); }
PEFT_ALWAYS_INLINE U qmultiply_lanes(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  const std::int16_t* const weights = reinterpret_cast<const std::int16_t*>(panel);
  int32x4_t total = vreinterpretq_s32_u32(sum);
  for (int i = 0; i < 8; ++i) total = vmlal_s16(total, vld1_s16(weights + 4 * i), vld1_s16(q + 4 * i));
  return vreinterpretq_u32_s32(total);
}

#include "peft/kernels/isa/body.inc"

}  // namespace kernels::neon
PEFT_END_NAMESPACE
#endif
