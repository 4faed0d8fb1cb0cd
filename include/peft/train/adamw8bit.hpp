#pragma once
/// bitsandbytes' AdamW8bit: AdamW with moments in 8 bits, a byte each and 1/32 for the blocks' maxima instead of 4 bytes.

#include <concepts>
#include <utility>

#include "peft/train/adamw.hpp"

PEFT_BEGIN_NAMESPACE

/// AdamW whose optim_bits is 8.
template <std::floating_point A = float>
class AdamW8bit : public AdamW<A> {
 public:
  /// Throws ConfigError.
  explicit AdamW8bit(AdamWConfig config = {}) : AdamW<A>(in_8bit(std::move(config))) {}

 private:
  static AdamWConfig in_8bit(AdamWConfig config) {
    config.optim_bits = 8;
    return config;
  }
};

PEFT_END_NAMESPACE
