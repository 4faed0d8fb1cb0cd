#pragma once
/// The tiny Llama of make_prompt_learning.py, its batch, and its cases.

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/io/safetensors.hpp"
#include "support/catch.hpp"

namespace prompt_test {

using namespace peft;
using peft_examples::Llama;
using peft_examples::LlamaConfig;
using peft_examples::LlamaLayerWeights;

inline const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/prompt_learning/";
inline constexpr Index kVocabulary = 96;

inline nlohmann::json read_json(const std::string& path) {
  nlohmann::json json;
  std::ifstream(path) >> json;
  return json;
}

template <class T>
Matrix<T> matrix(const SafetensorsFile& file, const std::string& name) {
  const TensorRef* tensor = file.find(name);
  INFO(name);
  REQUIRE(tensor != nullptr);
  const Matrix<float> values = tensor->to_matrix();
  Matrix<T> result(values.rows(), values.cols());
  for (Index i = 0; i < values.size(); ++i) result.flat()[i] = static_cast<T>(values.flat()[i]);
  return result;
}

template <class T>
Buffer<Accumulator<T>> vector(const SafetensorsFile& file, const std::string& name) {
  const auto values = matrix<Accumulator<T>>(file, name);
  Buffer<Accumulator<T>> result(values.size());
  std::copy_n(values.data(), values.size(), result.data());
  return result;
}

inline LlamaConfig tiny_config() {
  LlamaConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  return config;
}

/// change(layer, name, weight): what else a linear's weight is to be.
template <Scalar T, class Change>
Llama<T> tiny_llama(Change&& change) {
  const SafetensorsFile file = SafetensorsFile::open(kFolder + "base.safetensors");
  auto embedding = std::make_shared<const Matrix<T>>(matrix<T>(file, "model.embed_tokens.weight"));
  std::vector<LlamaLayerWeights<T>> layers;
  for (int i = 0; i < 2; ++i) {
    const std::string path = "model.layers." + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name) {
      Matrix<T> weight = matrix<T>(file, path + name + ".weight");
      change(Index{i}, name, weight);
      return AnyLinear<T>(DenseLinear<T>(std::move(weight)));
    };
    layers.push_back({vector<T>(file, path + "input_layernorm.weight"),
                      vector<T>(file, path + "post_attention_layernorm.weight"), linear("self_attn.q_proj"),
                      linear("self_attn.k_proj"), linear("self_attn.v_proj"), linear("self_attn.o_proj"),
                      linear("mlp.gate_proj"), linear("mlp.up_proj"), linear("mlp.down_proj")});
  }
  const MatrixView<const T> head = *embedding;
  return Llama<T>(tiny_config(), embedding, std::move(layers), vector<T>(file, "model.norm.weight"),
                  DenseLinear<T>(head, embedding));
}
template <Scalar T>
Llama<T> tiny_llama() {
  return tiny_llama<T>([](Index, const std::string&, Matrix<T>&) {});
}

inline PackedBatch tiny_batch() {
  const nlohmann::json json = read_json(kFolder + "batch.json");
  PackedBatch batch;
  batch.ids = json["ids"].get<std::vector<std::int32_t>>();
  batch.targets = json["targets"].get<std::vector<std::int32_t>>();
  for (const Index n : json["lengths"].get<std::vector<Index>>()) {
    for (Index i = 0; i < n; ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.offsets.push_back(batch.offsets.back() + n);
  }
  return batch;
}

template <class M>
void zero_grads(M& model) {
  model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill(grad.begin(), grad.end(), 0); });
}

/// ‖got − expected‖ / ‖expected‖.
template <class T, class U>
double distance(VectorView<T> got, VectorView<U> expected) {
  REQUIRE(got.size == expected.size);
  double difference = 0, norm = 0;
  for (Index i = 0; i < got.size; ++i) {
    const auto g = static_cast<double>(got[i]), e = static_cast<double>(expected[i]);
    difference += (g - e) * (g - e);
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

}  // namespace prompt_test
