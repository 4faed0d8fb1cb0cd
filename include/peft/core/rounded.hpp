#pragma once
/// Where bits are promised, a compiler may not choose how a number comes about. By default g++ contracts a·b + c to one
/// rounding where the processor has it; -ffast-math lets any compiler regroup sums, replace quotients and roots by
/// estimates, and take several elements' logarithms at once from another library. rounded() ends all that at one value:
///   rounded(a * b) + c          two roundings, everywhere
///   sum = rounded(sum + x)      one order, everywhere
///   quotient(a, b), root(x)     no estimates, no reciprocals
/// It costs no instruction, but a loop around it is not vectorised: for scalars beside the kernels, not for rows.

#include <cmath>
#include <concepts>
#include <type_traits>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// The value itself, which the compiler has to have in a register as it is.
PEFT_ALWAYS_INLINE float rounded(float value) noexcept {
  PEFT_OPAQUE_SCALAR(value);
  return value;
}
PEFT_ALWAYS_INLINE double rounded(double value) noexcept {
  PEFT_OPAQUE_SCALAR(value);
  return value;
}

/// a/b by one division: not by a reciprocal that stands outside of a loop or that the compiler worked out itself.
template <std::floating_point A>
PEFT_ALWAYS_INLINE A quotient(A a, std::type_identity_t<A> b) noexcept {
  return rounded(a / rounded(b));
}

/// √x, correctly rounded. The float's goes through double, which changes no bit (53 ≥ 2·24 + 2 digits): for float roots
/// clang takes an estimate where -ffast-math allows it.
PEFT_ALWAYS_INLINE double root(double x) noexcept { return rounded(std::sqrt(rounded(x))); }
PEFT_ALWAYS_INLINE float root(float x) noexcept { return static_cast<float>(root(static_cast<double>(x))); }

PEFT_END_NAMESPACE
