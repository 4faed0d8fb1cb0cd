#pragma once
/// Rows of dropout masks with the vectors that the processor has: the bits of core/rng.hpp's dropout_mask_row.

#include <cmath>
#include <cstdint>

#include "peft/core/rng.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Writes one row as dropout_mask_row does, bit for bit.
inline void dropout_row(const DropoutKey& key, Index row, Index columns, float p, std::uint8_t* out) {
  if (columns <= 0) return;
  DropoutRow call;
  call.counter[0] = static_cast<std::uint32_t>(key.first_row + row);
  call.counter[1] = key.module;
  call.counter[2] = key.step;
  call.key[0] = static_cast<std::uint32_t>(key.seed);
  call.key[1] = static_cast<std::uint32_t>(key.seed >> 32);
  call.threshold = dropout_threshold(p);
  const Index bytes = (columns + 7) / 8;
  table().dropout_row(bytes, call, out);
  if (const Index left = columns % 8; left != 0) out[bytes - 1] &= static_cast<std::uint8_t>((1u << left) - 1u);
}

}  // namespace kernels
PEFT_END_NAMESPACE
