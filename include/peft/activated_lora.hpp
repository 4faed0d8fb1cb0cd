#pragma once
/// aLoRA: an adapter that acts from its invocation tokens on. What stands before them is computed by the base alone, so its
/// keys and values can be shared with the base and other adapters.
/// Greenewald et al., "Activated LoRA", 2025 (arXiv 2504.12397).

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "peft/error.hpp"
#include "peft/selection.hpp"

PEFT_BEGIN_NAMESPACE

/// Where the last occurrence of `invocation` begins in `ids`; −1 where there is none.
inline Index invocation_start(VectorView<const std::int32_t> ids, std::span<const Index> invocation) noexcept {
  const auto length = static_cast<Index>(invocation.size());
  for (Index start = ids.size - length; length > 0 && start >= 0; --start) {
    bool fits = true;
    for (Index i = 0; fits && i < length; ++i) fits = Index{ids[start + i]} == invocation[static_cast<std::size_t>(i)];
    if (fits) return start;
  }
  return -1;
}

/// Whether an adapter of the selection is an aLoRA: its pass needs one of the functions below.
template <Scalar T>
bool has_activated(const Selection<T>& selection) noexcept {
  for (const auto& entry : selection.active()) {
    const LoraConfig* config = entry.adapter->template config_as<LoraConfig>();
    if (config != nullptr && !config->alora_invocation_tokens.empty()) return true;
  }
  return false;
}

/// The selection for one pass over the last counts[i] of ids[i], which is all that sequence i has come to with them (a prompt,
/// or one whose beginning is in a cache). Its adapters with alora_invocation_tokens act on the rows from the last occurrence
/// of these on, in a sequence without them on none; other adapters act everywhere. On `behind` rows that follow those of the
/// sequences (virtual tokens) no aLoRA acts. Throws ShapeError for counts that are more than there are ids.
template <Scalar T>
Selection<T> activate_invoked(const Selection<T>& selection, std::span<const std::span<const std::int32_t>> ids,
                              std::span<const Index> counts, Index behind = 0) {
  Index total = behind;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (i >= ids.size() || counts[i] < 0 || static_cast<std::size_t>(counts[i]) > ids[i].size()) {
      fail<ShapeError>("activate_invoked: a pass over {} tokens of sequence {}; expected at most the {} that it has", counts[i], i,
                       i < ids.size() ? ids[i].size() : 0);
    }
    total += counts[i];
  }
  std::vector<typename Selection<T>::Active> active = selection.active();
  for (auto& entry : active) {
    const LoraConfig* config = entry.adapter->template config_as<LoraConfig>();
    if (config == nullptr || config->alora_invocation_tokens.empty()) continue;
    auto rows = std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(total), std::uint8_t{0});
    Index row = 0;
    for (std::size_t i = 0; i < counts.size(); row += counts[i++]) {
      const VectorView<const std::int32_t> own{ids[i].data(), static_cast<Index>(ids[i].size())};
      const Index start = invocation_start(own, config->alora_invocation_tokens);
      for (Index j = 0; start >= 0 && j < counts[i]; ++j) {
        (*rows)[static_cast<std::size_t>(row + j)] = own.size - counts[i] + j >= start ? 1 : 0;
      }
    }
    entry.rows = std::move(rows);
  }
  return Selection<T>(std::move(active));
}

/// The same for packed sequences that are whole: sequence i is ids [offsets[i], offsets[i+1]). Throws ShapeError for offsets
/// that do not cover ids.
template <Scalar T>
Selection<T> activate_invoked(const Selection<T>& selection, VectorView<const std::int32_t> ids,
                              std::span<const Index> offsets, Index behind = 0) {
  if (offsets.size() < 2 || offsets.front() != 0 || offsets.back() != ids.size) {
    fail<ShapeError>("activate_invoked: {} offsets from {} to {}; expected them to run from 0 to {}", offsets.size(),
                     offsets.empty() ? Index{0} : offsets.front(), offsets.empty() ? Index{0} : offsets.back(), ids.size);
  }
  std::vector<std::span<const std::int32_t>> sequences;
  std::vector<Index> counts;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    counts.push_back(offsets[i + 1] - offsets[i]);
    sequences.emplace_back(ids.data + offsets[i], static_cast<std::size_t>(counts.back()));
  }
  return activate_invoked(selection, std::span<const std::span<const std::int32_t>>(sequences), std::span<const Index>(counts),
                          behind);
}

/// The selection with every aLoRA acting on the rows whose flag is 1.
template <Scalar T>
Selection<T> activate_rows(const Selection<T>& selection, std::vector<std::uint8_t> flags) {
  std::vector<typename Selection<T>::Active> active = selection.active();
  const auto rows = std::make_shared<const std::vector<std::uint8_t>>(std::move(flags));
  for (auto& entry : active) {
    const LoraConfig* config = entry.adapter->template config_as<LoraConfig>();
    if (config != nullptr && !config->alora_invocation_tokens.empty()) entry.rows = rows;
  }
  return Selection<T>(std::move(active));
}

PEFT_END_NAMESPACE
