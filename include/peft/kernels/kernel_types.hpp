#pragma once
/// The signatures of the kernels that exist once per instruction set.

#include <cstdint>

#include "peft/core/activation.hpp"
#include "peft/core/scalar.hpp"
#include "peft/kernels/block_format.hpp"
#include "peft/kernels/eight_bit.hpp"
#include "peft/kernels/four_bit.hpp"
#include "peft/kernels/int8_activations.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Largest tile of any instruction set: bounds buffers on the stack.
inline constexpr Index kMaxTileRows = 14;
inline constexpr Index kMaxTileColumns = 32;

/// One tile of the matrix product: C[rows, NR] = (load_c ? C : 0) + bias + mask∘(Al·Bl) + A·B, over packed operands
/// A [k][MR] and B [k][NR]. A full MR × NR tile of C is read and written, or, of less than MR rows that count, at least those.
struct TileCall {
  Index rows = kMaxTileRows;
  Index low_rank_k = 0;
  const float* low_rank_a = nullptr;
  const float* low_rank_b = nullptr;
  const std::uint8_t* mask = nullptr;  ///< bits of the tile's first row, counted from column 0
  Index mask_stride = 0;
  Index mask_column = 0;   ///< first column of the tile; a multiple of NR
  Index mask_columns = 0;  ///< columns of the whole mask
  Index mask_rows = 0;     ///< rows of the tile that the mask has
  float mask_scale = 1.0f;
  Index k = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  Index c_stride = 0;
  bool load_c = false;
  const float* bias = nullptr;  ///< NR values or nullptr
};

/// One low-rank term of a thin product: s [m, rank], the scale in it; l [n, rank].
struct ThinColumns {
  const float* s = nullptr;
  Index s_stride = 0;
  const float* l = nullptr;
  Index l_stride = 0;
  Index rank = 0;
};

/// A few rows against a weight in its own storage: y[i][j] = Σ_t s_t[row + i]·l_t[column + j] + x[i]·w[j], i < m ≤ 4,
/// j < n. The terms come first, in the same accumulators.
struct ThinCall {
  Index m = 0, n = 0, k = 0;
  const float* x = nullptr;
  Index x_stride = 0;
  const void* w = nullptr;
  Index w_stride = 0;
  DType w_type = DType::kF32;
  const ThinColumns* terms = nullptr;
  Index term_count = 0;
  Index row = 0, column = 0;  ///< of the terms: where x and w begin
  bool stream = false;        ///< w comes from memory and is read from end to end
  float* y = nullptr;
  Index y_stride = 0;
};

/// A few rows against rows of four-bit codes: y[i][j] = Σ_t s_t[row + i]·l_t[column + j] +
/// Σ_b scales[j][b]·Σ_{k in block b} x[i][k]·value[code[j][k]], i < m ≤ 4, j < n. Rows begin with a byte and with a block, whose
/// size is a power of two. The terms come first, in the same accumulators.
struct ThinFourBitCall {
  Index m = 0, n = 0, k = 0, block = 0;
  const float* x = nullptr;  ///< as arrange_4bit writes it
  Index x_stride = 0;
  const std::uint8_t* codes = nullptr;  ///< rows of k/2 bytes
  const float* value = nullptr;         ///< [16]
  const float* scales = nullptr;        ///< [n][scale_stride]; three floats behind a row may be read, and do not count
  Index scale_stride = 0;
  float* y = nullptr;
  Index y_stride = 0;
  const ThinColumns* terms = nullptr;
  Index term_count = 0;
  Index row = 0, column = 0;  ///< of the terms: where x and codes begin
};

/// A part of a weight in four bits, decoded: value[code[j][k]] times the scale of its block, j < n, k < depth. Rows are
/// row_bytes apart and begin, as blocks do, with a byte.
struct FourBitPart {
  Index n = 0, depth = 0;
  const std::uint8_t* codes = nullptr;
  Index row_bytes = 0;
  const float* value = nullptr;   ///< [16]
  const float* scales = nullptr;
  Index scale_stride = 0;
  Index block = 0;  ///< a power of two, from 32
  Index phase = 0;  ///< codes of a block that stand before the first one; a multiple of 8
  float* out = nullptr;
  Index ld = 0;
};

