#pragma once
/// A row-major matrix in a GPU's memory. Rows begin at multiples of 16 bytes, as 128-bit loads and cuBLASLt's fast kernels
/// want, and may have spare columns behind them (device_view.hpp).

#include <utility>

#include "peft/cuda/buffer.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// The least stride ≥ `columns` whose rows begin at multiples of 16 bytes.
template <class T>
constexpr Index aligned_stride(Index columns) noexcept {
  constexpr Index kPart = 16 / static_cast<Index>(sizeof(T));
  return (columns + kPart - 1) / kPart * kPart;
}

/// Owns [rows, cols] and `spare` columns more.
template <class T>
class DeviceMatrix {
 public:
  DeviceMatrix() noexcept = default;
  /// Not initialised. Throws ShapeError for negative or too large sizes, CudaError.
  DeviceMatrix(Index rows, Index cols, Index spare = 0) : rows_(rows), cols_(cols), spare_(spare) {
    if (rows < 0 || cols < 0 || spare < 0) {
      fail<ShapeError>("DeviceMatrix: [{}, {}] with {} spare columns; expected sizes from 0", rows, cols, spare);
    }
    stride_ = aligned_stride<T>(cols + spare);
    Index count = 0;
    if (__builtin_mul_overflow(rows, stride_, &count)) {
      fail<ShapeError>("DeviceMatrix: [{}, {}] with {} spare columns; expected a size that can be addressed", rows, cols,
                       spare);
    }
    memory_ = DeviceBuffer<T>(count);
  }

  Index rows() const noexcept { return rows_; }
  Index cols() const noexcept { return cols_; }
  Index stride() const noexcept { return stride_; }
  Index spare() const noexcept { return spare_; }
  bool empty() const noexcept { return rows_ == 0 || cols_ == 0; }
  Index byte_size() const noexcept { return memory_.byte_size(); }
  T* data() noexcept { return memory_.data(); }
  const T* data() const noexcept { return memory_.data(); }
  DeviceMatrixView<T> view() noexcept { return {memory_.data(), rows_, cols_, stride_, spare_}; }
  DeviceMatrixView<const T> view() const noexcept { return {memory_.data(), rows_, cols_, stride_, spare_}; }

  /// Another number of rows; memory is taken anew, and content lost, only where there were never so many. Throws CudaError.
  void resize_rows_discard(Index rows) {
    Index count = 0;
    if (rows < 0 || __builtin_mul_overflow(rows, stride_, &count)) {
      fail<ShapeError>("DeviceMatrix: {} rows of {}; expected a size that can be addressed", rows, stride_);
    }
    memory_.resize_discard(count);
    rows_ = rows;
  }
  /// All 0, spare columns too. Throws CudaError.
  void fill_zero(cudaStream_t stream) { memory_.fill_zero(stream); }

 private:
  DeviceBuffer<T> memory_;
  Index rows_ = 0, cols_ = 0, stride_ = 0, spare_ = 0;
};

}  // namespace cuda
PEFT_END_NAMESPACE
