#pragma once
/// Which rows of a packed batch each child of a BatchSplit, Parallel or Split has. Sequence s of the batch has the rows
/// [offsets[s], offsets[s + 1]).

#include <cstddef>
#include <span>
#include <vector>

#include "peft/adapter_setup.hpp"

PEFT_BEGIN_NAMESPACE

/// A child's share: rows of its block, and where its sequences begin among them.
struct AdapterRows {
  std::vector<Index> rows;
  std::vector<Index> offsets;
};

/// One share per child of `setup`, which shares rows. Throws ShapeError where its sizes are not the batch's.
inline std::vector<AdapterRows> share_adapter_rows(const AdapterSetup& setup, std::span<const Index> offsets) {
  const auto sequences = static_cast<Index>(offsets.size()) - 1;
  const auto count = static_cast<Index>(setup.children().size());
  const bool split = setup.kind() == AdapterSetup::Kind::kSplit;
  std::vector<Index> sizes = setup.sizes();
  if (setup.kind() == AdapterSetup::Kind::kParallel) {
    if (sequences % count != 0) {
      fail<ShapeError>("AdapterComposition: {} has a batch of {} sequences; expected it repeated {} times", setup.text(),
                       sequences, count);
    }
    sizes.assign(setup.children().size(), sequences / count);
  }
  Index whole = 0;
  for (const Index size : sizes) whole += size;
  if (!split && whole != sequences) {
    fail<ShapeError>("AdapterComposition: {} has sizes for {} sequences; the batch has {}", setup.text(), whole, sequences);
  }
  std::vector<AdapterRows> shares;
  Index start = 0;
  for (const Index size : sizes) {
    AdapterRows share;
    share.offsets.push_back(0);
    for (Index s = split ? 0 : start; s < (split ? sequences : start + size); ++s) {
      const auto at = static_cast<std::size_t>(s);
      const Index length = offsets[at + 1] - offsets[at];
      if (split && length != whole) {
        fail<ShapeError>("AdapterComposition: {} splits sequences of {} tokens; sequence {} has {}", setup.text(), whole, s,
                         length);
      }
      const Index from = offsets[at] + (split ? start : 0), many = split ? size : length;
      for (Index row = from; row < from + many; ++row) share.rows.push_back(row);
      share.offsets.push_back(share.offsets.back() + many);
    }
    shares.push_back(std::move(share));
    start += size;
  }
  return shares;
}

/// Whether all sizes within `setup` fit the batch. Throws ShapeError.
inline void check_adapter_rows(const AdapterSetup& setup, std::span<const Index> offsets) {
  std::vector<AdapterRows> shares;
  if (setup.shares_rows()) shares = share_adapter_rows(setup, offsets);
  for (std::size_t i = 0; i < setup.children().size(); ++i) {
    check_adapter_rows(setup.children()[i], shares.empty() ? offsets : std::span<const Index>(shares[i].offsets));
  }
}

PEFT_END_NAMESPACE
