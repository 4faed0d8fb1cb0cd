#pragma once
/// Hyper-parameters of the Llama architecture and of those that differ from it in a few switches (Mistral, Qwen 2 and 3),
/// named as in Hugging Face's config.json.

#include <algorithm>
#include <string>
#include <string_view>

#include "hosts/config_size.hpp"
#include "hosts/rope_scaling.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

namespace peft_examples {

using peft::Index;

struct LlamaConfig {
  std::string model_type = "llama";  ///< llama, mistral, qwen2 or qwen3
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;
  Index max_position_embeddings = 0;
  Index sliding_window = 0;  ///< tokens that a token attends to, itself included; 0: all before it
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool attention_bias = false;  ///< of q, k and v
  bool output_bias = false;     ///< of o
  bool mlp_bias = false;
  bool qk_norm = false;  ///< RMSNorm over each head of q and k, before the rotation (Qwen 3)
  bool tie_word_embeddings = false;

  /// The longest sequence that the host runs. Attention here has no window: a sequence that fits into it has the same
  /// numbers with and without.
  Index context() const noexcept {
    return sliding_window > 0 ? std::min(sliding_window, max_position_embeddings) : max_position_embeddings;
  }

  /// Throws ConfigError where the numbers do not fit together.
  void validate() const {
    const auto positive = [](const char* name, Index value) { check_size("Llama", name, value); };
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
    if (!(rope_theta > 0)) peft::fail<peft::ConfigError>("Llama: rope_theta is {}; expected more than 0", rope_theta);
    rope_scaling.validate(head_dim);
  }
};

/// The model types that the host runs, for messages.
inline constexpr std::string_view kSupportedModels = "llama, mistral, qwen2 and qwen3";

}  // namespace peft_examples
