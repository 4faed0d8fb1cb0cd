#pragma once
/// The rotary table of a Llama host, as long as the longest sequence so far: a context of 131072 positions that nobody
/// uses costs nothing.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "hosts/llama_config.hpp"
#include "hosts/names.hpp"
#include "peft/ops/rope.hpp"

namespace peft_examples {

template <class A>
class LlamaRope {
 public:
  /// Throws ConfigError, ShapeError.
  explicit LlamaRope(const LlamaConfig& config)
      : frequencies_(scaled_frequencies<A>(config.head_dim, config.rope_theta, config.rope_scaling)),
        attention_factor_(config.rope_scaling.type == RopeScaling::Type::kYarn
                              ? static_cast<A>(config.rope_scaling.attention_factor)
                              : A(1)),
        context_(config.context()) {}

  /// A table that holds these positions. Throws ShapeError for one outside the model's context.
  const peft::ops::RopeTable<A>& table(std::span<const std::int32_t> positions) {
    std::int32_t last = 0;
    for (const std::int32_t position : positions) {
      if (position < 0 || position >= context_) {
        peft::fail<peft::ShapeError>("Llama: position {} is outside the model's context of {} tokens", position, context_);
      }
      last = std::max(last, position);
    }
    if (last >= table_.positions()) {
      const auto positions_needed = static_cast<std::uint64_t>(last) + 1;
      const auto rows = std::min(context_, static_cast<Index>(std::bit_ceil(positions_needed)));
      table_ = peft::ops::RopeTable<A>(rows, frequencies_.view(), attention_factor_);
    }
    return table_;
  }

 private:
  Buffer<A> frequencies_;
  A attention_factor_;
  Index context_;
  peft::ops::RopeTable<A> table_;
};

}  // namespace peft_examples
