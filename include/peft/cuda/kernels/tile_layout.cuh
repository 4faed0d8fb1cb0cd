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
  const std::int32_t* map;  ///< row i is row map[i] of `data` where a product is told so (kMapped)
  int rows, columns;        ///< elements outside read as zero
  bool aligned;             ///< every chunk is 16-byte aligned and wholly inside or outside: see is_aligned()
};

/// A dropout mask over a source's rows and columns, as bits (core/rng.hpp's dropout_mask_row); bits null: none.
struct TileMask {
  const std::uint8_t* bits;
  Index stride;  ///< bytes from one row to the next
  bool aligned;  ///< words of four bytes may be read from columns that are multiples of 32
};
inline TileMask tile_mask(const std::uint8_t* bits, Index stride) {
  return {bits, stride, reinterpret_cast<std::uintptr_t>(bits) % 4 == 0 && stride % 4 == 0};
}

/// Whether a source may be read in chunks of 16 bytes; else element by element, which is the same kernel, slower.
template <class T>
PEFT_HOST_DEVICE bool is_aligned(const T* data, Index ld, Index columns) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ld % kChunk<T> == 0 && columns % kChunk<T> == 0;
}
template <class T>
PEFT_HOST_DEVICE TileSource<T> tile_source(const T* data, Index ld, Index rows, Index columns) {
  return {data, ld, nullptr, static_cast<int>(rows), static_cast<int>(columns), is_aligned(data, ld, columns)};
}

namespace detail {

/// Which chunks of a tile of kRows x kChunks a thread copies: those of one column of chunks, kStep rows apart, so that
/// eight threads beside one another read 128 bytes of one row, and that places differ by constants.
template <class T, int kRows, int kChunks, int kThreads>
struct ThreadChunks {
  static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0 && kThreads / kChunks % 8 == 0);
  static constexpr int kCount = kRows * kChunks / kThreads;
  static constexpr int kStep = kThreads / kChunks;
  int row, column;  ///< of the first in the tile, in elements
  int place;        ///< of the first in shared memory, in bytes

  PEFT_DEVICE ThreadChunks() {
    const int chunk = thread_index() % kChunks;
    row = thread_index() / kChunks;
    // Rows of fewer than eight chunks: eight threads take rows kChunks apart, whose chunks lie in different banks.
    if constexpr (kChunks < 8) row = row / 8 * 8 + row % (8 / kChunks) * kChunks + row % 8 / (8 / kChunks);
    column = chunk * kChunk<T>;
    place = (chunk / 8 * kRows + row) * 128 + ((chunk % 8) ^ (row & 7)) * 16;
  }
};

}  // namespace detail

/// Copies rows [row0, row0 + kRows) and chunks [column0, + kChunks x kChunk) of a source into panels at byte `tile` of
/// shared memory, asynchronously.
template <class T, int kRows, int kChunks, int kThreads, bool kMapped = false>
PEFT_DEVICE void load_tile(const SharedMemory& memory, int tile, const TileSource<T>& source, int row0, int column0) {
  using Chunks = detail::ThreadChunks<T, kRows, kChunks, kThreads>;
  const Chunks mine;
  const Shared<T> target = memory.template at<T>(tile + mine.place);
  const int row = row0 + mine.row;
  const int column = column0 + mine.column;
  if (source.aligned && !kMapped) {
    const int last = column < source.columns ? source.rows : 0;
    const T* from = source.data + static_cast<Index>(row) * source.ld + column;
    const Index step = source.ld * Chunks::kStep;
    PEFT_UNROLL
    for (int i = 0; i < Chunks::kCount; ++i) {
      cp_async_16(target + i * Chunks::kStep * kPanel<T>, from, row + i * Chunks::kStep < last);
      from += step;
    }
  } else {
    PEFT_NO_UNROLL
    for (int i = 0; i < Chunks::kCount; ++i) {
      const Shared<T> place = target + i * Chunks::kStep * kPanel<T>;
      const int from_row = row + i * Chunks::kStep;
      const bool is_inside = from_row < source.rows && column < source.columns;
      Index at = from_row;
      if constexpr (kMapped) at = is_inside ? load_const(source.map + from_row) : 0;
      const T* from = source.data + at * source.ld + column;
      if (source.aligned) {
        cp_async_16(place, from, is_inside);
      } else {
        Vec<T, kChunk<T>> values{};
        PEFT_UNROLL
        for (int e = 0; e < kChunk<T>; ++e) {
          if (is_inside && column + e < source.columns) values[e] = load_const(from + e);
        }
        place.store_vec(0, values);
      }
    }
  }
}

/// The mask's bits of the chunks that this thread copies in load_tile with the same arguments: eight bits a chunk, the
/// first chunk lowest. At most four chunks a thread.
template <class T, int kRows, int kChunks, int kThreads>
PEFT_DEVICE std::uint32_t load_tile_mask(const TileMask& mask, const TileSource<T>& source, int row0, int column0) {
  using Chunks = detail::ThreadChunks<T, kRows, kChunks, kThreads>;
  static_assert(Chunks::kCount <= 4);
  const Chunks mine;
  const int row = row0 + mine.row;
  const int column = column0 + mine.column;
  const int last = column < source.columns ? source.rows : 0;
  const std::uint8_t* from = mask.bits + static_cast<Index>(row) * mask.stride + (column >> 3);
  std::uint32_t all = 0;
  PEFT_UNROLL
  for (int i = 0; i < Chunks::kCount; ++i) {
    if (row + i * Chunks::kStep < last) all |= std::uint32_t{load_const(from)} >> (column & 7) << (8 * i);
    from += mask.stride * Chunks::kStep;
  }
  return all;
}

/// Sets to zero what the bits of load_tile_mask drop. Each thread touches only the chunks it copied itself: needed
/// before are its own cp.async's, after it the barrier that shows the tile to others.
template <class T, int kRows, int kChunks, int kThreads>
PEFT_DEVICE void apply_tile_mask(const SharedMemory& memory, int tile, std::uint32_t bits) {
  using Chunks = detail::ThreadChunks<T, kRows, kChunks, kThreads>;
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));  // elements in 32 bits
  const Chunks mine;
  const Shared<std::uint32_t> target = memory.template at<std::uint32_t>(tile + mine.place);
  PEFT_UNROLL
  for (int i = 0; i < Chunks::kCount; ++i) {
    const Shared<std::uint32_t> place = target + i * Chunks::kStep * 32;
    Vec<std::uint32_t, 4> words = place.template load_vec<4>(0);
    PEFT_UNROLL
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t two = bits >> (8 * i + kWord * w);
      if constexpr (kWord == 1) {
        words[w] &= 0u - (two & 1u);
      } else {
        words[w] &= ((0u - (two & 1u)) & 0xFFFFu) | ((0u - ((two >> 1) & 1u)) & 0xFFFF0000u);
      }
    }
    place.store_vec(0, words);
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
