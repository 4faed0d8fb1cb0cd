#pragma once
/// A model's files by path: a GGUF, or a Hugging Face folder.

#include <filesystem>
#include <system_error>

#include "hosts/llama_folder.hpp"
#include "hosts/llama_gguf.hpp"
#include "hosts/llama_loader.hpp"

namespace peft_examples {

inline bool is_model_folder(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

/// Throws IoError, FormatError, ConfigError.
inline ModelSource open_model(const std::filesystem::path& path) {
  return is_model_folder(path) ? open_model_folder(path) : open_gguf_model(peft::GgufFile::open(path));
}

}  // namespace peft_examples
