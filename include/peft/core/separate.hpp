#pragma once
/// What is expensive to compile (the kernels of every instruction set, the decompositions, the parsers of JSON and of module
/// patterns) can be compiled once in a program of many files: with PEFT_SEPARATE_IMPLEMENTATION defined for all of them, it
/// is only declared, except in the one file that also says `#define PEFT_IMPLEMENTATION` and includes
/// <peft/implementation.hpp>. Without it, every translation unit has its own, inline.

#ifdef PEFT_SEPARATE_IMPLEMENTATION
#define PEFT_SEPARABLE
#else
#define PEFT_SEPARABLE inline
#endif

/// Whether this translation unit defines what PEFT_SEPARABLE declares.
#if defined(PEFT_SEPARATE_IMPLEMENTATION) && !defined(PEFT_IMPLEMENTATION)
#define PEFT_DEFINES_SEPARABLE 0
#else
#define PEFT_DEFINES_SEPARABLE 1
#endif
