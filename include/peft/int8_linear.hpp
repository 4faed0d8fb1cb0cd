#pragma once
/// A linear layer whose weight has eight bits per element and a scale per row; see packed_linear.hpp and int8_tensor.hpp.

#include "peft/int8_tensor.hpp"
#include "peft/packed_linear.hpp"

PEFT_BEGIN_NAMESPACE

using Int8Linear = PackedLinear<Int8Tensor>;

PEFT_END_NAMESPACE
