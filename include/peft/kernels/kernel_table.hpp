#pragma once
/// The row and tile kernels as a table of function pointers, one table per instruction set, chosen once. All take raw
/// pointers and never throw. Drivers (gemm, skinny, …) are written once on top of this table.

#include <cstdint>

#include "peft/core/scalar.hpp"
#include "peft/core/separate.hpp"
#include "peft/kernels/dispatch.hpp"
#include "peft/kernels/kernel_types.hpp"
#if PEFT_DEFINES_SEPARABLE
#include "peft/kernels/isa/scalar.hpp"
#if PEFT_X86_64
#include "peft/kernels/isa/avx2.hpp"
#include "peft/kernels/isa/avx512.hpp"
#include "peft/kernels/isa/avx512vnni.hpp"
#endif
#if PEFT_AARCH64
#include "peft/kernels/isa/neon.hpp"
#endif
#endif

PEFT_BEGIN_NAMESPACE
namespace kernels {

PEFT_SEPARABLE const KernelTable& table_of(Isa isa) noexcept;

#if PEFT_DEFINES_SEPARABLE
PEFT_SEPARABLE const KernelTable& table_of(Isa isa) noexcept {
#if PEFT_X86_64
  if (isa == Isa::kAvx512Vnni) return avx512vnni::kTable;
  if (isa == Isa::kAvx512) return avx512::kTable;
  if (isa == Isa::kAvx2) return avx2::kTable;
#endif
#if PEFT_AARCH64
  if (isa == Isa::kNeon) return neon::kTable;
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
