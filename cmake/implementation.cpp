// What is expensive to compile, once, for programs of many translation units.
#define PEFT_SEPARATE_IMPLEMENTATION
#define PEFT_IMPLEMENTATION
#include <peft/implementation.hpp>
