#pragma once
/// Shapes of Llamas by name, for plans and measurements without a model: those of Touvron et al., "LLaMA: Open and Efficient Foundation
/// Language Models", 2023, table 2, Llama 3.2's smallest, and a tiny one.

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "hosts/llama_config.hpp"
#include "peft/io/text.hpp"

namespace peft_examples {

struct LlamaShape {
  std::string_view name;
  Index hidden, intermediate, layers, heads, key_value_heads, vocabulary, positions;
  bool tied = false;

  LlamaConfig config() const {
    LlamaConfig c;
    c.vocab_size = vocabulary;
    c.hidden_size = hidden;
    c.intermediate_size = intermediate;
    c.num_hidden_layers = layers;
    c.num_attention_heads = heads;
    c.num_key_value_heads = key_value_heads;
    c.head_dim = hidden / heads;
    c.max_position_embeddings = positions;
    c.tie_word_embeddings = tied;
    return c;
  }
};

inline constexpr LlamaShape kLlamaShapes[] = {{"llama-tiny", 256, 768, 6, 4, 4, 1024, 2048},
                                              {"llama-1b", 2048, 8192, 16, 32, 8, 128256, 131072, true},
                                              {"llama-7b", 4096, 11008, 32, 32, 32, 32000, 2048},
                                              {"llama-13b", 5120, 13824, 40, 40, 40, 32000, 2048},
                                              {"llama-33b", 6656, 17920, 60, 52, 52, 32000, 2048},
                                              {"llama-65b", 8192, 22016, 80, 64, 64, 32000, 2048}};

inline std::vector<std::string> llama_shape_names() {
  std::vector<std::string> names;
  for (const LlamaShape& shape : kLlamaShapes) names.emplace_back(shape.name);
  return names;
}
/// Throws ConfigError.
inline LlamaConfig llama_shape(std::string_view name) {
  const auto* found = std::find_if(std::begin(kLlamaShapes), std::end(kLlamaShapes), [&](const LlamaShape& s) { return s.name == name; });
  if (found == std::end(kLlamaShapes)) peft::fail<peft::ConfigError>("there is no shape {}", peft::quote_text(name));
  return found->config();
}

}  // namespace peft_examples
