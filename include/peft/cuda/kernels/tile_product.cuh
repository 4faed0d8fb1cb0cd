#pragma once
/// The loop of all dense products here: a block's tile acc [kBlockM, kBlockN] = A·B over two segments of k, one behind the
/// other in the same accumulators, with a hook between them. Low-rank columns are the first segment (S·Bᵀ, dS·A), the
/// hook scales or masks them in registers, and the base's k is the second: the copies of the second segment are under
/// way while the first is computed, so r columns cost what r columns of k cost.
///
/// Copies run kStages - 1 tiles ahead (cp.async); one barrier per step of k. sm_75, which has no cp.async, keeps two
/// stages, for it has 64 KiB.

#include <climits>
#include <type_traits>

#include "peft/cuda/kernels/tile_fma.cuh"
#include "peft/cuda/kernels/tile_mma.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// A block's tile and how its warps share it.
template <int kBlockM_, int kBlockN_, int kWarpsM_, int kWarpsN_, int kStages_, int kResident_>
struct TileShape {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_;
  static constexpr int kResident = kResident_;  // blocks that a processor's registers should hold
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
};
using WideTile = TileShape<128, 128, 2, 4, 3, 2>;  // many rows
using MiddleTile = TileShape<64, 64, 2, 2, 4, 3>;  // where wide tiles would leave processors idle
using ThinTile = TileShape<16, 64, 1, 4, 6, 3>;    // a few rows: bytes of B under way
using SlimTile = TileShape<64, 16, 4, 1, 4, 4>;    // few columns: products that are thin in r

/// Generations of processors need different code: kOld is sm_75. The kernels of the other generation end with an error, which
/// code for sm_75 alone meets where a driver translates it for a newer device.
#if defined(__CUDA_ARCH__)
template <bool kOld>
inline constexpr bool kIsForThisDevice = kOld == (__CUDA_ARCH__ < 800);
PEFT_DEVICE void end_with_error() { __trap(); }
#else
template <bool kOld>
inline constexpr bool kIsForThisDevice = true;
PEFT_DEVICE void end_with_error() {}
#endif

template <class T, class Shape_, bool kOld, Order kA_, Order kB_>
struct TilePlan {
  using value_type = T;
  using Shape = Shape_;
  static constexpr Order kA = kA_, kB = kB_;
  static constexpr int kWarpM = Shape::kBlockM / Shape::kWarpsM, kWarpN = Shape::kBlockN / Shape::kWarpsN;
  static constexpr bool kMma = std::is_same_v<T, f16> || (std::is_same_v<T, bf16> && !kOld);
  using Tile = std::conditional_t<kMma, MmaTile<T, kWarpM, kWarpN, kA, kB>, FmaTile<T, kWarpM, kWarpN, kA, kB>>;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kStages = kOld ? 2 : Shape::kStages;
  static constexpr int kBytesA = tile_bytes<T, kA>(Shape::kBlockM), kBytesB = tile_bytes<T, kB>(Shape::kBlockN);
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= (kOld ? 64 : 99) * 1024);

  /// First row and column of this warp's tile within the block's.
  static PEFT_DEVICE int warp_row() { return warp_index() / Shape::kWarpsN * kWarpM; }
  static PEFT_DEVICE int warp_column() { return warp_index() % Shape::kWarpsN * kWarpN; }
};

/// Operands of one stretch of k: A [m, k] and B [n, k], each in its plan's order; `tiles` steps of kPanel from step `first`.
template <class T>
struct TileSegment {
  TileSource<T> a, b;
  int first, tiles;
};

/// Part `part` of a stretch that is cut into parts of so many steps.
template <class T>
PEFT_DEVICE TileSegment<T> part_of(TileSegment<T> all, int part, int steps_a_part) {
  all.first = part * steps_a_part;
  all.tiles = min(steps_a_part, all.tiles - all.first);
  return all;
}
/// A stretch without steps, beside which tile_product is over the other alone.
template <class T>
PEFT_DEVICE TileSegment<T> no_steps_of(TileSegment<T> segment) {
  segment.tiles = 0;
  return segment;
}

/// No work between the segments.
struct NothingBetween {
  template <class Tile>
  PEFT_DEVICE void operator()(Tile&) const {}
};

