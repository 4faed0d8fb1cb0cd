#pragma once
/// Everything that PEFT_SEPARATE_IMPLEMENTATION leaves to one file of the program: see peft/core/separate.hpp.

#include "peft/core/linalg.hpp"
#include "peft/io/json.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/module_pattern.hpp"
