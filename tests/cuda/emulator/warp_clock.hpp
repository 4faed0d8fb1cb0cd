#pragma once
/// What a warp's lanes know of each other's accesses: all of them meet in sync_warp as a rule, and then a count is enough.
/// Where only some meet, each lane has a clock, and knows up to which time it has heard of every other one.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "shadow.hpp"

namespace peft_emulator {

class WarpClock {
 public:
  void restart() {
    epoch_ = 0;
    forget();
  }
  /// At the block's barrier: nothing from before it matters any more.
  void forget() {
    if (!partial_) return;
    partial_ = false;
    clock_.fill(0);
  }

  /// The lanes of the mask have met in sync_warp.
  void meet(std::uint32_t mask, bool all) {
    if (all) {
      ++epoch_;
      forget();
      return;
    }
    if (!partial_) {
      partial_ = true;
      for (auto& row : known_) row.fill(0);
    }
    std::array<std::uint16_t, 32> joined{};
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::size_t>(__builtin_ctz(lanes));
      known_[lane][lane] = ++clock_[lane];
      for (std::size_t i = 0; i < 32; ++i) joined[i] = std::max(joined[i], known_[lane][i]);
    }
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      known_[static_cast<std::size_t>(__builtin_ctz(lanes))] = joined;
    }
  }

  /// The warp's part of a moment.
  void stamp(Moment& moment, std::size_t lane) const {
    moment.warp_epoch = epoch_;
    moment.clock = clock_[lane];
    moment.known = partial_ ? known_[lane].data() : nullptr;
  }

 private:
  std::uint32_t epoch_ = 0;
  bool partial_ = false;
  std::array<std::uint16_t, 32> clock_{};
  std::array<std::array<std::uint16_t, 32>, 32> known_{};
};

}  // namespace peft_emulator
