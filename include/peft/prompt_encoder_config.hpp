#pragma once
/// The configuration of P-tuning, with the field names, meanings and defaults of Python PEFT's PromptEncoderConfig.
/// Liu et al., "GPT Understands, Too", 2021 (arXiv 2103.10385).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/prompt_host.hpp"

PEFT_BEGIN_NAMESPACE

/// The network that makes the vectors while they are trained.
enum class PromptEncoderReparameterizationType : std::uint8_t {
  kMlp,   ///< "MLP": Linear–ReLU–Linear–ReLU–Linear
  kLstm,  ///< "LSTM": an LSTM in both directions, then Linear–ReLU–Linear
};

/// `PromptEncoderConfig{.num_virtual_tokens = 20, .encoder_hidden_size = 128}.fit_to(host.prompt_host())`.
/// A size of 0 is open (null in the file).
struct PromptEncoderConfig {
  /// Vectors before the input embeddings of every sequence.
  Index num_virtual_tokens = 0;
  /// The model's hidden size.
  Index token_dim = 0;
  Index num_layers = 0;
  Index num_attention_heads = 0;
  /// 1, or 0 for open; encoder-decoder models (2) are not supported.
  Index num_transformer_submodules = 0;
  PromptEncoderReparameterizationType encoder_reparameterization_type = PromptEncoderReparameterizationType::kMlp;
  /// Width inside the encoder (of each direction of the LSTM); 0: token_dim.
  Index encoder_hidden_size = 0;
  /// Layers of the LSTM. The MLP has its three linears whatever this says.
  Index encoder_num_layers = 2;
  /// Dropout between the layers of the LSTM; the MLP has none.
  float encoder_dropout = 0.0f;
  /// Modules trained in full and saved with the adapter. Supported: none.
  std::vector<std::string> modules_to_save{};
  /// "CAUSAL_LM", …; kept for the file.
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  /// Whether the vectors are used as they are: the encoder is not made.
  bool inference_mode = false;

  friend bool operator==(const PromptEncoderConfig&, const PromptEncoderConfig&) = default;

  /// Throws ConfigError, naming the field, where one is out of range, contradicts another or is not supported.
  void validate() const {
    detail::check_prompt_learning("PromptEncoderConfig", *this);
    if (encoder_hidden_size < 0) {
      fail<ConfigError>("PromptEncoderConfig: encoder_hidden_size is {}; expected at least 1, or 0 for token_dim",
                        encoder_hidden_size);
    }
    if (encoder_num_layers < 1) {
      fail<ConfigError>("PromptEncoderConfig: encoder_num_layers is {}; expected at least 1", encoder_num_layers);
    }
    if (!is_finite(encoder_dropout) || encoder_dropout < 0.0f || encoder_dropout >= 1.0f) {
      fail<ConfigError>("PromptEncoderConfig: encoder_dropout is {}; expected a probability p with 0 <= p < 1",
                        encoder_dropout);
    }
  }

  /// The same with open sizes taken from the host. Throws ConfigError; ShapeError where a size that is set is not the
  /// host's, naming both.
  PromptEncoderConfig fit_to(const PromptHost& host) const {
    validate();
    PromptEncoderConfig result = *this;
    const char* who = "PromptEncoderConfig";
    detail::fit_size(who, "token_dim", result.token_dim, host.hidden_size, "hidden size");
    detail::fit_size(who, "num_layers", result.num_layers, host.num_layers, "number of layers");
    detail::fit_size(who, "num_attention_heads", result.num_attention_heads, host.num_attention_heads,
                     "number of attention heads");
    if (result.encoder_hidden_size == 0) result.encoder_hidden_size = result.token_dim;
    result.num_transformer_submodules = 1;
    return result;
  }
};

PEFT_END_NAMESPACE
