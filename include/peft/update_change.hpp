#pragma once
/// What stands between a module and its pass: the updates that are active on it, and what they make of its weight.

#include <cstdint>
#include <span>
#include <vector>

#include "peft/linear_update.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// An update that is active on a module.
template <Scalar T>
struct ActiveUpdate {
  LinearUpdate<T>* update = nullptr;
  double weight = 1.0;
  DropoutMask dropout{};
  std::span<const std::uint8_t> rows{};  ///< 1 where the update acts on the row; empty: on all
};

/// What a merge makes of a layer; it owns what the change views.
template <Scalar T>
struct OwnedChange {
  using A = Accumulator<T>;
  Buffer<A> row_gain, column_gain, bias;
  Matrix<A> weight;
  std::vector<UpdateSaved<T>> factors;
  std::vector<BasicMergeTerm<A>> terms;

  /// Whether low-rank terms say it all.
  bool only_terms() const noexcept {
    return row_gain.empty() && column_gain.empty() && bias.empty() && weight.empty();
  }
  BasicLayerChange<A> view() const noexcept {
    return {row_gain.view(), column_gain.view(), weight.view(), terms, bias.view()};
  }
};

}  // namespace detail
PEFT_END_NAMESPACE
