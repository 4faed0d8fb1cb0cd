#pragma once
/// The vocabulary without vectors: one float at a time, for every processor.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "peft/config.hpp"
#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/kernels/kernel_types.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels::scalar {

using V = float;
inline constexpr Index W = 1;
inline constexpr int MR = 4;
inline constexpr int NV = 4;

PEFT_ALWAYS_INLINE V vload(const float* p) noexcept { return *p; }
PEFT_ALWAYS_INLINE void vstore(float* p, V v) noexcept { *p = v; }
PEFT_ALWAYS_INLINE V vload_part(const float* p, Index n) noexcept { return n > 0 ? *p : 0.0f; }
PEFT_ALWAYS_INLINE void vstore_part(float* p, V v, Index n) noexcept {
  if (n > 0) *p = v;
}
PEFT_ALWAYS_INLINE V vload_bf16(const std::uint16_t* p) noexcept {
  bf16 h;
  h.bits = *p;
  return static_cast<float>(h);
}
PEFT_ALWAYS_INLINE V vload_f16(const std::uint16_t* p) noexcept {
  f16 h;
  h.bits = *p;
  return static_cast<float>(h);
}
PEFT_ALWAYS_INLINE void vstore_bf16(std::uint16_t* p, V v) noexcept { *p = bf16(v).bits; }
PEFT_ALWAYS_INLINE void vstore_f16(std::uint16_t* p, V v) noexcept { *p = f16(v).bits; }
PEFT_ALWAYS_INLINE V vset1(float x) noexcept { return x; }
// rounded() where the compiler could do otherwise; without it loops over these are vectorised.
PEFT_ALWAYS_INLINE V product(V p) noexcept { return PEFT_MAY_CONTRACT || PEFT_MAY_REGROUP ? rounded(p) : p; }
PEFT_ALWAYS_INLINE V total(V s) noexcept { return PEFT_MAY_REGROUP ? rounded(s) : s; }
PEFT_ALWAYS_INLINE V vadd(V a, V b) noexcept { return total(a + b); }
PEFT_ALWAYS_INLINE V vsub(V a, V b) noexcept { return total(a - b); }
PEFT_ALWAYS_INLINE V vmul(V a, V b) noexcept { return product(a * b); }
/// One rounding where every processor of the kind has the instruction, two on x86-64, whatever the flags.
PEFT_ALWAYS_INLINE V vfma(V a, V b, V c) noexcept {
#if defined(__FP_FAST_FMAF) && !defined(__x86_64__)
  return total(__builtin_fmaf(a, b, c));
#else
  return vadd(vmul(a, b), c);
#endif
}
PEFT_ALWAYS_INLINE V vdiv(V a, V b) noexcept { return PEFT_MAY_REGROUP ? quotient(a, b) : a / b; }
PEFT_ALWAYS_INLINE V vsqrt(V a) noexcept { return PEFT_MAY_REGROUP ? root(a) : std::sqrt(a); }
PEFT_ALWAYS_INLINE bool is_nan(V a) noexcept { return (std::bit_cast<std::uint32_t>(a) & 0x7FFFFFFFu) > 0x7F800000u; }
// Both give b where a number is NaN, as the vector instructions do; a comparison alone would not under -ffast-math.
PEFT_ALWAYS_INLINE V vmin(V a, V b) noexcept { return !is_nan(a) && !is_nan(b) && a < b ? a : b; }
PEFT_ALWAYS_INLINE V vmax(V a, V b) noexcept { return !is_nan(a) && !is_nan(b) && a > b ? a : b; }
PEFT_ALWAYS_INLINE V vround(V a) noexcept { return std::nearbyint(a); }
/// 2^n; 1 where n is NaN, as the vector instructions' conversion makes it.
PEFT_ALWAYS_INLINE V vpow2(V n) noexcept {
  const std::int32_t exponent = is_nan(n) ? 0 : static_cast<std::int32_t>(n);
  return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}
