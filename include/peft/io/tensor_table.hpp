#pragma once
/// The tensors of a file, in the file's order, found by name.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/io/tensor_ref.hpp"

PEFT_BEGIN_NAMESPACE

class TensorTable {
 public:
  TensorTable() = default;
  /// Throws FormatError, beginning with `where`, where two have one name.
  TensorTable(std::vector<TensorRef> tensors, std::string_view where) : tensors_(std::move(tensors)) {
    by_name_.resize(tensors_.size());
    for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = i;
    std::sort(by_name_.begin(), by_name_.end(),
              [this](std::size_t a, std::size_t b) { return tensors_[a].name < tensors_[b].name; });
    for (std::size_t i = 1; i < by_name_.size(); ++i) {
      if (tensors_[by_name_[i - 1]].name == tensors_[by_name_[i]].name) {
        fail<FormatError>("{}: two tensors are named {}; expected names to be distinct", where,
                          quote_text(tensors_[by_name_[i]].name));
      }
    }
  }

  std::span<const TensorRef> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  const TensorRef* find(std::string_view name) const noexcept {
    const auto place = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                        [this](std::size_t i, std::string_view n) { return tensors_[i].name < n; });
    if (place == by_name_.end() || tensors_[*place].name != name) return nullptr;
    return &tensors_[*place];
  }

 private:
  std::vector<TensorRef> tensors_;
  std::vector<std::size_t> by_name_;
};

PEFT_END_NAMESPACE
