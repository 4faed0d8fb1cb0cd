#pragma once
/// AdamW whose moments stand in managed memory, as bitsandbytes' PagedAdamW and PagedAdamW8bit (AdamWConfig::optim_bits) keep
/// them: more than the device has is allowed, and what a budget leaves no room for comes for its update, ahead of it, and goes.
/// The same numbers as cuda::AdamW's.

#include "peft/cuda/adamw.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

using PagedAdamW = BasicAdamW<ManagedMemory>;

}  // namespace cuda
PEFT_END_NAMESPACE
