#pragma once
/// The weights of a Llama as a loader hands them over: each in the storage that was chosen when it was read.

#include <memory>
#include <utility>

#include "hosts/names.hpp"
#include "peft/any_linear.hpp"
#include "peft/row_table.hpp"

namespace peft_examples {

/// Norms are vectors [hidden]; q_norm and k_norm [head_dim], or empty where the model has none; each linear's weight is
/// [out, in].
template <Scalar T>
struct LlamaLayerWeights {
  Buffer<Accumulator<T>> input_layernorm, post_attention_layernorm;
  peft::AnyLinear<T> q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
  Buffer<Accumulator<T>> q_norm = {}, k_norm = {};
};

/// The language-model head in any storage. Both layers are one: `wide` takes activations of A, in which logits are computed.
template <Scalar T>
struct LlamaHeadWeights {
  template <peft::LinearLike<T> L>
  LlamaHeadWeights(L given)  // NOLINT(google-explicit-constructor): a layer is one
      : layer(std::move(given)), wide(peft::AnyLinear<Accumulator<T>>::borrow(*layer.template get_if<L>())) {
    if constexpr (requires(const L& l) { l.weight().data; }) {
      address = layer.template get_if<L>()->weight().data;
    } else {
      address = layer.template get_if<L>()->weight().bytes().data;
    }
  }

  peft::AnyLinear<T> layer;
  peft::AnyLinear<Accumulator<T>> wide;
  const void* address = nullptr;  ///< of its weight: the embedding's where they are tied
};

/// A matrix in memory that `owner` keeps: its own, or a mapped file's.
template <Scalar T>
struct SharedMatrix {
  SharedMatrix() = default;
  SharedMatrix(MatrixView<const T> values, std::shared_ptr<const void> keep_alive)
      : view(values), owner(std::move(keep_alive)) {}
  SharedMatrix(std::shared_ptr<const Matrix<T>> matrix)  // NOLINT(google-explicit-constructor)
      : view(matrix->view()), owner(std::move(matrix)) {}

  MatrixView<const T> view;
  std::shared_ptr<const void> owner;
};

}  // namespace peft_examples
