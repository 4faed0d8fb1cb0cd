#pragma once
/// PEFT's folders ↔ prefixes and prompts. What is loaded has inference_mode set: it is used and not trained unless
/// set_trainable says otherwise; an encoder's parameters are not in the files.

#include <filesystem>
#include <memory>
#include <string_view>
#include <variant>

#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/checkpoint/prompt_learning_directory.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

template <class Method>
void set_rows(Method& method, const TensorRef& tensor) {
  Matrix<typename Method::accumulator_type> rows(tensor.rows(), tensor.cols());
  copy_values(tensor, rows.flat());
  method.set_prompt_embeddings(rows);
}

[[noreturn]] inline void wrong_type(const PromptLearningAdapter& adapter, std::string_view expected) {
  fail<ConfigError>("adapter {}: its peft_type is \"{}\"; expected {}", adapter.path.string(),
                    peft_type_of(adapter.config), expected);
}

/// What would be left out is not left out silently.
inline void refuse_modules(const PromptLearningAdapter& adapter) {
  if (adapter.modules.empty()) return;
  fail<ConfigError>("adapter {}: it holds {} too, of a classification head; a host with that head takes it by "
                    "load_prompt_learning and make_prefix_cache or make_prompt_embedding",
                    adapter.path.string(), quote_text(adapter.modules.front().name));
}

}  // namespace detail

/// A prefix with a file's rows. Its `modules` are the caller's to give to a model. Throws ConfigError for another method's.
template <Scalar T>
std::shared_ptr<PrefixCache<T>> make_prefix_cache(const PromptLearningAdapter& adapter) {
  const auto* config = std::get_if<PrefixTuningConfig>(&adapter.config);
  if (config == nullptr) detail::wrong_type(adapter, "\"PREFIX_TUNING\"; load_prompt_embedding reads the others");
  PrefixTuningConfig own = *config;
  own.inference_mode = true;
  auto result = std::make_shared<PrefixCache<T>>(std::move(own));
  detail::set_rows(*result, adapter.prompt_embeddings);
  return result;
}
/// The same for a prompt, of prompt tuning or P-tuning. Throws ConfigError for a prefix's file.
template <Scalar T>
std::shared_ptr<PromptEmbedding<T>> make_prompt_embedding(const PromptLearningAdapter& adapter) {
  std::shared_ptr<PromptEmbedding<T>> result;
  if (const auto* prompt = std::get_if<PromptTuningConfig>(&adapter.config)) {
    PromptTuningConfig own = *prompt;
    own.inference_mode = true;
    result = std::make_shared<PromptEmbedding<T>>(std::move(own));
  } else if (const auto* encoder = std::get_if<PromptEncoderConfig>(&adapter.config)) {
    PromptEncoderConfig own = *encoder;
    own.inference_mode = true;
    result = std::make_shared<PromptEmbedding<T>>(std::move(own));
  } else {
    detail::wrong_type(adapter, "\"PROMPT_TUNING\" or \"P_TUNING\"; load_prefix_cache reads prefixes");
  }
  detail::set_rows(*result, adapter.prompt_embeddings);
  return result;
}

/// A prefix from files. Throws as load_prompt_learning; ConfigError for another method's folder, and for one that holds a
/// module trained in full too.
template <Scalar T>
std::shared_ptr<PrefixCache<T>> load_prefix_cache(const std::filesystem::path& folder, std::string_view name = "default") {
  const PromptLearningAdapter adapter = load_prompt_learning(folder, name);
  detail::refuse_modules(adapter);
  return make_prefix_cache<T>(adapter);
}
/// The same for a prompt, of prompt tuning or P-tuning.
template <Scalar T>
std::shared_ptr<PromptEmbedding<T>> load_prompt_embedding(const std::filesystem::path& folder,
                                                          std::string_view name = "default") {
  const PromptLearningAdapter adapter = load_prompt_learning(folder, name);
  detail::refuse_modules(adapter);
  return make_prompt_embedding<T>(adapter);
}

/// Brings the rows up to the parameters and saves them, with the configuration, as PEFT's folder. Throws as
/// save_prompt_learning.
template <Scalar T>
void save_pretrained(PrefixCache<T>& prefix, const std::filesystem::path& folder, std::string_view name = "default") {
  prefix.encode();
  save_prompt_learning<Accumulator<T>>(folder, prefix.config(), prefix.prompt_embeddings(), name);
}
template <Scalar T>
void save_pretrained(PromptEmbedding<T>& prompt, const std::filesystem::path& folder, std::string_view name = "default") {
  prompt.encode();
  const PromptLearningConfig config = std::visit([](const auto& c) { return PromptLearningConfig(c); }, prompt.config());
  save_prompt_learning<Accumulator<T>>(folder, config, prompt.prompt_embeddings(), name);
}

PEFT_END_NAMESPACE
