#pragma once
/// The dynamic maps of 8 bits (Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2016). Signed: seven
/// decades of both signs, the i-th (10^(i-6)/10 to 10^(i-6)) cut into 2^i equal parts of which the middles are taken, and
/// 0 and 1 besides. Unsigned: the same without negative values, cut into twice as many. Ascending; the signed map's largest
/// negative value is -0.99297.

#include <algorithm>
#include <array>
#include <cstdint>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

using DynamicMap = std::array<float, 256>;

namespace detail {

/// Point k of n points from 0.1 to 1, counted from the nearer end and rounded once (a product of two floats, one of them
/// small, is exact in double).
inline float decade_point(int n, int k) noexcept {
  const float step = quotient(rounded(1.0f - 0.1f), static_cast<float>(n - 1));
  const double from_start = rounded(static_cast<double>(step) * k);
  const double from_end = rounded(static_cast<double>(step) * (n - 1 - k));
  return k < n / 2 ? static_cast<float>(static_cast<double>(0.1f) + from_start) : static_cast<float>(1.0 - from_end);
}

inline DynamicMap make_dynamic_map(bool has_sign) noexcept {
  constexpr float kDecade[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  DynamicMap map{};  // its first element stays: the zero
  std::size_t size = 1;
  for (int i = 0; i < 7; ++i) {
    const int points = (has_sign ? 1 << i : 2 << i) + 1;
    for (int k = 0; k + 1 < points; ++k) {
      const float sum = rounded(decade_point(points, k) + decade_point(points, k + 1));
      const float value = rounded(kDecade[i] * rounded(sum / 2.0f));
      map[size++] = value;
      if (has_sign) map[size++] = -value;
    }
  }
  map[size] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace detail

inline const DynamicMap& dynamic_map() noexcept {
  static const DynamicMap map = detail::make_dynamic_map(true);
  return map;
}
inline const DynamicMap& unsigned_dynamic_map() noexcept {
  static const DynamicMap map = detail::make_dynamic_map(false);
  return map;
}

/// What is above it is nearer to the next value than to that of `code` (0 to 254).
inline float threshold_above(const DynamicMap& map, int code) noexcept {
  return rounded(rounded(map[static_cast<std::size_t>(code)] + map[static_cast<std::size_t>(code) + 1]) / 2.0f);
}

/// The position of the value that is nearest to x; halfway the lower one.
inline std::uint8_t nearest_in(const DynamicMap& map, float x) noexcept {
  int first = 0, last = 255;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (x > threshold_above(map, middle)) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return static_cast<std::uint8_t>(first);
}

/// The position that bitsandbytes finds on a CPU: x in [-1, 1] is first rounded to one of 65536 equidistant numbers, so that
/// a code beside a threshold may be its neighbour.
inline std::uint8_t coarse_in(const DynamicMap& map, float x) noexcept {
  const float place = rounded(rounded(rounded(x + 1.0f) * 0.5f) * 65535.0f);
  const int grid = static_cast<int>(rounded(place + 0.5f));
  return nearest_in(map, static_cast<float>(quotient(2.0 * grid, 65535.0) - 1.0));
}

}  // namespace kernels
PEFT_END_NAMESPACE
