#pragma once
/// Low-rank terms added to a weight itself:
///   W' = W + Σ_t scale_t · B_t·A_t      W [out,in], B_t [out,r_t], A_t [r_t,in]
/// Sums are in float (double for double) and rounded once to W's type. A result that is not finite is refused.

#include <cstdint>
#include <span>
#include <string_view>

#include "peft/core/buffer.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/low_rank_product.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Rows of a task: enough to amortise a call, few enough to spread.
inline constexpr Index kMergeRows = 32;

template <Scalar W>
bool is_finite_element(W value) noexcept {
  if constexpr (std::same_as<W, bf16>) {
    return (value.bits & 0x7F80u) != 0x7F80u;
  } else if constexpr (std::same_as<W, f16>) {
    return (value.bits & 0x7C00u) != 0x7C00u;
  } else {
    return is_finite(value);
  }
}

/// weight += Σ scale·B·A. Throws ShapeError before anything is written; NumericError after, where an element of the
/// result is not finite, naming the first.
template <Scalar W>
void add_merge_terms(std::span<const BasicMergeTerm<Accumulator<W>>> terms, MatrixView<W> weight, std::string_view who,
                     ExecutorRef executor) {
  for (const auto& term : terms) {
    check_shape(who, "A", term.a, term.a.rows, weight.cols);
    check_shape(who, "B", term.b, weight.rows, term.a.rows);
  }
  if (weight.empty()) return;
  if constexpr (std::same_as<W, double>) {
    for (const auto& term : terms) {
      for (Index j = 0; j < weight.rows; ++j) {
        for (Index k = 0; k < weight.cols; ++k) {
          double sum = 0;
          for (Index q = 0; q < term.a.rows; ++q) sum += term.b(j, q) * term.a(q, k);
          weight(j, k) += term.scale * sum;
        }
      }
    }
  } else {
    kernels::GemmProblem problem;
    ColumnList columns;
    for (const auto& term : terms) {
      columns.push({term.b.data, term.b.stride, term.a.rows, term.a.data, term.a.stride, false, term.scale});
    }
    columns.give_to(problem);
    problem.m = weight.rows;
    problem.n = weight.cols;
    problem.accumulate = true;
    problem.c = weight.data;
    problem.c_stride = weight.stride;
    problem.c_type = dtype_of<W>();
    if (problem.low_rank_count > 0) kernels::gemm(problem, executor);
  }
  Buffer<std::uint8_t> broken(weight.rows);
  parallel_for_ranges(executor, weight.rows, kMergeRows, [&](Index first, Index last) {
    for (Index j = first; j < last; ++j) {
      std::uint8_t any = 0;
      for (Index k = 0; k < weight.cols; ++k) {
        any |= is_finite_element(weight(j, k)) ? std::uint8_t{0} : std::uint8_t{1};
      }
      broken[j] = any;
    }
  });
  for (Index j = 0; j < weight.rows; ++j) {
    for (Index k = 0; broken[j] != 0 && k < weight.cols; ++k) {
      if (is_finite_element(weight(j, k))) continue;
      fail<NumericError>(
          "{}: element [{}, {}] of the merged weight is {}; expected finite numbers (the adapter or the "
          "weight is broken, or the sum is too large for the weight's type)",
          who, j, k, static_cast<double>(static_cast<Accumulator<W>>(weight(j, k))));
    }
  }
}

}  // namespace detail

/// A merged copy in float of whatever can fill a panel; W' [out,in]. Throws ShapeError and NumericError.
template <PanelSource L>
Matrix<float> merged_weight(const L& base, std::span<const MergeTerm> terms, ExecutorRef executor) {
  Matrix<float> result(base.out_features(), base.in_features());
  parallel_for_ranges(executor, result.rows(), detail::kMergeRows, [&](Index first, Index last) {
    base.fill_panel(0, result.cols(), first, last - first, result.row(first), result.cols(), Order::kBackward);
  });
  detail::add_merge_terms<float>(terms, result.view(), "merged_weight", executor);
  return result;
}

PEFT_END_NAMESPACE
