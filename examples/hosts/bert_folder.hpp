#pragma once
/// A BERT's hyper-parameters and tensors out of a Hugging Face folder (config.json, model.safetensors or its shards), with
/// the defaults of transformers. Whatever would change the numbers and is not supported is refused by name.

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hosts/bert_config.hpp"
#include "hosts/json_fields.hpp"
#include "hosts/model_source.hpp"
#include "peft/io/safetensors.hpp"

namespace peft_examples {

/// A BERT as it stands in files.
struct BertSource {
  BertConfig config;
  /// By transformers' name without "bert.": "embeddings.…", "encoder.layer.0.…", "pooler.dense.…", "classifier.…".
  std::map<std::string, peft::TensorRef, std::less<>> tensors;
  std::string where;  ///< for messages

  bool has(std::string_view name) const { return tensors.find(name) != tensors.end(); }
  /// Throws FormatError where there is none.
  const peft::TensorRef& tensor(std::string_view name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) peft::fail<peft::FormatError>("{}: has no tensor {}", where, peft::quote_text(name));
    return found->second;
  }
};

namespace detail {

/// Labels by class: id2label's texts, whose keys must be "0" to "n-1".
inline std::vector<std::string> read_labels(const JsonFields& config) {
  std::vector<std::string> labels;
  if (config.find("id2label") == nullptr) return labels;
  const JsonFields names = config.object("id2label");
  for (std::size_t i = 0; i < names.json().size(); ++i) labels.push_back(names.text(std::to_string(i)));
  return labels;
}

/// transformers' name without "bert."; "" for what is no weight of the encoder or its classification head: position ids,
/// and the heads of other tasks ("cls.", of pre-training).
inline std::string bert_tensor_name(std::string name) {
  if (name.starts_with("bert.")) name.erase(0, 5);
  if (name == "embeddings.position_ids" || name == "embeddings.token_type_ids" || name.starts_with("cls.")) return "";
  // The first checkpoints have TensorFlow's names for the norms.
  for (const auto& [old, current] : {std::pair<std::string_view, std::string_view>{".gamma", ".weight"}, {".beta", ".bias"}}) {
    if (name.ends_with(old)) name.replace(name.size() - old.size(), old.size(), current);
  }
  return name;
}

}  // namespace detail

/// Throws FormatError for a member that is missing, of the wrong kind or not supported, ConfigError for numbers that do not
/// fit together.
inline BertConfig read_bert_config(const JsonFields& config) {
  if (config.text("model_type") != "bert") config.wrong("model_type", config.need("model_type"), "\"bert\"");
  for (const char* name : {"is_decoder", "add_cross_attention", "is_encoder_decoder"}) {
    if (config.truth_or(name, false)) config.wrong(name, config.need(name), "false: this host is an encoder");
  }
  if (config.text_or("position_embedding_type", "absolute") != "absolute") {
    config.wrong("position_embedding_type", config.need("position_embedding_type"), "\"absolute\"");
  }
  if (const peft::Json* found = config.find("quantization_config")) {
    config.wrong("quantization_config", *found, "none: this host reads weights in F32, F16 and BF16");
  }
  const auto probability = [&](const char* name, double otherwise) {
    return static_cast<float>(config.number_or(name, otherwise));
  };
  BertConfig c;
  c.vocab_size = config.whole("vocab_size");
  c.hidden_size = config.whole("hidden_size");
  c.intermediate_size = config.whole("intermediate_size");
  c.num_hidden_layers = config.whole("num_hidden_layers");
  c.num_attention_heads = config.whole("num_attention_heads");
  c.max_position_embeddings = config.whole("max_position_embeddings");
  c.type_vocab_size = config.whole_or("type_vocab_size", 2);
  c.pad_token_id = config.whole_or("pad_token_id", 0);
  c.layer_norm_eps = static_cast<float>(config.number_or("layer_norm_eps", 1e-12));
  const std::string act = config.text_or("hidden_act", "gelu");
  const auto activation = peft::activation_named(act);
  if (!activation) config.wrong("hidden_act", config.need("hidden_act"), "one of relu, gelu, gelu_new, silu, tanh, leaky_relu");
  c.hidden_act = *activation;
  c.hidden_dropout_prob = probability("hidden_dropout_prob", 0.1);
  c.attention_probs_dropout_prob = probability("attention_probs_dropout_prob", 0.1);
  if (config.find("classifier_dropout") != nullptr) c.classifier_dropout = probability("classifier_dropout", 0.0);
  c.labels = detail::read_labels(config);
  c.validate();
  return c;
}

/// Throws IoError, FormatError, ConfigError.
inline BertSource open_bert_folder(const std::filesystem::path& folder) {
  BertSource source;
  source.where = "model folder " + folder.string();
  const peft::Json json = read_json(folder / "config.json");
  source.config = read_bert_config(JsonFields(json, (folder / "config.json").string()));
  const auto file = peft::SafetensorsFile::open_folder(folder);
  for (const peft::TensorRef& tensor : file.tensors()) {
    const std::string name = detail::bert_tensor_name(tensor.name);
    if (name.empty()) continue;
    if (!source.tensors.emplace(name, tensor).second) {
      peft::fail<peft::FormatError>("{}: two tensors stand for {}; expected one, with \"bert.\" or without", source.where,
                                    peft::quote_text(name));
    }
  }
  return source;
}

}  // namespace peft_examples
