#pragma once
/// Checks of device views that every entry point makes before a kernel sees a pointer.

#include <string_view>

#include "peft/cuda/device_view.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda::detail {

/// Throws ShapeError unless `view` is [rows, cols] with rows that do not overlap, and has memory where it has elements.
template <class T>
void check_shape(std::string_view who, std::string_view what, DeviceMatrixView<T> view, Index rows, Index cols) {
  if (view.rows != rows || view.cols != cols) {
    fail<ShapeError>("{}: {} is [{}, {}]; expected [{}, {}]", who, what, view.rows, view.cols, rows, cols);
  }
  if (view.rows > 1 && view.stride < view.cols + view.spare) {
    fail<ShapeError>("{}: {} has a row stride of {}; expected at least {}: {} columns and {} spare ones", who, what,
                     view.stride, view.cols + view.spare, view.cols, view.spare);
  }
  if (view.data == nullptr && !view.empty()) {
    fail<ShapeError>("{}: {} [{}, {}] has no memory; expected a device pointer", who, what, rows, cols);
  }
}

/// Throws ShapeError where `result` begins within `operand` or the other way round.
template <class A, class B>
void check_no_alias(std::string_view who, std::string_view what, DeviceMatrixView<A> result, std::string_view other,
                    DeviceMatrixView<B> operand) {
  if (result.empty() || operand.empty()) return;
  const auto begin = [](const auto& view) { return reinterpret_cast<std::uintptr_t>(view.data); };
  const auto end = [&](const auto& view) {
    return begin(view) + static_cast<std::uintptr_t>((view.rows - 1) * view.stride + view.cols) * sizeof(*view.data);
  };
  if (begin(result) < end(operand) && begin(operand) < end(result)) {
    fail<ShapeError>("{}: {} and {} share memory; expected {} apart from what it is computed from", who, what, other, what);
  }
}

}  // namespace cuda::detail
PEFT_END_NAMESPACE
