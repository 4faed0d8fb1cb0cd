#pragma once
/// How weights are quantised to four bits.

#include <optional>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// How a block's maximum finds its code of eight bits.
enum class NestedLookup : std::uint8_t {
  kNearest,     ///< the nearest value of the map
  kBnbCompat,   ///< bitsandbytes' on a CPU: rounded to a grid of 65536 numbers first
};

struct FourBitConfig {
  Index block_size = 64;      ///< weights that share a maximum: a power of two from 32 to 4096
  bool double_quant = false;  ///< the maxima are quantised to 8 bits, in blocks of 256 (bnb_4bit_use_double_quant)
  /// What is subtracted from the maxima before; their mean where it is not given. bitsandbytes' mean depends on its number of
  /// threads: only with its own offset are its bytes met again.
  std::optional<float> nested_offset{};
  NestedLookup nested_lookup = NestedLookup::kNearest;
};

PEFT_END_NAMESPACE