namespace detail {

template <class T>
PEFT_DEVICE TileSource<T> choose(bool is_first, const TileSource<T>& first, const TileSource<T>& second) {
  return {is_first ? first.data : second.data,   is_first ? first.ld : second.ld,
          is_first ? first.map : second.map,     is_first ? first.rows : second.rows,
          is_first ? first.columns : second.columns, is_first ? first.aligned : second.aligned};
}

/// Starts the copies of one operand's tile: `outer` is its first m (n), `k` its first k.
template <class T, Order kOrder, int kOuter, int kThreads, bool kMapped>
PEFT_DEVICE void load_operand(const SharedMemory& memory, int tile, const TileSource<T>& source, int outer, int k) {
  if constexpr (kOrder == Order::kAlongK) {
    load_tile<T, kOuter, 8, kThreads, kMapped>(memory, tile, source, outer, k);
  } else {
    load_tile<T, kPanel<T>, kOuter / kChunk<T>, kThreads>(memory, tile, source, k, outer);
  }
}
template <class T, Order kOrder, int kOuter, int kThreads>
PEFT_DEVICE std::uint32_t load_operand_mask(const TileMask& mask, const TileSource<T>& source, int outer, int k) {
  if constexpr (kOrder == Order::kAlongK) {
    return load_tile_mask<T, kOuter, 8, kThreads>(mask, source, outer, k);
  } else {
    return load_tile_mask<T, kPanel<T>, kOuter / kChunk<T>, kThreads>(mask, source, k, outer);
  }
}
template <class T, Order kOrder, int kOuter, int kThreads>
PEFT_DEVICE void apply_operand_mask(const SharedMemory& memory, int tile, std::uint32_t bits) {
  if constexpr (kOrder == Order::kAlongK) {
    apply_tile_mask<T, kOuter, 8, kThreads>(memory, tile, bits);
  } else {
    apply_tile_mask<T, kPanel<T>, kOuter / kChunk<T>, kThreads>(memory, tile, bits);
  }
}

}  // namespace detail

/// tile += A·B of `first`, then between(tile), then A·B of `second`, whose A is masked where kMasked (mask.bits may be
/// null), its rows mapped where kMapped. Each warp's tile holds its part of the block's, which starts at (row0, column0)
/// of the product. All of the block's threads call this once; shared memory is free again after a barrier.
template <class Plan, bool kMasked, bool kMapped, class Between>
PEFT_DEVICE void tile_product(typename Plan::Tile& tile, const TileSegment<typename Plan::value_type>& first,
                              const TileSegment<typename Plan::value_type>& second, int row0, int column0,
                              const TileMask& mask, Between&& between) {
  using T = typename Plan::value_type;
  using Shape = typename Plan::Shape;
  constexpr int kStages = Plan::kStages;
  constexpr int kThreads = Plan::kThreads;
  const SharedMemory memory = shared_memory();
  const int turn = first.tiles;
  const int total = turn + second.tiles;
  const bool has_mask = kMasked && mask.bits != nullptr;

  const auto start = [&](int t, int slot) {
    const bool is_first = t < turn;
    const int k = (is_first ? first.first + t : second.first + t - turn) * kPanel<T>;
    detail::load_operand<T, Plan::kA, Shape::kBlockM, kThreads, kMapped>(memory, slot * Plan::kStageBytes,
                                                                detail::choose(is_first, first.a, second.a), row0, k);
    detail::load_operand<T, Plan::kB, Shape::kBlockN, kThreads, false>(memory, slot * Plan::kStageBytes + Plan::kBytesA,
                                                                detail::choose(is_first, first.b, second.b), column0, k);
  };
  // A mask's bits come into a register one step ahead.
  const auto mask_bits = [&](int t) -> std::uint32_t {
    if (!has_mask || t < turn || t >= total) return ~0u;
    return detail::load_operand_mask<T, Plan::kA, Shape::kBlockM, kThreads>(mask, second.a, row0,
                                                                            (second.first + t - turn) * kPanel<T>);
  };

  std::uint32_t bits = ~0u;
  if constexpr (kMasked) bits = mask_bits(0);
  PEFT_UNROLL
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < total) start(s, s);
    cp_async_commit();
  }
  int slot = 0;
  int free_slot = kStages - 1;
  for (int t = 0; t < total; ++t) {
    cp_async_wait<kStages - 2>();
    const int stage = slot * Plan::kStageBytes;
    if constexpr (kMasked) {
      if (has_mask && t >= turn) detail::apply_operand_mask<T, Plan::kA, Shape::kBlockM, kThreads>(memory, stage, bits);
    }
    sync_threads();  // tile t is there for all, and all are done with t - 1, whose slot is filled next
    if (t + kStages - 1 < total) start(t + kStages - 1, free_slot);
    cp_async_commit();
    if constexpr (kMasked) bits = mask_bits(t + 1);
    if (t == turn && turn > 0) between(tile);
    tile.multiply(memory, stage, Plan::warp_row(), 0, stage + Plan::kBytesA, Plan::warp_column(), 0);
    slot = slot + 1 == kStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == kStages ? 0 : free_slot + 1;
  }
  if (turn > 0 && second.tiles == 0) between(tile);
}

