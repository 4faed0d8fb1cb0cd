#pragma once
/// The goldens' tiny models as a person has them: a Hugging Face folder with its tokenizer, or a GGUF.

#include <filesystem>
#include <string>

#include "unit/io/scratch.hpp"

#include "peft/io/json.hpp"

namespace peft_test {

/// Copies golden model `name` into folder/name, with tokenizer.json where it has a tokenizer. Returns its path.
inline std::filesystem::path model_folder(const io_test::ScratchFolder& folder, const std::string& name) {
  namespace fs = std::filesystem;
  const fs::path goldens = PEFT_GOLDEN_DIR, from = goldens / "models" / name, to = folder / name;
  fs::create_directories(to);
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string file = entry.path().filename().string();
    if (file.starts_with("golden") || file.ends_with(".bin") || file == "tokenizer_name" || file == "lora.safetensors") continue;
    fs::copy_file(entry.path(), to / file, fs::copy_options::overwrite_existing);
  }
  if (fs::exists(from / "tokenizer_name")) {
    const auto tokenizer = goldens / "tokenizer" / (io_test::read_file(from / "tokenizer_name") + ".json");
    io_test::write_file(to / "tokenizer.json",
                        peft::parse_json(io_test::read_file(tokenizer), "tokenizer")["tokenizer"].dump());
  }
  return to;
}

/// The same model as a GGUF, folder/name.gguf.
inline std::filesystem::path model_gguf(const io_test::ScratchFolder& folder, const std::string& name) {
  namespace fs = std::filesystem;
  fs::copy_file(fs::path(PEFT_GOLDEN_DIR) / "models" / name / "model.gguf.bin", folder / (name + ".gguf"),
                fs::copy_options::overwrite_existing);
  return folder / (name + ".gguf");
}

}  // namespace peft_test
