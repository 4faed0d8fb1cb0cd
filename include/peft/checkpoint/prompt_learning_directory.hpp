#pragma once
/// Prefixes and prompts as folders of Python PEFT: adapter_config.json and adapter_model.safetensors with one key,
/// "prompt_embeddings": [virtual tokens, layers·2·token_dim] of prefix tuning, [virtual tokens, token_dim] of prompt
/// tuning and P-tuning. An encoder's parameters are not saved, as PEFT has it: a train state keeps them. An adapter other
/// than "default" stands in a sub-folder of its name.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/prompt_learning_json.hpp"
#include "peft/core/buffer.hpp"

PEFT_BEGIN_NAMESPACE

/// A prefix or prompt as files hold it.
struct PromptLearningAdapter {
  PromptLearningConfig config;
  std::filesystem::path path;  ///< the folder that it was read from
  TensorRef prompt_embeddings;  ///< views the mapped file
  /// Of modules_to_save, named by parameter: "classifier.weight". Whoever reads them gives them to a model's modules.
  std::vector<TensorRef> modules{};
};

namespace detail {

inline constexpr std::string_view kPromptEmbeddings = "prompt_embeddings";
/// Before the names of modules_to_save: a prompt wraps no model, so PEFT's keys lack the "model." that others have.
inline constexpr std::string_view kPromptModules = "base_model.";

/// Whether a parameter is of one of the modules that the configuration saves in full.
inline bool is_saved_module(std::string_view parameter, const PromptLearningConfig& config) {
  const std::size_t dot = parameter.rfind('.');
  if (dot == std::string_view::npos) return false;
  const std::string_view module = parameter.substr(0, dot);
  return std::visit(
      [&](const auto& c) {
        return std::any_of(c.modules_to_save.begin(), c.modules_to_save.end(),
                           [&](const std::string& entry) { return module.ends_with(entry); });
      },
      config);
}

/// [rows, cols] that the configuration means.
inline std::pair<Index, Index> prompt_shape(const PromptLearningConfig& config, std::string_view where) {
  return std::visit(
      [&](const auto& c) -> std::pair<Index, Index> {
        try {
          require_set("its configuration", "token_dim", c.token_dim);
          if constexpr (std::same_as<std::remove_cvref_t<decltype(c)>, PrefixTuningConfig>) {
            require_set("its configuration", "num_layers", c.num_layers);
            require_set("its configuration", "num_attention_heads", c.num_attention_heads);
            return {c.num_virtual_tokens, c.num_layers * 2 * c.token_dim};
          } else {
            return {c.num_virtual_tokens, c.token_dim};
          }
        } catch (const ConfigError& error) {
          fail<ConfigError>("{}: {}", where, error.what());
        }
      },
      config);
}

inline void check_prompt_tensor(const TensorRef& tensor, const PromptLearningConfig& config, std::string_view where) {
  const auto [rows, cols] = prompt_shape(config, where);
  if (tensor.shape.size() != 2 || tensor.rows() != rows || tensor.cols() != cols) {
    fail<ShapeError>("{}: {} is {}; its configuration gives [{}, {}]: num_virtual_tokens, {}", where, kPromptEmbeddings,
                     tensor.shape_text(), rows, cols,
                     std::holds_alternative<PrefixTuningConfig>(config) ? "num_layers·2·token_dim" : "token_dim");
  }
  if (!tensor.is_readable()) {
    fail<FormatError>("{}: {} is stored as {}; expected F32, F16 or BF16", where, kPromptEmbeddings, name_of(tensor.type));
  }
  check_finite(tensor, where);
}

inline PromptLearningAdapter read_prompt_learning(const std::filesystem::path& folder) {
  constexpr std::size_t kMost = 16u << 20;
  const std::filesystem::path config_path = AtomicDirectory::locate(folder, kAdapterConfig);
  const std::string config_where = "adapter config " + config_path.string();
  const auto config_file = MappedFile::open(config_path);
  if (config_file->bytes().size() > kMost) {
    fail<FormatError>("{}: {} bytes; expected at most {}", config_where, config_file->bytes().size(), kMost);
  }
  const std::string_view text(reinterpret_cast<const char*>(config_file->bytes().data()), config_file->bytes().size());
  PromptLearningAdapter result;
  result.path = folder;
  result.config = prompt_learning_config_from_json(parse_json(text, config_where), config_where);
  const std::filesystem::path weights = AtomicDirectory::locate(folder, kAdapterModel);
  const std::string where = "adapter " + weights.string();
  const SafetensorsFile file = SafetensorsFile::open(weights);
  for (const TensorRef& tensor : file.tensors()) {
    if (tensor.name == kPromptEmbeddings) continue;
    if (tensor.name.starts_with(kPromptModules)) {
      TensorRef own = tensor;
      own.name.erase(0, kPromptModules.size());
      if (is_saved_module(own.name, result.config)) {
        check_readable(own, where);
        result.modules.push_back(std::move(own));
        continue;
      }
    }
    fail<FormatError>("{}: it holds the key {} beside {}, which is of none of its modules_to_save; other methods' weights "
                      "are not supported here",
                      where, quote_text(tensor.name), kPromptEmbeddings);
  }
  const TensorRef* tensor = file.find(std::string(kPromptEmbeddings));
  if (tensor == nullptr) fail<FormatError>("{}: it has no {}", where, kPromptEmbeddings);
  check_prompt_tensor(*tensor, result.config, where);
  result.prompt_embeddings = *tensor;
  return result;
}

}  // namespace detail