/// A few rows against rows of blocks: y[i][j] = Σ_k x[i][k]·w[j][k], i < m ≤ 4, j < n. Rows are whole blocks.
struct ThinBlocksCall {
  Index m = 0, n = 0, k = 0;
  BlockFormat format = BlockFormat::kQ4_0;
  const float* x = nullptr;
  Index x_stride = 0;
  const std::uint8_t* blocks = nullptr;  ///< rows of row_bytes
  Index row_bytes = 0;
  float* y = nullptr;
  Index y_stride = 0;
};

/// Coefficients of one AdamW step in float.
struct AdamWFloats {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_root_correction2, eps, decay, grad_scale;
};

/// A row of a dropout mask: Philox's counter after the byte's number, its key, and the least 16-bit draw that keeps.
struct DropoutRow {
  std::uint32_t counter[3] = {};  ///< row, module, step
  std::uint32_t key[2] = {};
  std::uint32_t threshold = 0;
};

struct KernelTable {
  Index tile_rows;     ///< MR
  Index tile_columns;  ///< NR
  void (*tile)(const TileCall& call) noexcept;
  /// dst[k*ld + i] = src[i*stride + k] for i < rows ≤ NR, k < kc; writes whole vectors: up to `ld rounded up` floats past
  /// a row's end are overwritten in ascending order of k, and rows in [rows, width) get 0.
  void (*pack_transposed)(const void* src, Index stride, DType type, Index rows, Index width, Index kc, float* dst,
                          Index ld) noexcept;
  /// dst[k*ld + j] = src[k*stride + j] for j < cols, 0 for j in [cols, width).
  void (*pack_straight)(const void* src, Index stride, DType type, Index cols, Index width, Index kc, float* dst,
                        Index ld) noexcept;
  /// y[i*y_stride + j] = Σ_k x[i*x_stride + k]·w[j*w_stride + k], i < m ≤ 4, j < n.
  void (*dots)(const float* x, Index x_stride, Index m, const void* w, Index w_stride, DType w_type, Index n, Index k,
               float* y, Index y_stride) noexcept;
  /// g[q*g_stride + j] += Σ_i s[i*s_stride + q*s_step]·x[i*x_stride + j], i < m, q < r, j < n.
  void (*outer_update)(Index m, Index r, Index n, const float* s, Index s_stride, Index s_step, const float* x,
                       Index x_stride, float* g, Index g_stride) noexcept;
  void (*widen)(Index n, const void* src, DType type, float* dst) noexcept;
  void (*narrow)(Index n, const float* src, DType type, void* dst) noexcept;
  /// x[j] *= bit(column + j) ? scale : 0; column is a multiple of 16.
  void (*apply_mask)(Index n, const std::uint8_t* bits, Index column, Index columns, float scale, float* x) noexcept;
  void (*adamw)(Index n, float* param, const float* grad, float* m, float* v, const AdamWFloats& step) noexcept;
  double (*squared_norm)(Index n, const float* x) noexcept;
  bool (*any_non_finite)(Index n, const float* x) noexcept;
  void (*scale)(Index n, float factor, float* x) noexcept;
  float (*max)(Index n, const float* x) noexcept;
  /// y[j] = exp(x[j] - shift); returns the sum. y may be x.
  float (*exp_sum)(Index n, const float* x, float shift, float* y) noexcept;
  /// Σ exp(x[j] - shift) without storing.
  double (*sum_exp)(Index n, const float* x, float shift) noexcept;
  float (*dot)(Index n, const float* x, const float* y) noexcept;
  /// y += a·x
  void (*axpy)(Index n, float a, const float* x, float* y) noexcept;
  void (*add)(Index n, const float* x, float* y) noexcept;
  /// y[j] = x[j]·w[j]·factor
  void (*scale_by)(Index n, const float* x, const float* w, float factor, float* y) noexcept;
  /// dx[j] (+)= dy[j]·w[j]·factor − x[j]·shift
  void (*norm_backward)(Index n, const float* dy, const float* w, const float* x, float factor, float shift,
                        bool accumulate, float* dx) noexcept;
  /// Σ dy·w·x
  float (*dot3)(Index n, const float* dy, const float* w, const float* x) noexcept;
  /// ds[j] = factor·p[j]·(ds[j] − delta)
  void (*softmax_backward)(Index n, const float* p, float delta, float factor, float* ds) noexcept;
  void (*swiglu)(Index n, const float* gate, const float* up, float* y) noexcept;
  void (*swiglu_backward)(Index n, const float* dy, const float* gate, const float* up, float* dgate,
                          float* dup) noexcept;
  /// Rotates pairs (x[j], x[half+j]) by the angle whose cosine and sine are given; sign −1 turns back.
  void (*rotate)(Index half, const float* cosine, const float* sine, float sign, float* x) noexcept;
  /// `bytes` bytes of keep bits, eight columns each.
  void (*dropout_row)(Index bytes, const DropoutRow& row, std::uint8_t* out) noexcept;
  /// y[j] = f(x[j]); y may be x.
  void (*activate)(Index n, Activation kind, const float* x, float* y) noexcept;
  /// dx[j] = dy[j]·f'(x[j]); dx may be dy or x.
  void (*activate_backward)(Index n, Activation kind, const float* dy, const float* x, float* dx) noexcept;
  float (*sum)(Index n, const float* x) noexcept;
  /// Σ (x[j] − from)²
  float (*squared_distance)(Index n, const float* x, float from) noexcept;
  /// y[j] = x̂[j]·w[j] + b[j], x̂ = (x − mean)·factor; b may be null. y may be x.
  void (*layer_norm)(Index n, const float* x, float mean, float factor, const float* w, const float* b,
                     float* y) noexcept;
  /// sums[0] = Σ dy·w, sums[1] = Σ dy·w·x̂
  void (*layer_norm_sums)(Index n, const float* dy, const float* w, const float* x, float mean, float factor,
                          float* sums) noexcept;
  /// dx[j] (+)= factor·(dy[j]·w[j] − mean_plain − x̂[j]·mean_along)
  void (*layer_norm_backward)(Index n, const float* dy, const float* w, const float* x, float mean, float factor,
                              float mean_plain, float mean_along, bool accumulate, float* dx) noexcept;
  /// dw[j] += dy[j]·x̂[j]; db[j] += dy[j]. Either may be null.
  void (*layer_norm_gradients)(Index n, const float* dy, const float* x, float mean, float factor, float* dw,
                               float* db) noexcept;
  /// A thin product; call.m ≤ 4.
  void (*thin)(const ThinCall& call) noexcept;
  /// max |x[j]|, 0 for none.
  float (*abs_max)(Index n, const float* x) noexcept;
  /// Codes of x[j]·factor, or of x[j]/factor where `divide`, limited to [-1, 1]: two a byte, the first in the upper half; after
  /// an odd number the code of 0 follows.
  void (*quantize_4bit)(Index n, const float* x, float factor, bool divide, const FourBitTable& table,
                        std::uint8_t* out) noexcept;
  /// out[j] = value[code j]·scale.
  void (*dequantize_4bit)(Index n, const std::uint8_t* codes, const float* value, float scale, float* out) noexcept;
  /// A row of x in the order in which thin_4bit meets its weights; `out` holds k rounded up to 128 floats.
  void (*arrange_4bit)(Index k, const float* x, float* out) noexcept;
  void (*thin_4bit)(const ThinFourBitCall& call) noexcept;
  /// out[k*ld + j], with scales[(phase + k)/block*scale_stride + j].
  void (*turn_4bit)(const FourBitPart& part) noexcept;
  /// out[j*ld + k], all of one block in each row, with scales[j].
  void (*rows_4bit)(const FourBitPart& part) noexcept;
  /// The same step as adamw on moments in 8 bits: read, updated and written again a block at a time. The parameter takes the
  /// updated moments before they are rounded to 8 bits.
  void (*adamw_8bit)(Index n, float* param, const float* grad, const EightBitMoments& moments, const EightBitTable& m_table,
                     const EightBitTable& v_table, const AdamWFloats& step) noexcept;
  /// out[j] = element first + j of a row of blocks, j < count.
  void (*decode_blocks)(BlockFormat format, const std::uint8_t* row, Index first, Index count, float* out) noexcept;
  void (*thin_blocks)(const ThinBlocksCall& call) noexcept;
  /// out[j] = map[code j]·factor + offset, rounded after each; map [256] is aligned to 64 bytes.
  void (*expand_scales)(Index n, const std::uint8_t* codes, const float* map, float factor, float offset, float* out) noexcept;
  Index int8_bytes;  ///< of an activation in 8 bits, as these two keep it
  void (*quantize_int8)(const Int8RowCall& call) noexcept;
  void (*four_bit_int8)(const Int8FourBitCall& call) noexcept;
};

}  // namespace kernels
PEFT_END_NAMESPACE
