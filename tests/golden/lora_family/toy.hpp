#pragma once
/// The toy model of make_lora_family.py: an embedding, two blocks (q_proj with a bias, v_proj without, down_proj, a norm),
/// a head; each part is called by itself.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/dense_linear.hpp"
#include "peft/io/json.hpp"
#include "peft/io/safetensors.hpp"
#include "support/catch.hpp"

namespace peft_test {

using namespace peft;

inline const std::filesystem::path kFamily = std::filesystem::path(PEFT_GOLDEN_DIR) / "lora_family";

inline Json read_golden(const std::string& name) {
  std::ifstream file(kFamily / name);
  REQUIRE(file.good());
  return Json::parse(file);
}

template <class A>
Matrix<A> matrix_of(const Json& values, Index rows, Index cols) {
  Matrix<A> result(rows, cols);
  REQUIRE(static_cast<Index>(values.size()) == rows * cols);
  for (Index i = 0; i < rows * cols; ++i) result.data()[i] = values[static_cast<std::size_t>(i)].get<A>();
  return result;
}

template <class T>
struct Toy {
  using A = Accumulator<T>;
  using W = std::conditional_t<std::is_same_v<T, double>, double, float>;

  std::vector<std::unique_ptr<AdaptedLinear<T>>> linears;
  std::vector<std::unique_ptr<AdaptedNorm<T>>> norms;
  std::vector<std::unique_ptr<AdaptedEmbedding<T>>> embeddings;
  std::vector<Matrix<A>> norm_values;
  std::vector<AdaptedLinear<T>*> linear_sites;
  std::vector<AdaptedNorm<T>*> norm_sites;
  std::vector<AdaptedEmbedding<T>*> embedding_sites;
  AdapterRegistry<T> registry;

  Toy() {
    const SafetensorsFile file = SafetensorsFile::open(kFamily / "base.safetensors");
    const auto get = [&]<class V>(const std::string& name, V) {
      const TensorRef* tensor = file.find(name);
      REQUIRE(tensor != nullptr);
      const Matrix<float> narrow = tensor->to_matrix();
      Matrix<V> result(narrow.rows(), narrow.cols());
      for (Index i = 0; i < narrow.size(); ++i) result.data()[i] = static_cast<V>(narrow.data()[i]);
      return result;
    };
    const auto linear = [&](const std::string& name, bool with_bias) {
      Buffer<A> bias;
      if (with_bias) {
        const Matrix<A> values = get(name + ".bias", A());
        bias = Buffer<A>(values.size());
        std::copy(values.flat().begin(), values.flat().end(), bias.begin());
      }
      linears.push_back(
          std::make_unique<AdaptedLinear<T>>(name, DenseLinear<W>(get(name + ".weight", W()), std::move(bias))));
      linear_sites.push_back(linears.back().get());
    };
    auto table = std::make_shared<Matrix<T>>(get("embed_tokens.weight", T()));
    embeddings.push_back(std::make_unique<AdaptedEmbedding<T>>("embed_tokens", std::as_const(*table).view(), table));
    embedding_sites.push_back(embeddings.back().get());
    norm_values.reserve(4);
    for (const std::string block : {"layers.0.", "layers.1."}) {
      linear(block + "q_proj", true);
      linear(block + "v_proj", false);
      linear(block + "down_proj", true);
      norm_values.push_back(get(block + "norm.weight", A()));
      norm_values.push_back(get(block + "norm.bias", A()));
      norms.push_back(std::make_unique<AdaptedNorm<T>>(block + "norm", std::as_const(norm_values[norm_values.size() - 2]).flat(),
                                                       std::as_const(norm_values.back()).flat()));
      norm_sites.push_back(norms.back().get());
    }
    linear("lm_head", false);
  }

  AdapterSites<T> sites() { return {linear_sites, embedding_sites, norm_sites}; }
  AdaptedLinear<T>* linear(const std::string& name) {
    for (AdaptedLinear<T>* site : linear_sites) {
      if (site->name() == name) return site;
    }
    return nullptr;
  }
  AdaptedNorm<T>* norm(const std::string& name) {
    for (AdaptedNorm<T>* site : norm_sites) {
      if (site->name() == name) return site;
    }
    return nullptr;
  }
};

/// torch's LayerNorm with eps 1e-5; x̂ [n, m] is what its weight multiplies.
template <class T>
Matrix<T> normalised(const Matrix<T>& x, Matrix<T>& inverse_deviation) {
  Matrix<T> result(x.rows(), x.cols());
  inverse_deviation = Matrix<T>(x.rows(), 1);
  for (Index i = 0; i < x.rows(); ++i) {
    double mean = 0, squares = 0;
    for (Index j = 0; j < x.cols(); ++j) mean += static_cast<double>(x(i, j)) / static_cast<double>(x.cols());
    for (Index j = 0; j < x.cols(); ++j) {
      const double d = static_cast<double>(x(i, j)) - mean;
      squares += d * d / static_cast<double>(x.cols());
    }
    const double inverse = 1.0 / std::sqrt(squares + 1e-5);
    inverse_deviation(i, 0) = static_cast<T>(inverse);
    for (Index j = 0; j < x.cols(); ++j) result(i, j) = static_cast<T>((static_cast<double>(x(i, j)) - mean) * inverse);
  }
  return result;
}

}  // namespace peft_test
