#pragma once
/// A dropout mask on the device: the CPU's kernels::MaskBits with a device pointer. A bit of 1 keeps; bit j%8 of byte j/8 is
/// column j; kept elements are multiplied by `scale` = 1/(1-p).

#include <cstdint>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

struct DeviceMaskBits {
  const std::uint8_t* bits = nullptr;  ///< nullptr: no mask
  Index stride_bytes = 0;
  float scale = 1.0f;
};

}  // namespace cuda
PEFT_END_NAMESPACE
