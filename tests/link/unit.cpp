// One translation unit of a program whose units are compiled with different -m flags. PEFT_UNIT: its function's name.
#include "link/work.hpp"

extern "C" std::uint64_t PEFT_UNIT(std::uint64_t seed) { return work(seed); }
