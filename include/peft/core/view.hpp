#pragma once
/// Non-owning views of rows and matrices: pointer, sizes, row stride. Row-major; a row's elements are contiguous.

#include <type_traits>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// A contiguous run of `size` elements.
template <class T>
struct VectorView {
  T* data = nullptr;
  Index size = 0;

  constexpr VectorView() noexcept = default;
  constexpr VectorView(T* pointer, Index count) noexcept : data(pointer), size(count) {}
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr VectorView(VectorView<U> other) noexcept : data(other.data), size(other.size) {}

  constexpr T& operator[](Index i) const noexcept { return data[i]; }
  constexpr T* begin() const noexcept { return data; }
  constexpr T* end() const noexcept { return data + size; }
  constexpr bool empty() const noexcept { return size == 0; }
  constexpr VectorView slice(Index first, Index count) const noexcept { return {data + first, count}; }
};

/// `rows` × `cols` elements; element (i, j) stands at data[i*stride + j]; stride ≥ cols.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;

  constexpr MatrixView() noexcept = default;
  constexpr MatrixView(T* pointer, Index row_count, Index column_count) noexcept
      : data(pointer), rows(row_count), cols(column_count), stride(column_count) {}
  constexpr MatrixView(T* pointer, Index row_count, Index column_count, Index row_stride) noexcept
      : data(pointer), rows(row_count), cols(column_count), stride(row_stride) {}
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr MatrixView(MatrixView<U> other) noexcept
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  constexpr T& operator()(Index i, Index j) const noexcept { return data[i * stride + j]; }
  constexpr T* row(Index i) const noexcept { return data + i * stride; }
  constexpr bool empty() const noexcept { return rows == 0 || cols == 0; }
  constexpr bool is_contiguous() const noexcept { return stride == cols || rows <= 1; }
  /// Rows [first, first + count).
  constexpr MatrixView row_range(Index first, Index count) const noexcept {
    return {data + first * stride, count, cols, stride};
  }
  /// Columns [first, first + count).
  constexpr MatrixView column_range(Index first, Index count) const noexcept {
    return {data + first, rows, count, stride};
  }
};

PEFT_END_NAMESPACE
