// Translation units with different -m flags in one program: all use the library, all compute the same bits.
#include <cinttypes>
#include <cstdint>
#include <cstdio>

extern "C" {
std::uint64_t peft_unit_plain(std::uint64_t);
std::uint64_t peft_unit_avx2(std::uint64_t);
std::uint64_t peft_unit_haswell(std::uint64_t);
std::uint64_t peft_unit_avx512(std::uint64_t);
std::uint64_t peft_unit_fastmath(std::uint64_t);
}

int main() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") != 0;
  struct Unit {
    const char* name;
    std::uint64_t (*run)(std::uint64_t);
    bool can_run;
  };
  const Unit units[] = {{"plain", peft_unit_plain, true},
                        {"avx2", peft_unit_avx2, avx2},
                        {"haswell", peft_unit_haswell, avx2},
                        {"avx512", peft_unit_avx512, avx512},
                        {"fastmath", peft_unit_fastmath, true}};
  int wrong = 0;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    const std::uint64_t expected = peft_unit_plain(seed);
    for (const Unit& unit : units) {
      if (!unit.can_run) continue;
      const std::uint64_t got = unit.run(seed);
      if (got == expected) continue;
      std::printf("seed %" PRIu64 ": unit %s gives %016" PRIx64 ", plain gives %016" PRIx64 "\n", seed, unit.name, got,
                  expected);
      ++wrong;
    }
  }
  return wrong;
}
