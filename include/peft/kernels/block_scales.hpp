#pragma once
/// The absolute maxima of blocks of weights, as they are stored: floats, or, quantised once more, bytes.

#include <cstdint>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Blocks whose maxima share a maximum of their own.
inline constexpr Index kNestedBlock = 256;

/// absmax[b], or map[code[b]]·nested_absmax[b/256] + offset, rounded after the product and after the sum.
struct BlockScales {
  const float* absmax = nullptr;  ///< nullptr: the others
  const std::uint8_t* code = nullptr;
  const float* map = nullptr;  ///< [256]
  const float* nested_absmax = nullptr;
  float offset = 0;

  float operator[](Index block) const noexcept {
    if (absmax != nullptr) return absmax[block];
    return rounded(rounded(map[code[block]] * nested_absmax[block / kNestedBlock]) + offset);
  }
};

}  // namespace kernels
PEFT_END_NAMESPACE
