#pragma once
/// A linear layer whose weight has four bits per element; see packed_linear.hpp. The bytes are the tensor's, in bitsandbytes'
/// layout (four_bit_storage.hpp), and so are the dequantised values, bit for bit.

#include "peft/nf4_tensor.hpp"
#include "peft/packed_linear.hpp"

PEFT_BEGIN_NAMESPACE

template <FourBitCode kCode>
using FourBitLinear = PackedLinear<FourBitTensor<kCode>>;
using Nf4Linear = FourBitLinear<FourBitCode::kNf4>;
using Fp4Linear = FourBitLinear<FourBitCode::kFp4>;

PEFT_END_NAMESPACE
