// The host twins of the device's arithmetic: conversions, pairs of 16-bit numbers, permuted bytes, logic of three.
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace {

namespace kernels = peft::cuda::kernels;
using peft::bf16;
using peft::f16;

/// Bits of T nearest to an exact number, ties to even: the slow, obvious way.
template <class T>
std::uint16_t nearest(long double exact) {
  constexpr bool kHalf = std::is_same_v<T, f16>;
  const int mantissa = kHalf ? 10 : 7;
  const int lowest = kHalf ? -14 : -126;
  if (exact == 0) return 0;
  int exponent;
  std::frexp(exact, &exponent);
  const long double quantum = std::ldexp(1.0L, std::max(exponent - 1, lowest) - mantissa);
  const long double rounded = std::nearbyint(exact / quantum) * quantum;
  const long double largest = kHalf ? 65504.0L : 0x1.FEp127L;
  if (std::fabs(rounded) > largest) return static_cast<std::uint16_t>((rounded < 0 ? 0x8000 : 0) | (kHalf ? 0x7C00 : 0x7F80));
  return T(static_cast<float>(rounded)).bits;  // exact
}

template <class T>
float number(std::uint32_t bits) {
  T x;
  x.bits = static_cast<std::uint16_t>(bits);
  return static_cast<float>(x);
}
template <class T>
bool is_nan(std::uint32_t bits) {
  return std::isnan(number<T>(bits));
}

/// a + b of few bits each, exact as far as rounding to 11 bits and fewer can see: a summand that is far below the other
/// breaks ties, no more, and a larger one of its sign does the same.
long double sum_for_rounding(long double a, long double b) {
  if (std::fabs(a) < std::fabs(b)) std::swap(a, b);
  if (b != 0 && std::fabs(b) < std::fabs(a) * 0x1p-36L) b = std::copysign(a * 0x1p-36L, b);
  return a + b;
}

template <class T, class F, class G>
void check_pairs(F&& device, G&& exact) {
  std::mt19937 random(7);
  int wrong = 0;
  for (int i = 0; i < 20000; ++i) {
    std::uint32_t a = static_cast<std::uint32_t>(random());
    std::uint32_t b = static_cast<std::uint32_t>(random());
    std::uint32_t c = static_cast<std::uint32_t>(random());
    if (i % 2 == 0) {
      // Exponents near each other, so that sums cancel and ties happen.
      const std::uint32_t keep = std::is_same_v<T, f16> ? 0x83FF83FFu : 0x807F807Fu;
      const std::uint32_t one = std::is_same_v<T, f16> ? 0x3C003C00u : 0x3F803F80u;
      a = (a & keep) | one;
      b = (b & keep) | one;
      c = (c & keep) | one;
    }
    const std::uint32_t r = device(a, b, c);
    for (int half = 0; half < 2; ++half) {
      const int shift = 16 * half;
      const auto bits = static_cast<std::uint16_t>(r >> shift);
      const float x = number<T>(a >> shift);
      const float y = number<T>(b >> shift);
      const float z = number<T>(c >> shift);
      if (!std::isfinite(x) || !std::isfinite(y) || !std::isfinite(z)) continue;
      const long double sum = exact(static_cast<long double>(x), static_cast<long double>(y), static_cast<long double>(z));
      const auto expected = nearest<T>(sum);
      if ((expected & 0x7FFF) == 0 && (bits & 0x7FFF) == 0) continue;
      if (bits != expected) {
        ++wrong;
        CAPTURE(x, y, z, bits, expected);
        CHECK(bits == expected);
        if (wrong > 3) return;
      }
    }
  }
}

TEST_CASE("Pairs of 16-bit numbers are rounded once, to nearest even", "[cuda]") {
  using LD = long double;
  const auto product = [](LD x, LD y, LD) { return x * y; };
  const auto sum = [](LD x, LD y, LD) { return sum_for_rounding(x, y); };
  const auto product_and_sum = [](LD x, LD y, LD z) { return sum_for_rounding(x * y, z); };
  check_pairs<f16>([](auto a, auto b, auto) { return kernels::hmul2(a, b); }, product);
  check_pairs<f16>([](auto a, auto b, auto) { return kernels::hadd2(a, b); }, sum);
  check_pairs<f16>([](auto a, auto b, auto c) { return kernels::hfma2(a, b, c); }, product_and_sum);
  check_pairs<bf16>([](auto a, auto b, auto) { return kernels::bmul2(a, b); }, product);
  check_pairs<bf16>([](auto a, auto b, auto) { return kernels::badd2(a, b); }, sum);
  check_pairs<bf16>([](auto a, auto b, auto c) { return kernels::bfma2(a, b, c); }, product_and_sum);
}

TEST_CASE("A fused product and sum that two roundings get wrong", "[cuda]") {
  const std::uint32_t one_and = f16(1.0f + 0x1p-10f).bits;
  const std::uint32_t almost = f16(0x1p-11f).bits;
  const std::uint32_t one = f16(1.0f).bits;
  // (1 + 2^-10) + 2^-11: a tie, to even, which is above.
  CHECK((kernels::hfma2(one_and, one, almost) & 0xFFFFu) == f16(1.0f + 0x1p-9f).bits);
  // (1 + 2^-10)·2^-11 = 2^-11 + 2^-21: 1 and that is a little above the tie.
  CHECK((kernels::hfma2(one_and, almost, one) & 0xFFFFu) == f16(1.0f + 0x1p-10f).bits);
  // 2048 - 2^-48: of a product of subnormals nothing is left.
  const std::uint32_t tiny = 0x0001;
  const std::uint32_t negative_tiny = 0x8001;
  const std::uint32_t large = f16(2048.0f).bits;
  CHECK((kernels::hfma2(tiny, negative_tiny, large) & 0xFFFFu) == large);
  // bf16: 2^60 + 2^52 is a tie and goes to even; a little above it goes up; far below it nothing moves.
  const auto b = [](float x) { return static_cast<std::uint32_t>(bf16(x).bits); };
  CHECK((kernels::bfma2(b(0x1p26f), b(0x1p26f), b(0x1p60f)) & 0xFFFFu) == b(0x1p60f));
  CHECK((kernels::bfma2(b(0x1.02p26f), b(0x1p26f), b(0x1p60f)) & 0xFFFFu) == b(0x1.02p60f));
  CHECK((kernels::bfma2(b(0x1p-50f), b(0x1p-50f), b(0x1.02p60f)) & 0xFFFFu) == b(0x1.02p60f));
}

TEST_CASE("Conversions: every f16 and bf16, ties, infinity and the one NaN", "[cuda]") {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float h = kernels::low_float<f16>(bits);
    const float b = kernels::high_float<bf16>(bits << 16);
    if (is_nan<f16>(bits)) {
      REQUIRE(kernels::from_float<f16>(h).bits == 0x7FFF);
    } else {
      REQUIRE(kernels::from_float<f16>(h).bits == bits);
    }
    if (is_nan<bf16>(bits)) {
      REQUIRE(kernels::from_float<bf16>(b).bits == 0x7FFF);
    } else {
      REQUIRE(kernels::from_float<bf16>(b).bits == bits);
    }
  }
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(x)) continue;
    const auto half = nearest<f16>(static_cast<long double>(x));
    const auto brain = nearest<bf16>(static_cast<long double>(x));
    if ((half & 0x7FFF) != 0) REQUIRE(kernels::from_float<f16>(x).bits == half);
    if ((brain & 0x7FFF) != 0) REQUIRE(kernels::from_float<bf16>(x).bits == brain);
    REQUIRE(kernels::pack2<f16>(x, 1.0f) == ((0x3C00u << 16) | kernels::from_float<f16>(x).bits));
  }
  CHECK(kernels::from_float<f16>(65520.0f).bits == 0x7C00);
  CHECK(kernels::from_float<float>(0.1f) == 0.1f);
}

