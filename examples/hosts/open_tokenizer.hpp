#pragma once
/// The tokenizer of a model by its path: a GGUF's, or a Hugging Face folder's.

#include <filesystem>

#include "hosts/tokenizer_folder.hpp"
#include "hosts/tokenizer_gguf.hpp"

namespace peft_examples {

/// Throws IoError, FormatError.
inline TokenizerSpec open_tokenizer(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? read_tokenizer(path) : read_tokenizer(peft::GgufFile::open(path));
}

}  // namespace peft_examples
