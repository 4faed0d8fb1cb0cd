#pragma once
/// A linear layer over a GGUF's own blocks; see packed_linear.hpp. What the file says is computed on, forward and backward:
/// nothing is dequantised to memory, nothing lost by a second quantisation.

#include "peft/gguf_tensor.hpp"
#include "peft/packed_linear.hpp"

PEFT_BEGIN_NAMESPACE

using GgufLinear = PackedLinear<GgufTensor>;

PEFT_END_NAMESPACE
