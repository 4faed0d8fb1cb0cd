// The kernels of every instruction set, for programs of many translation units.
#define PEFT_SEPARATE_KERNELS
#define PEFT_DEFINE_KERNELS
#include <peft/kernels/kernel_table.hpp>