/// Reads and checks a prefix or prompt: every field understood, one key, of the shape that the configuration gives, finite.
/// Throws IoError, FormatError, ConfigError, ShapeError, NumericError.
inline PromptLearningAdapter load_prompt_learning(const std::filesystem::path& folder, std::string_view name = "default") {
  return detail::read_adapter_folder(detail::adapter_folder(folder, name), detail::read_prompt_learning);
}

/// Writes both files into a set that the caller commits. `inference_mode` is written as true, as PEFT does. `modules`: the
/// parameters of modules_to_save, named by parameter. Throws as save_prompt_learning; ConfigError for one of another module.
template <std::floating_point A>
void write_prompt_learning(AtomicDirectory& set, const PromptLearningConfig& config, MatrixView<const A> prompt_embeddings,
                           std::span<const TensorRef> modules = {}) {
  const std::string where = "saving the adapter to " + set.target().string();
  PromptLearningConfig saved = config;
  std::visit([](auto& c) { c.inference_mode = true; }, saved);
  const std::string json = prompt_learning_config_to_json(saved).dump(2);
  Matrix<float> values(prompt_embeddings.rows, prompt_embeddings.cols);
  for (Index i = 0; i < values.rows(); ++i) {
    for (Index j = 0; j < values.cols(); ++j) values(i, j) = static_cast<float>(prompt_embeddings(i, j));
  }
  const TensorRef tensor = tensor_ref<float>(std::string(detail::kPromptEmbeddings), std::as_const(values).view());
  detail::check_prompt_tensor(tensor, config, where);
  std::vector<TensorRef> tensors{tensor};
  for (TensorRef module : modules) {
    if (!detail::is_saved_module(module.name, config)) {
      fail<ConfigError>("{}: {} is of none of the configuration's modules_to_save", where, quote_text(module.name));
    }
    detail::check_finite(module, where);
    module.name.insert(0, detail::kPromptModules);
    tensors.push_back(std::move(module));
  }
  FileWriter config_file = set.create(detail::kAdapterConfig);
  config_file.write(json);
  config_file.finish();
  FileWriter weights = set.create(detail::kAdapterModel);
  write_safetensors(weights, tensors);
  weights.finish();
}

/// Saves a prefix or prompt in one step (see AtomicDirectory), as float. Other files of the folder stay. Throws
/// ConfigError, ShapeError for rows that are not the configuration's, NumericError for a value that is not finite,
/// IoError; what stood there then stays.
template <std::floating_point A>
void save_prompt_learning(const std::filesystem::path& folder, const PromptLearningConfig& config,
                          MatrixView<const A> prompt_embeddings, std::string_view name = "default") {
  AtomicDirectory set(detail::adapter_folder(folder, name));
  write_prompt_learning<A>(set, config, prompt_embeddings);
  set.commit();
}

PEFT_END_NAMESPACE
