#pragma once
/// What a model is trained on: several sequences laid end to end without padding. The sums that come back: LossSum.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/loss_sum.hpp"

PEFT_BEGIN_NAMESPACE

/// Sequences packed end to end. Sequence s is the tokens [offsets[s], offsets[s+1]); attention never crosses from one
/// into another. A batch may be a sub-batch of the accumulated batch that defines one gradient.
struct PackedBatch {
  std::vector<std::int32_t> ids;        ///< input token of each position
  std::vector<std::int32_t> positions;  ///< place of each token in its own sequence, from 0
  std::vector<std::int32_t> targets;    ///< id that each position predicts (already shifted by one); -1: no label
  std::vector<Index> offsets{0};        ///< sequences + 1 values, the first 0, the last tokens()
  Index first_row = 0;  ///< row of the accumulated batch that token 0 stands for; dropout masks go by it
  Index first_sequence = 0;  ///< the same for sequence 0, for what has one row, or rows of its own, per sequence

  Index tokens() const noexcept { return static_cast<Index>(ids.size()); }
  Index sequences() const noexcept { return offsets.empty() ? 0 : static_cast<Index>(offsets.size()) - 1; }
  /// Positions that have a target.
  Index label_tokens() const noexcept {
    Index count = 0;
    for (const std::int32_t target : targets) count += target >= 0 ? 1 : 0;
    return count;
  }

  /// Forgets the sequences and keeps the memory.
  void clear() noexcept {
    ids.clear();
    positions.clear();
    targets.clear();
    offsets.resize(1);
    offsets[0] = 0;
    first_row = 0;
    first_sequence = 0;
  }

  /// Throws ShapeError where the arrays do not fit together.
  void check() const {
    if (positions.size() != ids.size() || targets.size() != ids.size()) {
      fail<ShapeError>("PackedBatch: {} ids, {} positions and {} targets; expected as many of each", ids.size(),
                       positions.size(), targets.size());
    }
    if (offsets.empty() || offsets.front() != 0 || offsets.back() != tokens()) {
      fail<ShapeError>("PackedBatch: offsets run from {} to {}; expected from 0 to {}, the number of tokens",
                       offsets.empty() ? -1 : offsets.front(), offsets.empty() ? -1 : offsets.back(), tokens());
    }
    for (std::size_t s = 1; s < offsets.size(); ++s) {
      if (offsets[s] <= offsets[s - 1]) {
        fail<ShapeError>("PackedBatch: sequence {} runs from {} to {}; expected at least one token", s - 1,
                         offsets[s - 1], offsets[s]);
      }
    }
  }
};

PEFT_END_NAMESPACE
