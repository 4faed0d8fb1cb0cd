#pragma once
/// From codes in registers to the operands of an mma: look-ups of two codes at a time, scales of blocks, fragments.
///
/// A byte is two codes, so a table of 256 pairs gives two weights a look-up. The table is copied across shared memory's banks,
/// each lane reading its own copy, so that no codes make a bank conflict:
///   PairTable<f16 | bf16>   256 x 32 copies of 4 bytes: values rounded to T         32 KiB
///   PairTable<float>        256 x 16 copies of 8 bytes: the values themselves        32 KiB (8-byte reads go half a warp at a time)
/// A look-up is a shift, an and-or and the load. By registers (prmt over the bytes of sixteen 16-bit values: four prmt, two
/// selections, a mask and two prmt to put bytes together for four codes) a pair costs six ALU instructions, which makes the ALU
/// the limit on processors with much bandwidth; the table leaves it two, and half of shared memory's bandwidth.

#include "peft/cuda/kernels/four_bit_layout.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// One lane's 32 codes.
using FourBitChunk = Vec<std::uint32_t, 4>;

inline constexpr int kPairTableBytes = 32768;
inline constexpr int kNestedMapBytes = 1024;

namespace detail {
/// What a table holds for a byte, and its copies.
template <class T>
struct PairOf {
  using type = std::uint32_t;
  static constexpr int kCopies = 32;
  static PEFT_DEVICE type make(float first, float second) { return pack2<T>(first, second); }
};
template <>
struct PairOf<float> {
  using type = Vec<float, 2>;
  static constexpr int kCopies = 16;
  static PEFT_DEVICE type make(float first, float second) { return {{first, second}}; }
};
}  // namespace detail

/// This lane's copy of the table.
template <class T>
struct PairTable {
  using Pair = typename detail::PairOf<T>::type;
  static constexpr int kCopies = detail::PairOf<T>::kCopies;
  Shared<Pair> all;
  int copy;

  /// Values of byte `byte` of a word: the first code's, then the second's.
  PEFT_DEVICE Pair operator()(std::uint32_t word, int byte) const {
    // One shift and (place & mask) | copy in one instruction, which compilers do not find by themselves.
    constexpr int kShift = kCopies == 32 ? 5 : 4;
    const std::uint32_t place = byte == 0 ? word << kShift : word >> (8 * byte - kShift);
    return all.load(static_cast<int>(lop3<0xEA>(place, 255u << kShift, static_cast<std::uint32_t>(copy))));
  }
};

/// Writes the table at byte `at` of shared memory (a barrier makes it visible) and gives this lane's copy.
template <class T, int kThreads>
PEFT_DEVICE PairTable<T> fill_pair_table(const SharedMemory& memory, int at, const float (&value)[16]) {
  using Table = PairTable<T>;
  using Pair = typename Table::Pair;
  constexpr int kRun = static_cast<int>(16 / sizeof(Pair));
  const Shared<Pair> all = memory.template at<Pair>(at);
  // Eight threads write an entry's 128 bytes.
  PEFT_UNROLL
  for (int i = 0; i < 256 * 8 / kThreads; ++i) {
    const int item = thread_index() + i * kThreads;
    const int byte = item / 8;
    const Pair pair = detail::PairOf<T>::make(value[byte >> 4], value[byte & 15]);
    Vec<std::uint32_t, 4> words;
    PEFT_UNROLL
    for (int c = 0; c < kRun; ++c) {
      if constexpr (kRun == 4) {
        words[c] = pair;
      } else {
        words[2 * c] = bit_cast<std::uint32_t>(pair.v[0]);
        words[2 * c + 1] = bit_cast<std::uint32_t>(pair.v[1]);
      }
    }
    all.template as<std::uint32_t>().store_vec(item * 4, words);
  }
  return {all, lane_index() % Table::kCopies};
}

/// Copies the nested map beside the table.
template <int kThreads>
PEFT_DEVICE Shared<float> fill_nested_map(const SharedMemory& memory, int at, const FourBitPacked& w) {
  const Shared<float> map = memory.template at<float>(at);
  if (w.is_nested()) {
    for (int i = thread_index(); i < 256; i += kThreads) map.store(i, load_const(w.nested_map + i));
  }
  return map;
}

