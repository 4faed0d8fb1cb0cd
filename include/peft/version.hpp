#pragma once
/// The library's version: the one place where it is written. CMake, packages and `peft --version` read it from here.

#define PEFT_VERSION_MAJOR 0
#define PEFT_VERSION_MINOR 1
#define PEFT_VERSION_PATCH 0
#define PEFT_VERSION_STRING "0.1.0"
