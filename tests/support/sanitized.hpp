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
inline constexpr peft::Index kEvery = kSanitized ? 31 : 1;

/// Numbers of threads that give the same bits. To a sanitizer of addresses they are all one.
inline constexpr int kThreadCounts[] =
#if defined(PEFT_SANITIZED)
    {1, 3};
#else
    {1, 2, 3, 7};
#endif

/// Processes killed at random moments: whether their files survive is told by numbers, not by a sanitizer.
inline constexpr int kKills = kSanitized ? 20 : 200;

}  // namespace peft_test