TEST_CASE("prmt picks bytes and spreads signs", "[cuda]") {
  const std::uint32_t a = 0x83828180u;
  const std::uint32_t b = 0x07860504u;
  CHECK(kernels::prmt(a, b, 0x3210) == a);
  CHECK(kernels::prmt(a, b, 0x7654) == b);
  CHECK(kernels::prmt(a, b, 0x0123) == 0x80818283u);
  CHECK(kernels::prmt(a, b, 0x5410) == 0x05048180u);
  CHECK(kernels::prmt(a, b, 0xFEDC) == 0x00FF0000u);
  CHECK(kernels::prmt(a, b, 0x8888) == 0xFFFFFFFFu);
  for (std::uint32_t selector = 0; selector < 0x10000u; selector += 257) {
    std::uint32_t expected = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const std::uint32_t n = selector >> (4 * i) & 15u;
      std::uint32_t byte = ((n & 7u) < 4 ? a >> (8 * (n & 3u)) : b >> (8 * (n & 3u))) & 0xFFu;
      if (n >= 8) byte = byte >= 0x80u ? 0xFFu : 0u;
      expected |= byte << (8 * i);
    }
    REQUIRE(kernels::prmt(a, b, selector) == expected);
  }
}

template <std::uint32_t kTable>
void check_lop3() {
  const std::uint32_t a = 0x12345678u;
  const std::uint32_t b = 0x9ABCDEF0u;
  const std::uint32_t c = 0x0F1E2D3Cu;
  std::uint32_t expected = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const std::uint32_t row = 4 * (a >> bit & 1u) + 2 * (b >> bit & 1u) + (c >> bit & 1u);
    expected |= (kTable >> row & 1u) << bit;
  }
  CHECK(kernels::lop3<kTable>(a, b, c) == expected);
}

TEST_CASE("lop3 is the function of its table", "[cuda]") {
  constexpr std::uint32_t a = 0xF0;
  constexpr std::uint32_t b = 0xCC;
  constexpr std::uint32_t c = 0xAA;
  check_lop3<0>();
  check_lop3<255>();
  check_lop3<(a & b) | c>();
  check_lop3<(a & b) ^ c>();
  check_lop3<a ^ b ^ c>();
  check_lop3<0x1B>();
  CHECK(kernels::lop3<((a & b) | c)>(0x1234u, 0x00F0u, 0x6400u) == ((0x1234u & 0x00F0u) | 0x6400u));
}

TEST_CASE("Number wrappers follow IEEE", "[cuda]") {
  CHECK(kernels::max(std::numeric_limits<float>::quiet_NaN(), 2.0f) == 2.0f);
  CHECK(kernels::min(1.0f, std::numeric_limits<float>::quiet_NaN()) == 1.0f);
  CHECK(kernels::min(3, 2) == 2);
  CHECK(kernels::ceil_div(7, 4) == 2);
  CHECK(kernels::fma(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f) == 0x1p-11f + 0x1p-24f);
  CHECK(kernels::sub_rn(kernels::mul_rn(1.0f + 0x1p-12f, 1.0f + 0x1p-12f), 1.0f) == 0x1p-11f);
  CHECK(kernels::bit_cast<std::uint32_t>(1.0f) == 0x3F800000u);
  CHECK((kernels::device_has_cp_async(80) && !kernels::device_has_cp_async(75) && kernels::device_has_bf16_mma(120)));
}

}  // namespace
