#pragma once
/// A Llama's hyper-parameters and tensors out of a Hugging Face folder (config.json, model.safetensors or its shards), with
/// the defaults of transformers. Whatever would change the numbers and is not supported is refused by name; what
/// transformers does not read either (_name_or_path, use_cache, torch_dtype, …) is passed over.

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "hosts/json_fields.hpp"
#include "hosts/model_source.hpp"
#include "peft/checkpoint/bnb_config_json.hpp"
#include "peft/io/safetensors.hpp"

namespace peft_examples {

namespace detail {

/// Members that change the numbers unless they have this value (or null): settings of transformers, and of forks that
/// call themselves llama.
struct NeutralField {
  std::string_view name;
  double value;  ///< true counts as 1, false as 0
};
inline constexpr NeutralField kNeutralFields[] = {
    {"attention_dropout", 0}, {"partial_rotary_factor", 1}, {"rope_interleaved", 0}, {"add_cross_attention", 0},
    {"is_encoder_decoder", 0}, {"is_causal", 1}, {"qk_layernorm", 0}, {"use_qk_norm", 0}, {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0}, {"logit_scale", 1}, {"logits_scaling", 1}, {"embedding_multiplier", 1},
    {"residual_multiplier", 1}, {"num_local_experts", 0}, {"num_experts", 0}};

inline void refuse_unsupported_fields(const JsonFields& config) {
  for (const NeutralField& field : kNeutralFields) {
    const peft::Json* found = config.find(field.name);
    if (found == nullptr) continue;
    const bool neutral = found->is_boolean()  ? found->get<bool>() == (field.value != 0)
                         : found->is_number() ? found->get<double>() == field.value
                                              : false;
    if (!neutral) config.wrong(field.name, *found, fmt::format("{}: this host supports nothing else", field.value));
  }
  if (const peft::Json* found = config.find("quantization_config")) peft::bnb_config_from_json(*found, config.where());
  const std::string activation = config.text_or("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.wrong("hidden_act", config.need("hidden_act"), "\"silu\": this host supports nothing else");
  }
}

/// rope_scaling (transformers up to 4) or rope_parameters (5).
inline void read_rope(const JsonFields& config, LlamaConfig& c) {
  c.rope_theta = config.number_or("rope_theta", 10000.0);
  const char* member = config.find("rope_scaling") != nullptr ? "rope_scaling" : "rope_parameters";
  if (config.find(member) == nullptr) return;
  const JsonFields rope = config.object(member);
  rope.allow_only({"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
                   "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                   "truncate", "partial_rotary_factor", "finetuned"});
  c.rope_theta = rope.number_or("rope_theta", c.rope_theta);
  if (rope.number_or("partial_rotary_factor", 1.0) != 1.0) {
    rope.wrong("partial_rotary_factor", rope.need("partial_rotary_factor"), "1: this host turns whole heads");
  }
  RopeScaling& s = c.rope_scaling;
  const std::string type = rope.text_or("rope_type", rope.text_or("type", "default"));
  if (type == "default") return;
  const bool trained_shorter = type == "llama3" || type == "yarn";
  if (trained_shorter) {
    s.original_max_position_embeddings = config.whole_or(
        "original_max_position_embeddings", rope.whole_or("original_max_position_embeddings", c.max_position_embeddings));
    if (s.original_max_position_embeddings < 1) rope.wrong("original_max_position_embeddings", s.original_max_position_embeddings, "at least 1");
  }
  if (type == "linear") {
    s.type = RopeScaling::Type::kLinear;
    s.factor = rope.number("factor");
  } else if (type == "llama3") {
    s.type = RopeScaling::Type::kLlama3;
    s.factor = rope.number("factor");
    s.low_freq_factor = rope.number("low_freq_factor");
    s.high_freq_factor = rope.number("high_freq_factor");
  } else if (type == "yarn") {
    s.type = RopeScaling::Type::kYarn;
    s.factor = rope.number_or("factor", static_cast<double>(c.max_position_embeddings) /
                                            static_cast<double>(s.original_max_position_embeddings));
    const double mscale = rope.number_or("mscale", 0.0), all = rope.number_or("mscale_all_dim", 0.0);
    double attention = RopeScaling::yarn_attention_factor(s.factor);
    if (mscale != 0.0 && all != 0.0) {
      attention = RopeScaling::yarn_attention_factor(s.factor, mscale) / RopeScaling::yarn_attention_factor(s.factor, all);
    }
    s.attention_factor = rope.number_or("attention_factor", attention);
    const auto or_default = [](double value, double otherwise) { return value != 0.0 ? value : otherwise; };
    s.beta_fast = or_default(rope.number_or("beta_fast", 0.0), 32.0);
    s.beta_slow = or_default(rope.number_or("beta_slow", 0.0), 1.0);
    s.truncate = rope.truth_or("truncate", true);
  } else {
    rope.wrong("rope_type", type, "default, linear, llama3 or yarn: this host supports nothing else");
  }
}

/// The window that layers attend through, where one does; 0: none.
inline Index read_sliding_window(const JsonFields& config, const LlamaConfig& c) {
  if (c.model_type == "llama") return 0;  // transformers' Llama has none, whatever the file says
  // transformers gives a Mistral whose file does not mention it a window of 4096; null is none.
  const bool mentioned = config.json().contains("sliding_window");
  const Index window = config.whole_or("sliding_window", mentioned ? 0 : 4096);
  if (window < 0) config.wrong("sliding_window", window, "at least 1, or null");
  if (c.model_type == "mistral") return window;
  if (const peft::Json* types = config.find("layer_types")) {
    bool slides = false;
    for (const peft::Json& type : config.list("layer_types")) {
      slides = slides || type == "sliding_attention";
      if (type != "sliding_attention" && type != "full_attention") {
        config.wrong("layer_types", *types, "\"full_attention\" or \"sliding_attention\" for every layer");
      }
    }
    return slides && config.truth_or("use_sliding_window", false) ? window : 0;
  }
  const bool used = config.truth_or("use_sliding_window", false) && config.whole_or("max_window_layers", 28) < c.num_hidden_layers;
  return used ? window : 0;
}

}  // namespace detail

/// Throws FormatError for a member that is missing, of the wrong kind or not supported, ConfigError for numbers that do
/// not fit together.
inline LlamaConfig read_llama_config(const JsonFields& config) {
  LlamaConfig c;
  c.model_type = config.text("model_type");
  const bool mistral = c.model_type == "mistral", qwen2 = c.model_type == "qwen2", qwen3 = c.model_type == "qwen3";
  if (c.model_type != "llama" && !mistral && !qwen2 && !qwen3) {
    peft::fail<peft::FormatError>("{}: model_type is {}; this host runs {}{}", config.where(), peft::quote_text(c.model_type),
                                  kSupportedModels, c.model_type == "bert" ? ". A BERT sorts texts: --task classify" : "");
  }
  if (const peft::Json* architectures = config.find("architectures")) {
    const std::string expected = c.model_type == "llama" ? "LlamaForCausalLM" : mistral ? "MistralForCausalLM" : qwen2 ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM";
    const peft::Json& list = config.list("architectures");
    if (std::find(list.begin(), list.end(), expected) == list.end()) {
      config.wrong("architectures", architectures->empty() ? *architectures : architectures->front(), expected);
    }
  }
  detail::refuse_unsupported_fields(config);
  c.vocab_size = config.whole("vocab_size");
  c.hidden_size = config.whole("hidden_size");
  c.intermediate_size = config.whole("intermediate_size");
  c.num_hidden_layers = config.whole("num_hidden_layers");
  c.num_attention_heads = config.whole("num_attention_heads");
  if (c.num_attention_heads < 1) config.wrong("num_attention_heads", c.num_attention_heads, "at least 1");
  c.num_key_value_heads = c.model_type == "llama" ? config.whole_or("num_key_value_heads", c.num_attention_heads)
                                                  : config.whole("num_key_value_heads");
  c.head_dim = config.whole_or("head_dim", qwen3 ? 128 : c.hidden_size / c.num_attention_heads);
  c.max_position_embeddings = config.whole("max_position_embeddings");
  c.rms_norm_eps = static_cast<float>(config.number_or("rms_norm_eps", 1e-6));
  c.tie_word_embeddings = config.truth_or("tie_word_embeddings", false);
  c.sliding_window = detail::read_sliding_window(config, c);
  // transformers' Mistral has no biases and its Qwen 2 always has those of q, k and v; neither reads attention_bias.
  const bool bias = (c.model_type == "llama" || qwen3) && config.truth_or("attention_bias", false);
  c.attention_bias = bias || qwen2;
  c.output_bias = bias;
  c.mlp_bias = c.model_type == "llama" && config.truth_or("mlp_bias", false);
  c.qk_norm = qwen3;
  detail::read_rope(config, c);
  c.validate();
  return c;
}

/// Throws IoError, FormatError, ConfigError.
inline ModelSource open_model_folder(const std::filesystem::path& folder) {
  ModelSource source;
  source.where = "model folder " + folder.string();
  const peft::Json json = read_json(folder / "config.json");
  source.config = read_llama_config(JsonFields(json, (folder / "config.json").string()));
  const auto file = peft::SafetensorsFile::open_folder(folder);
  for (const peft::TensorRef& tensor : file.tensors()) {
    // Old checkpoints carry the frequencies along; they follow from the configuration.
    if (tensor.name.ends_with(".rotary_emb.inv_freq")) continue;
    if (auto packed = peft::find_bnb_4bit(file, tensor.name)) {
      source.four_bit.emplace(tensor.name, std::move(*packed));
      continue;
    }
    const auto owner = peft::bnb_4bit_owner(tensor.name);
    if (owner && peft::bnb_4bit_code(file, *owner)) continue;
    source.tensors.emplace(tensor.name, tensor);
  }
  const peft::TensorRef* head = source.find("lm_head.weight");
  if (source.config.tie_word_embeddings && head != nullptr) {
    const peft::TensorRef& embedding = source.tensor("model.embed_tokens.weight");
    if (head->type != embedding.type || head->shape != embedding.shape || !std::equal(head->bytes.begin(), head->bytes.end(), embedding.bytes.begin(), embedding.bytes.end())) {
      peft::fail<peft::FormatError>("loading {}: it differs from model.embed_tokens.weight, but config.json says "
                                    "tie_word_embeddings; expected tie_word_embeddings false, or no lm_head.weight",
                                    head->where());
    }
    source.tensors.erase("lm_head.weight");
  }
  return source;
}

}  // namespace peft_examples
