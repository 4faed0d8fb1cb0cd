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

/// The selection for one pass over packed sequences: sequence i is ids [offsets[i], offsets[i+1]). Its adapters with
/// alora_invocation_tokens act on the rows from the last occurrence of these on, in a sequence without them on none; other
/// adapters act everywhere. For decoding, where a pass has only the new tokens, use activate_rows. Throws ShapeError for
/// offsets that do not cover ids.
template <Scalar T>
Selection<T> activate_invoked(const Selection<T>& selection, VectorView<const std::int32_t> ids,
                              std::span<const Index> offsets) {
  if (offsets.size() < 2 || offsets.front() != 0 || offsets.back() != ids.size) {
    fail<ShapeError>("activate_invoked: {} offsets from {} to {}; expected them to run from 0 to {}", offsets.size(),
                     offsets.empty() ? Index{0} : offsets.front(), offsets.empty() ? Index{0} : offsets.back(), ids.size);
  }
  std::vector<typename Selection<T>::Active> active = selection.active();
  for (auto& entry : active) {
    const LoraConfig* config = entry.adapter->template config_as<LoraConfig>();
    if (config == nullptr || config->alora_invocation_tokens.empty()) continue;
    auto rows = std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(ids.size), std::uint8_t{0});
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      const Index first = offsets[i], last = offsets[i + 1];
      const Index start = invocation_start(ids.slice(first, last - first), config->alora_invocation_tokens);
      for (Index row = start < 0 ? last : first + start; row < last; ++row) (*rows)[static_cast<std::size_t>(row)] = 1;
    }
    entry.rows = std::move(rows);
  }
  return Selection<T>(std::move(active));
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
