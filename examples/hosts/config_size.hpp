#pragma once
/// The one rule that every size in a model's configuration obeys.

#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

namespace peft_examples {

/// Throws ConfigError unless 0 < value < 2^31, which keeps the product of two sizes addressable.
inline void check_size(std::string_view model, std::string_view name, peft::Index value) {
  constexpr peft::Index kMost = (peft::Index{1} << 31) - 1;
  if (value > 0 && value <= kMost) return;
  peft::fail<peft::ConfigError>("{}: {} is {}; expected a positive number below 2^31", model, name, value);
}

}  // namespace peft_examples
