#pragma once
/// Adapters as folders of Python PEFT: adapter_config.json and adapter_model.safetensors, whose keys are
/// "base_model.model." + the module's path + ".lora_A.weight" [r,in] or ".lora_B.weight" [out,r], and likewise of other
/// methods. The adapter's name is not in the keys: one other than "default" stands in a sub-folder of that name.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/checkpoint/peft_adapter.hpp"
#include "peft/checkpoint/read_unchanged.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/io/safetensors_writer.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::string_view kPeftPrefix = "base_model.model.";
/// What is PEFT's own and stands in no module (VeRA's projections).
inline constexpr std::string_view kPeftOwn = "base_model.";

/// Keys ↔ parameters' names.
inline void name_by_parameter(std::vector<TensorRef>& tensors, std::string_view where) {
  for (TensorRef& tensor : tensors) {
    if (tensor.name.starts_with(kPeftPrefix)) {
      tensor.name.erase(0, kPeftPrefix.size());
    } else if (!tensor.name.starts_with(kPeftOwn)) {
      fail<FormatError>("{}: the key {} does not begin with \"{}\", as PEFT's do", where, quote_text(tensor.name),
                        kPeftPrefix);
    }
  }
}
inline void name_by_key(TensorRef& tensor) {
  if (!tensor.name.starts_with(kPeftOwn)) tensor.name.insert(0, kPeftPrefix);
}
inline constexpr std::string_view kAdapterConfig = "adapter_config.json";
inline constexpr std::string_view kAdapterModel = "adapter_model.safetensors";

/// DIR, or DIR/name for an adapter that is not called "default".
inline std::filesystem::path adapter_folder(const std::filesystem::path& folder, std::string_view name) {
  if (name.empty() || name.find('/') != std::string_view::npos || name.front() == '.') {
    fail<ConfigError>("adapter folder {}: the adapter's name is {}; expected a plain name", folder.string(),
                      quote_text(name));
  }
  return name == "default" ? folder : folder / name;
}

/// Throws where the folder holds no adapter, with what it holds instead.
inline void require_adapter(const std::filesystem::path& folder) {
  std::error_code error;
  const auto has = [&](std::string_view name) {
    return std::filesystem::exists(AtomicDirectory::locate(folder, name), error);
  };
  if (has(kAdapterConfig) && has(kAdapterModel)) return;
  if (has(kAdapterConfig) && has("adapter_model.bin")) {
    fail<FormatError>("adapter folder {}: its weights are adapter_model.bin, a Python pickle, which is not read: it "
                      "can run any code; convert it in Python: torch.load(…, weights_only=True), then "
                      "safetensors.torch.save_file to {}",
                      folder.string(), kAdapterModel);
  }
  std::string inside;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (std::filesystem::exists(it->path() / kAdapterConfig, ignored)) {
      inside += (inside.empty() ? "" : ", ") + it->path().filename().string();
    }
  }
  if (!std::filesystem::exists(folder, error)) {
    fail<IoError>("adapter folder {}: there is no such folder", folder.string());
  }
  fail<IoError>("adapter folder {}: it has no {}{}", folder.string(),
                has(kAdapterConfig) ? kAdapterModel : kAdapterConfig,
                inside.empty() ? "" : "; its sub-folders hold adapters of these names: " + inside);
}

inline AnyPeftAdapter read_any_adapter(const std::filesystem::path& folder) {
  const std::filesystem::path weights = AtomicDirectory::locate(folder, kAdapterModel);
  const std::filesystem::path config = AtomicDirectory::locate(folder, kAdapterConfig);
  const std::string where = "adapter " + weights.string(), config_where = "adapter config " + config.string();
  AnyPeftAdapter result{adapter_config_from_json(read_config_json(config, config_where), config_where), folder, {}};
  const SafetensorsFile file = SafetensorsFile::open(weights);
  result.tensors.assign(file.tensors().begin(), file.tensors().end());
  name_by_parameter(result.tensors, where);
  if (result.tensors.empty()) fail<FormatError>("{}: it holds no weights", where);
  if (const LoraConfig* lora = result.config.get_if<LoraConfig>()) {
    std::vector<TensorRef> others;
    collect_modules(result.tensors, *lora, where, others);
  } else {
    for (const TensorRef& tensor : result.tensors) check_readable(tensor, where);
  }
  return result;
}

