#include "peft/core/scalar.hpp"

#include <cmath>
#include <limits>

#include "support/catch.hpp"

using namespace peft;

namespace {

// The definition of round-to-nearest-even by search: the 16-bit value nearest to x, the even one of two equally near.
template <class H>
std::uint16_t nearest_by_search(float x) {
  const bool negative = std::signbit(x);
  const double target = std::fabs(static_cast<double>(x));
  std::uint16_t low = 0, high = std::is_same_v<H, f16> ? 0x7C00 : 0x7F80;
  const auto value = [](std::uint16_t bits) {
    H h;
    h.bits = bits;
    const double v = static_cast<double>(static_cast<float>(h));
    // Infinity stands where the next finite value would: IEEE rounding decides overflow by that.
    if (std::isinf(v)) return std::is_same_v<H, f16> ? 65536.0 : std::ldexp(1.0, 128);
    return v;
  };
  while (low + 1 < high) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (value(middle) <= target ? low : high) = middle;
  }
  const double below = target - value(low), above = value(high) - target;
  std::uint16_t best = low;
  if (above < below || (above == below && (high & 1u) == 0)) best = high;
  return static_cast<std::uint16_t>(best | (negative ? 0x8000u : 0u));
}

}  // namespace

TEST_CASE("16-bit values survive a trip through float bit for bit") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    f16 h;
    h.bits = static_cast<std::uint16_t>(bits);
    const float value = static_cast<float>(h);
    if (std::isnan(value)) {
      REQUIRE(std::isnan(static_cast<float>(f16(value))));
    } else {
      REQUIRE(f16(value).bits == h.bits);
    }
    bf16 b;
    b.bits = static_cast<std::uint16_t>(bits);
    const float wide = static_cast<float>(b);
    if (std::isnan(wide)) {
      REQUIRE(std::isnan(static_cast<float>(bf16(wide))));
    } else {
      REQUIRE(bf16(wide).bits == b.bits);
    }
  }
}

TEST_CASE("float to 16 bits rounds to nearest, ties to even, over every exponent") {
  std::uint32_t state = 12345;
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (int i = 0; i < 24; ++i) {
      state = state * 1664525u + 1013904223u;
      std::uint32_t mantissa = (state >> 8) & 0x7FFFFFu;
      if (i < 8) mantissa &= 0x7FF000u;   // ties of f16
      if (i >= 8 && i < 16) mantissa &= 0x7F8000u;  // ties of bf16
      const auto x = std::bit_cast<float>((static_cast<std::uint32_t>(i & 1) << 31) | (exponent << 23) | mantissa);
      INFO("x = " << x);
      REQUIRE(f16(x).bits == nearest_by_search<f16>(x));
      REQUIRE(bf16(x).bits == nearest_by_search<bf16>(x));
    }
  }
}

TEST_CASE("f16 at its borders") {
  CHECK(f16(65504.0f).bits == 0x7BFF);
  CHECK(f16(65519.0f).bits == 0x7BFF);
  CHECK(f16(65520.0f).bits == 0x7C00);
  CHECK(f16(0x1p-24f).bits == 0x0001);
  CHECK(f16(0x1p-25f).bits == 0x0000);
  CHECK(f16(std::nextafter(0x1p-25f, 1.0f)).bits == 0x0001);
  CHECK(f16(-0.0f).bits == 0x8000);
}

TEST_CASE("is_finite sees infinities and NaN by their bits") {
  CHECK(is_finite(0.0f));
  CHECK(is_finite(std::numeric_limits<float>::max()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::infinity()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::quiet_NaN()));
  CHECK(is_finite(std::numeric_limits<double>::max()));
  CHECK_FALSE(is_finite(-std::numeric_limits<double>::infinity()));
  CHECK_FALSE(is_finite(std::numeric_limits<double>::quiet_NaN()));
}
