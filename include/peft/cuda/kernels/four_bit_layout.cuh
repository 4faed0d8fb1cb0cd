#pragma once
/// How a 4-bit weight W [out, in] lies on the device: bitsandbytes' codes, permuted once so that 16 bytes that a lane reads are
/// fragments of mma.m16n8k16 for the forward product x·Wᵀ and for the gradient's dy·W alike: one copy serves both.
///
///   word    8 codes: one row, 8 columns beside one another, bytes as bitsandbytes has them (first code in the upper half)
///   chunk   4 words, 16 bytes: rows 4i … 4i+3, columns 8j … 8j+7
///   brick   8 x 8 chunks, 1 KiB: 32 rows, 64 columns; bricks lie row by row, padded at the right and at the bottom with the
///           code of zero
///
///   a brick, its chunks (i down, j to the right)          quarters of 256 bytes      a quarter: its sixteen chunks
///              j=0  1  2  3 | 4  5  6  7                       0 | 2                   0  1  2  3
///   rows  0-3  i=0          |                                 ---+---                  4  5  6  7
///         4-7    1          |                                  1 | 3                   8  9 10 11
///          …     …          |                                                         12 13 14 15
///       28-31    7          |
///
/// With g = lane/4 and t = lane%4 (an mma's row and pair of k):
///   forward, W as A [16 rows, 16 k]: load h = 0, 1 takes chunk (g, 4h + t), at byte 512h + 16·lane. Its words are rows 4g … 4g+3:
///     two mma tiles of two rows a lane (g and g+8 of the tile); its bytes are pairs of k: two steps of 16 k, of which lane t has
///     four beside one another.
///   gradient, Wᵀ as A [16 columns, 16 rows]: load h takes chunk (4h + t, g): 256 bytes at a time, beside one another. Its words
///     are the step's four k, its bytes pairs of columns: four mma tiles of two columns a lane.
/// An mma does not care which k or row is which as long as its other operand agrees, so x and dy are read 16 (8) bytes a lane, and
/// outputs are written 8 (16) bytes a lane.
///
/// absmax, or its 8-bit codes, follow the bricks: [out/32][blocks of a row][32 rows], so that a warp reads a brick's in one go. The
/// nested maxima stay in bitsandbytes' order, for one of them belongs to 256 blocks counted flat. Where blocks run over the ends
/// of rows (in is no multiple of the block size) absmax stays flat, too: is_flat().

#include <climits>

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

inline constexpr int kBrickRows = 32, kBrickColumns = 64, kBrickBytes = 1024;

/// A packed weight in device memory; what is not used is null.
struct FourBitPacked {
  const std::uint8_t* codes;         ///< four_bit_code_bytes(), 16-byte aligned
  const float* absmax;               ///< four_bit_scale_count(), 16-byte aligned; null: nested
  const std::uint8_t* nested_codes;  ///< four_bit_scale_count(), 4-byte aligned
  const float* nested_map;           ///< [256]
  const float* nested_absmax;        ///< one for 256 blocks, bitsandbytes' order
  float nested_offset;
  int block_size;  ///< 32 … 4096, a power of two
  Index out, in;
  float value[16];  ///< by code

  PEFT_HOST_DEVICE bool is_nested() const { return absmax == nullptr; }
  PEFT_HOST_DEVICE bool is_flat() const { return in % block_size != 0; }
};

/// Bricks beside one another in a row of them.
PEFT_HOST_DEVICE Index four_bit_brick_columns(Index in) { return (in + kBrickColumns - 1) / kBrickColumns; }
/// Bytes of packed codes.
PEFT_HOST_DEVICE Index four_bit_code_bytes(Index out, Index in) {
  return (out + kBrickRows - 1) / kBrickRows * four_bit_brick_columns(in) * kBrickBytes;
}
/// Blocks of a padded row.
PEFT_HOST_DEVICE Index four_bit_row_blocks(Index in, int block_size) {
  return (four_bit_brick_columns(in) * kBrickColumns + block_size - 1) / block_size;
}
/// Packed maxima (or their codes): blocks, with padding.
PEFT_HOST_DEVICE Index four_bit_scale_count(Index out, Index in, int block_size) {
  if (in % block_size != 0) return (out * in + block_size - 1) / block_size;
  return (out + kBrickRows - 1) / kBrickRows * four_bit_row_blocks(in, block_size) * kBrickRows;
}

