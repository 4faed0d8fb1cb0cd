#pragma once
/// What tests leave out under a sanitizer.

#include "peft/core/view.hpp"

namespace peft_test {

#if defined(PEFT_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// A loop over numbers or configurations that take the same way, each at the price of a whole pass, advances by this: a
/// sanitizer makes a pass fifty times longer and learns nothing from the next.
inline constexpr peft::Index kEvery = kSanitized ? 9 : 1;

}  // namespace peft_test
