#pragma once
/// Weights out of a file's tensors. One that is stored as the wanted type, or that is to stay as the file has it, is used where
/// it stands in the mapped file; others are converted row by row, and the file's pages are given back as soon as they are
/// read, so that a model on its way into memory needs little more than itself.

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "hosts/llama_weights.hpp"
#include "hosts/model_source.hpp"
#include "hosts/names.hpp"
#include "hosts/weight_storage.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/checkpoint/gguf_blocks.hpp"
#include "peft/core/parallel.hpp"
#include "peft/dense_linear.hpp"
#include "peft/gguf_linear.hpp"
#include "peft/int8_linear.hpp"
#include "peft/io/tensor_ref.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/nf4_linear.hpp"

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

/// The head's width where the rows of a tensor, by its name, stand in llama.cpp's order; else 0.
inline Index head_dim_of(const ModelSource& source, std::string_view name) noexcept {
  const bool has_heads = name.find(".self_attn.q_proj.") != name.npos || name.find(".self_attn.k_proj.") != name.npos;
  return source.permuted_heads && has_heads ? source.config.head_dim : 0;
}
/// A matrix as the file has it, in float, rows in Hugging Face's order. Throws FormatError.
inline Matrix<float> original_weight(const ModelSource& source, const std::string& name,
                                     ExecutorRef executor = peft::default_executor()) {
  return detail::copy_matrix<float>(source.tensor(name), head_dim_of(source, name), executor);
}

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

namespace detail {

/// A layer over a weight of the type W, in place where its rows are in order; added: its bias.
template <Scalar W>
peft::DenseLinear<W> dense_linear(const peft::TensorRef& weight, Buffer<Accumulator<W>> added, Index head_dim,
                                  ExecutorRef executor) {
  if (head_dim == 0 && weight.has_view<W>()) return peft::DenseLinear<W>(weight.view<W>(), weight.file, std::move(added));
  return peft::DenseLinear<W>(copy_matrix<W>(weight, head_dim, executor), std::move(added));
}

/// A layer over four bits, with activations in 8 bits where they are asked for.
template <peft::FourBitCode kCode>
peft::FourBitLinear<kCode> four_bit_linear(peft::FourBitTensor<kCode> weight, Buffer<float> added, const WeightStorage& storage) {
  peft::FourBitLinear<kCode> layer(std::move(weight), std::move(added));
  if (storage.int8_activations) layer.use_int8_activations();
  return layer;
}

/// Calls make with the layer over a weight as the file has it. Rows of q and k are put in order in their blocks.
template <class Make>
auto with_stored_linear(const peft::TensorRef& weight, Buffer<float> added, Index head_dim, ExecutorRef executor,
                        Make&& make) {
  if (peft::block_format_of(weight.type)) {
    peft::GgufTensor blocks = peft::gguf_tensor(weight);
    if (head_dim > 0) blocks = blocks.with_rows([&](Index i) { return permuted_row(i, head_dim); });
    return make(peft::GgufLinear(std::move(blocks), std::move(added)));
  }
  if (weight.type == peft::StoredType::kF16) return make(dense_linear<peft::f16>(weight, std::move(added), head_dim, executor));
  if (weight.type == peft::StoredType::kBF16) return make(dense_linear<peft::bf16>(weight, std::move(added), head_dim, executor));
  return make(dense_linear<float>(weight, std::move(added), head_dim, executor));
}

template <peft::FourBitCode kCode>
peft::FourBitLinear<kCode> quantized_linear(const peft::TensorRef& weight, Buffer<float> added, Index head_dim,
                                            const WeightStorage& storage, ExecutorRef executor) {
  const Matrix<float> values = copy_matrix<float>(weight, head_dim, executor);
  return four_bit_linear<kCode>(
      peft::FourBitTensor<kCode>::quantize(values.view(), {.block_size = storage.block_size, .double_quant = storage.double_quant},
                                           executor),
      std::move(added), storage);
}

}  // namespace detail

