#pragma once
/// What an adapter's folder holds, by its adapter_config.json or adapter_fusion_config.json.

#include <filesystem>
#include <string>
#include <system_error>

#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/json.hpp"

namespace peft_examples {

enum class AdapterKind {
  kParts,       ///< LoRA and its like: parts at the model's modules
  kPrefix,      ///< keys and values before every sequence
  kPrompt,      ///< rows before the input embeddings
  kBottleneck,  ///< AdapterHub's
  kFusion,      ///< AdapterHub's AdapterFusion over such
};

inline AdapterKind adapter_kind_of(const peft::Json& config) {
  if (!config.is_object()) return AdapterKind::kParts;
  const peft::Json type = config.value("peft_type", peft::Json());
  if (type == "PREFIX_TUNING") return AdapterKind::kPrefix;
  if (type == "PROMPT_TUNING" || type == "P_TUNING") return AdapterKind::kPrompt;
  return type.is_null() && config.contains("config") ? AdapterKind::kBottleneck : AdapterKind::kParts;
}

/// Of a folder without the file: kParts, whose loader says what is missing. Throws IoError, FormatError.
inline AdapterKind adapter_kind(const std::filesystem::path& folder) {
  const std::filesystem::path path = peft::AtomicDirectory::locate(folder, peft::detail::kAdapterConfig);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const bool fuses = std::filesystem::exists(peft::AtomicDirectory::locate(folder, "adapter_fusion_config.json"), error);
    return fuses ? AdapterKind::kFusion : AdapterKind::kParts;
  }
  return adapter_kind_of(peft::detail::read_config_json(path, "adapter config " + path.string()));
}

}  // namespace peft_examples
