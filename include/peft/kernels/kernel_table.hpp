#pragma once
/// The row and tile kernels as a table of function pointers, one table per instruction set, chosen once. All take raw
/// pointers and never throw. Drivers (gemm, skinny, …) are written once on top of this table.
///
/// Every translation unit that computes compiles the kernels of every instruction set: seconds each, of which a program of
/// many files keeps one copy. With PEFT_SEPARATE_KERNELS defined for all of them, they are compiled once, in the one file
/// that says `#define PEFT_DEFINE_KERNELS` and includes this header.

#include <cstdint>

#include "peft/core/scalar.hpp"
#include "peft/kernels/dispatch.hpp"
#include "peft/kernels/kernel_types.hpp"
#if defined(PEFT_SEPARATE_KERNELS) && !defined(PEFT_DEFINE_KERNELS)
#define PEFT_KERNELS_ELSEWHERE 1
#else
#define PEFT_KERNELS_ELSEWHERE 0
#include "peft/kernels/isa/scalar.hpp"
#if PEFT_X86_64
#include "peft/kernels/isa/avx2.hpp"
#include "peft/kernels/isa/avx512.hpp"
#endif
#endif

PEFT_BEGIN_NAMESPACE
namespace kernels {

#ifdef PEFT_SEPARATE_KERNELS
const KernelTable& table_of(Isa isa) noexcept;
#else
inline const KernelTable& table_of(Isa isa) noexcept;
#endif

#if !PEFT_KERNELS_ELSEWHERE
const KernelTable& table_of(Isa isa) noexcept {
#if PEFT_X86_64
  if (isa == Isa::kAvx512) return avx512::kTable;
  if (isa == Isa::kAvx2) return avx2::kTable;
#endif
  (void)isa;
  return scalar::kTable;
}
#endif

/// The table of active_isa(). Throws ConfigError as that does.
inline const KernelTable& table() {
  static const KernelTable& chosen = table_of(active_isa());
  return chosen;
}

}  // namespace kernels
PEFT_END_NAMESPACE
