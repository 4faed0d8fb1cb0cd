#pragma once
/// The files of a Hugging Face folder around its weights: configuration and tokenizer, copied or made of a GGUF's metadata.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "hosts/llama_config_json.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/tokenizer_json_writer.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/gguf.hpp"
#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"

namespace peft_examples {

/// What a written folder may hold. Of a folder's own files those that exist are copied.
inline constexpr std::array<std::string_view, 8> kTokenizerFiles = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt"};

inline peft::StoredType stored_type(const std::string& dtype) {
  return dtype == "bf16" ? peft::StoredType::kBF16 : dtype == "f16" ? peft::StoredType::kF16 : peft::StoredType::kF32;
}
inline const char* torch_name(peft::StoredType type) {
  return type == peft::StoredType::kBF16 ? "bfloat16" : type == peft::StoredType::kF16 ? "float16" : "float32";
}

/// Refuses to take the place of the base model, and of a folder that no earlier run of `command` made.
inline void check_target(const std::filesystem::path& target, const std::filesystem::path& model, bool to_folder, std::string_view command) {
  std::error_code error;
  if (!std::filesystem::exists(target, error)) return;
  if (std::filesystem::equivalent(target, model, error)) {
    peft::fail<peft::ConfigError>("--out {} is the base model; expected another name", target.string());
  }
  if (!to_folder) return;
  if (!std::filesystem::is_directory(target, error)) {
    peft::fail<peft::ConfigError>("--out {} is a file; expected a folder, or a name that ends with .gguf or .safetensors", target.string());
  }
  for (const auto& entry : std::filesystem::directory_iterator(target)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name == "config.json" || name == "generation_config.json" || name.starts_with(".peft-") ||
                      (name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"))) ||
                      std::find(kTokenizerFiles.begin(), kTokenizerFiles.end(), name) != kTokenizerFiles.end();
    if (!ours) {
      peft::fail<peft::ConfigError>("--out {} holds {}, which would be lost; expected a new or empty folder, or one of an "
                                    "earlier {}",
                                    target.string(), peft::quote_text(name), command);
    }
  }
}

inline void write_text(peft::AtomicDirectory& folder, std::string_view name, std::string_view text) {
  peft::FileWriter file = folder.create(name);
  file.write(text);
  file.finish();
}
inline void write_json(peft::AtomicDirectory& folder, std::string_view name, const peft::Json& json, int indent = 2) {
  write_text(folder, name, json.dump(indent) + "\n");
}

/// Configuration and tokenizer of a folder: its own files, with the type that is written and `quantization`, if any.
inline void copy_folder_files(const std::filesystem::path& from, peft::StoredType type, const peft::Json* quantization,
                              peft::AtomicDirectory& folder) {
  peft::Json config = read_json(from / "config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = torch_name(type);
  config.erase("quantization_config");
  if (quantization != nullptr) config["quantization_config"] = *quantization;
  write_json(folder, "config.json", config);
  std::vector<std::string_view> names(kTokenizerFiles.begin(), kTokenizerFiles.end());
  names.push_back("generation_config.json");
  for (const std::string_view name : names) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(from / name, ignored)) continue;
    const auto file = peft::MappedFile::open(from / name);
    write_text(folder, name, {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()});
  }
}

/// The same made of a GGUF's metadata.
inline void make_folder_files(const LlamaConfig& config, const peft::GgufFile& file, peft::StoredType type,
                              const peft::Json* quantization, peft::AtomicDirectory& folder) {
  const TokenizerSpec tokenizer = read_tokenizer(file);
  std::vector<bool> unused(tokenizer.tokens.size());
  if (file.has("tokenizer.ggml.token_type")) {
    const auto types = file.array<std::int32_t>("tokenizer.ggml.token_type");
    for (std::size_t i = 0; i < unused.size(); ++i) {
      unused[i] = types[static_cast<Index>(i)] == static_cast<std::int32_t>(GgufTokenType::kUnused);
    }
  }
  peft::Json json = llama_config_json(config, tokenizer, torch_name(type));
  if (quantization != nullptr) json["quantization_config"] = *quantization;
  write_json(folder, "config.json", json);
  write_json(folder, "generation_config.json", generation_config_json(tokenizer));
  write_json(folder, "tokenizer.json", tokenizer_json(tokenizer, [&](std::size_t id) { return unused[id]; }));
  write_json(folder, "tokenizer_config.json", tokenizer_config_json(tokenizer, config.max_position_embeddings));
  write_json(folder, "special_tokens_map.json", special_tokens_json(tokenizer));
}

/// All files of a folder but its weights, for the model at `path`, a folder or a GGUF.
inline void write_folder_files(const std::filesystem::path& path, const LlamaConfig& config, peft::StoredType type,
                               const peft::Json* quantization, peft::AtomicDirectory& folder) {
  if (is_model_folder(path)) {
    copy_folder_files(path, type, quantization, folder);
  } else {
    make_folder_files(config, peft::GgufFile::open(path), type, quantization, folder);
  }
}

}  // namespace peft_examples
