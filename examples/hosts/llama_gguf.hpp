#pragma once
/// A GGUF of the architecture "llama" as a Llama<T>: hyper-parameters from its metadata, every tensor converted to T.
/// llama.cpp stores the rows of q and k pairwise (its rotary layout); here they stand in halves, as in Hugging Face's
/// files: row s·d/2 + j of a head is row 2j + s of the file's.

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/io/gguf.hpp"
#include "peft/kernels/convert.hpp"

namespace peft_examples {

/// Throws FormatError for metadata that is missing or not understood (rotary scaling, another architecture).
inline LlamaConfig read_llama_config(const peft::GgufFile& file) {
  using peft::fail;
  using peft::FormatError;
  const auto architecture = file.get<std::string_view>("general.architecture");
  if (architecture != "llama") {
    fail<FormatError>("loading a model: the file's architecture is \"{}\"; this host runs \"llama\"", architecture);
  }
  const auto scaling = file.get_or<std::string_view>("llama.rope.scaling.type", "none");
  if (scaling != "none" || file.find("rope_freqs.weight") != nullptr) {
    fail<FormatError>("loading a model: rotary scaling \"{}\" is not supported by this host",
                      file.find("rope_freqs.weight") != nullptr ? "rope_freqs.weight" : scaling);
  }
  LlamaConfig c;
  c.hidden_size = file.get<Index>("llama.embedding_length");
  c.intermediate_size = file.get<Index>("llama.feed_forward_length");
  c.num_hidden_layers = file.get<Index>("llama.block_count");
  c.num_attention_heads = file.get<Index>("llama.attention.head_count");
  c.num_key_value_heads = file.get_or<Index>("llama.attention.head_count_kv", c.num_attention_heads);
  c.max_position_embeddings = file.get<Index>("llama.context_length");
  c.rms_norm_eps = file.get<float>("llama.attention.layer_norm_rms_epsilon");
  c.rope_theta = file.get_or<double>("llama.rope.freq_base", 10000.0);
  c.head_dim = file.get_or<Index>("llama.rope.dimension_count",
                                  c.num_attention_heads > 0 ? c.hidden_size / c.num_attention_heads : 0);
  if (const auto length = file.get_or<Index>("llama.attention.key_length", c.head_dim); length != c.head_dim) {
    fail<FormatError>("loading a model: heads of {} of which {} turn; partial rotary embedding is not supported by this "
                      "host",
                      length, c.head_dim);
  }
  c.vocab_size = file.tensor("token_embd.weight").rows();
  c.validate();
  return c;
}

namespace detail {

/// The rows of `tensor` in T. `head_dim` above 0: the rows are q's or k's and are put back into halves.
template <Scalar T>
Matrix<T> read_matrix(const peft::TensorRef& tensor, Index rows, Index cols, Index head_dim, ExecutorRef executor) {
  if (tensor.shape.size() != 2 || tensor.rows() != rows || tensor.cols() != cols) {
    peft::fail<peft::ShapeError>("loading {}: its shape is {}; expected [{}, {}]", tensor.where(), tensor.shape_text(),
                                 rows, cols);
  }
  tensor.read_rows_f32(0, 0, nullptr);  // refuses a type that cannot be read, here and not in a task
  Matrix<T> result(rows, cols);
  constexpr Index kRows = 64;
  peft::parallel_for_ranges(executor, rows, kRows, [&](Index first, Index last) {
    Buffer<float> values(cols);
    for (Index r = first; r < last; ++r) {
      Index to = r;
      if (head_dim > 0) {
        const Index inside = r % head_dim;
        to = r - inside + inside % 2 * (head_dim / 2) + inside / 2;
      }
      tensor.read_rows_f32(r, 1, values.data());
      if constexpr (std::is_same_v<T, double>) {
        for (Index c = 0; c < cols; ++c) result(to, c) = static_cast<double>(values[c]);
      } else {
        peft::kernels::convert(cols, values.data(), peft::DType::kF32, result.row(to), peft::dtype_of<T>());
      }
    }
  });
  return result;
}

template <class A>
Buffer<A> read_vector(const peft::TensorRef& tensor, Index size) {
  if (tensor.elements() != size || tensor.shape.size() != 1) {
    peft::fail<peft::ShapeError>("loading {}: its shape is {}; expected [{}]", tensor.where(), tensor.shape_text(), size);
  }
  Buffer<float> values(size);
  tensor.read_f32(values.data());
  Buffer<A> result(size);
  for (Index i = 0; i < size; ++i) result[i] = static_cast<A>(values[i]);
  return result;
}

}  // namespace detail

/// Throws FormatError, ShapeError; a tensor that the host has no place for (a bias, say) is refused by name.
template <Scalar T>
Llama<T> load_llama(const peft::GgufFile& file, ExecutorRef executor = peft::default_executor()) {
  const LlamaConfig c = read_llama_config(file);
  std::set<std::string, std::less<>> used;
  const auto tensor = [&](const std::string& name) -> const peft::TensorRef& {
    used.insert(name);
    return file.tensor(name);
  };
  const auto linear = [&](const std::string& name, Index rows, Index cols, Index head_dim = 0) {
    return peft::AnyLinear<T>(
        peft::DenseLinear<T>(detail::read_matrix<T>(tensor(name + ".weight"), rows, cols, head_dim, executor)));
  };
  const auto norm = [&](const std::string& name) {
    return detail::read_vector<Accumulator<T>>(tensor(name + ".weight"), c.hidden_size);
  };
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  auto embedding = std::make_shared<const Matrix<T>>(
      detail::read_matrix<T>(tensor("token_embd.weight"), c.vocab_size, c.hidden_size, 0, executor));
  std::vector<LlamaLayerWeights<T>> layers;
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    layers.push_back({norm(block + "attn_norm"), norm(block + "ffn_norm"),
                      linear(block + "attn_q", query, c.hidden_size, c.head_dim),
                      linear(block + "attn_k", key, c.hidden_size, c.head_dim),
                      linear(block + "attn_v", key, c.hidden_size), linear(block + "attn_output", c.hidden_size, query),
                      linear(block + "ffn_gate", c.intermediate_size, c.hidden_size),
                      linear(block + "ffn_up", c.intermediate_size, c.hidden_size),
                      linear(block + "ffn_down", c.hidden_size, c.intermediate_size)});
  }
  Buffer<Accumulator<T>> final_norm = norm("output_norm");
  const bool tied = file.find("output.weight") == nullptr;
  const MatrixView<const T> shared = *embedding;
  peft::DenseLinear<T> head = tied ? peft::DenseLinear<T>(shared, embedding)
                                   : peft::DenseLinear<T>(detail::read_matrix<T>(tensor("output.weight"), c.vocab_size,
                                                                                 c.hidden_size, 0, executor));
  for (const peft::TensorRef& other : file.tensors()) {
    if (used.count(other.name) == 0) {
      peft::fail<peft::FormatError>("loading {}: this host has no place for it", other.where());
    }
  }
  Llama<T> model(c, std::move(embedding), std::move(layers), std::move(final_norm), std::move(head));
  model.set_executor(executor);
  return model;
}

}  // namespace peft_examples
