#pragma once
/// Rows for virtual tokens in a packed batch: n of them before every sequence, at positions 0…n−1 and without label; the
/// sequence's own tokens follow at n…. What prompt tuning needs where a model's virtual rows depend on the sequence behind
/// them: attention in both directions. A causal model computes them once for all sequences.

#include <algorithm>
#include <cstdint>

#include "peft/train/batch.hpp"

PEFT_BEGIN_NAMESPACE

/// Writes to `out` the batch with its virtual rows: ids of virtual rows are `id` (the rows are overwritten by the prompt's),
/// sequence s begins at out.offsets[s] with its n virtual rows. first_row counts the virtual rows of the sequences before
/// (batch.first_sequence), so that dropout masks do not depend on how a batch is cut. A model that reads a class from a
/// sequence's first row then reads the first virtual row's, as in Python PEFT. `out` keeps its memory and may not be
/// `batch`. Throws ShapeError.
inline void insert_virtual_tokens(const PackedBatch& batch, Index n, PackedBatch& out, std::int32_t id = 0) {
  batch.check();
  if (n < 0) fail<ShapeError>("insert_virtual_tokens: {} virtual tokens; expected 0 or more", n);
  out.clear();
  out.first_sequence = batch.first_sequence;
  out.first_row = batch.first_row + n * batch.first_sequence;
  for (Index s = 0; s < batch.sequences(); ++s) {
    for (Index j = 0; j < n; ++j) {
      out.ids.push_back(id);
      out.positions.push_back(static_cast<std::int32_t>(j));
      out.targets.push_back(-1);
    }
    const auto first = static_cast<std::size_t>(batch.offsets[static_cast<std::size_t>(s)]);
    const auto last = static_cast<std::size_t>(batch.offsets[static_cast<std::size_t>(s) + 1]);
    for (std::size_t i = first; i < last; ++i) {
      out.ids.push_back(batch.ids[i]);
      out.positions.push_back(batch.positions[i] + static_cast<std::int32_t>(n));
      out.targets.push_back(batch.targets[i]);
    }
    out.offsets.push_back(out.tokens());
  }
}

PEFT_END_NAMESPACE
