#pragma once
/// Non-owning views of a GPU's memory: MatrixView's and VectorView's twins, of other types, so that a pointer of one side
/// cannot be read on the other. Row-major; a row's elements are contiguous.

#include <cstdint>
#include <type_traits>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// A contiguous run of `size` elements on the device.
template <class T>
struct DeviceVectorView {
  T* data = nullptr;
  Index size = 0;

  constexpr DeviceVectorView() noexcept = default;
  constexpr DeviceVectorView(T* pointer, Index count) noexcept : data(pointer), size(count) {}
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr DeviceVectorView(DeviceVectorView<U> other) noexcept : data(other.data), size(other.size) {}

  constexpr bool empty() const noexcept { return size == 0; }
  constexpr DeviceVectorView slice(Index first, Index count) const noexcept { return {data + first, count}; }
};

/// `rows` × `cols` elements on the device; element (i, j) stands at data[i*stride + j]. `spare` columns stand behind each
/// row, cols + spare ≤ stride: whoever is given the view may overwrite them, also where its elements are const. A product
/// over K columns becomes one over K + r there: [x | S]·[W | s·B]ᵀ.
template <class T>
struct DeviceMatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;
  Index spare = 0;

  constexpr DeviceMatrixView() noexcept = default;
  constexpr DeviceMatrixView(T* pointer, Index row_count, Index column_count) noexcept
      : data(pointer), rows(row_count), cols(column_count), stride(column_count) {}
  constexpr DeviceMatrixView(T* pointer, Index row_count, Index column_count, Index row_stride,
                             Index spare_columns = 0) noexcept
      : data(pointer), rows(row_count), cols(column_count), stride(row_stride), spare(spare_columns) {}
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr DeviceMatrixView(DeviceMatrixView<U> other) noexcept
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride), spare(other.spare) {}

  constexpr bool empty() const noexcept { return rows == 0 || cols == 0; }
  constexpr T* row(Index i) const noexcept { return data + i * stride; }
  /// Rows [first, first + count).
  constexpr DeviceMatrixView row_range(Index first, Index count) const noexcept {
    return {data + first * stride, count, cols, stride, spare};
  }
  /// Columns [first, first + count).
  constexpr DeviceMatrixView column_range(Index first, Index count) const noexcept {
    return {data + first, rows, count, stride};
  }
  /// The first `count` of the spare columns, count ≤ spare.
  constexpr DeviceMatrixView<std::remove_const_t<T>> spare_columns(Index count) const noexcept {
    return {const_cast<std::remove_const_t<T>*>(data) + cols, rows, count, stride};
  }
  /// The matrix with the first `count` of its spare columns.
  constexpr DeviceMatrixView widened(Index count) const noexcept {
    return {data, rows, cols + count, stride, spare - count};
  }
};

/// Whether rows begin at multiples of `bytes`.
template <class T>
bool is_aligned(DeviceMatrixView<T> view, std::size_t bytes) noexcept {
  const std::size_t row = static_cast<std::size_t>(view.stride) * sizeof(T);
  return reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0 && (view.rows <= 1 || row % bytes == 0);
}

}  // namespace cuda
PEFT_END_NAMESPACE
