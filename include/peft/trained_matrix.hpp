#pragma once
/// A parameter with its gradient: value [rows, cols] and, from the moment that something asks for it, grad of that shape.

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// A: float, or double. A matrix, or a vector (`dimensions` 1, kept as one row), as the adapter's file has it.
template <std::floating_point A>
class TrainedMatrix {
 public:
  TrainedMatrix() = default;
  explicit TrainedMatrix(Matrix<A> value, int dimensions = 2)
      : value_(std::move(value)), dimensions_(dimensions), has_shape_(value_.rows() + value_.cols() > 0) {}
  static TrainedMatrix zeros(Index rows, Index cols) { return TrainedMatrix(Matrix<A>::zeros(rows, cols)); }
  static TrainedMatrix vector(Index size) { return TrainedMatrix(Matrix<A>::zeros(1, size), 1); }

  /// A frozen one is saved, but no optimizer sees it.
  void freeze() noexcept { trained_ = false; }
  bool is_trained() const noexcept { return trained_; }

  bool empty() const noexcept { return value_.empty(); }
  Index size() const noexcept { return value_.size(); }
  Matrix<A>& value() noexcept { return value_; }
  const Matrix<A>& value() const noexcept { return value_; }
  VectorView<const A> flat() const noexcept { return value_.flat(); }
  /// Zero until added to.
  Matrix<A>& grad() {
    if (grad_.empty()) grad_ = Matrix<A>::zeros(value_.rows(), value_.cols());
    return grad_;
  }
  void zero_grad() noexcept { grad_.fill_zero(); }

  /// visit(ParameterInfo, value, grad) under `prefix` + `name`; without `with_grad` no gradient is made and the view of
  /// it is empty. Nothing where there is no matrix; with gradients nothing where it is frozen.
  template <class Visitor>
  void visit(Visitor&& visitor, std::string_view prefix, std::string_view name, ParameterRole role, bool decay,
             bool with_grad) {
    if ((empty() && !has_shape_) || (with_grad && !trained_)) return;
    std::string full(prefix);
    full += name;
    const ParameterInfo info{full, role, decay, value_.rows(), value_.cols(), dimensions_, trained_};
    visitor(info, value_.flat(), with_grad ? grad().flat() : VectorView<A>());
  }

 private:
  Matrix<A> value_;
  Matrix<A> grad_;
  int dimensions_ = 2;
  bool trained_ = true;
  bool has_shape_ = false;
};

PEFT_END_NAMESPACE