inline PeftAdapter read_adapter(const std::filesystem::path& folder) {
  const std::filesystem::path weights = AtomicDirectory::locate(folder, kAdapterModel);
  PeftAdapter result;
  result.path = folder;
  result.config = read_lora_config(AtomicDirectory::locate(folder, kAdapterConfig));
  const std::string where = "adapter " + weights.string();
  const SafetensorsFile file = SafetensorsFile::open(weights);
  std::vector<TensorRef> tensors(file.tensors().begin(), file.tensors().end());
  name_by_parameter(tensors, where);
  result.modules = collect_modules(std::move(tensors), result.config, where, result.others);
  if (result.modules.empty() && result.others.empty()) fail<FormatError>("{}: it holds no weights", where);
  return result;
}

/// read(place) of one save; see read_unchanged.hpp.
template <class Read>
auto read_adapter_folder(const std::filesystem::path& place, Read&& read) {
  return read_unchanged(place, kAdapterConfig, kAdapterModel, "adapter folder", [&] {
    require_adapter(place);
    return read(place);
  });
}

}  // namespace detail

/// Reads and checks a LoRA adapter: every key understood, A and B complete and fitting, ranks as the configuration has
/// them. The tensors stay in the mapped file. Throws IoError, FormatError, ConfigError, ShapeError.
inline PeftAdapter load_peft_adapter(const std::filesystem::path& folder, std::string_view name = "default") {
  return detail::read_adapter_folder(detail::adapter_folder(folder, name), detail::read_adapter);
}

/// Reads an adapter of any method: the configuration, and tensors that are numbers; a LoRA's are checked as by
/// load_peft_adapter. Throws IoError, FormatError, ConfigError, ShapeError.
inline AnyPeftAdapter load_any_peft_adapter(const std::filesystem::path& folder, std::string_view name = "default") {
  return detail::read_adapter_folder(detail::adapter_folder(folder, name), detail::read_any_adapter);
}

/// Writes both files into a set that the caller commits, say with a training's state. `tensors` are named by parameter
/// ("model.layers.0.self_attn.q_proj.lora_A.weight"); see tensor_ref(). `inference_mode` is written as true, as PEFT
/// does. Throws as save_peft_adapter.
inline void write_peft_adapter(AtomicDirectory& set, const AnyConfig& config, std::span<const TensorRef> tensors) {
  const std::string where = "saving the adapter to " + set.target().string();
  const Json json = adapter_config_to_json(with_inference_mode(config, true));
  std::vector<TensorRef> named(tensors.begin(), tensors.end());
  for (const TensorRef& tensor : named) tensor.check_size();
  if (const LoraConfig* lora = config.get_if<LoraConfig>()) {
    std::vector<TensorRef> others;
    detail::collect_modules(named, *lora, where, others);
  }
  if (named.empty()) fail<ConfigError>("{}: there are no weights", where);
  for (TensorRef& tensor : named) {
    detail::check_finite(tensor, where);
    detail::name_by_key(tensor);
  }
  FileWriter config_file = set.create(detail::kAdapterConfig);
  config_file.write(json.dump(2));
  config_file.finish();
  FileWriter weights = set.create(detail::kAdapterModel);
  write_safetensors(weights, named);
  weights.finish();
}

/// Saves an adapter in one step (see AtomicDirectory): a kill at any moment leaves the old adapter or the new one.
/// Other files of the folder stay. Throws ConfigError, FormatError, ShapeError for tensors that make no adapter of this
/// configuration, NumericError for a value that is not finite, IoError; the old adapter then stays.
inline void save_peft_adapter(const std::filesystem::path& folder, const AnyConfig& config,
                              std::span<const TensorRef> tensors, std::string_view name = "default") {
  AtomicDirectory set(detail::adapter_folder(folder, name));
  write_peft_adapter(set, config, tensors);
  set.commit();
}

PEFT_END_NAMESPACE
