#pragma once
/// What tells one run from another, and what becomes of a run that stands where a new one begins.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "peft/error.hpp"
#include "peft/io/mapped_file.hpp"

namespace peft_examples {

/// Tells one model file from another: its size and FNV-1a over samples of its bytes (all of a small one's).
inline std::string file_fingerprint(const std::string& path) {
  const auto file = peft::MappedFile::open(path);
  const auto bytes = file->bytes();
  constexpr std::size_t kPiece = 4096, kPieces = 256;
  const std::size_t step = std::max(kPiece, bytes.size() / kPieces);
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (std::size_t begin = 0; begin < bytes.size(); begin += step) {
    for (const std::byte byte : bytes.subspan(begin, std::min(kPiece, bytes.size() - begin))) {
      hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001B3ull;
    }
    file->release(bytes);  // the system may map a huge page for each piece
  }
  return fmt::format("{} bytes, {:016x}", bytes.size(), hash);
}

/// The same for a model: a GGUF, or a folder's config.json and weights.
inline std::string model_fingerprint(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return file_fingerprint(path);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::filesystem::path& file = entry.path();
    if (file.extension() == ".safetensors" || file.filename() == "config.json") names.push_back(file.filename().string());
  }
  std::sort(names.begin(), names.end());
  std::string result;
  for (const std::string& name : names) {
    result += fmt::format("{}{}: {}", result.empty() ? "" : "; ", name, file_fingerprint(std::filesystem::path(path) / name));
  }
  return result;
}

/// A run that stands in `folder` already is moved aside, not overwritten. Returns where to; empty: there was none.
inline std::filesystem::path keep_earlier_run(const std::filesystem::path& folder) {
  std::error_code error;
  const bool has_run = std::filesystem::exists(folder / "metrics.jsonl", error) ||
                       std::filesystem::exists(folder / "adapter_model.safetensors", error);
  if (!has_run) return {};
  for (int number = 1;; ++number) {
    const std::filesystem::path plain = folder.has_filename() ? folder : folder.parent_path();
    const std::filesystem::path target = plain.string() + ".old" + std::to_string(number);
    if (std::filesystem::exists(target, error)) continue;
    std::filesystem::rename(plain, target, error);
    if (error) {
      peft::fail<peft::IoError>("{} holds an earlier run, and it could not be moved to {}: {}; give another --out, or go on "
                                "with it: --resume",
                                plain.string(), target.string(), error.message());
    }
    return target;
  }
}

}  // namespace peft_examples
