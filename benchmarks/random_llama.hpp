#pragma once
/// A Llama of SmolLM2-135M's shape with random weights: what a step or a token costs does not depend on their values.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/core/rng.hpp"
#include "peft/gguf_linear.hpp"
#include "peft/lora_config.hpp"
#include "peft/nf4_linear.hpp"

namespace peft_benchmarks {

using peft::Index;

inline peft_examples::LlamaConfig smollm2_135m() {
  peft_examples::LlamaConfig config;
  config.vocab_size = 49152;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_hidden_layers = 30;
  config.num_attention_heads = 9;
  config.num_key_value_heads = 3;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  config.rope_theta = 100000.0;
  return config;
}

/// Weights that every token passes, the head's among them.
inline Index weights_per_token(const peft_examples::LlamaConfig& c) {
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const Index per_layer = 2 * c.hidden_size * (query + key) + 3 * c.hidden_size * c.intermediate_size;
  return c.num_hidden_layers * per_layer + c.vocab_size * c.hidden_size;
}

/// How a random model's weights are kept: in the activations' type; or the layers' linears in NF4, quantised twice in blocks
/// of 64, and embedding and head as they are, in bf16, or in a GGUF's blocks of 8 bits (Q8_0).
enum class Kept { kDense, kNf4, kNf4WithBf16Table, kNf4WithQ8Table };

/// Values in blocks of 32 whole numbers and a scale.
inline peft::GgufTensor q8_0_of(peft::MatrixView<const float> values) {
  const peft::BlockFormatInfo& info = peft::info_of(peft::BlockFormat::kQ8_0);
  auto bytes = std::make_shared<peft::Buffer<std::uint8_t>>(values.rows * values.cols / info.elements * info.bytes);
  std::uint8_t* out = bytes->data();
  for (Index i = 0; i < values.rows; ++i) {
    for (Index j = 0; j < values.cols; j += info.elements, out += info.bytes) {
      const float* const x = values.row(i) + j;
      float most = 0;
      for (Index k = 0; k < info.elements; ++k) most = std::max(most, std::abs(x[k]));
      const peft::f16 scale(most / 127.0f);
      std::memcpy(out, &scale.bits, sizeof(scale.bits));
      for (Index k = 0; k < info.elements; ++k) {
        out[2 + k] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::lround(127.0f * x[k] / most)));
      }
    }
  }
  const peft::VectorView<const std::uint8_t> view = std::as_const(*bytes).view();
  return {peft::BlockFormat::kQ8_0, values.rows, values.cols, view, std::move(bytes)};
}

/// Weights uniform in ±0.04, norms one, head tied to the embedding.
template <peft::Scalar T>
peft_examples::Llama<T> random_llama(const peft_examples::LlamaConfig& config, Kept kept = Kept::kDense) {
  std::uint64_t stream = 0;
  const auto matrix = [&](Index rows, Index cols) {
    peft::Philox random(1, stream++);
    peft::Matrix<T> result(rows, cols);
    for (T& value : result.flat()) value = T(random.uniform(-0.04f, 0.04f));
    return result;
  };
  const auto ones = [&] {
    peft::Buffer<peft::Accumulator<T>> result(config.hidden_size);
    for (auto& value : result) value = 1;
    return result;
  };
  const auto linear = [&](Index out, Index in) {
    if constexpr (std::is_same_v<T, float>) {
      if (kept != Kept::kDense) {
        return peft::AnyLinear<T>(peft::Nf4Linear(peft::Nf4Tensor::quantize(matrix(out, in).view(), {.double_quant = true})));
      }
    }
    return peft::AnyLinear<T>(peft::DenseLinear<T>(matrix(out, in)));
  };
  const Index hidden = config.hidden_size, wide = config.intermediate_size;
  const Index query = config.num_attention_heads * config.head_dim, key = config.num_key_value_heads * config.head_dim;
  auto embedding = std::make_shared<const peft::Matrix<T>>(matrix(config.vocab_size, hidden));
  std::vector<peft_examples::LlamaLayerWeights<T>> layers;
  for (Index i = 0; i < config.num_hidden_layers; ++i) {
    layers.push_back({.input_layernorm = ones(),
                      .post_attention_layernorm = ones(),
                      .q_proj = linear(query, hidden),
                      .k_proj = linear(key, hidden),
                      .v_proj = linear(key, hidden),
                      .o_proj = linear(hidden, query),
                      .gate_proj = linear(wide, hidden),
                      .up_proj = linear(wide, hidden),
                      .down_proj = linear(hidden, wide)});
  }
  if constexpr (std::is_same_v<T, float>) {
    if (kept == Kept::kNf4WithBf16Table) {
      auto narrow = std::make_shared<peft::Matrix<peft::bf16>>(embedding->rows(), embedding->cols());
      for (Index i = 0; i < narrow->size(); ++i) narrow->data()[i] = peft::bf16(embedding->data()[i]);
      const peft::MatrixView<const peft::bf16> view = std::as_const(*narrow).view();
      return {config, peft::RowTable<T>(view, narrow), std::move(layers), ones(), peft::DenseLinear<peft::bf16>(view, narrow)};
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    if (kept == Kept::kNf4WithQ8Table) {
      peft::GgufTensor table = q8_0_of(embedding->view());
      return {config, peft::RowTable<T>(table), std::move(layers), ones(), peft::GgufLinear(table)};
    }
  }
  peft::DenseLinear<T> head(embedding->view(), embedding);
  return {config, embedding, std::move(layers), ones(), std::move(head)};
}

/// r = 8, alpha = 32, dropout 0.05 on q_proj and v_proj, or on all linears.
inline peft::LoraConfig lora_of(bool all_linears) {
  peft::LoraConfig config;
  config.r = 8;
  config.lora_alpha = 32;
  config.lora_dropout = 0.05f;
  if (all_linears) {
    config.target_modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  } else {
    config.target_modules = {"q_proj", "v_proj"};
  }
  return config;
}

}  // namespace peft_benchmarks
