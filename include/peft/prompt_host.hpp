#pragma once
/// The sizes of a host that virtual tokens are made for, and what the configurations of prefix tuning, prompt tuning and
/// P-tuning have in common (Python PEFT's PromptLearningConfig).

#include <concepts>
#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// A transformer's sizes, from which a configuration takes what it leaves open.
struct PromptHost {
  Index num_layers = 0;
  Index hidden_size = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;
};

namespace detail {

/// Throws ConfigError, naming the field, where one of the fields that all three configurations have is out of range or
/// not supported. A size of 0 is one that is left open.
template <class Config>
void check_prompt_learning(std::string_view who, const Config& c) {
  if (c.num_virtual_tokens < 1) {
    fail<ConfigError>("{}: num_virtual_tokens is {}; expected at least 1", who, c.num_virtual_tokens);
  }
  const auto size = [&](std::string_view name, Index value) {
    if (value < 0) fail<ConfigError>("{}: {} is {}; expected at least 1, or 0 to take the model's", who, name, value);
  };
  size("token_dim", c.token_dim);
  size("num_layers", c.num_layers);
  size("num_attention_heads", c.num_attention_heads);
  if (c.num_transformer_submodules != 0 && c.num_transformer_submodules != 1) {
    fail<ConfigError>("{}: num_transformer_submodules is {}; expected 1: models of an encoder and a decoder are not "
                      "supported",
                      who, c.num_transformer_submodules);
  }
  if (!c.modules_to_save.empty() && c.task_type != "SEQ_CLS") {
    fail<ConfigError>("{}: modules_to_save holds \"{}\"; beside virtual tokens only a classification head is trained in full "
                      "(task_type SEQ_CLS); leave it empty",
                      who, c.modules_to_save.front());
  }
}

/// Throws ConfigError where a size is still open: make the configuration fit a host first.
inline void require_set(std::string_view who, std::string_view name, Index value) {
  if (value < 1) {
    fail<ConfigError>("{}: {} is {}; expected at least 1; the configuration's fit_to(host) takes it from a model", who, name,
                      value);
  }
}

/// Sets an open size to the host's. Throws ShapeError where it is another, naming both.
inline void fit_size(std::string_view who, std::string_view name, Index& value, Index of_host, std::string_view meaning) {
  if (value == 0) value = of_host;
  if (value != of_host) {
    fail<ShapeError>("{}: {} is {}; the model's {} is {}: they are not of the same model", who, name, value, meaning,
                     of_host);
  }
}

}  // namespace detail

PEFT_END_NAMESPACE
