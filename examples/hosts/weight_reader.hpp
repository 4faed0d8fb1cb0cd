#pragma once
/// Weights out of a file's tensors. One that is stored as the wanted type is used where it stands in the mapped file;
/// others are converted row by row, and the file's pages are given back as soon as they are read, so that a model on its
/// way into memory needs little more than itself.

#include <memory>
#include <type_traits>
#include <utility>

#include "hosts/llama_weights.hpp"
#include "hosts/model_source.hpp"
#include "hosts/names.hpp"
#include "peft/core/parallel.hpp"
#include "peft/dense_linear.hpp"
#include "peft/io/tensor_ref.hpp"
#include "peft/kernels/convert.hpp"

namespace peft_examples {

/// The row of a Hugging Face model that row r of a GGUF's q or k is: llama.cpp rotates neighbouring rows of a head,
/// transformers its halves.
constexpr Index unpermuted_row(Index r, Index head_dim) noexcept {
  const Index inside = r % head_dim;
  return r - inside + inside % 2 * (head_dim / 2) + inside / 2;
}
/// The inverse of unpermuted_row.
constexpr Index permuted_row(Index r, Index head_dim) noexcept {
  const Index inside = r % head_dim, half = head_dim / 2;
  return r - inside + inside % half * 2 + inside / half;
}

namespace detail {

/// A copy in T. `head_dim` above 0: the rows are llama.cpp's q or k and are put back into halves.
template <Scalar T>
Matrix<T> copy_matrix(const peft::TensorRef& tensor, Index head_dim, ExecutorRef executor) {
  tensor.read_rows_f32(0, 0, nullptr);  // refuses a type that cannot be read, here and not in a task
  const Index rows = tensor.rows(), cols = tensor.cols();
  Matrix<T> result(rows, cols);
  constexpr Index kRows = 64;
  peft::parallel_for_ranges(executor, rows, kRows, [&](Index first, Index last) {
    Buffer<float> values(cols);
    for (Index r = first; r < last; ++r) {
      T* to = result.row(head_dim > 0 ? unpermuted_row(r, head_dim) : r);
      tensor.read_rows_f32(r, 1, values.data());
      if constexpr (std::is_same_v<T, double>) {
        for (Index c = 0; c < cols; ++c) to[c] = static_cast<double>(values[c]);
      } else {
        peft::kernels::convert(cols, values.data(), peft::DType::kF32, to, peft::dtype_of<T>());
      }
    }
  });
  if (tensor.file != nullptr) tensor.file->release(tensor.bytes);
  return result;
}

}  // namespace detail

/// A weight [rows, cols]. `head_dim` as above. Throws ShapeError, FormatError.
template <Scalar T>
SharedMatrix<T> read_matrix(const peft::TensorRef& tensor, Index rows, Index cols, Index head_dim, ExecutorRef executor) {
  check_shape(tensor, {rows, cols});
  if (head_dim == 0 && tensor.has_view<T>()) return {tensor.view<T>(), tensor.file};
  return std::make_shared<const Matrix<T>>(detail::copy_matrix<T>(tensor, head_dim, executor));
}

/// A vector [size] in A. `head_dim` as above: a bias of q or k. Throws ShapeError, FormatError.
template <class A>
Buffer<A> read_vector(const peft::TensorRef& tensor, Index size, Index head_dim = 0) {
  check_shape(tensor, {size});
  Buffer<float> values(size);
  tensor.read_f32(values.data());
  Buffer<A> result(size);
  for (Index i = 0; i < size; ++i) result[head_dim > 0 ? unpermuted_row(i, head_dim) : i] = static_cast<A>(values[i]);
  return result;
}

/// A linear layer [rows, cols], with a bias where `bias` is one. `head_dim` as above. Throws ShapeError, FormatError.
template <Scalar T>
peft::AnyLinear<T> read_linear(const peft::TensorRef& weight, const peft::TensorRef* bias, Index rows, Index cols,
                               Index head_dim, ExecutorRef executor) {
  check_shape(weight, {rows, cols});
  Buffer<Accumulator<T>> added;
  if (bias != nullptr) added = read_vector<Accumulator<T>>(*bias, rows, head_dim);
  if (head_dim == 0 && weight.has_view<T>()) return peft::DenseLinear<T>(weight.view<T>(), weight.file, std::move(added));
  return peft::DenseLinear<T>(detail::copy_matrix<T>(weight, head_dim, executor), std::move(added));
}

}  // namespace peft_examples
