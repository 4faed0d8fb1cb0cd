#pragma once
/// A Llama's hyper-parameters and tensors out of a GGUF: architectures llama (Llama, Mistral, SmolLM…), qwen2 and qwen3.
/// llama.cpp stores the rows of a llama's q and k so that the rotation acts on neighbouring pairs; the loader puts them
/// back into halves. The other architectures' rows stand as in Hugging Face's files.

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "hosts/model_source.hpp"
#include "hosts/tensor_names.hpp"
#include "peft/io/gguf.hpp"

namespace peft_examples {

namespace detail {

/// Metadata "<architecture>.…" that is understood; any other could change the numbers, and is refused.
inline constexpr std::string_view kKnownKeys[] = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon",
    "attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.attn_factor", "rope.scaling.factor",
    "rope.scaling.finetuned", "rope.scaling.original_context_length", "rope.scaling.type", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "vocab_size"};

/// Keys that mean nothing where they are 0 (or 1 expert): mixtures of experts, windows.
inline constexpr std::string_view kNeutralKeys[] = {"expert_count", "expert_used_count", "attention.sliding_window"};

inline void refuse_unknown_keys(const peft::GgufFile& file, const std::string& prefix) {
  for (const auto& value : file.metadata()) {
    if (!value.key.starts_with(prefix)) continue;
    const std::string_view key = value.key.substr(prefix.size());
    if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), key) != std::end(kKnownKeys)) continue;
    const bool neutral = std::find(std::begin(kNeutralKeys), std::end(kNeutralKeys), key) != std::end(kNeutralKeys);
    if (neutral && file.get<Index>(value.key) == 0) continue;
    peft::fail<peft::FormatError>("loading a model: the file's {} is not supported by this host, which runs {}",
                                  peft::quote_text(value.key), kSupportedModels);
  }
}

inline RopeScaling read_rope_scaling(const peft::GgufFile& file, const std::string& prefix, Index context) {
  RopeScaling s;
  const std::string scaling = prefix + "rope.scaling.";
  const auto type = file.get_or<std::string_view>(scaling + "type", "none");
  const double old_linear = file.get_or<double>(prefix + "rope.scale_linear", 1.0);
  s.factor = file.get_or<double>(scaling + "factor", old_linear);
  const double attention = file.get_or<double>(scaling + "attn_factor", 1.0);
  if (type == "yarn") {
    s.type = RopeScaling::Type::kYarn;
    s.original_max_position_embeddings = file.get_or<Index>(scaling + "original_context_length", context);
    s.attention_factor = attention * RopeScaling::yarn_attention_factor(s.factor);
    s.beta_fast = file.get_or<double>(scaling + "yarn_beta_fast", s.beta_fast);
    s.beta_slow = file.get_or<double>(scaling + "yarn_beta_slow", s.beta_slow);
  } else if (type == "linear" || (type == "none" && s.factor != 1.0 && file.has(prefix + "rope.scale_linear"))) {
    if (s.factor != 1.0) s.type = RopeScaling::Type::kLinear;
  } else if (type != "none") {
    peft::fail<peft::FormatError>("loading a model: rotary scaling {} is not supported by this host; supported are "
                                  "linear, yarn and Llama 3's rope_freqs.weight",
                                  peft::quote_text(type));
  }
  if (type != "yarn" && attention != 1.0) {
    peft::fail<peft::FormatError>("loading a model: {}attn_factor is {} without YaRN; this host supports 1", scaling, attention);
  }
  const peft::TensorRef* factors = file.find("rope_freqs.weight");
  if (factors == nullptr) return s;
  if (s.type != RopeScaling::Type::kNone) {
    peft::fail<peft::FormatError>("loading a model: {} together with rotary scaling {}; this host supports one of them",
                                  factors->where(), peft::quote_text(type));
  }
  s.type = RopeScaling::Type::kFactors;
  s.frequency_factors.resize(static_cast<std::size_t>(factors->elements()));
  factors->read_f32(s.frequency_factors.data());
  return s;
}

}  // namespace detail

/// Throws FormatError for metadata that is missing or not understood, ConfigError for numbers that do not fit together.
inline LlamaConfig read_llama_config(const peft::GgufFile& file) {
  using peft::fail;
  using peft::FormatError;
  LlamaConfig c;
  c.model_type = std::string(file.get<std::string_view>("general.architecture"));
  if (c.model_type != "llama" && c.model_type != "qwen2" && c.model_type != "qwen3") {
    fail<FormatError>("loading a model: the file's architecture is {}; this host runs GGUFs of llama, qwen2 and qwen3",
                      peft::quote_text(c.model_type));
  }
  const std::string prefix = c.model_type + ".";
  detail::refuse_unknown_keys(file, prefix);
  c.hidden_size = file.get<Index>(prefix + "embedding_length");
  c.intermediate_size = file.get<Index>(prefix + "feed_forward_length");
  c.num_hidden_layers = file.get<Index>(prefix + "block_count");
  c.num_attention_heads = file.get<Index>(prefix + "attention.head_count");
  c.num_key_value_heads = file.get_or<Index>(prefix + "attention.head_count_kv", c.num_attention_heads);
  c.max_position_embeddings = file.get<Index>(prefix + "context_length");
  c.rms_norm_eps = file.get<float>(prefix + "attention.layer_norm_rms_epsilon");
  c.rope_theta = file.get_or<double>(prefix + "rope.freq_base", 10000.0);
  c.head_dim = file.get_or<Index>(prefix + "attention.key_length",
                                  c.num_attention_heads > 0 ? c.hidden_size / c.num_attention_heads : 0);
  const auto turning = file.get_or<Index>(prefix + "rope.dimension_count", c.head_dim);
  const auto value_length = file.get_or<Index>(prefix + "attention.value_length", c.head_dim);
  if (turning != c.head_dim || value_length != c.head_dim) {
    fail<FormatError>("loading a model: keys of {} of which {} turn, values of {}; this host wants the three equal",
                      c.head_dim, turning, value_length);
  }
  c.vocab_size = file.tensor("token_embd.weight").rows();
  c.rope_scaling = detail::read_rope_scaling(file, prefix, c.max_position_embeddings);
  // What has a bias or a norm shows in the tensors, in every layer or in none.
  c.attention_bias = file.find("blk.0.attn_q.bias") != nullptr;
  c.output_bias = file.find("blk.0.attn_output.bias") != nullptr;
  c.mlp_bias = file.find("blk.0.ffn_gate.bias") != nullptr;
  c.qk_norm = c.model_type == "qwen3";
  c.tie_word_embeddings = file.find("output.weight") == nullptr;
  c.validate();
  return c;
}

/// Throws FormatError, ConfigError; a tensor that the host has no place for is refused by name.
inline ModelSource open_gguf_model(const peft::GgufFile& file) {
  ModelSource source;
  source.config = read_llama_config(file);
  source.permuted_heads = source.config.model_type == "llama";
  source.where = "the GGUF";
  for (const peft::TensorRef& tensor : file.tensors()) {
    if (tensor.file != nullptr) source.where = "GGUF file " + tensor.file->path().string();
    if (tensor.name == "rope_freqs.weight") continue;  // in the configuration
    const auto name = hf_tensor_name(tensor.name);
    if (!name) peft::fail<peft::FormatError>("loading {}: this host has no place for it", tensor.where());
    source.tensors.emplace(*name, tensor);
  }
  return source;
}

}  // namespace peft_examples