// -- scales ------------------------------------------------------------------------------------------------------------------

namespace detail {
/// Of a power of two.
PEFT_DEVICE int log2_of(int v) { return 31 - __builtin_clz(static_cast<unsigned>(v)); }
}  // namespace detail

/// The maxima of four rows in one column of blocks, as they are stored.
struct FourBitScaleWords {
  Vec<float, 4> v;      ///< absmax, or the nested maxima
  std::uint32_t codes;  ///< nested only
};

/// Reads maxima of a weight whose blocks end with the rows.
struct FourBitScales {
  const float* absmax;
  const std::uint8_t* nested_codes;
  const float* nested_absmax;
  float offset;
  int shift;           ///< log2 of the block size
  int padded_blocks;   ///< of a row, in the packed order
  int blocks;          ///< of a row, in the flat order
  int out, in;

  PEFT_DEVICE explicit FourBitScales(const FourBitPacked& w)
      : absmax(w.absmax),
        nested_codes(w.nested_codes),
        nested_absmax(w.nested_absmax),
        offset(w.nested_offset),
        shift(detail::log2_of(w.block_size)),
        padded_blocks(static_cast<int>(four_bit_row_blocks(w.in, w.block_size))),
        blocks(static_cast<int>(w.in >> shift)),
        out(static_cast<int>(w.out)),
        in(static_cast<int>(w.in)) {}

  PEFT_DEVICE bool is_nested() const { return absmax == nullptr; }

  /// Of rows row … row+3 (a multiple of 4) at column `column` of the padded weight.
  PEFT_DEVICE FourBitScaleWords load_rows(int row, int column) const {
    const int block = column >> shift;
    const Index place = (static_cast<Index>(row / kBrickRows) * padded_blocks + block) * kBrickRows + row % kBrickRows;
    FourBitScaleWords words;
    if (!is_nested()) {
      words.v = load_const(reinterpret_cast<const Vec<float, 4>*>(absmax + place));
      words.codes = 0;
    } else {
      words.codes = load_const(reinterpret_cast<const std::uint32_t*>(nested_codes + place));
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool is_inside = row + e < out && block < blocks;
        words.v[e] = is_inside ? load_const(nested_absmax + (((row + e) * blocks + block) >> 8)) : 0.0f;
      }
    }
    return words;
  }

  /// absmax = map[code]·nested maximum + offset, rounded after the product and after the sum.
  PEFT_DEVICE Vec<float, 4> expand(const FourBitScaleWords& words, const Shared<float>& map) const {
    if (!is_nested()) return words.v;
    Vec<float, 4> scales;
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) {
      scales[e] = add_rn(mul_rn(map.load(static_cast<int>((words.codes >> (8 * e)) & 255u)), words.v[e]), offset);
    }
    return scales;
  }
};

/// Maxima of four rows, for a warp that goes along them: fetch() asks for the maxima at a column, expand() gives what was asked for
/// last. Addresses are worked out once, and a nested maximum, which belongs to 256 blocks, is kept until the next one is met.
template <bool kNested>
class FourBitRowScales {
 public:
  /// `row`: a multiple of 4.
  PEFT_DEVICE FourBitRowScales(const FourBitPacked& w, int row)
      : absmax_(w.absmax),
        nested_codes_(w.nested_codes),
        nested_absmax_(w.nested_absmax),
        offset_(w.nested_offset),
        place_(static_cast<int>(four_bit_scale_place(row, 0, w.in, w.block_size))),
        shift_(detail::log2_of(w.block_size)),
        row_(row),
        out_(static_cast<int>(w.out)),
        in_(static_cast<int>(w.in)) {}

  /// Blocks of 32: the only ones that end within a brick.
  PEFT_DEVICE bool has_small_blocks() const { return shift_ < 6; }

  /// Columns ascend.
  PEFT_DEVICE void fetch(int column) {
    const int block = column >> shift_;
    if constexpr (!kNested) {
      most_ = load_const(reinterpret_cast<const Vec<float, 4>*>(absmax_ + (place_ + block * kBrickRows)));
    } else {
      codes_ = load_const(reinterpret_cast<const std::uint32_t*>(nested_codes_ + (place_ + block * kBrickRows)));
      if (block >= change_) find(block);
    }
  }

