#pragma once
/// The configuration of prompt tuning, with the field names, meanings and defaults of Python PEFT's PromptTuningConfig.
/// Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021 (arXiv 2104.08691).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/prompt_host.hpp"

PEFT_BEGIN_NAMESPACE

/// How the learned vectors start.
enum class PromptTuningInit : std::uint8_t {
  kText,         ///< "TEXT": the embeddings of prompt_tuning_init_text, repeated or cut to the number of virtual tokens
  kSampleVocab,  ///< "SAMPLE_VOCAB": the embeddings of tokens drawn from the vocabulary
  kRandom,       ///< "RANDOM": normal with standard deviation 1, as PEFT; far outside the scale of most embeddings
};

/// `PromptTuningConfig{.num_virtual_tokens = 20}.fit_to(host.prompt_host())`. A size of 0 is open (null in the file).
struct PromptTuningConfig {
  /// Learned vectors before the input embeddings of every sequence.
  Index num_virtual_tokens = 0;
  /// The model's hidden size.
  Index token_dim = 0;
  Index num_layers = 0;
  Index num_attention_heads = 0;
  /// 1, or 0 for open; encoder-decoder models (2) are not supported.
  Index num_transformer_submodules = 0;
  PromptTuningInit prompt_tuning_init = PromptTuningInit::kRandom;
  /// Needed for kText. The caller tokenises it.
  std::optional<std::string> prompt_tuning_init_text{};
  /// Python's loader needs it for kText.
  std::optional<std::string> tokenizer_name_or_path{};
  /// A JSON object for Python's tokenizer, as text; kept for the file.
  std::optional<std::string> tokenizer_kwargs{};
  /// Modules trained in full and saved with the adapter. Supported: none.
  std::vector<std::string> modules_to_save{};
  /// "CAUSAL_LM", …; kept for the file.
  std::optional<std::string> task_type{};
  std::optional<std::string> base_model_name_or_path{};
  std::optional<std::string> revision{};
  /// Whether the prompt is used as it is and not trained.
  bool inference_mode = false;

  friend bool operator==(const PromptTuningConfig&, const PromptTuningConfig&) = default;

  /// Throws ConfigError, naming the field, where one is out of range, contradicts another or is not supported.
  void validate() const {
    detail::check_prompt_learning("PromptTuningConfig", *this);
    if (prompt_tuning_init == PromptTuningInit::kText && !prompt_tuning_init_text.has_value()) {
      fail<ConfigError>("PromptTuningConfig: prompt_tuning_init is TEXT without prompt_tuning_init_text; expected a text");
    }
    if (tokenizer_kwargs.has_value() && prompt_tuning_init != PromptTuningInit::kText) {
      fail<ConfigError>("PromptTuningConfig: tokenizer_kwargs is set and prompt_tuning_init is not TEXT; leave it out");
    }
  }

  /// The same with open sizes taken from the host. Throws ConfigError; ShapeError where a size that is set is not the
  /// host's, naming both.
  PromptTuningConfig fit_to(const PromptHost& host) const {
    validate();
    PromptTuningConfig result = *this;
    const char* who = "PromptTuningConfig";
    detail::fit_size(who, "token_dim", result.token_dim, host.hidden_size, "hidden size");
    detail::fit_size(who, "num_layers", result.num_layers, host.num_layers, "number of layers");
    detail::fit_size(who, "num_attention_heads", result.num_attention_heads, host.num_attention_heads,
                     "number of attention heads");
    result.num_transformer_submodules = 1;
    return result;
  }
};

PEFT_END_NAMESPACE