/// A mask's bits from (row, column) to the next column that is a multiple of 32; column a multiple of 8; zeros outside
/// [rows, columns].
PEFT_DEVICE std::uint32_t mask_word(const TileMask& mask, int rows, int columns, int row, int column) {
  if (row >= rows || column >= columns) return 0;
  const int start = column & ~31;
  const std::uint8_t* from = mask.bits + static_cast<Index>(row) * mask.stride + (start >> 3);
  std::uint32_t word = 0;
  if (mask.aligned && start + 32 <= columns) {
    word = load_const(reinterpret_cast<const std::uint32_t*>(from));
  } else {
    const int bytes = (min(columns - start, 32) + 7) / 8;
    PEFT_NO_UNROLL
    for (int i = 0; i < bytes; ++i) word |= std::uint32_t{load_const(from + i)} << (8 * i);
  }
  return word >> (column & 31);
}

/// Rounds a run of columns once and stores what lies inside [rows, columns]: by one instruction where `aligned`.
template <class T, int kRun>
PEFT_DEVICE void store_run(T* out, Index ld, int rows, int columns, bool aligned, int row, int column,
                           const Vec<float, kRun>& run) {
  if (row >= rows || column >= columns) return;
  T* at = out + static_cast<Index>(row) * ld + column;
  if (aligned && column + kRun <= columns) {
    Vec<T, kRun> rounded;
    PEFT_UNROLL
    for (int i = 0; i < kRun; ++i) rounded[i] = from_float<T>(run.v[i]);
    store(reinterpret_cast<Vec<T, kRun>*>(at), rounded);
  } else {
    PEFT_UNROLL
    for (int i = 0; i < kRun; ++i) {
      if (column + i < columns) store(at + i, from_float<T>(run.v[i]));
    }
  }
}
/// Adds `scale` times a run of columns to what lies inside [rows, columns].
template <int kRun>
PEFT_DEVICE void add_run(float* out, Index ld, int rows, int columns, bool aligned, int row, int column, float scale,
                         const Vec<float, kRun>& run) {
  if (row >= rows || column >= columns) return;
  float* at = out + static_cast<Index>(row) * ld + column;
  if (aligned && column + kRun <= columns) {
    Vec<float, kRun> sums = load(reinterpret_cast<const Vec<float, kRun>*>(at));
    PEFT_UNROLL
    for (int i = 0; i < kRun; ++i) sums[i] = fma(scale, run.v[i], sums[i]);
    store(reinterpret_cast<Vec<float, kRun>*>(at), sums);
  } else {
    PEFT_UNROLL
    for (int i = 0; i < kRun; ++i) {
      if (column + i < columns) store(at + i, fma(scale, run.v[i], load(at + i)));
    }
  }
}
/// For store_run and add_run: whether runs of four may be stored at once.
template <class T>
inline bool is_store_aligned(const T* out, Index ld) {
  return reinterpret_cast<std::uintptr_t>(out) % (4 * sizeof(T)) == 0 && ld % 4 == 0;
}

// -- launching ---------------------------------------------------------------------------------------------------

/// The compute capability to launch for: `given` or, where that is 0, the current device's. 0 where there is none.
inline int device_architecture(int given) {
  if (given != 0) return given;
#if defined(PEFT_CUDA_EMULATOR)
  return 80;
#else
  int device = 0;
  int major = 0;
  int minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) return 0;
  return 10 * major + minor;
#endif
}

/// Sizes that the kernels' int counters hold, and grids that a launch takes.
inline bool is_size(Index n) { return n >= 0 && n <= INT_MAX - 256; }
inline int blocks_of(Index n, int block) { return static_cast<int>((n + block - 1) / block); }

inline constexpr int kMostBlocksY = 65535;

/// Which tile an output [m, n] is cut into.
enum class TileChoice { kThin, kMiddle, kWide };
inline TileChoice choose_tile(int m, int n) {
  constexpr Index kEnoughBlocks = 96;
  if (m <= 32) return TileChoice::kThin;
  const Index wide = static_cast<Index>(blocks_of(m, 128)) * blocks_of(n, 128);
  return wide < kEnoughBlocks ? TileChoice::kMiddle : TileChoice::kWide;
}

/// Into how many parts a sum of `steps` is cut where the output has `blocks` blocks only: by shape, not by the device, so
/// that bits do not depend on it. A part has at least four steps.
inline int split_parts(Index blocks, Index steps) {
  constexpr Index kBlocks = 264;  // two for each of an H100's processors
  constexpr Index kMostParts = 64;
  if (blocks <= 0) return 1;
  const Index wanted = (kBlocks + blocks - 1) / blocks;
  const Index possible = steps / 4;
  const Index parts = wanted < possible ? wanted : possible;
  return static_cast<int>(parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts);
}

/// Steps of a stretch, cut into about `wanted` parts.
struct TileCut {
  int steps_a_part, parts;
};
inline TileCut cut_steps(int steps, int wanted) {
  const int steps_a_part = max(1, ceil_div(steps, wanted));
  return {steps_a_part, max(1, ceil_div(steps, steps_a_part))};
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
