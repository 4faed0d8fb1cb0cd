#pragma once
/// What a matrix product is given: operands, low-rank terms, a mask, and the problem of them all; see gemm.hpp.

#include <cstdint>

#include "peft/core/scalar.hpp"
#include "peft/kernels/block_format.hpp"
#include "peft/kernels/block_scales.hpp"
#include "peft/kernels/int8_activations.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// A matrix operand in memory: element (i, j) stands at data[i*stride + j] in its own type; where `transposed`, (i, j)
/// of the operand is element (j, i) of the storage.
struct Operand {
  const void* data = nullptr;
  Index stride = 0;
  DType type = DType::kF32;  ///< kF32, kF16 or kBF16
  bool transposed = false;
};

/// W [n, k] in four bits whose rows begin with a block (k is a multiple of `block`).
struct FourBitOperand {
  const std::uint8_t* codes = nullptr;  ///< rows of k/2 bytes
  const float* value = nullptr;         ///< [16]
  BlockScales scales{};
  Index block = 0;
  const ByteValues* int8 = nullptr;  ///< activations are taken in 8 bits (int8_activations.hpp), by these values; or nullptr
};

/// W [n, k] in a GGUF's blocks.
struct BlocksOperand {
  const std::uint8_t* data = nullptr;  ///< rows of row_bytes, whole blocks
  Index row_bytes = 0;
  BlockFormat format = BlockFormat::kQ4_0;
};

/// The right operand B = op(W) [k, n]: a function that writes a panel, and the storage itself where it is plain memory
/// (then thin products read it directly).
struct PanelFill {
  /// Writes B[k0+i][n0+j] to panel[i*ld + j] for i < kc, j < nc. Elements past nc in a row are not touched.
  using Fill = void (*)(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld);
  const void* context = nullptr;
  Fill fill = nullptr;
  /// Plain storage of B as an Operand [k, n]; data == nullptr where there is none. For y = x·Wᵀ with W [out, in] in
  /// memory: {W, stride, type, transposed = true}; for dx = dy·W: transposed = false.
  Operand dense{};
  /// Four-bit storage of W with B = Wᵀ, read directly by thin products, or nullptr.
  const FourBitOperand* four_bit = nullptr;
  /// The same in blocks, or nullptr.
  const BlocksOperand* blocks = nullptr;
};

/// One low-rank term: scale · S[m,r] · L[r,n].
struct LowRankColumns {
  const float* s = nullptr;  ///< S [m, r], element (i, q) at s[i*s_stride + q]
  Index s_stride = 0;
  Index rank = 0;
  /// L [r, n]: element (q, j) at l[q*l_stride + j], or at l[j*l_stride + q] where `l_transposed`
  /// (forward: L = Bᵀ with B [out, r] stored → l_transposed = true; backward: L = A [r, in] → false).
  const float* l = nullptr;
  Index l_stride = 0;
  bool l_transposed = false;
  float scale = 1.0f;
};

/// A dropout mask as bits (see dropout_mask_row): row i starts at bits[i*stride_bytes]; kept elements times `scale`.
struct MaskBits {
  const std::uint8_t* bits = nullptr;  ///< nullptr: no mask
  Index stride_bytes = 0;
  float scale = 1.0f;
};

/// What gemm() computes; see the head of gemm.hpp. C may not alias an operand.
struct GemmProblem {
  Index m = 0;
  Index n = 0;
  Index k = 0;  ///< may be 0: only the low-rank terms and the bias
  Operand a{};  ///< [m, k]
  PanelFill b{};
  const LowRankColumns* low_rank = nullptr;
  Index low_rank_count = 0;
  MaskBits low_rank_mask{};     ///< over [m, n]; multiplies the sum of the low-rank terms
  const float* bias = nullptr;  ///< [n]
  bool accumulate = false;      ///< C += instead of C =
  void* c = nullptr;
  Index c_stride = 0;
  DType c_type = DType::kF32;  ///< kF32, kF16 or kBF16
};

}  // namespace kernels
PEFT_END_NAMESPACE