/// A linear layer [rows, cols], with a bias where `bias` is one. `head_dim` as above. Throws ShapeError, FormatError, and
/// ConfigError for a block size that does not exist.
template <Scalar T>
peft::AnyLinear<T> read_linear(const peft::TensorRef& weight, const peft::TensorRef* bias, Index rows, Index cols,
                               Index head_dim, const WeightStorage& storage, ExecutorRef executor) {
  check_shape(weight, {rows, cols});
  Buffer<Accumulator<T>> added;
  if (bias != nullptr) added = read_vector<Accumulator<T>>(*bias, rows, head_dim);
  if constexpr (!std::is_same_v<T, double>) {
    switch (storage.kind) {
      case WeightStorage::Kind::kActivations:
        break;
      case WeightStorage::Kind::kFile:
        if (storage.int8_activations) {
          peft::fail<peft::ConfigError>("{}: activations in 8 bits over a weight in {}; expected one in four bits (a folder that "
                                        "bitsandbytes or peft quantize wrote), or --dtype nf4",
                                        weight.where(), peft::name_of(weight.type));
        }
        return detail::with_stored_linear(weight, std::move(added), head_dim, executor,
                                          [](auto layer) { return peft::AnyLinear<T>(std::move(layer)); });
      case WeightStorage::Kind::kNf4:
        return detail::quantized_linear<peft::FourBitCode::kNf4>(weight, std::move(added), head_dim, storage, executor);
      case WeightStorage::Kind::kFp4:
        return detail::quantized_linear<peft::FourBitCode::kFp4>(weight, std::move(added), head_dim, storage, executor);
      case WeightStorage::Kind::kInt8: {
        const Matrix<float> values = detail::copy_matrix<float>(weight, head_dim, executor);
        return peft::Int8Linear(peft::Int8Tensor::quantize(values.view(), executor), std::move(added));
      }
    }
  }
  return detail::dense_linear<T>(weight, std::move(added), head_dim, executor);
}

/// A linear layer over a weight that the file has in four bits, in place; in memory where it is kept in the activations' type.
/// Throws ConfigError where it is to be quantised once more, ShapeError.
template <Scalar T>
peft::AnyLinear<T> read_linear(const peft::AnyFourBitTensor& weight, const peft::TensorRef* bias, const WeightStorage& storage,
                               ExecutorRef executor) {
  return std::visit(
      [&]<peft::FourBitCode kCode>(const peft::FourBitTensor<kCode>& tensor) -> peft::AnyLinear<T> {
        Buffer<Accumulator<T>> added;
        if (bias != nullptr) added = read_vector<Accumulator<T>>(*bias, tensor.rows());
        if (storage.quantizes()) {
          peft::fail<peft::ConfigError>("the model's weights are in {} already; expected them as the file has them (--dtype "
                                        "native), or in memory (f32, bf16, f16)",
                                        peft::name_of(kCode));
        }
        if constexpr (!std::is_same_v<T, double>) {
          if (storage.keeps_file()) return detail::four_bit_linear<kCode>(tensor, std::move(added), storage);
          Matrix<T> values(tensor.rows(), tensor.cols());
          tensor.template dequantize<T>(values.view(), executor);
          return peft::DenseLinear<T>(std::move(values), std::move(added));
        } else {
          Matrix<float> values(tensor.rows(), tensor.cols());
          tensor.template dequantize<float>(values.view(), executor);
          Matrix<double> wide(tensor.rows(), tensor.cols());
          std::copy_n(values.data(), values.size(), wide.data());
          return peft::DenseLinear<double>(std::move(wide), std::move(added));
        }
      },
      weight);
}

/// An embedding's table [rows, cols]. Throws ShapeError, FormatError.
template <Scalar T>
peft::RowTable<T> read_table(const peft::TensorRef& tensor, Index rows, Index cols, const WeightStorage& storage,
                             ExecutorRef executor) {
  check_shape(tensor, {rows, cols});
  if constexpr (!std::is_same_v<T, double>) {
    if (storage.keeps_file()) {
      if (peft::block_format_of(tensor.type)) return peft::RowTable<T>(peft::gguf_tensor(tensor));
      if (tensor.has_view<float>()) return {tensor.view<float>(), tensor.file};
      if (tensor.has_view<peft::f16>()) return {tensor.view<peft::f16>(), tensor.file};
      if (tensor.has_view<peft::bf16>()) return {tensor.view<peft::bf16>(), tensor.file};
    }
  }
  SharedMatrix<T> matrix = read_matrix<T>(tensor, rows, cols, 0, executor);
  return {matrix.view, std::move(matrix.owner)};
}

/// The head [rows, cols]: over the embedding's own storage where `tensor` is the embedding's. Throws ShapeError, FormatError.
template <Scalar T>
LlamaHeadWeights<T> read_head(const peft::TensorRef& tensor, const peft::RowTable<T>& embedding, bool is_tied, Index rows,
                              Index cols, const WeightStorage& storage, ExecutorRef executor) {
  check_shape(tensor, {rows, cols});
  if (is_tied && embedding.is_in_memory()) return peft::DenseLinear<T>(embedding.view(), std::make_shared<peft::RowTable<T>>(embedding));
  if constexpr (!std::is_same_v<T, double>) {
    if (storage.keeps_file()) {
      return detail::with_stored_linear(tensor, {}, 0, executor,
                                        [](auto layer) { return LlamaHeadWeights<T>(std::move(layer)); });
    }
  }
  return detail::dense_linear<T>(tensor, {}, 0, executor);
}

}  // namespace peft_examples
