#pragma once
/// A Llama's hyper-parameters as config.json, in the spelling that transformers 4 and 5 both read.

#include <string>
#include <string_view>

#include "hosts/llama_config.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "peft/io/json.hpp"

namespace peft_examples {

namespace detail {

/// 1e-5f as 1e-05, not as the double next to it.
inline peft::Json shortest(float value) { return std::stod(fmt::format("{}", value)); }

inline peft::Json rope_scaling_json(const LlamaConfig& c) {
  RopeScaling s = c.rope_scaling;
  if (s.type == RopeScaling::Type::kFactors) s = llama3_of_factors(c.head_dim, c.rope_theta, s);
  switch (s.type) {
    case RopeScaling::Type::kLinear:
      return {{"rope_type", "linear"}, {"factor", s.factor}};
    case RopeScaling::Type::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", s.factor},
              {"low_freq_factor", s.low_freq_factor},
              {"high_freq_factor", s.high_freq_factor},
              {"original_max_position_embeddings", s.original_max_position_embeddings}};
    case RopeScaling::Type::kYarn:
      return {{"rope_type", "yarn"},
              {"factor", s.factor},
              {"original_max_position_embeddings", s.original_max_position_embeddings},
              {"attention_factor", s.attention_factor},
              {"beta_fast", s.beta_fast},
              {"beta_slow", s.beta_slow},
              {"truncate", s.truncate}};
    default:
      return nullptr;
  }
}

}  // namespace detail

/// `dtype` as torch names it: "float32", … Throws ConfigError for what transformers has no place for.
inline peft::Json llama_config_json(const LlamaConfig& c, const TokenizerSpec& tokenizer, std::string_view dtype) {
  const bool llama = c.model_type == "llama", qwen2 = c.model_type == "qwen2", qwen3 = c.model_type == "qwen3";
  if ((qwen2 && !c.attention_bias) || (!qwen2 && c.attention_bias != c.output_bias) || (qwen2 && c.output_bias) ||
      (!llama && c.mlp_bias) || (!llama && !qwen2 && !qwen3 && c.attention_bias)) {
    peft::fail<peft::ConfigError>("writing config.json: a {} with biases of q, k, v: {}, of o: {}, of the feed-forward: {}; "
                                  "transformers has no such model",
                                  c.model_type, c.attention_bias, c.output_bias, c.mlp_bias);
  }
  const std::string name = llama ? "Llama" : c.model_type == "mistral" ? "Mistral" : qwen2 ? "Qwen2" : "Qwen3";
  peft::Json json = {{"architectures", peft::Json::array({name + "ForCausalLM"})},
                     {"model_type", c.model_type},
                     {"vocab_size", c.vocab_size},
                     {"hidden_size", c.hidden_size},
                     {"intermediate_size", c.intermediate_size},
                     {"num_hidden_layers", c.num_hidden_layers},
                     {"num_attention_heads", c.num_attention_heads},
                     {"num_key_value_heads", c.num_key_value_heads},
                     {"head_dim", c.head_dim},
                     {"max_position_embeddings", c.max_position_embeddings},
                     {"hidden_act", "silu"},
                     {"rms_norm_eps", detail::shortest(c.rms_norm_eps)},
                     {"rope_theta", c.rope_theta},
                     {"rope_scaling", detail::rope_scaling_json(c)},
                     {"attention_dropout", 0.0},
                     {"tie_word_embeddings", c.tie_word_embeddings},
                     {"use_cache", true},
                     {"torch_dtype", dtype}};
  if (llama || qwen3) json["attention_bias"] = c.attention_bias;
  if (llama) json["mlp_bias"] = c.mlp_bias;
  if (qwen2 || qwen3) json["use_sliding_window"] = false;
  if (c.model_type == "mistral") json["sliding_window"] = c.sliding_window > 0 ? peft::Json(c.sliding_window) : peft::Json();
  const auto put = [&](const char* key, std::int32_t id) { json[key] = id >= 0 ? peft::Json(id) : peft::Json(); };
  put("bos_token_id", tokenizer.bos);
  put("eos_token_id", tokenizer.eos);
  return json;
}

/// generation_config.json: where texts begin and end.
inline peft::Json generation_config_json(const TokenizerSpec& tokenizer) {
  peft::Json json = {{"_from_model_config", true}};
  if (tokenizer.bos >= 0) json["bos_token_id"] = tokenizer.bos;
  if (tokenizer.stops.size() == 1) json["eos_token_id"] = tokenizer.stops.front();
  if (tokenizer.stops.size() > 1) json["eos_token_id"] = tokenizer.stops;
  if (tokenizer.pad >= 0) json["pad_token_id"] = tokenizer.pad;
  return json;
}

}  // namespace peft_examples