/// Byte of chunk (i, j) within its brick.
PEFT_HOST_DEVICE int four_bit_chunk_byte(int i, int j) { return ((j >> 2) * 2 + (i >> 2)) * 256 + (i & 3) * 64 + (j & 3) * 16; }
/// Byte of the word that holds row `row`, columns 8·(column/8) and on.
PEFT_HOST_DEVICE Index four_bit_word_byte(Index row, Index column, Index in) {
  const Index brick = row / kBrickRows * four_bit_brick_columns(in) + column / kBrickColumns;
  const int i = static_cast<int>(row % kBrickRows) / 4;
  const int j = static_cast<int>(column % kBrickColumns) / 8;
  return brick * kBrickBytes + four_bit_chunk_byte(i, j) + static_cast<int>(row % 4) * 4;
}
/// Place of the maximum of block `block` of row `row`, where no block runs over a row's end.
PEFT_HOST_DEVICE Index four_bit_scale_place(Index row, Index block, Index in, int block_size) {
  return (row / kBrickRows * four_bit_row_blocks(in, block_size) + block) * kBrickRows + row % kBrickRows;
}

// -- packing -----------------------------------------------------------------------------------------------------------------

/// Codes and maxima in bitsandbytes' order on one side, packed on the other; absmax or nested codes, not both.
struct FourBitPackArgs {
  std::uint8_t* flat_codes;  ///< ⌈out·in/2⌉
  float* flat_absmax;
  std::uint8_t* flat_nested_codes;  ///< one for each block, counted flat
  std::uint8_t* codes;
  float* absmax;
  std::uint8_t* nested_codes;
  Index out, in;
  int block_size;
  std::uint32_t zero_code;  ///< 7 for NF4, 0 for FP4
};

