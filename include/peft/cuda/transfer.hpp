#pragma once
/// Copies between the host's views and the device's, with the type changed on the host where the two differ (rounded once, to
/// nearest even, as the CPU's kernels do). Both wait until the copy is done; neither belongs into a captured graph.

#include <vector>

#include "peft/core/view.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/check.hpp"
#include "peft/cuda/device_view.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace detail {

template <class To, class From>
To converted(From value) noexcept {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else {
    return static_cast<To>(static_cast<float>(value));
  }
}

/// [rows, bytes] from one place to another, either on the device.
inline void copy_rows(void* to, Index to_stride, const void* from, Index from_stride, Index row_bytes, Index rows,
                      cudaMemcpyKind kind, cudaStream_t stream, std::string_view who) {
  const auto size = [](Index value) { return static_cast<std::size_t>(value); };
  check(cudaMemcpy2DAsync(to, size(to_stride), from, size(from_stride), size(row_bytes), size(rows), kind, stream),
        "{}: {} rows of {} bytes", who, rows, row_bytes);
  check(cudaStreamSynchronize(stream), "{}: waiting for the copy of {} rows of {} bytes", who, rows, row_bytes);
}

}  // namespace detail

/// to = from. Throws ShapeError, CudaError.
template <Scalar From, Scalar To>
void upload(MatrixView<const From> from, DeviceMatrixView<To> to, cudaStream_t stream, std::string_view what = "the matrix") {
  detail::check_shape("cuda::upload", what, to, from.rows, from.cols);
  if (from.empty()) return;
  constexpr auto kSize = static_cast<Index>(sizeof(To));
  if constexpr (std::is_same_v<From, To>) {
    // A single row may have any stride, also one that the copy would refuse.
    const Index stride = from.rows > 1 ? from.stride : from.cols, to_stride = to.rows > 1 ? to.stride : to.cols;
    detail::copy_rows(to.data, to_stride * kSize, from.data, stride * kSize, from.cols * kSize, from.rows,
                      cudaMemcpyHostToDevice, stream, "cuda::upload");
  } else {
    std::vector<To> rows(static_cast<std::size_t>(from.rows * from.cols));
    for (Index i = 0; i < from.rows; ++i) {
      for (Index j = 0; j < from.cols; ++j)
        rows[static_cast<std::size_t>(i * from.cols + j)] = detail::converted<To>(from(i, j));
    }
    upload<To, To>(MatrixView<const To>(rows.data(), from.rows, from.cols), to, stream, what);
  }
}
template <Scalar From, Scalar To>
void upload(MatrixView<From> from, DeviceMatrixView<To> to, cudaStream_t stream, std::string_view what = "the matrix") {
  upload<From, To>(MatrixView<const From>(from), to, stream, what);
}

/// to = from. Throws ShapeError, CudaError.
template <Scalar From, Scalar To>
void download(DeviceMatrixView<const From> from, MatrixView<To> to, cudaStream_t stream, std::string_view what = "the matrix") {
  detail::check_shape("cuda::download", what, from, to.rows, to.cols);
  if (to.empty()) return;
  constexpr auto kSize = static_cast<Index>(sizeof(From));
  if constexpr (std::is_same_v<From, To>) {
    const Index stride = to.rows > 1 ? to.stride : to.cols, from_stride = from.rows > 1 ? from.stride : from.cols;
    detail::copy_rows(to.data, stride * kSize, from.data, from_stride * kSize, to.cols * kSize, to.rows,
                      cudaMemcpyDeviceToHost, stream, "cuda::download");
  } else {
    std::vector<From> rows(static_cast<std::size_t>(to.rows * to.cols));
    download<From, From>(from, MatrixView<From>(rows.data(), to.rows, to.cols), stream, what);
    for (Index i = 0; i < to.rows; ++i) {
      for (Index j = 0; j < to.cols; ++j) to(i, j) = detail::converted<To>(rows[static_cast<std::size_t>(i * to.cols + j)]);
    }
  }
}
template <Scalar From, Scalar To>
void download(DeviceMatrixView<From> from, MatrixView<To> to, cudaStream_t stream, std::string_view what = "the matrix") {
  download<From, To>(DeviceMatrixView<const From>(from), to, stream, what);
}

/// The same for runs of elements of any type, as they are.
template <class T>
void upload(VectorView<const T> from, DeviceVectorView<T> to, cudaStream_t stream, std::string_view what = "the vector") {
  if (from.size != to.size) {
    fail<ShapeError>("cuda::upload: {} has {} elements; expected {}", what, from.size, to.size);
  }
  if (from.empty()) return;
  const Index bytes = from.size * static_cast<Index>(sizeof(T));
  detail::copy_rows(to.data, bytes, from.data, bytes, bytes, 1, cudaMemcpyHostToDevice, stream, "cuda::upload");
}
template <class T>
void download(DeviceVectorView<const T> from, VectorView<T> to, cudaStream_t stream, std::string_view what = "the vector") {
  if (from.size != to.size) {
    fail<ShapeError>("cuda::download: {} has {} elements; expected {}", what, from.size, to.size);
  }
  if (from.empty()) return;
  const Index bytes = from.size * static_cast<Index>(sizeof(T));
  detail::copy_rows(to.data, bytes, from.data, bytes, bytes, 1, cudaMemcpyDeviceToHost, stream, "cuda::download");
}

}  // namespace cuda
PEFT_END_NAMESPACE
