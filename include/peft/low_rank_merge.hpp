#pragma once
/// Low-rank terms added to a weight itself:
///   W' = W + Σ_t scale_t · B_t·A_t      W [out,in], B_t [out,r_t], A_t [r_t,in]
/// Sums are in float (double for double) and rounded once to W's type. A result that is not finite is refused.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "peft/core/buffer.hpp"
#include "peft/core/rounded.hpp"
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

/// Throws ShapeError unless A is [r, in] and B [out, r]; r = in where A is the identity.
template <class A>
void check_merge_term(const BasicMergeTerm<A>& term, Index out, Index in, std::string_view who) {
  if (!term.a.empty()) check_shape(who, "A", term.a, term.a.rows, in);
  check_shape(who, "B", term.b, out, term.a.empty() ? in : term.a.rows);
}

/// weight += scale·B.
template <Scalar W>
void add_whole_term(const BasicMergeTerm<Accumulator<W>>& term, MatrixView<W> weight, ExecutorRef executor) {
  using A = Accumulator<W>;
  parallel_for_ranges(executor, weight.rows, kMergeRows, [&](Index first, Index last) {
    for (Index j = first; j < last; ++j) {
      for (Index k = 0; k < weight.cols; ++k) {
        weight(j, k) = static_cast<W>(static_cast<A>(weight(j, k)) + rounded(term.scale * term.b(j, k)));
      }
    }
  });
}

/// weight += Σ scale·B·A, whatever comes out.
template <Scalar W>
void add_merge_products(std::span<const BasicMergeTerm<Accumulator<W>>> terms, MatrixView<W> weight,
                        ExecutorRef executor) {
  for (const auto& term : terms) {
    if (term.a.empty()) add_whole_term<W>(term, weight, executor);
  }
  if constexpr (std::same_as<W, double>) {
    for (const auto& term : terms) {
      for (Index j = 0; !term.a.empty() && j < weight.rows; ++j) {
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
      if (term.a.empty()) continue;
      columns.push(
          kernels::LowRankColumns{term.b.data, term.b.stride, term.a.rows, term.a.data, term.a.stride, false, term.scale});
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
}

[[noreturn]] inline void fail_not_finite(std::string_view who, Index row, Index column, double value) {
  fail<NumericError>(
      "{}: element [{}, {}] of the merged weight is {}; expected finite numbers (the adapter or the "
      "weight is broken, or the sum is too large for the weight's type)",
      who, row, column, value);
}

/// weight += Σ scale·B·A. Throws ShapeError before anything is written; NumericError after, where an element of the
/// result is not finite, naming the first.
template <Scalar W>
void add_merge_terms(std::span<const BasicMergeTerm<Accumulator<W>>> terms, MatrixView<W> weight, std::string_view who,
                     ExecutorRef executor) {
  for (const auto& term : terms) check_merge_term(term, weight.rows, weight.cols, who);
  if (weight.empty()) return;
  add_merge_products<W>(terms, weight, executor);
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
      fail_not_finite(who, j, k, static_cast<double>(static_cast<Accumulator<W>>(weight(j, k))));
    }
  }
}

/// Throws ShapeError where a part of the change is not of the layer's size.
template <class A>
void check_change(const BasicLayerChange<A>& change, Index out, Index in, std::string_view who) {
  const auto check = [&](std::string_view what, VectorView<const A> values, Index size) {
    if (!values.empty() && values.size != size) {
      fail<ShapeError>("{}: {} has {} elements; expected {}", who, what, values.size, size);
    }
  };
  check("the row gain", change.row_gain, out);
  check("the column gain", change.column_gain, in);
  check("the bias", change.bias, out);
  if (!change.weight.empty()) check_shape(who, "the new weight", change.weight, out, in);
  for (const auto& term : change.terms) check_merge_term(term, out, in, who);
  for (Index j = 0; j < change.bias.size; ++j) {
    if (!is_finite(change.bias[j])) {
      fail<NumericError>("{}: element {} of the merged bias is {}; expected finite numbers", who, j, change.bias[j]);
    }
  }
}

/// target [out,in] = the changed weight, rounded once; read(first, rows [count,in]) gives rows of W. Throws
/// NumericError where an element is not finite.
template <Scalar W, class Read>
void write_changed_rows(const BasicLayerChange<Accumulator<W>>& change, MatrixView<W> target, std::string_view who,
                        ExecutorRef executor, Read&& read) {
  using A = Accumulator<W>;
  const Index blocks = (target.rows + kMergeRows - 1) / kMergeRows;
  Buffer<Index> broken(blocks);
  parallel_for_ranges(executor, target.rows, kMergeRows, [&](Index first, Index last) {
    Matrix<A> rows(last - first, target.cols);
    if (change.weight.empty()) {
      read(first, rows.view());
    } else {
      for (Index i = first; i < last; ++i) std::copy_n(change.weight.row(i), target.cols, rows.row(i - first));
    }
    for (Index i = 0; i < rows.rows(); ++i) {
      const A gain = change.row_gain.empty() ? A(1) : change.row_gain[first + i];
      for (Index k = 0; k < target.cols; ++k) {
        if (!change.column_gain.empty()) rows(i, k) *= change.column_gain[k];
        if (!change.row_gain.empty()) rows(i, k) *= gain;
      }
    }
    for (const auto& term : change.terms) {
      const BasicMergeTerm<A> own{term.a, term.b.row_range(first, last - first), term.scale};
      add_merge_products<A>(std::span(&own, 1), rows.view(), ExecutorRef());
    }
    Index& bad = broken[first / kMergeRows];
    bad = -1;
    for (Index i = 0; i < rows.rows(); ++i) {
      for (Index k = 0; k < target.cols; ++k) {
        target(first + i, k) = static_cast<W>(rows(i, k));
        if (bad < 0 && !is_finite_element(target(first + i, k))) bad = (first + i) * target.cols + k;
      }
    }
  });
  for (const Index bad : broken) {
    if (bad >= 0) fail_not_finite(who, bad / target.cols, bad % target.cols, static_cast<A>(target(bad / target.cols, bad % target.cols)));
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
