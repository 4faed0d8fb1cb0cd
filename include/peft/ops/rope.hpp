#pragma once
/// Rotary position embedding (Su et al., "RoFormer", 2021) on the halves of each head, as Hugging Face's Llama does it:
///   (x_j, x_{j+d/2}) ← (x_j·cos − x_{j+d/2}·sin, x_{j+d/2}·cos + x_j·sin),  angle = position · θ^(−2j/d)
/// A rotation, times the table's attention factor: the gradient is turned back by the same angle, times the same factor,
/// and nothing is saved. Other frequencies than θ's (linear, Llama 3, YaRN scaling) come as a list.

#include <cmath>
#include <cstdint>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// The frequencies θ^(−2j/d), j < d/2, in A. For float they are rounded as transformers rounds them (float32 throughout).
/// Throws ShapeError for an odd head_dim.
template <class A>
Buffer<A> rope_frequencies(Index head_dim, double theta) {
  if (head_dim <= 0 || head_dim % 2 != 0) {
    fail<ShapeError>("rope_frequencies: head_dim is {}; expected an even number", head_dim);
  }
  Buffer<A> result(head_dim / 2);
  for (Index j = 0; j < result.size(); ++j) {
    const A power = quotient(static_cast<A>(2 * j), static_cast<A>(head_dim));
    result[j] = quotient(A(1), std::pow(rounded(static_cast<A>(theta)), power));
  }
  return result;
}

/// Cosines and sines [max_positions, head_dim/2] in A. For float, angles are rounded as transformers rounds them.
template <class A>
class RopeTable {
 public:
  RopeTable() = default;
  /// Throws ShapeError for an odd head_dim.
  RopeTable(Index max_positions, Index head_dim, double theta)
      : RopeTable(max_positions, rope_frequencies<A>(head_dim, theta).view()) {}
  /// The angle of pair j is position · frequencies[j]. attention_factor multiplies cosines and sines, and so the rotated
  /// vectors (YaRN; Peng et al., 2023).
  RopeTable(Index max_positions, VectorView<const A> frequencies, A attention_factor = 1)
      : cosine_(max_positions, frequencies.size), sine_(max_positions, frequencies.size) {
    for (Index p = 0; p < max_positions; ++p) {
      for (Index j = 0; j < frequencies.size; ++j) {
        const A angle = rounded(static_cast<A>(p) * frequencies[j]);
        cosine_(p, j) = rounded(std::cos(angle) * attention_factor);
        sine_(p, j) = rounded(std::sin(angle) * attention_factor);
      }
    }
  }
  Index positions() const noexcept { return cosine_.rows(); }
  Index head_dim() const noexcept { return cosine_.cols() * 2; }
  const A* cosine(Index position) const noexcept { return cosine_.row(position); }
  const A* sine(Index position) const noexcept { return sine_.row(position); }

 private:
  Matrix<A> cosine_;
  Matrix<A> sine_;
};

namespace detail {

template <Scalar T>
void rotate_all(const char* op, MatrixView<T> x, VectorView<const std::int32_t> positions, Index head_dim,
                const RopeTable<Accumulator<T>>& rope, int sign, ExecutorRef executor) {
  check_size(op, "positions", positions, x.rows);
  if (rope.head_dim() != head_dim || x.cols % head_dim != 0) {
    fail<ShapeError>("{}: x has {} columns, head_dim is {}, the table's {}; expected whole heads of one size", op, x.cols,
                     head_dim, rope.head_dim());
  }
  for (const std::int32_t position : positions) {
    if (position < 0 || position >= rope.positions()) {
      fail<ShapeError>("{}: position {} is outside the table of {}; the sequence is longer than the model's context", op,
                       position, rope.positions());
    }
  }
  const Index half = head_dim / 2;
  if constexpr (std::same_as<T, double>) {
    for (Index i = 0; i < x.rows; ++i) {
      const double* c = rope.cosine(positions[i]);
      const double* s = rope.sine(positions[i]);
      for (Index h = 0; h < x.cols; h += head_dim) {
        for (Index j = 0; j < half; ++j) {
          const double a = x(i, h + j), b = x(i, h + half + j), turn = sign * s[j];
          x(i, h + j) = a * c[j] - b * turn;
          x(i, h + half + j) = b * c[j] + a * turn;
        }
      }
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    parallel_for_ranges(executor, x.rows, kRowGrain, [&](Index first, Index last) {
      float* memory = kernels::scratch(kernels::ScratchSlot::kRows, x.cols);
      for (Index i = first; i < last; ++i) {
        float* row = float_target<T>(x.row(i), memory);
        as_float<T>(t, x.row(i), x.cols, row);
        for (Index h = 0; h < x.cols; h += head_dim) {
          t.rotate(half, rope.cosine(positions[i]), rope.sine(positions[i]), static_cast<float>(sign), row + h);
        }
        store_row<T>(t, x.row(i), x.cols, row);
      }
    });
  }
}

}  // namespace detail

/// Rotates x [tokens, heads·head_dim] in place. Throws ShapeError, also where a position lies outside the table.
template <Scalar T>
void rope_forward(MatrixView<T> x, VectorView<const std::int32_t> positions, Index head_dim,
                  const RopeTable<Accumulator<T>>& rope, ExecutorRef executor = default_executor()) {
  detail::rotate_all<T>("rope_forward", x, positions, head_dim, rope, 1, executor);
}

/// Turns the gradient dx [tokens, heads·head_dim] back in place. Throws ShapeError.
template <Scalar T>
void rope_backward(MatrixView<T> dx, VectorView<const std::int32_t> positions, Index head_dim,
                   const RopeTable<Accumulator<T>>& rope, ExecutorRef executor = default_executor()) {
  detail::rotate_all<T>("rope_backward", dx, positions, head_dim, rope, -1, executor);
}

}  // namespace ops
PEFT_END_NAMESPACE
