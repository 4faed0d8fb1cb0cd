#pragma once
/// A Llama of any shape whose weights are zeros, all of them the same: pages of zeros that the system has once. Methods start on it
/// and it runs, whatever the size of the model; so its memory can be planned without having it.

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "hosts/model_source.hpp"
#include "hosts/names.hpp"

namespace peft_examples {

/// `bytes` zeros to read, which take no memory. Throws std::bad_alloc.
inline std::shared_ptr<const std::byte> shared_zeros(std::size_t bytes) {
  void* const data = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<const std::byte*>(data), [bytes](const std::byte* begin) { ::munmap(const_cast<std::byte*>(begin), bytes); }};
}

/// Norms are ones, biases zeros. Throws ConfigError.
template <Scalar T>
Llama<T> zero_llama(const LlamaConfig& c) {
  using A = Accumulator<T>;
  c.validate();
  Index largest = 0;
  for_each_llama_tensor(c, [&](const std::string&, const std::vector<Index>& shape) {
    if (shape.size() == 2) largest = std::max(largest, shape[0] * shape[1]);
  });
  // A head of its own stands behind the embedding's address.
  const std::shared_ptr<const std::byte> zeros =
      shared_zeros(static_cast<std::size_t>(largest) * sizeof(T) + peft::kAlignment);
  const auto matrix = [&](Index rows, Index cols, Index offset = 0) {
    return MatrixView<const T>(reinterpret_cast<const T*>(zeros.get()) + offset, rows, cols);
  };
  const auto linear = [&](Index out, Index in, bool bias) {
    return peft::AnyLinear<T>(peft::DenseLinear<T>(matrix(out, in), zeros, Buffer<A>::zeros(bias ? out : 0)));
  };
  const auto norm = [](Index size) {
    Buffer<A> ones(size);
    std::fill(ones.begin(), ones.end(), A(1));
    return ones;
  };
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const Index hidden = c.hidden_size, inner = c.intermediate_size, head_norm = c.qk_norm ? c.head_dim : 0;
  std::vector<LlamaLayerWeights<T>> layers;
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    layers.push_back({norm(hidden), norm(hidden), linear(query, hidden, c.attention_bias), linear(key, hidden, c.attention_bias),
                      linear(key, hidden, c.attention_bias), linear(hidden, query, c.output_bias),
                      linear(inner, hidden, c.mlp_bias), linear(inner, hidden, c.mlp_bias), linear(hidden, inner, c.mlp_bias),
                      norm(head_norm), norm(head_norm)});
  }
  constexpr Index kApart = static_cast<Index>(peft::kAlignment / sizeof(T));
  peft::DenseLinear<T> head(matrix(c.vocab_size, hidden, c.tie_word_embeddings ? 0 : kApart), zeros);
  return {c, peft::RowTable<T>(matrix(c.vocab_size, hidden), zeros), std::move(layers), norm(hidden), std::move(head)};
}

}  // namespace peft_examples
