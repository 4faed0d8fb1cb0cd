#pragma once
/// What every linear layer on the GPU does with its operands and with the low-rank terms that its own kernel does not take.

#include <span>
#include <string_view>

#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/linear.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda::detail {

/// Throws ShapeError unless x is [rows, in], y [rows, out] and they are apart.
template <class L, class T>
void check_forward(std::string_view who, const L& layer, DeviceMatrixView<const T> x, DeviceMatrixView<T> y) {
  check_shape(who, "x", x, x.rows, layer.in_features());
  check_shape(who, "y", y, x.rows, layer.out_features());
  check_no_alias(who, "y", y, "x", x);
}
/// Throws ShapeError unless a bias has `out` elements or none.
template <class L, class T>
void check_bias(std::string_view who, const L& layer, DeviceVectorView<const T> bias) {
  if (bias.empty() || bias.size == layer.out_features()) return;
  fail<ShapeError>("{}: the bias has {} elements; expected {} or none", who, bias.size, Index{layer.out_features()});
}
/// Throws ShapeError unless dy is [rows, out], dx [rows, in] and they are apart.
template <class L, class T>
void check_backward(std::string_view who, const L& layer, DeviceMatrixView<const T> dy, DeviceMatrixView<T> dx) {
  check_shape(who, "dy", dy, dy.rows, layer.out_features());
  check_shape(who, "dx", dx, dy.rows, layer.in_features());
  check_no_alias(who, "dx", dx, "dy", dy);
}
/// Throws ShapeError unless the term is over rows of y and its factors fit.
template <class L, class T>
void check_term(std::string_view who, const L& layer, const DeviceLowRankTerm<T>& term, DeviceMatrixView<T> y) {
  if (term.first_row < 0 || term.rows < 0 || term.rows > y.rows - term.first_row) {
    fail<ShapeError>("{}: a term over rows {} to {}; expected rows within 0 to {}", who, term.first_row,
                     term.first_row + term.rows, y.rows);
  }
  check_shape(who, "S", term.s, term.rows, term.b.cols);
  check_shape(who, "B", term.b, layer.out_features(), term.s.cols);
}

/// y += Σ scale·S·Bᵀ, by cuBLASLt.
template <class L, class T>
void add_terms(std::string_view who, const L& layer, std::span<const DeviceLowRankTerm<T>> terms, DeviceMatrixView<T> y,
               Context& context) {
  for (const DeviceLowRankTerm<T>& term : terms) {
    check_term(who, layer, term, y);
    if (term.rows == 0 || term.s.cols == 0) continue;
    context.matmul()(Transpose::kNo, term.s, Transpose::kYes, term.b, term.scale, 1.0f, static_cast<const T*>(nullptr),
                     y.row_range(term.first_row, term.rows), context.stream());
  }
}

/// The term with a dropout mask, terms.size() where none has one. Throws ShapeError where factors do not fit, ConfigError for
/// more than one mask.
template <class L, class T>
std::size_t masked_term(std::string_view who, const L& layer, Index rows, std::span<const DeviceInputGradTerm<T>> terms) {
  std::size_t masked = terms.size();
  for (std::size_t i = 0; i < terms.size(); ++i) {
    check_shape(who, "dS", terms[i].ds, rows, terms[i].a.rows);
    check_shape(who, "A", terms[i].a, terms[i].a.rows, layer.in_features());
    if (terms[i].mask.bits == nullptr) continue;
    if (masked != terms.size()) {
      fail<ConfigError>("{}: terms {} and {} both have a dropout mask; expected one at most", who, masked, i);
    }
    masked = i;
  }
  return masked;
}
/// dx += Σ dS·A, by cuBLASLt, but for the term `done`.
template <class T>
void add_input_grad_terms(std::span<const DeviceInputGradTerm<T>> terms, std::size_t done, DeviceMatrixView<T> dx,
                          Context& context) {
  for (std::size_t i = 0; i < terms.size(); ++i) {
    if (i == done) continue;
    context.matmul()(Transpose::kNo, terms[i].ds, Transpose::kNo, terms[i].a, 1.0f, 1.0f, static_cast<const T*>(nullptr), dx,
                     context.stream());
  }
}

}  // namespace cuda::detail
PEFT_END_NAMESPACE
