#pragma once
/// Which way y = x·Wᵀ + s·S·Bᵀ is computed over a dense W. None was measured here for every GPU; the choice follows from what
/// each moves and from the tensor cores' rates, and hosts may call a route by name instead (DenseLinear).

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

enum class LoraRoute : std::uint8_t {
  kFused,         ///< one kernel of ours whose K loop goes on over the r columns: y is written once
  kSpareColumns,  ///< one cuBLASLt product over K + r columns: [x | S]·[W | s·B]ᵀ
  kTwoProducts,   ///< cuBLASLt for x·Wᵀ, and again for += s·S·Bᵀ: y is written twice and read once
};

struct LoraRouteQuery {
  DType type = DType::kF16;
  int sm = 80;
  Index rows = 0;
  bool has_columns = false;  ///< s·B stands behind W, and x has room for S
};

/// From sm_90 on cuBLASLt uses instructions (wgmma, tcgen05) that multiply at 1.6 times mma.sync's rate and more. From this
/// many rows on that outweighs writing y twice: 2·M·N elements more against M·N·K products.
inline constexpr Index kRowsOfProducts = 256;
/// In float our kernel has no tensor cores, and cuBLASLt's has larger tiles; below this many rows both wait for W.
inline constexpr Index kRowsOfFloatProducts = 32;

constexpr LoraRoute choose_lora_route(const LoraRouteQuery& query) noexcept {
  const LoraRoute dense = query.has_columns ? LoraRoute::kSpareColumns : LoraRoute::kTwoProducts;
  if (query.type == DType::kF32) return query.rows >= kRowsOfFloatProducts ? dense : LoraRoute::kFused;
  if (query.sm >= 90 || (query.has_columns && query.sm >= 80)) return query.rows >= kRowsOfProducts ? dense : LoraRoute::kFused;
  return LoraRoute::kFused;
}

}  // namespace cuda
PEFT_END_NAMESPACE