namespace detail {

/// Code `element` of codes that lie flat.
PEFT_HOST_DEVICE std::uint32_t flat_code(const std::uint8_t* codes, Index element) {
  return (codes[element / 2] >> (element % 2 == 0 ? 4 : 0)) & 15u;
}

/// The word of row `row` and columns column … column+7; outside of the weight the code of zero.
PEFT_HOST_DEVICE std::uint32_t packed_word(const FourBitPackArgs& p, Index row, Index column) {
  std::uint32_t word = 0;
  for (int e = 0; e < 8; ++e) {
    const bool is_inside = row < p.out && column + e < p.in;
    const std::uint32_t code = is_inside ? flat_code(p.flat_codes, row * p.in + column + e) : p.zero_code;
    word |= code << (8 * (e / 2) + (e % 2 == 0 ? 4 : 0));
  }
  return word;
}
/// Code of (row, column), from packed ones.
PEFT_HOST_DEVICE std::uint32_t packed_code(const std::uint8_t* codes, Index row, Index column, Index in) {
  const int e = static_cast<int>(column % 8);
  return (codes[four_bit_word_byte(row, column, in) + e / 2] >> (e % 2 == 0 ? 4 : 0)) & 15u;
}

/// Row and first column of packed word `i`: a brick's words in the order in which they lie.
struct PackedPlace {
  Index row, column;
};
PEFT_HOST_DEVICE PackedPlace packed_place(const FourBitPackArgs& p, Index i) {
  const Index brick = i / 256;
  const int word = static_cast<int>(i % 256);
  const int quarter = word / 64, chunk = word / 4 % 16;
  return {brick / four_bit_brick_columns(p.in) * kBrickRows + (quarter % 2) * 16 + chunk / 4 * 4 + word % 4,
          brick % four_bit_brick_columns(p.in) * kBrickColumns + (quarter / 2) * 32 + chunk % 4 * 8};
}
/// Where packed maximum `i` lies flat; -1: it is padding.
PEFT_HOST_DEVICE Index flat_scale(const FourBitPackArgs& p, Index i) {
  if (p.in % p.block_size != 0) return i;
  const Index row_blocks = four_bit_row_blocks(p.in, p.block_size);
  const Index row = i / kBrickRows / row_blocks * kBrickRows + i % kBrickRows;
  const Index block = i / kBrickRows % row_blocks;
  return row < p.out && block < p.in / p.block_size ? row * (p.in / p.block_size) + block : -1;
}

/// Work item `i` of packing: word i, and maximum i.
PEFT_HOST_DEVICE void pack_item(const FourBitPackArgs& p, Index i) {
  if (i < four_bit_code_bytes(p.out, p.in) / 4) {
    const PackedPlace place = packed_place(p, i);
    const std::uint32_t codes = packed_word(p, place.row, place.column);
    for (int b = 0; b < 4; ++b) p.codes[4 * i + b] = static_cast<std::uint8_t>(codes >> (8 * b));
  }
  if (i < four_bit_scale_count(p.out, p.in, p.block_size)) {
    const Index from = flat_scale(p, i);
    if (p.absmax != nullptr) {
      p.absmax[i] = from >= 0 ? p.flat_absmax[from] : 0.0f;
    } else {
      p.nested_codes[i] = from >= 0 ? p.flat_nested_codes[from] : std::uint8_t{0};
    }
  }
}
PEFT_HOST_DEVICE Index pack_items(const FourBitPackArgs& p) {
  return max(four_bit_code_bytes(p.out, p.in) / 4, four_bit_scale_count(p.out, p.in, p.block_size));
}

/// Work item `i` of the way back: byte i of codes, and maximum i.
PEFT_HOST_DEVICE void unpack_item(const FourBitPackArgs& p, Index i) {
  const Index elements = p.out * p.in;
  if (i < (elements + 1) / 2) {
    std::uint32_t byte = 0;
    for (int e = 0; e < 2; ++e) {
      const Index element = 2 * i + e;
      byte = byte << 4 | (element < elements ? packed_code(p.codes, element / p.in, element % p.in, p.in) : p.zero_code);
    }
    p.flat_codes[i] = static_cast<std::uint8_t>(byte);
  }
  if (i < (elements + p.block_size - 1) / p.block_size) {
    Index from = i;
    if (p.in % p.block_size == 0) {
      const Index row_blocks = p.in / p.block_size;
      from = four_bit_scale_place(i / row_blocks, i % row_blocks, p.in, p.block_size);
    }
    if (p.absmax != nullptr) {
      p.flat_absmax[i] = p.absmax[from];
    } else {
      p.flat_nested_codes[i] = p.nested_codes[from];
    }
  }
}

PEFT_HOST_DEVICE Index unpack_items(const FourBitPackArgs& p) {
  return max((p.out * p.in + 1) / 2, (p.out * p.in + p.block_size - 1) / p.block_size);
}

/// Whether rows are whole words on both sides: then packing moves words as they are.
inline bool packs_words(const FourBitPackArgs& p) {
  return p.in % 8 == 0 && reinterpret_cast<std::uintptr_t>(p.flat_codes) % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.codes) % 4 == 0;
}
/// Item `i` of packing where packs_words(), packed word i and packed maximum i; kBack: of the way back.
template <bool kBack>
PEFT_DEVICE void move_word(const FourBitPackArgs& p, Index i) {
  if (i < four_bit_code_bytes(p.out, p.in) / 4) {
    const PackedPlace place = packed_place(p, i);
    const bool is_inside = place.row < p.out && place.column < p.in;
    std::uint32_t* const flat = reinterpret_cast<std::uint32_t*>(p.flat_codes) + (place.row * p.in + place.column) / 8;
    std::uint32_t* const packed = reinterpret_cast<std::uint32_t*>(p.codes) + i;
    if constexpr (kBack) {
      if (is_inside) store(flat, load_const(packed));
    } else {
      store(packed, is_inside ? load_const(flat) : p.zero_code * 0x11111111u);
    }
  }
  if (i < four_bit_scale_count(p.out, p.in, p.block_size)) {
    const Index flat = flat_scale(p, i);
    const bool is_inside = flat >= 0;
    if constexpr (kBack) {
      if (is_inside && p.absmax != nullptr) store(p.flat_absmax + flat, load_const(p.absmax + i));
      if (is_inside && p.absmax == nullptr) store(p.flat_nested_codes + flat, load_const(p.nested_codes + i));
    } else if (p.absmax != nullptr) {
      store(p.absmax + i, is_inside ? load_const(p.flat_absmax + flat) : 0.0f);
    } else {
      store(p.nested_codes + i, is_inside ? load_const(p.flat_nested_codes + flat) : std::uint8_t{0});
    }
  }
}

}  // namespace detail

