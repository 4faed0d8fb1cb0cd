#pragma once
/// Which way a product with a 4-bit weight is computed. None was measured here for every GPU; the choice follows from bytes and
/// the tensor cores' rates, and hosts may call a route by name instead (FourBitLinear).

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

enum class FourBitProduct : std::uint8_t {
  kPacked,  ///< our kernels: codes are decoded where they are multiplied
  kPanel,   ///< W is decoded into scratch memory, and cuBLASLt multiplies
};

struct FourBitProductQuery {
  DType type = DType::kF16;
  int sm = 80;
  Index rows = 0;
};

/// On sm_90 and later cuBLASLt multiplies at 1.6 times mma.sync's rate and more. Decoding writes 2 bytes a weight and the
/// product reads them: by an H100's data sheet (3.3 TB/s; 650 against 400 TFLOP/s) as long as what 630 rows save.
inline constexpr Index kRowsOfPanels = 768;
/// In float our kernel has no tensor cores; cuBLASLt's larger tiles win once decoding is shared by this many rows.
inline constexpr Index kRowsOfFloatPanels = 64;

constexpr FourBitProduct choose_four_bit_product(const FourBitProductQuery& query) noexcept {
  if (query.type == DType::kF32) return query.rows >= kRowsOfFloatPanels ? FourBitProduct::kPanel : FourBitProduct::kPacked;
  if (query.sm >= 90 && query.rows >= kRowsOfPanels) return FourBitProduct::kPanel;
  return FourBitProduct::kPacked;
}

/// Bytes of scratch that a decoded panel may take; one serves all layers of a context.
inline constexpr Index kPanelBytes = Index{128} << 20;

/// Rows of W [out, in] that are decoded at once: all, or as many as fit, in multiples of 256.
constexpr Index panel_rows(Index out, Index row_bytes) noexcept {
  const Index fit = kPanelBytes / (row_bytes > 0 ? row_bytes : 1);
  if (fit >= out) return out;
  return fit < 256 ? 256 : fit / 256 * 256;
}

}  // namespace cuda
PEFT_END_NAMESPACE
