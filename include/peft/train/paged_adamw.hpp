#pragma once
/// bitsandbytes' PagedAdamW and PagedAdamW8bit: the moments stand in a file, of which a budget's bytes are in memory. The same
/// numbers as AdamW and AdamW8bit, bit for bit.

#include <concepts>
#include <utility>

#include "peft/train/adamw8bit.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {
inline AdamWConfig with_paging(PagedMemory paged, AdamWConfig config) {
  config.paged = std::move(paged);
  return config;
}
}  // namespace detail

/// AdamW whose moments are paged.
template <std::floating_point A = float>
class PagedAdamW : public AdamW<A> {
 public:
  /// Throws ConfigError. The file is made in the first step.
  explicit PagedAdamW(PagedMemory paged, AdamWConfig config = {})
      : AdamW<A>(detail::with_paging(std::move(paged), std::move(config))) {}
};

/// The same with moments in 8 bits.
template <std::floating_point A = float>
class PagedAdamW8bit : public AdamW8bit<A> {
 public:
  /// Throws ConfigError. The file is made in the first step.
  explicit PagedAdamW8bit(PagedMemory paged, AdamWConfig config = {})
      : AdamW8bit<A>(detail::with_paging(std::move(paged), std::move(config))) {}
};

PEFT_END_NAMESPACE