inline constexpr int kPackThreads = 256;

/// One thread for each word. Where rows are no whole words (kWords false): for each byte on the way back, with plain loads and
/// stores, the lines that the host runs. No shared memory, registers 40; done once for a weight.
template <bool kBack, bool kWords>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(kPackThreads, 4) void four_bit_pack_kernel(FourBitPackArgs args) {
  const Index i = static_cast<Index>(block_x()) * kPackThreads + thread_index();
  if constexpr (kWords) {
    detail::move_word<kBack>(args, i);
  } else if constexpr (kBack) {
    detail::unpack_item(args, i);
  } else {
    detail::pack_item(args, i);
  }
}

namespace detail {
inline bool is_packable(const FourBitPackArgs& p) {
  const int block = p.block_size;
  if (p.out < 0 || p.in < 0 || block < 32 || block > 4096 || (block & (block - 1)) != 0) return false;
  if (p.in > INT_MAX - 64 || p.out > INT_MAX - 64) return false;
  return (p.absmax != nullptr) == (p.flat_absmax != nullptr) && (p.nested_codes != nullptr) == (p.flat_nested_codes != nullptr) &&
         (p.absmax != nullptr) != (p.nested_codes != nullptr);
}
template <bool kBack>
inline cudaError_t four_bit_repack(const FourBitPackArgs& args, cudaStream_t stream) {
  if (!is_packable(args)) return cudaErrorInvalidValue;
  const bool words = packs_words(args);
  const Index items = kBack && !words ? unpack_items(args) : pack_items(args);
  const Index blocks = (items + kPackThreads - 1) / kPackThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  const Grid grid{static_cast<int>(blocks), 1, 1};
  return words ? launch<four_bit_pack_kernel<kBack, true>>(grid, kPackThreads, 0, stream, args)
               : launch<four_bit_pack_kernel<kBack, false>>(grid, kPackThreads, 0, stream, args);
}
}  // namespace detail

/// From bitsandbytes' order (flat_*) to the packed one, in device memory.
inline cudaError_t four_bit_pack(const FourBitPackArgs& args, cudaStream_t stream) {
  return detail::four_bit_repack<false>(args, stream);
}
/// The way back, bit for bit.
inline cudaError_t four_bit_unpack(const FourBitPackArgs& args, cudaStream_t stream) {
  return detail::four_bit_repack<true>(args, stream);
}
/// Both in host memory, item by item.
inline bool four_bit_pack_host(const FourBitPackArgs& args) {
  if (!detail::is_packable(args)) return false;
  for (Index i = 0, n = detail::pack_items(args); i < n; ++i) detail::pack_item(args, i);
  return true;
}
inline bool four_bit_unpack_host(const FourBitPackArgs& args) {
  if (!detail::is_packable(args)) return false;
  for (Index i = 0, n = detail::unpack_items(args); i < n; ++i) detail::unpack_item(args, i);
  return true;
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
