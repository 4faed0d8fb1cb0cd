#pragma once
/// Hyper-parameters of the BERT architecture (Devlin et al., 2019), named as in Hugging Face's config.json.

#include <optional>
#include <string>
#include <vector>

#include "hosts/config_size.hpp"
#include "peft/core/activation.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

namespace peft_examples {

using peft::Index;

struct BertConfig {
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index max_position_embeddings = 0;
  Index type_vocab_size = 2;
  Index pad_token_id = -1;  ///< its embedding has no gradient; -1: none
  float layer_norm_eps = 1e-12f;
  peft::Activation hidden_act = peft::Activation::kGelu;
  float hidden_dropout_prob = 0.1f;  ///< in training: of the embeddings and of both branches of a layer
  float attention_probs_dropout_prob = 0.1f;
  std::optional<float> classifier_dropout{};  ///< of what the head reads; where not set, hidden_dropout_prob
  std::vector<std::string> labels{};          ///< by class, as id2label has them; empty where the file names none

  Index head_dim() const noexcept { return hidden_size / num_attention_heads; }
  float head_dropout() const noexcept { return classifier_dropout.value_or(hidden_dropout_prob); }

  /// Throws ConfigError where the numbers do not fit together.
  void validate() const {
    const auto positive = [](const char* name, Index value) { check_size("Bert", name, value); };
    const auto probability = [](const char* name, float p) {
      if (!(p >= 0.0f && p < 1.0f)) {
        peft::fail<peft::ConfigError>("Bert: {} is {}; expected a probability p with 0 <= p < 1", name, p);
      }
    };
    positive("vocab_size", vocab_size);
    positive("hidden_size", hidden_size);
    positive("intermediate_size", intermediate_size);
    positive("num_hidden_layers", num_hidden_layers);
    positive("num_attention_heads", num_attention_heads);
    positive("max_position_embeddings", max_position_embeddings);
    positive("type_vocab_size", type_vocab_size);
    if (hidden_size % num_attention_heads != 0) {
      peft::fail<peft::ConfigError>("Bert: hidden_size is {} with {} attention heads; expected a multiple", hidden_size,
                                    num_attention_heads);
    }
    if (!(layer_norm_eps > 0.0f)) {
      peft::fail<peft::ConfigError>("Bert: layer_norm_eps is {}; expected more than 0", layer_norm_eps);
    }
    probability("hidden_dropout_prob", hidden_dropout_prob);
    probability("attention_probs_dropout_prob", attention_probs_dropout_prob);
    probability("classifier_dropout", head_dropout());
  }
};

}  // namespace peft_examples
