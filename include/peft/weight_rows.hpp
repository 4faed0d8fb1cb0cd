#pragma once
/// The rows of a base layer's weight W [out, in] and its bias, whatever the base offers: a panel source fills panels; a
/// base that runs backward is asked for dy·W with unit rows dy. Sums over a row of W need no whole copy of it.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/low_rank_merge.hpp"
#include "peft/low_rank_product.hpp"

PEFT_BEGIN_NAMESPACE

/// Whether read_weight_rows works.
template <class L, class T = typename L::value_type>
concept ReadableWeight = TrainableBase<L, T> || requires(const L& l, MatrixView<Accumulator<T>> rows) {
  l.read_weight_rows(Index{}, rows);
};

/// rows [count, in] = W's rows [first, first + count). May run in any number of threads at once where the base is a
/// PanelSource (weight_rows_are_parallel).
template <Scalar T, class L>
  requires ReadableWeight<L, T>
void read_weight_rows(const L& base, Index first, MatrixView<Accumulator<T>> rows) {
  if constexpr (requires { base.read_weight_rows(first, rows); }) {
    base.read_weight_rows(first, rows);
  } else if constexpr (PanelSource<L> && !std::same_as<T, double>) {
    base.fill_panel(0, rows.cols, first, rows.rows, rows.data, rows.stride, Order::kBackward);
  } else {
    Matrix<T> unit(rows.rows, static_cast<Index>(base.out_features()));
    std::fill(unit.flat().begin(), unit.flat().end(), T(Accumulator<T>(0)));
    for (Index i = 0; i < rows.rows; ++i) unit(i, first + i) = T(Accumulator<T>(1));
    Matrix<T> dx(rows.rows, rows.cols);
    detail::plain_backward<T>(base, std::as_const(unit).view(), dx.view(), Accumulate::kOverwrite, ExecutorRef());
    for (Index i = 0; i < rows.rows; ++i) {
      for (Index k = 0; k < rows.cols; ++k) rows(i, k) = static_cast<Accumulator<T>>(dx(i, k));
    }
  }
}

/// The bias [out] as the base shows it (bias()), else what its forward makes of a zero row; empty where all is zero.
template <Scalar T, LinearLike<T> L>
Buffer<Accumulator<T>> read_bias(const L& base) {
  using A = Accumulator<T>;
  Buffer<A> result(static_cast<Index>(base.out_features()));
  if constexpr (requires { { base.bias() } -> std::convertible_to<VectorView<const A>>; }) {
    const VectorView<const A> bias = base.bias();
    if (bias.empty()) return {};
    std::copy(bias.begin(), bias.end(), result.begin());
    return result;
  } else {
    Matrix<T> x(1, static_cast<Index>(base.in_features())), y(1, result.size());
    std::fill(x.flat().begin(), x.flat().end(), T(A(0)));
    detail::plain_forward<T>(base, std::as_const(x).view(), y.view(), ExecutorRef());
    bool any = false;
    for (Index j = 0; j < result.size(); ++j) {
      result[j] = static_cast<A>(y(0, j));
      any = any || result[j] != A(0);
    }
    return any ? std::move(result) : Buffer<A>();
  }
}

/// A copy of the weight after `change`, in the accumulator's type [out, in]; the base stays as it is. Throws ShapeError,
/// NumericError.
template <Scalar T, class L>
  requires ReadableWeight<L, T>
Matrix<Accumulator<T>> changed_weight(const L& base, const BasicLayerChange<Accumulator<T>>& change,
                                      ExecutorRef executor) {
  using A = Accumulator<T>;
  Matrix<A> result(static_cast<Index>(base.out_features()), static_cast<Index>(base.in_features()));
  detail::check_change(change, result.rows(), result.cols(), "changed_weight");
  const bool parallel = PanelSource<L> && !std::same_as<T, double>;
  detail::write_changed_rows<A>(change, result.view(), "changed_weight", parallel ? executor : ExecutorRef(),
                                [&](Index first, MatrixView<A> rows) { peft::read_weight_rows<T>(base, first, rows); });
  return result;
}

/// norms[j] = ‖row j of W + Σ scale·B·A‖₂, norms [out]. Rows are shared out where `parallel`. Throws ConfigError where
/// the base shows no weight.
template <Scalar T, class L>
void weight_row_norms(const L& base, std::span<const BasicMergeTerm<Accumulator<T>>> terms,
                      VectorView<Accumulator<T>> norms, bool parallel, ExecutorRef executor) {
  using A = Accumulator<T>;
  const auto in = static_cast<Index>(base.in_features());
  parallel_for_ranges(parallel ? executor : ExecutorRef(), norms.size, detail::kMergeRows, [&](Index first, Index last) {
    Matrix<A> rows(last - first, in);
    peft::read_weight_rows<T>(base, first, rows.view());
    for (const auto& term : terms) {
      const MatrixView<const A> b = term.b.row_range(first, last - first);
      if constexpr (std::same_as<T, double>) {
        for (Index i = 0; i < rows.rows(); ++i) {
          for (Index q = 0; q < b.cols; ++q) {
            const double factor = term.scale * b(i, q);
            for (Index k = 0; k < in; ++k) rows(i, k) += factor * term.a(q, k);
          }
        }
      } else {
        kernels::GemmProblem problem;
        detail::ColumnList columns;
        columns.push({b.data, b.stride, b.cols, term.a.data, term.a.stride, false, term.scale});
        columns.give_to(problem);
        problem.m = rows.rows();
        problem.n = in;
        problem.accumulate = true;
        problem.c = rows.data();
        problem.c_stride = in;
        kernels::gemm(problem, ExecutorRef());
      }
    }
    for (Index i = 0; i < rows.rows(); ++i) {
      if constexpr (std::same_as<T, double>) {
        double squares = 0;
        for (Index k = 0; k < in; ++k) squares += rows(i, k) * rows(i, k);
        norms[first + i] = std::sqrt(squares);
      } else {
        norms[first + i] = root(kernels::table().dot(in, rows.row(i), rows.row(i)));
      }
    }
  });
}

PEFT_END_NAMESPACE
