#pragma once
/// What attention works on: the shape of its heads and the sequences of a packed batch.

#include <cmath>
#include <span>

#include "peft/core/rng.hpp"
#include "peft/core/view.hpp"
#include "peft/kernels/dropout.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// Heads of a layer, and its dropout in a training step. query_heads is a multiple of kv_heads; scale is mostly
/// 1/√head_dim.
struct AttentionShape {
  Index query_heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  float scale = 1.0f;
  bool causal = true;
  float dropout = 0.0f;      ///< probability that a query loses sight of a key: out = (m∘softmax(…)/(1−p))·V; in [0, 1)
  DropoutKey dropout_key{};  ///< first_row counts the rows of q; a column is a key, the prefix's first
};

/// One sequence: rows [query_first, query_first + query_count) of q and out, and the keys and values they see.
template <Scalar T>
struct AttentionSegment {
  Index query_first = 0;
  Index query_count = 0;
  MatrixView<const T> keys;           ///< [key_count, kv_heads·head_dim], past ones first; key_count ≥ query_count
  MatrixView<const T> values;         ///< the same shape
  MatrixView<const T> prefix_keys;    ///< [prefix, kv_heads·head_dim] that every query sees, or empty
  MatrixView<const T> prefix_values;  ///< the same shape
};

/// Where the gradients of one segment go. d_prefix_… may be empty where the prefix is frozen.
template <Scalar T>
struct AttentionGradSegment {
  MatrixView<T> d_keys;    ///< overwritten
  MatrixView<T> d_values;  ///< overwritten
  MatrixView<Accumulator<T>> d_prefix_keys;    ///< added to
  MatrixView<Accumulator<T>> d_prefix_values;  ///< added to
};

namespace detail {

/// The mask of one query row of one head over `keys` keys, as factors 0 or 1/(1−p) on x. `bits` has (keys + 7)/8 bytes.
template <class A>
void drop_keys(const AttentionShape& shape, Index token, Index head, Index keys, std::uint8_t* bits, A* x) {
  DropoutKey key = shape.dropout_key;
  key.first_row = 0;
  kernels::dropout_row(key, (shape.dropout_key.first_row + token) * shape.query_heads + head, keys, shape.dropout, bits);
  const auto factor = static_cast<float>(quotient(1.0, 1.0 - static_cast<double>(shape.dropout)));
  if constexpr (std::same_as<A, float>) {
    kernels::table().apply_mask(keys, bits, 0, keys, factor, x);
  } else {
    for (Index j = 0; j < keys; ++j) x[j] *= (bits[j / 8] >> (j % 8) & 1) != 0 ? static_cast<A>(factor) : A(0);
  }
}

template <Scalar T>
void check_attention(const char* op, MatrixView<const T> q, std::span<const AttentionSegment<T>> segments,
                     const AttentionShape& shape) {
  if (shape.kv_heads <= 0 || shape.head_dim <= 0 || shape.query_heads % shape.kv_heads != 0) {
    fail<ShapeError>("{}: {} query heads, {} key/value heads of {}; expected a multiple of the key/value heads", op,
                     shape.query_heads, shape.kv_heads, shape.head_dim);
  }
  if (!(shape.dropout >= 0.0f && shape.dropout < 1.0f)) {
    fail<ShapeError>("{}: dropout is {}; expected a probability p with 0 <= p < 1", op, shape.dropout);
  }
  check_shape(op, "q", q, q.rows, shape.query_heads * shape.head_dim);
  const Index width = shape.kv_heads * shape.head_dim;
  for (const auto& s : segments) {
    check_shape(op, "keys", s.keys, s.keys.rows, width);
    check_shape(op, "values", s.values, s.keys.rows, width);
    if (s.prefix_keys.rows > 0 || s.prefix_values.rows > 0) {
      check_shape(op, "prefix_keys", s.prefix_keys, s.prefix_keys.rows, width);
      check_shape(op, "prefix_values", s.prefix_values, s.prefix_keys.rows, width);
    }
    if (s.query_first < 0 || s.query_count < 0 || s.query_first + s.query_count > q.rows) {
      fail<ShapeError>("{}: a segment has rows [{}, {}) of {}", op, s.query_first, s.query_first + s.query_count, q.rows);
    }
    if (s.keys.rows < (shape.causal ? s.query_count : 1)) {
      fail<ShapeError>("{}: a segment of {} queries has {} keys; expected at least as many", op, s.query_count,
                       s.keys.rows);
    }
  }
}

template <Scalar T>
void check_gradients(const char* op, std::span<const AttentionSegment<T>> segments,
                     std::span<const AttentionGradSegment<T>> grads) {
  if (grads.size() != segments.size()) {
    fail<ShapeError>("{}: {} gradient segments; expected {}", op, grads.size(), segments.size());
  }
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const auto& s = segments[i];
    const auto& g = grads[i];
    check_shape(op, "d_keys", g.d_keys, s.keys.rows, s.keys.cols);
    check_shape(op, "d_values", g.d_values, s.keys.rows, s.keys.cols);
    if (g.d_prefix_keys.data != nullptr) {
      check_shape(op, "d_prefix_keys", g.d_prefix_keys, s.prefix_keys.rows, s.keys.cols);
    }
    if (g.d_prefix_values.data != nullptr) {
      check_shape(op, "d_prefix_values", g.d_prefix_values, s.prefix_keys.rows, s.keys.cols);
    }
  }
}

}  // namespace detail
}  // namespace ops
PEFT_END_NAMESPACE