/// 0 where x has the bits of `equal`, else v.
PEFT_ALWAYS_INLINE V vzero_where(V x, float equal, V v) noexcept {
  return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(equal) ? 0.0f : v;
}
/// a where x > 0 (or a NaN without a sign), else b.
PEFT_ALWAYS_INLINE V vwhere_positive(V x, V a, V b) noexcept { return std::bit_cast<std::int32_t>(x) > 0 ? a : b; }
PEFT_ALWAYS_INLINE float vsum(V a) noexcept { return a; }
PEFT_ALWAYS_INLINE float vlargest(V a) noexcept { return a; }
PEFT_ALWAYS_INLINE void vsum_squares(V a, double* lanes) noexcept {
  // The product of two floats is exact in double.
  lanes[0] = rounded(lanes[0] + static_cast<double>(a) * static_cast<double>(a));
}
PEFT_ALWAYS_INLINE bool vany_non_finite(V a) noexcept { return !is_finite(a); }
PEFT_ALWAYS_INLINE V vmask(const std::uint8_t* bits, Index column, Index columns, float scale) noexcept {
  return column < columns && ((bits[column / 8] >> (column % 8)) & 1u) != 0 ? scale : 0.0f;
}
PEFT_ALWAYS_INLINE void vtranspose(V*) noexcept {}

// Unsigned words, W at once, for Philox.
using U = std::uint32_t;
PEFT_ALWAYS_INLINE U uset1(std::uint32_t x) noexcept { return x; }
/// first, first + 1, …
PEFT_ALWAYS_INLINE U ucount_from(std::uint32_t first) noexcept { return first; }
PEFT_ALWAYS_INLINE U uxor(U a, U b) noexcept { return a ^ b; }
PEFT_ALWAYS_INLINE void umultiply(U a, std::uint32_t factor, U& high, U& low) noexcept {
  const std::uint64_t product = std::uint64_t{a} * factor;
  high = static_cast<std::uint32_t>(product >> 32);
  low = static_cast<std::uint32_t>(product);
}
/// Per lane one byte: bit 2i is set where the low half of w[i] reaches `threshold`, bit 2i+1 where the high half does.
PEFT_ALWAYS_INLINE void ustore_keep_bits(const U* w, std::uint32_t threshold, std::uint8_t* out) noexcept {
  unsigned bits = 0;
  for (int i = 0; i < 4; ++i) {
    bits |= ((w[i] & 0xFFFFu) >= threshold ? 1u : 0u) << (2 * i);
    bits |= ((w[i] >> 16) >= threshold ? 2u : 0u) << (2 * i);
  }
  *out = static_cast<std::uint8_t>(bits);
}

PEFT_ALWAYS_INLINE U uadd(U a, U b) noexcept { return a + b; }
PEFT_ALWAYS_INLINE V vof(U bits) noexcept { return std::bit_cast<float>(bits); }
/// `step` where a > b, else 0.
PEFT_ALWAYS_INLINE U uabove(V a, V b, std::uint32_t step) noexcept { return a > b ? step : 0u; }
/// Sixteen words, looked up by an index's low four bits.
using Table = const void*;
PEFT_ALWAYS_INLINE Table utable(const void* words) noexcept { return words; }
PEFT_ALWAYS_INLINE U ulookup(Table table, U index) noexcept {
  U word;
  std::memcpy(&word, static_cast<const char*>(table) + (index & 15u) * sizeof(U), sizeof(U));
  return word;
}
/// W bytes and the 2W codes in them, the first code of a byte in its upper half; above a loaded code's four bits stands
/// anything.
PEFT_ALWAYS_INLINE void uload_nibbles(const std::uint8_t* p, U& first, U& second) noexcept {
  first = *p >> 4;
  second = *p;
}
PEFT_ALWAYS_INLINE void ustore_nibbles(U first, U second, std::uint8_t* out) noexcept {
  *out = static_cast<std::uint8_t>(first << 4 | second);
}

/// W words; of fewer than W, the rest is 0.
PEFT_ALWAYS_INLINE U uload(const std::uint8_t* p) noexcept {
  U word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}
PEFT_ALWAYS_INLINE U uload_part(const std::uint8_t* p, Index words) noexcept { return words > 0 ? uload(p) : 0u; }
PEFT_ALWAYS_INLINE U unext_nibble(U words) noexcept { return words >> 4; }
/// The first `parts` of four numbers, each in as many lanes: parts is 1, 2 or 4 (and 1 for less than 64 weights a vector).
PEFT_ALWAYS_INLINE V vspread(const float* p, Index) noexcept { return *p; }
/// The first n lanes of v; the rest is 0.
PEFT_ALWAYS_INLINE V vfirst(V v, Index n) noexcept { return n > 0 ? v : 0.0f; }

