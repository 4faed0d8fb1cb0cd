#pragma once
/// Which instruction set the kernels use: the best that this processor has, or the one that PEFT_FORCE_ISA names.

#include <cstdlib>
#include <string>
#include <string_view>

#include "peft/config.hpp"
#include "peft/error.hpp"

#if PEFT_X86_64
#include <cpuid.h>
#endif

PEFT_BEGIN_NAMESPACE
namespace kernels {

enum class Isa : unsigned char { kScalar, kAvx2, kAvx512 };

constexpr std::string_view name_of(Isa isa) noexcept {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "scalar";
}

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
  switch (isa) {
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx2:
      return avx2;
    case Isa::kScalar:
      return true;
  }
  return false;
#else
  return isa == Isa::kScalar;
#endif
}

namespace detail {

inline Isa choose_isa() {
  const Isa best = has_isa(Isa::kAvx512) ? Isa::kAvx512 : has_isa(Isa::kAvx2) ? Isa::kAvx2 : Isa::kScalar;
  const char* text = std::getenv("PEFT_FORCE_ISA");
  if (text == nullptr || *text == '\0') return best;
  const std::string_view asked(text);
  Isa forced = Isa::kScalar;
  if (asked == "avx2") {
    forced = Isa::kAvx2;
  } else if (asked == "avx512" || asked == "avx512vnni" || asked == "avx512bf16") {
    forced = Isa::kAvx512;  // the kernels have one AVX-512 form
  } else if (asked != "scalar") {
    fail<ConfigError>(
        "choosing the instruction set: PEFT_FORCE_ISA is \"{}\"; expected scalar, avx2, avx512, avx512vnni or "
        "avx512bf16",
        asked);
  }
  if (!has_isa(forced)) {
    fail<ConfigError>("choosing the instruction set: PEFT_FORCE_ISA is \"{}\", which this processor lacks; its best is "
                      "\"{}\"",
                      asked, name_of(best));
  }
  return forced;
}

}  // namespace detail

/// Decided once per process. Throws ConfigError where PEFT_FORCE_ISA asks for what is not there.
inline Isa active_isa() {
  static const Isa isa = detail::choose_isa();
  return isa;
}

}  // namespace kernels
PEFT_END_NAMESPACE
