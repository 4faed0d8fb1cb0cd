#pragma once
/// Arithmetic on sizes and runs of floats. The kernels do without <algorithm>, whose ranges take a compiler 0.05 s in every
/// translation unit that includes them.

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

constexpr Index ceil_div(Index a, Index b) noexcept { return (a + b - 1) / b; }
constexpr Index smaller(Index a, Index b) noexcept { return b < a ? b : a; }
constexpr Index larger(Index a, Index b) noexcept { return a < b ? b : a; }
constexpr Index clamped(Index value, Index least, Index most) noexcept { return smaller(larger(value, least), most); }

inline void fill_floats(float* out, Index count, float value) noexcept {
  for (Index i = 0; i < count; ++i) out[i] = value;
}
inline void copy_floats(const float* from, Index count, float* out) noexcept {
  for (Index i = 0; i < count; ++i) out[i] = from[i];
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
