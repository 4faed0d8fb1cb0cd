#pragma once
/// How launches run and what is looked at.

#include <cstdint>

namespace peft_emulator {

struct Options {
  std::uint64_t seed = 0;
  bool random_schedule = false;  ///< order of threads, warps and blocks by the seed; else lowest first
  bool check_races = true;
  bool count_accesses = true;
  int most_shared_bytes = 227 * 1024;  ///< of a block; 64 KiB on sm_75, 99 KiB on sm_86, sm_89 and sm_120
};

}  // namespace peft_emulator
