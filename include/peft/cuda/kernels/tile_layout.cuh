#pragma once
/// How the tiles of a product lie in shared memory, and how they get there.
///
/// A tile is made of panels; a panel is a number of rows of 128 bytes, that is of eight chunks of 16 bytes:
///   element (row, column) of a panel is in chunk (column / kChunk) ^ (row % 8) of that row.
/// Eight rows below one another in one column of chunks, or eight chunks beside one another in one row, thus lie in
/// eight different groups of four banks: whatever reads or writes 16 bytes a lane (cp.async, ldmatrix, vector loads)
/// meets no conflict. An operand of the product comes in one of two orders:
///   Order::kAlongK    rows are the operand's m (or n), 128 bytes of k beside one another: one panel holds kPanel of k;
///   Order::kAcrossK   rows are k (kPanel of them), 128 bytes of m (or n) beside one another; wider tiles are panels
///                     one behind the other.
/// Both hold the same number of bytes for any type, f32 (kPanel = 32) or 16 bits (64).

#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// How an operand's rows lie towards the dimension that the product sums over.
enum class Order { kAlongK, kAcrossK };

/// Elements in 16 bytes, and in a panel's row of 128 bytes, which is also the product's step in k.
template <class T>
inline constexpr int kChunk = static_cast<int>(16 / sizeof(T));
template <class T>
inline constexpr int kPanel = static_cast<int>(128 / sizeof(T));

/// Position, in elements, of (row, column < kPanel) in a panel.
template <class T>
PEFT_DEVICE int panel_position(int row, int column) {
  return row * kPanel<T> + (((column / kChunk<T>) ^ (row & 7)) * kChunk<T>) + column % kChunk<T>;
}

/// Position, in elements, of (outer = m or n, k) in a tile of `kOuter` x kPanel.
template <class T, Order kOrder>
PEFT_DEVICE int tile_position(int outer, int k) {
  if constexpr (kOrder == Order::kAlongK) {
    return panel_position<T>(outer, k);
  } else {
    return (outer / kPanel<T>) * kPanel<T> * kPanel<T> + panel_position<T>(k, outer % kPanel<T>);
  }
}

/// Bytes of a tile of `outer` x kPanel. An order across k always has whole panels.
template <class T, Order kOrder>
constexpr int tile_bytes(int outer) {
  return kOrder == Order::kAlongK ? outer * 128 : (outer + kPanel<T> - 1) / kPanel<T> * kPanel<T> * 128;
}

/// A row-major matrix in global memory as an operand.
template <class T>
struct TileSource {
  const T* data;
  Index ld;                 ///< elements from one row to the next
  const std::int32_t* map;  ///< row i is row map[i] of `data`; null: row i
  int rows, columns;        ///< elements outside read as zero
  bool aligned;             ///< every chunk is 16-byte aligned and wholly inside or outside: see is_aligned()
};

/// A dropout mask over a source's rows and columns, as bits (core/rng.hpp's dropout_mask_row); bits null: none.
struct TileMask {
  const std::uint8_t* bits;
  Index stride;  ///< bytes from one row to the next
};

/// Whether a source may be read in chunks of 16 bytes; else element by element, which is the same kernel, slower.
template <class T>
PEFT_HOST_DEVICE bool is_aligned(const T* data, Index ld, Index columns) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ld % kChunk<T> == 0 && columns % kChunk<T> == 0;
}
template <class T>
PEFT_HOST_DEVICE TileSource<T> tile_source(const T* data, Index ld, Index rows, Index columns) {
  return {data, ld, nullptr, static_cast<int>(rows), static_cast<int>(columns), is_aligned(data, ld, columns)};
}

/// Copies rows [row0, row0 + kRows) and chunks [column0, + kChunks x kChunk) of a source into panels at byte `tile` of
/// shared memory, asynchronously. Eight threads beside one another read 128 bytes of one row.
template <class T, int kRows, int kChunks, int kThreads>
PEFT_DEVICE void load_tile(const SharedMemory& memory, int tile, const TileSource<T>& source, int row0, int column0) {
  static_assert(kRows * kChunks % kThreads == 0);
  const Shared<T> panels = memory.template at<T>(tile);
  PEFT_UNROLL
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int c = thread_index() + i * kThreads;
    const int row = c / kChunks;
    const int chunk = c % kChunks;
    const Shared<T> target =
        panels + ((chunk / 8) * kRows * kPanel<T> + row * kPanel<T> + ((chunk % 8) ^ (row & 7)) * kChunk<T>);
    const int from_row = row0 + row;
    const int from_column = column0 + chunk * kChunk<T>;
    const bool is_inside = from_row < source.rows && from_column < source.columns;
    const int mapped = source.map != nullptr && is_inside ? load_const(source.map + from_row) : from_row;
    const T* from = source.data + (is_inside ? static_cast<Index>(mapped) * source.ld + from_column : Index{0});
    if (source.aligned) {
      cp_async_16(target, from, is_inside);
    } else {
      Vec<T, kChunk<T>> values{};
      PEFT_UNROLL
      for (int e = 0; e < kChunk<T>; ++e) {
        if (is_inside && from_column + e < source.columns) values[e] = load_const(from + e);
      }
      target.store_vec(0, values);
    }
  }
}

/// The mask's bits of the chunks that this thread copies in load_tile with the same arguments: eight bits a chunk, the
/// first chunk lowest. At most four chunks a thread.
template <class T, int kRows, int kChunks, int kThreads>
PEFT_DEVICE std::uint32_t load_tile_mask(const TileMask& mask, const TileSource<T>& source, int row0, int column0) {
  static_assert(kRows * kChunks / kThreads <= 4);
  std::uint32_t all = 0;
  PEFT_UNROLL
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int c = thread_index() + i * kThreads;
    const int row = row0 + c / kChunks;
    const int column = column0 + c % kChunks * kChunk<T>;
    if (row < source.rows && column < source.columns) {
      const std::uint32_t byte = load_const(mask.bits + static_cast<Index>(row) * mask.stride + column / 8);
      all |= (byte >> (column % 8)) << (8 * i);
    }
  }
  return all;
}

/// Sets to zero what the bits of load_tile_mask drop. Each thread touches only the chunks it copied itself: needed
/// before are its own cp.async's, after it the barrier that shows the tile to others.
template <class T, int kRows, int kChunks, int kThreads>
PEFT_DEVICE void apply_tile_mask(const SharedMemory& memory, int tile, std::uint32_t bits) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));  // elements in 32 bits
  const Shared<std::uint32_t> panels = memory.template at<std::uint32_t>(tile);
  PEFT_UNROLL
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int c = thread_index() + i * kThreads;
    const int row = c / kChunks;
    const int chunk = c % kChunks;
    const Shared<std::uint32_t> at = panels + ((chunk / 8) * kRows * 32 + row * 32 + ((chunk % 8) ^ (row & 7)) * 4);
    Vec<std::uint32_t, 4> words = at.template load_vec<4>(0);
    PEFT_UNROLL
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t two = bits >> (8 * i + kWord * w);
      if constexpr (kWord == 1) {
        words[w] &= 0u - (two & 1u);
      } else {
        words[w] &= ((0u - (two & 1u)) & 0xFFFFu) | ((0u - ((two >> 1) & 1u)) & 0xFFFF0000u);
      }
    }
    at.store_vec(0, words);
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
