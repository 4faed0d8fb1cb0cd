#pragma once
/// Whether a result overwrites its destination or is added to it.

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

enum class Accumulate : bool { kOverwrite = false, kAdd = true };

PEFT_END_NAMESPACE
