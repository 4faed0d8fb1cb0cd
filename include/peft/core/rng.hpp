#pragma once
/// Counter-based random numbers: Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as
/// 1, 2, 3", SC 2011). A number is a pure function of (key, counter): the same for any thread count or order, and a
/// dropout mask needs no storage.

#include <array>
#include <cmath>
#include <cstdint>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// Four 32-bit words.
using PhiloxBlock = std::array<std::uint32_t, 4>;

/// The block of `counter` under `key`.
inline PhiloxBlock philox4x32(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// A stream of numbers over one key: word i of stream s. Used for initialisation, shuffling and sampling.
class Philox {
 public:
  /// `stream` separates independent uses of one seed (a module, an epoch).
  explicit Philox(std::uint64_t seed, std::uint64_t stream = 0) noexcept : seed_(seed), stream_(stream) {}

  std::uint32_t next_u32() noexcept {
    if (used_ == 4) {
      block_ = philox4x32({static_cast<std::uint32_t>(position_), static_cast<std::uint32_t>(position_ >> 32),
                           static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                          static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32));
      ++position_;
      used_ = 0;
    }
    return block_[used_++];
  }
  /// In [0, 1), 24 bits.
  float uniform() noexcept { return static_cast<float>(next_u32() >> 8) * 0x1p-24f; }
  /// In [0, 1), 53 bits.
  double uniform_double() noexcept {
    const std::uint64_t high = next_u32() >> 5;
    const std::uint64_t low = next_u32() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
  }
  float uniform(float low, float high) noexcept { return low + rounded((high - low) * uniform()); }
  /// Standard normal (Box–Muller; one of the pair is used, so that a position fixes the value).
  float normal() noexcept {
    const double radius = root(-2.0 * std::log(1.0 - uniform_double()));
    return static_cast<float>(radius * std::cos(rounded(6.283185307179586476925 * uniform_double())));
  }
  /// In [0, bound), unbiased (rejection); bound > 0.
  std::uint32_t below(std::uint32_t bound) noexcept {
    const std::uint32_t reject = (0u - bound) % bound;
    std::uint32_t value;
    do {
      value = next_u32();
    } while (value < reject);
    return value % bound;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t position_ = 0;
  PhiloxBlock block_{};
  unsigned used_ = 4;
};

/// Which dropout mask: element (row, column) of the mask of `module` in optimizer step `step`. A bit of 1 keeps.
struct DropoutKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t module = 0;
  /// Row of the accumulated batch that the mask's first row stands for: cutting a batch into sub-batches changes
  /// nothing.
  Index first_row = 0;
};

/// The least 16-bit draw that keeps an element.
inline std::uint32_t dropout_threshold(float p) noexcept {
  return static_cast<std::uint32_t>(std::lround(static_cast<double>(p) * 65536.0));
}

/// Writes one row of a dropout mask as bits, least significant first: bit c%8 of out[c/8] is 1 where column c is kept.
/// An element is dropped with probability round(p·65536)/65536: eight columns share a Philox block, 16 bits each.
/// `out` has (columns + 7) / 8 bytes; bits past the last column are 0. The reference of kernels/dropout.hpp.
inline void dropout_mask_row(const DropoutKey& key, Index row, Index columns, float p, std::uint8_t* out) noexcept {
  const std::uint32_t threshold = dropout_threshold(p);
  const auto global_row = static_cast<std::uint32_t>(key.first_row + row);
  for (Index byte = 0; byte * 8 < columns; ++byte) {
    const PhiloxBlock words =
        philox4x32({static_cast<std::uint32_t>(byte), global_row, key.module, key.step},
                   static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32));
    unsigned bits = 0;
    for (unsigned i = 0; i < 8; ++i) {
      const std::uint32_t draw = (words[i / 2] >> (16 * (i % 2))) & 0xFFFFu;
      if (draw >= threshold) bits |= 1u << i;
    }
    const Index left = columns - byte * 8;
    if (left < 8) bits &= (1u << left) - 1u;
    out[byte] = static_cast<std::uint8_t>(bits);
  }
}

PEFT_END_NAMESPACE
