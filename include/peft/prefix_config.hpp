#pragma once
/// The configuration of prefix tuning, with the field names, meanings and defaults of Python PEFT's PrefixTuningConfig,
/// so that adapter_config.json reads and writes one to one. Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for
/// Generation", 2021 (arXiv 2101.00190).

#include <optional>
#include <string>
#include <vector>

#include "peft/prompt_host.hpp"

PEFT_BEGIN_NAMESPACE

/// `PrefixTuningConfig{.num_virtual_tokens = 20}.fit_to(host.prompt_host())`. A size of 0 is open (null in the file).
struct PrefixTuningConfig {
  /// Rows of keys and values that stand before every sequence, in every layer.
  Index num_virtual_tokens = 0;
  /// Width of a key: num_attention_heads · head_dim. With grouped-query attention that is less than the hidden size.
  Index token_dim = 0;
  Index num_layers = 0;
  /// Key/value heads, as PEFT has it with grouped-query attention.
  Index num_attention_heads = 0;
  /// 1, or 0 for open; encoder-decoder models (2) are not supported.
  Index num_transformer_submodules = 0;
  /// Width of the middle of the MLP; 0: token_dim.
  Index encoder_hidden_size = 0;
  /// Whether the prefix is made by an MLP while it is trained (Linear–Tanh–Linear over token_dim numbers per row).
  bool prefix_projection = false;
  /// "zero": keys and values start at 0; none: at random.
  std::optional<std::string> init_weights{};
  /// Modules trained in full and saved with the adapter. Supported: none.
  std::vector<std::string> modules_to_save{};
  /// "CAUSAL_LM", …; kept for the file.
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  /// Whether the prefix is used as it is and not trained. With prefix_projection: the MLP is not made.
  bool inference_mode = false;

  friend bool operator==(const PrefixTuningConfig&, const PrefixTuningConfig&) = default;

  /// Throws ConfigError, naming the field, where one is out of range, contradicts another or is not supported.
  void validate() const {
    detail::check_prompt_learning("PrefixTuningConfig", *this);
    if (encoder_hidden_size < 0) {
      fail<ConfigError>("PrefixTuningConfig: encoder_hidden_size is {}; expected at least 1, or 0 for token_dim",
                        encoder_hidden_size);
    }
    if (init_weights.has_value() && *init_weights != "zero") {
      fail<ConfigError>("PrefixTuningConfig: init_weights is \"{}\"; expected \"zero\" or none", *init_weights);
    }
    if (token_dim > 0 && num_attention_heads > 0 && token_dim % num_attention_heads != 0) {
      fail<ConfigError>("PrefixTuningConfig: token_dim is {} with {} heads; expected a multiple of num_attention_heads",
                        token_dim, num_attention_heads);
    }
  }

  /// The same with open sizes taken from the host. Throws ConfigError; ShapeError where a size that is set is not the
  /// host's, naming both.
  PrefixTuningConfig fit_to(const PromptHost& host) const {
    validate();
    PrefixTuningConfig result = *this;
    const char* who = "PrefixTuningConfig";
    detail::fit_size(who, "num_layers", result.num_layers, host.num_layers, "number of layers");
    detail::fit_size(who, "num_attention_heads", result.num_attention_heads, host.num_key_value_heads,
                     "number of key/value heads");
    detail::fit_size(who, "token_dim", result.token_dim, host.num_key_value_heads * host.head_dim,
                     "width of a key (key/value heads times head_dim)");
    if (result.encoder_hidden_size == 0) result.encoder_hidden_size = result.token_dim;
    result.num_transformer_submodules = 1;
    return result;
  }
};

PEFT_END_NAMESPACE
