#pragma once
/// Which instruction set the kernels use: the best that this processor has, or the one that PEFT_FORCE_ISA names.

#include <cstdlib>
#include <string_view>

#include "peft/config.hpp"
#include "peft/error.hpp"

#if PEFT_X86_64
#include <cpuid.h>
#endif

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// kAvx512Vnni has AVX-512's kernels but for activations in 8 bits.
enum class Isa : unsigned char { kScalar, kAvx2, kAvx512, kAvx512Vnni, kNeon };
inline constexpr Isa kIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kNeon};

constexpr std::string_view name_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kNeon:
      return "neon";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

/// The instruction set whose kernels in float `isa` runs: their bits are the same.
constexpr Isa float_isa(Isa isa) noexcept { return isa == Isa::kAvx512Vnni ? Isa::kAvx512 : isa; }

namespace detail {

/// Conversions of 16-bit floats. Clang 14's __builtin_cpu_supports knows no name for them.
inline bool has_f16c() noexcept {
#if PEFT_X86_64
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
#else
  return false;
#endif
}

}  // namespace detail

/// Whether this processor and its operating system can run `isa`.
inline bool has_isa(Isa isa) noexcept {
#if PEFT_X86_64
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && detail::has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx512Vnni) {
    return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  }
  if (isa == Isa::kAvx512) return avx512;
  if (isa == Isa::kAvx2) return avx2;
#endif
  return isa == Isa::kScalar || (isa == Isa::kNeon && PEFT_AARCH64);
}

namespace detail {

inline Isa choose_isa() {
  Isa best = Isa::kScalar;
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) best = isa;
  }
  const char* text = std::getenv("PEFT_FORCE_ISA");
  if (text == nullptr || *text == '\0') return best;
  // AVX512-BF16 has no kernels of its own: docs/qlora.md has the measurement.
  const std::string_view asked = std::string_view(text) == "avx512bf16" ? name_of(Isa::kAvx512Vnni) : text;
  for (const Isa isa : kIsas) {
    if (name_of(isa) != asked) continue;
    if (has_isa(isa)) return isa;
    fail<ConfigError>("choosing the instruction set: PEFT_FORCE_ISA is \"{}\", which this processor lacks; its best is "
                      "\"{}\"",
                      text, name_of(best));
  }
  fail<ConfigError>("choosing the instruction set: PEFT_FORCE_ISA is \"{}\"; expected scalar, avx2, avx512, "
                    "avx512vnni, avx512bf16 or neon",
                    text);
}

}  // namespace detail

/// Decided once per process. Throws ConfigError where PEFT_FORCE_ISA asks for what is not there.
inline Isa active_isa() {
  static const Isa isa = detail::choose_isa();
  return isa;
}

}  // namespace kernels
PEFT_END_NAMESPACE