  PEFT_DEVICE Vec<float, 4> expand(const Shared<float>& map) const {
    if constexpr (!kNested) {
      return most_;
    } else {
      Vec<float, 4> scales;
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) {
        scales[e] = add_rn(mul_rn(map.load(static_cast<int>((codes_ >> (8 * e)) & 255u)), most_.v[e]), offset_);
      }
      return scales;
    }
  }

 private:
  // Rare, so that what it needs of the shape is worked out anew.
  PEFT_DEVICE void find(int block) {
    const int blocks = in_ >> shift_;
    int flat = row_ * blocks + min(block, blocks - 1);
    change_ = INT_MAX;
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e, flat += blocks) {
      most_[e] = row_ + e < out_ ? load_const(nested_absmax_ + (flat >> 8)) : 0.0f;
      change_ = min(change_, block + 256 - (flat & 255));
    }
  }

  const float* absmax_;
  const std::uint8_t* nested_codes_;
  const float* nested_absmax_;
  float offset_;
  int place_;  ///< of the first row's first maximum: 32 bits, for registers
  int shift_;
  int row_, out_, in_;
  int change_ = 0;   ///< block from which a nested maximum is another one
  Vec<float, 4> most_;
  std::uint32_t codes_;
};

/// The maximum of one block, for whatever order they lie in: `block` is counted within `row`, or flat where w.is_flat().
PEFT_DEVICE float four_bit_scale(const FourBitPacked& w, Index row, Index block) {
  Index place = block;
  Index flat = block;
  if (!w.is_flat()) {
    place = four_bit_scale_place(row, block, w.in, w.block_size);
    flat = row * (w.in / w.block_size) + block;
  }
  if (!w.is_nested()) return load_const(w.absmax + place);
  const float product = mul_rn(load_const(w.nested_map + load_const(w.nested_codes + place)), load_const(w.nested_absmax + flat / 256));
  return add_rn(product, w.nested_offset);
}

/// Scales of the eight codes from (row, column), column a multiple of 8: a word touches at most two blocks; elements before
/// `turn` belong to the first.
struct FourBitWordScales {
  float first, second;
  int turn;

  PEFT_DEVICE float operator[](int element) const { return element < turn ? first : second; }
};
PEFT_DEVICE FourBitWordScales four_bit_word_scales(const FourBitPacked& w, Index row, Index column) {
  if (!w.is_flat()) {
    const float scale = four_bit_scale(w, row, column / w.block_size);
    return {scale, scale, 8};
  }
  const Index element = row * w.in + column;
  const Index block = element / w.block_size;
  const Index left = (block + 1) * w.block_size - element;
  const Index last = (w.out * w.in - 1) / w.block_size;
  const float first = four_bit_scale(w, row, block);
  if (left >= 8 || block == last) return {first, first, 8};
  return {first, four_bit_scale(w, row, block + 1), static_cast<int>(left)};
}

// -- fragments ---------------------------------------------------------------------------------------------------------------

/// fragments[step][tile] of W's rows as A (forward): step of 16 k, tile of 16 rows; weights scaled and rounded once to T, the bits
/// that dequantising gives. scales: of the chunk's four rows.
template <class T>
PEFT_DEVICE void decode_rows(std::uint32_t (&fragments)[2][2][4], const FourBitChunk& chunk, const Vec<float, 4>& scales,
                             const PairTable<float>& table) {
  PEFT_UNROLL
  for (int step = 0; step < 2; ++step) {
    PEFT_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = 2 * tile + e % 2;
        const Vec<float, 2> pair = table(chunk.v[row], 2 * step + e / 2);
        fragments[step][tile][e] = pack2<T>(mul_rn(pair.v[0], scales.v[row]), mul_rn(pair.v[1], scales.v[row]));
      }
    }
  }
}

/// fragments[tile] of Wᵀ's rows as A (gradient): tile of 16 columns of W, one step of 16 rows of W as k.
template <class T>
PEFT_DEVICE void decode_columns(std::uint32_t (&fragments)[4][4], const FourBitChunk& chunk, const Vec<float, 4>& scales,
                                const PairTable<float>& table) {
  PEFT_UNROLL
  for (int tile = 0; tile < 4; ++tile) {
    PEFT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = 2 * half;
      const Vec<float, 2> low = table(chunk.v[row], tile);
      const Vec<float, 2> high = table(chunk.v[row + 1], tile);
      fragments[tile][2 * half] = pack2<T>(mul_rn(low.v[0], scales.v[row]), mul_rn(high.v[0], scales.v[row + 1]));
      fragments[tile][2 * half + 1] = pack2<T>(mul_rn(low.v[1], scales.v[row]), mul_rn(high.v[1], scales.v[row + 1]));
    }
  }
}

