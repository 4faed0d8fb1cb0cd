#pragma once
/// What a host's key/value cache shows of itself, so that prefixes can be read from it and written into it. Keys stand as
/// attention reads them: after the rotary embedding, where the host has one.

#include <concepts>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

/// Keys and values of one sequence:
///   value_type          how they are stored: float, f16, bf16 or double
///   layers()            how many layers
///   length()            rows that are filled
///   keys(l), values(l)  [length, key/value heads · head_dim] of layer l, any row stride
template <class C>
concept KvCacheLike = Scalar<typename C::value_type> && requires(const C& cache, Index layer) {
  { cache.layers() } -> std::convertible_to<Index>;
  { cache.length() } -> std::convertible_to<Index>;
  { cache.keys(layer) } -> std::convertible_to<MatrixView<const typename C::value_type>>;
  { cache.values(layer) } -> std::convertible_to<MatrixView<const typename C::value_type>>;
};

/// Rows of type T can be appended: write(l, keys, values) puts them behind what layer l holds.
template <class C, class T>
concept WritableKvCache = requires(C& cache, Index layer, MatrixView<const T> keys, MatrixView<const T> values) {
  { cache.layers() } -> std::convertible_to<Index>;
  cache.write(layer, keys, values);
};

PEFT_END_NAMESPACE
