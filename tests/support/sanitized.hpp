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

/// Numbers of threads that give the same bits. To a sanitizer of addresses they are all one.
inline constexpr int kThreadCounts[] =
#if defined(PEFT_SANITIZED)
    {1, 3};
#else
    {1, 2, 3, 7};
#endif

}  // namespace peft_test
