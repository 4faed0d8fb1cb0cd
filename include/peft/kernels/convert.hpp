#pragma once
/// Rows between float, f16 and bf16; to 16 bits with rounding to nearest, ties to even, as core/scalar.hpp's types do.

#include <cstring>

#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// n elements of src (kF32, kF16, kBF16) to dst (likewise). The rows do not overlap.
inline void convert(Index n, const void* src, DType from, void* dst, DType to) {
  if (n <= 0) return;
  if (from == to) {
    std::memcpy(dst, src, static_cast<std::size_t>(n * size_of(from)));
  } else if (to == DType::kF32) {
    table().widen(n, src, from, static_cast<float*>(dst));
  } else if (from == DType::kF32) {
    table().narrow(n, static_cast<const float*>(src), to, dst);
  } else {
    constexpr Index kRun = 256;
    float wide[kRun];
    for (Index i = 0; i < n; i += kRun) {
      const Index count = n - i < kRun ? n - i : kRun;
      table().widen(count, static_cast<const char*>(src) + i * 2, from, wide);
      table().narrow(count, wide, to, static_cast<char*>(dst) + i * 2);
    }
  }
}

}  // namespace kernels
PEFT_END_NAMESPACE