// Words of bits, and look-ups in long tables, for codes of 8 bits.
PEFT_ALWAYS_INLINE U ubits(V v) noexcept { return std::bit_cast<U>(v); }
PEFT_ALWAYS_INLINE U uand(U a, U b) noexcept { return a & b; }
/// All bits where the highest one is set.
PEFT_ALWAYS_INLINE U usign(U a) noexcept { return 0u - (a >> 31); }
template <int kBits>
PEFT_ALWAYS_INLINE U ushift_right(U a) noexcept {
  return a >> kBits;
}
PEFT_ALWAYS_INLINE U ubetween(U a, std::uint32_t least, std::uint32_t most) noexcept {
  return a < least ? least : a > most ? most : a;
}
PEFT_ALWAYS_INLINE U ulookup_word(const std::uint32_t* table, U index) noexcept { return table[index]; }
/// Of 256 numbers, aligned to 64 bytes.
PEFT_ALWAYS_INLINE V vlookup(const float* table, U index) noexcept { return table[index]; }
/// W bytes as words, and back.
PEFT_ALWAYS_INLINE U uload_bytes(const std::uint8_t* p) noexcept { return *p; }
PEFT_ALWAYS_INLINE void ustore_bytes(U a, std::uint8_t* out) noexcept { *out = static_cast<std::uint8_t>(a); }

/// W bytes as words, their sign extended.
PEFT_ALWAYS_INLINE U uload_signed(const std::uint8_t* p) noexcept {
  return static_cast<U>(static_cast<std::int32_t>(static_cast<std::int8_t>(*p)));
}
PEFT_ALWAYS_INLINE U uor(U a, U b) noexcept { return a | b; }
PEFT_ALWAYS_INLINE U ushift_left4(U a) noexcept { return a << 4; }
/// Each lane by its own count, below 32.
PEFT_ALWAYS_INLINE U uright_by(U a, U count) noexcept { return a >> count; }
/// A signed whole number as a float.
PEFT_ALWAYS_INLINE V vwhole(U a) noexcept { return static_cast<float>(static_cast<std::int32_t>(a)); }
/// The f16 at p, which need not be aligned.
PEFT_ALWAYS_INLINE float half_at(const std::uint8_t* p) noexcept {
  f16 h;
  std::memcpy(&h.bits, p, sizeof(h.bits));
  return static_cast<float>(h);
}

// Activations in 8 bits; see int8.inc.
using Q = std::int8_t;
inline constexpr Index kQBytes = 8;
using QTable = const std::int8_t*;
PEFT_ALWAYS_INLINE QTable qtable(const std::int8_t* value) noexcept { return value; }
PEFT_ALWAYS_INLINE void utranspose(U*) noexcept {}
PEFT_ALWAYS_INLINE void qstore_eight(const float* whole, Q* q) noexcept {
  for (int i = 0; i < 8; ++i) q[i] = static_cast<Q>(whole[i]);
}
PEFT_ALWAYS_INLINE void qstore(QTable table, U word, std::uint8_t* panel) noexcept {
  for (int i = 0; i < 8; ++i) {
    panel[i ^ 1] = static_cast<std::uint8_t>(table[word & 15u]);
    word >>= 4;
  }
}
PEFT_ALWAYS_INLINE U qbegin(std::int32_t) noexcept { return 0; }
PEFT_ALWAYS_INLINE U qmultiply(U sum, const std::uint8_t* panel, const Q* q) noexcept {
  std::int32_t total = static_cast<std::int32_t>(sum);
  for (int i = 0; i < 8; ++i) total += static_cast<std::int8_t>(panel[i]) * q[i];
  return static_cast<U>(total);
}
inline constexpr Index kQTogether = 8;
PEFT_ALWAYS_INLINE U qbegin_lanes(const std::int32_t*) noexcept { return 0; }
PEFT_ALWAYS_INLINE U qmultiply_lanes(U sum, const std::uint8_t* panel, const Q* q) noexcept { return qmultiply(sum, panel, q); }

#include "peft/kernels/isa/body.inc"

}  // namespace kernels::scalar
PEFT_END_NAMESPACE
