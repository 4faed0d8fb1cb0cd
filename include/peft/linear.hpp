#pragma once
/// How a host's linear layer plugs in. LinearLike is three members; each refinement below is detected and used where
/// it is present, and each has an archetype in the tests: a foreign type that has that refinement and nothing else.

#include <concepts>
#include <span>
#include <type_traits>

#include "peft/core/accumulate.hpp"
#include "peft/core/executor.hpp"
#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

/// What a panel of a weight W [out, in] holds.
enum class Order : std::uint8_t {
  kForward,   ///< B = Wᵀ [in, out]: columns are outputs (n), rows are inputs (k); for y = x·Wᵀ
  kBackward,  ///< B = W [out, in]: columns are inputs (n), rows are outputs (k); for dx = dy·W
};

/// One adapter's low-rank update for a run of rows: y[first_row + i] += scale · S[i] · Bᵀ.
template <class A>
struct BasicLowRankTerm {
  Index first_row = 0;
  Index rows = 0;
  MatrixView<const A> s;  ///< [rows, r]
  MatrixView<const A> b;  ///< [out, r]
  A scale = 1;
};
using LowRankTerm = BasicLowRankTerm<float>;

/// x: [tokens, in_features], y: [tokens, out_features], row-major views with a row stride; y is overwritten and may not
/// alias x. T is the *activation* type; how the weight is stored is the host's secret. Sums are in float (double for
/// T = double).
template <class L, class T = typename L::value_type>
concept LinearLike = requires(const L& l, MatrixView<const T> x, MatrixView<T> y) {
  { l.in_features() } -> std::convertible_to<Index>;
  { l.out_features() } -> std::convertible_to<Index>;
  l.forward(x, y);  // y = x·Wᵀ (+ bias)
};

/// forward on a given executor.
template <class L, class T = typename L::value_type>
concept ExecutorForward =
    LinearLike<L, T> && requires(const L& l, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) {
      l.forward(x, y, executor);
    };

/// The weight can be read a panel at a time: panel[(k-k0)*ld + (n-n0)] = B[k][n] for k in [k0, k0+kc),
/// n in [n0, n0+nc), B as `Order` says. With this alone the library supplies fused forward and backward, merged
/// copies and SVD-based initialisation, for any storage and either orientation. Called from several threads at once.
/// bias(): out_features values, or empty.
template <class L>
concept PanelSource = requires(const L& l, Index i, float* panel, Order order) {
  l.fill_panel(i, i, i, i, panel, i, order);
  { l.bias() } -> std::convertible_to<VectorView<const float>>;
};

/// dx = dy·W. Training needs this or a PanelSource.
template <class L, class T = typename L::value_type>
concept BackwardLinear = requires(const L& l, MatrixView<const T> dy, MatrixView<T> dx) { l.backward_input(dy, dx); };

/// dx (+)= dy·W on a given executor.
template <class L, class T = typename L::value_type>
concept ExecutorBackward = requires(const L& l, MatrixView<const T> dy, MatrixView<T> dx, Accumulate mode,
                                    ExecutorRef executor) { l.backward_input(dy, dx, mode, executor); };

/// The layer adds low-rank terms itself: y = x·Wᵀ + bias + Σ terms.
template <class L, class T = typename L::value_type>
concept FusedLowRank = requires(const L& l, MatrixView<const T> x,
                                std::span<const BasicLowRankTerm<Accumulator<T>>> terms, MatrixView<T> y,
                                ExecutorRef executor) {
  l.forward_low_rank(x, terms, y, executor);
};

/// One term of a merge: W += scale · B·A.
template <class A>
struct BasicMergeTerm {
  MatrixView<const A> a;  ///< [r, in]; empty: the identity, r = in
  MatrixView<const A> b;  ///< [out, r]
  A scale = 1;
};
using MergeTerm = BasicMergeTerm<float>;

/// The weight can take an update in place and give its old bytes back: merge(terms) returns the undo, restore(undo)
/// brings the weight back bit for bit (W+d)−d would not.
template <class L, class T = typename L::value_type>
concept MergeableLinear = requires(L& l, std::span<const BasicMergeTerm<Accumulator<T>>> terms) {
  l.restore(l.merge(terms));
};

/// A change of a whole layer, for updates that are more than low-rank terms:
///   W' = diag(row_gain)·W·diag(column_gain) + Σ scale·B·A,   or `weight` in place of the first product
template <class A>
struct BasicLayerChange {
  VectorView<const A> row_gain{};     ///< [out], or empty: 1
  VectorView<const A> column_gain{};  ///< [in], or empty: 1
  MatrixView<const A> weight{};       ///< [out, in] instead of W, or empty
  std::span<const BasicMergeTerm<A>> terms{};
  VectorView<const A> bias{};         ///< [out], the new bias; empty: as it is
};
using LayerChange = BasicLayerChange<float>;

/// The weight can take any change in place: rewrite(change) returns what merge returns, and restore(undo) brings back
/// the old weight and bias bit for bit.
template <class L, class T = typename L::value_type>
concept RewritableLinear = requires(L& l, const BasicLayerChange<Accumulator<T>>& change) { l.restore(l.rewrite(change)); };

/// dW += dyᵀ·x, for full tuning and modules_to_save.
template <class L, class T = typename L::value_type>
concept WeightGrad = requires(L& l, MatrixView<const T> dy, MatrixView<const T> x) { l.backward_weight(dy, x); };

PEFT_END_NAMESPACE
