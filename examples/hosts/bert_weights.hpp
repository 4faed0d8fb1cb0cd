#pragma once
/// The weights of a BERT as a loader hands them over.

#include <optional>
#include <vector>

#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/any_linear.hpp"

namespace peft_examples {

/// Weight and bias of a layer norm [hidden].
template <Scalar T>
struct BertNormWeights {
  Buffer<Accumulator<T>> weight, bias;
};

/// Each linear's weight is [out, in], with a bias [out].
template <Scalar T>
struct BertLayerWeights {
  peft::AnyLinear<T> query, key, value, attention_output;
  BertNormWeights<T> attention_norm;
  peft::AnyLinear<T> intermediate, output;
  BertNormWeights<T> output_norm;
};

template <Scalar T>
struct BertWeights {
  SharedMatrix<T> word_embeddings;        ///< [vocab, hidden]
  SharedMatrix<T> position_embeddings;    ///< [max positions, hidden]
  SharedMatrix<T> token_type_embeddings;  ///< [types, hidden]
  BertNormWeights<T> embedding_norm;
  std::vector<BertLayerWeights<T>> layers;
  std::optional<peft::AnyLinear<T>> pooler;  ///< [hidden, hidden]; some encoders come without
};

}  // namespace peft_examples