/// As decode_rows, without scales: they multiply the sums of a block instead.
template <class T>
PEFT_DEVICE void decode_rows_unscaled(std::uint32_t (&fragments)[2][2][4], const FourBitChunk& chunk, const PairTable<T>& table) {
  PEFT_UNROLL
  for (int step = 0; step < 2; ++step) {
    PEFT_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      PEFT_UNROLL
      for (int e = 0; e < 4; ++e) fragments[step][tile][e] = table(chunk.v[2 * tile + e % 2], 2 * step + e / 2);
    }
  }
}

// -- low-rank columns --------------------------------------------------------------------------------------------------------

/// Elements k … k+3 of a row of `length`, as two pairs; zeros outside. `aligned`: k … k+3 may be read at once and lie within.
template <class T>
PEFT_DEVICE Vec<std::uint32_t, 2> load_four(const T* row, bool is_inside, int k, int length, bool aligned) {
  Vec<std::uint32_t, 2> pairs{{0, 0}};
  if (!is_inside || k >= length) return pairs;
  if (aligned) return load_const(reinterpret_cast<const Vec<std::uint32_t, 2>*>(row + k));
  PEFT_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (k + e < length) pairs[e / 2] |= static_cast<std::uint32_t>(load_const(row + k + e).bits) << (16 * (e % 2));
  }
  return pairs;
}
/// Elements column … column+7 of a row of `length`.
template <class T>
PEFT_DEVICE Vec<std::uint32_t, 4> load_eight(const T* row, bool is_inside, int column, int length, bool aligned) {
  Vec<std::uint32_t, 4> pairs{{0, 0, 0, 0}};
  if (!is_inside || column >= length) return pairs;
  if (aligned) return load_const(reinterpret_cast<const Vec<std::uint32_t, 4>*>(row + column));
  PEFT_UNROLL
  for (int e = 0; e < 8; ++e) {
    if (column + e < length) pairs[e / 2] |= static_cast<std::uint32_t>(load_const(row + column + e).bits) << (16 * (e % 2));
  }
  return pairs;
}

/// Fragments of 16 rank columns from k: of B [out, r], rows n0 … n0+31 (the forward product's A).
template <class T>
PEFT_DEVICE void low_rank_rows(std::uint32_t (&fragments)[2][4], const T* b, Index ldb, int n0, int n, int k, int r, bool aligned) {
  const int row = n0 + lane_index() / 4 * 4;
  const int column = k + lane_index() % 4 * 4;
  PEFT_UNROLL
  for (int e = 0; e < 4; ++e) {
    const Vec<std::uint32_t, 2> pairs = load_four(b + static_cast<Index>(row + e) * ldb, row + e < n, column, r, aligned);
    fragments[e / 2][e % 2] = pairs.v[0];
    fragments[e / 2][2 + e % 2] = pairs.v[1];
  }
}

/// Of A [r, in], columns n0 … n0+63 (the gradient's A is their transpose).
template <class T>
PEFT_DEVICE void low_rank_columns(std::uint32_t (&fragments)[4][4], const T* a, Index lda, int n0, int n, int k, int r,
                                  bool aligned) {
  const int column = n0 + lane_index() / 4 * 8;
  const int row = k + lane_index() % 4 * 4;
  PEFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    Vec<std::uint32_t, 4> rows[2];
    PEFT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int at = row + 2 * half + e;
      rows[e] = load_eight(a + static_cast<Index>(at) * lda, at < r, column, n, aligned);
    }
    PEFT_UNROLL
    for (int tile = 0; tile < 4; ++tile) {
      fragments[tile][2 * half] = prmt(rows[0].v[tile], rows[1].v[tile], 0x5410u);
      fragments[tile][2 * half + 1] = prmt(rows[0].v[tile], rows[1].v[tile], 0x7632u);
    }
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
