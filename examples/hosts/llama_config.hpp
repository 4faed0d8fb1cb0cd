#pragma once
/// Hyper-parameters of the Llama architecture, named as in Hugging Face's config.json.

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

namespace peft_examples {

using peft::Index;

struct LlamaConfig {
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;
  Index max_position_embeddings = 0;
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;

  /// Throws ConfigError where the numbers do not fit together.
  void validate() const {
    const auto positive = [](const char* name, Index value) {
      if (value <= 0) peft::fail<peft::ConfigError>("Llama: {} is {}; expected a positive number", name, value);
    };
    positive("vocab_size", vocab_size);
    positive("hidden_size", hidden_size);
    positive("intermediate_size", intermediate_size);
    positive("num_hidden_layers", num_hidden_layers);
    positive("num_attention_heads", num_attention_heads);
    positive("num_key_value_heads", num_key_value_heads);
    positive("head_dim", head_dim);
    positive("max_position_embeddings", max_position_embeddings);
    if (num_attention_heads % num_key_value_heads != 0) {
      peft::fail<peft::ConfigError>("Llama: {} attention heads and {} key/value heads; expected a multiple",
                                    num_attention_heads, num_key_value_heads);
    }
    if (head_dim % 2 != 0) peft::fail<peft::ConfigError>("Llama: head_dim is {}; expected an even number", head_dim);
  }
};

}  // namespace peft_examples
