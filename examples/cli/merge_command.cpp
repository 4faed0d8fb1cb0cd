/// peft merge: writes the base model with an adapter added to its weights: a Hugging Face folder, a GGUF, or a safetensors
/// file of the weights alone.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.hpp"
#include "cli/merged_model.hpp"
#include "cli/size.hpp"
#include "hosts/llama_config_json.hpp"
#include "hosts/metadata_writer.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/tokenizer_json_writer.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/gguf_writer.hpp"
#include "peft/io/safetensors_shards.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;

struct MergeOptions {
  ModelOptions model;
  std::string out;
  std::string max_shard_size = "5GB";
};

/// What a folder that merge writes may hold. Of a folder's own files those that exist are copied.
constexpr std::array<std::string_view, 8> kTokenizerFiles = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt"};

peft::StoredType stored_type(const std::string& dtype) {
  return dtype == "bf16" ? peft::StoredType::kBF16 : dtype == "f16" ? peft::StoredType::kF16 : peft::StoredType::kF32;
}
const char* torch_name(peft::StoredType type) {
  return type == peft::StoredType::kBF16 ? "bfloat16" : type == peft::StoredType::kF16 ? "float16" : "float32";
}

/// Refuses to take the place of the base model, and of a folder that is no earlier merge.
void check_target(const fs::path& target, const fs::path& model, bool to_folder) {
  std::error_code error;
  if (!fs::exists(target, error)) return;
  if (fs::equivalent(target, model, error)) {
    peft::fail<peft::ConfigError>("--out {} is the base model; expected another name", target.string());
  }
  if (!to_folder) return;
  if (!fs::is_directory(target, error)) {
    peft::fail<peft::ConfigError>("--out {} is a file; expected a folder, or a name that ends with .gguf or .safetensors", target.string());
  }
  for (const auto& entry : fs::directory_iterator(target)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name == "config.json" || name == "generation_config.json" || name.starts_with(".peft-") ||
                      (name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"))) ||
                      std::find(kTokenizerFiles.begin(), kTokenizerFiles.end(), name) != kTokenizerFiles.end();
    if (!ours) {
      peft::fail<peft::ConfigError>("--out {} holds {}, which would be lost; expected a new or empty folder, or an earlier merge",
                                    target.string(), peft::quote_text(name));
    }
  }
}

void write_text(peft::AtomicDirectory& folder, std::string_view name, std::string_view text) {
  peft::FileWriter file = folder.create(name);
  file.write(text);
  file.finish();
}
void write_json(peft::AtomicDirectory& folder, std::string_view name, const peft::Json& json, int indent = 2) {
  write_text(folder, name, json.dump(indent) + "\n");
}

/// Configuration and tokenizer of a folder: its own files, with the type that is written.
void copy_folder_files(const fs::path& from, peft::StoredType type, peft::AtomicDirectory& folder) {
  peft::Json config = read_json(from / "config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = torch_name(type);
  write_json(folder, "config.json", config);
  std::vector<std::string_view> names(kTokenizerFiles.begin(), kTokenizerFiles.end());
  names.push_back("generation_config.json");
  for (const std::string_view name : names) {
    std::error_code ignored;
    if (!fs::is_regular_file(from / name, ignored)) continue;
    const auto file = peft::MappedFile::open(from / name);
    write_text(folder, name, {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()});
  }
}

/// The same made of a GGUF's metadata.
void make_folder_files(const LlamaConfig& config, const peft::GgufFile& file, peft::StoredType type, peft::AtomicDirectory& folder) {
  const TokenizerSpec tokenizer = read_tokenizer(file);
  std::vector<bool> unused(tokenizer.tokens.size());
  if (file.has("tokenizer.ggml.token_type")) {
    const auto types = file.array<std::int32_t>("tokenizer.ggml.token_type");
    for (std::size_t i = 0; i < unused.size(); ++i) {
      unused[i] = types[static_cast<Index>(i)] == static_cast<std::int32_t>(GgufTokenType::kUnused);
    }
  }
  write_json(folder, "config.json", llama_config_json(config, tokenizer, torch_name(type)));
  write_json(folder, "generation_config.json", generation_config_json(tokenizer));
  write_json(folder, "tokenizer.json", tokenizer_json(tokenizer, [&](std::size_t id) { return unused[id]; }));
  write_json(folder, "tokenizer_config.json", tokenizer_config_json(tokenizer, config.max_position_embeddings));
  write_json(folder, "special_tokens_map.json", special_tokens_json(tokenizer));
}

/// Returns the number of tensors.
std::size_t write_folder(const MergeOptions& options, MergedModel& model, peft::StoredType type, Index max_shard) {
  const std::vector<peft::DeferredTensor> tensors = model.tensors(type);
  peft::AtomicDirectory folder(options.out, peft::ExistingFolder::kReplace);
  if (is_model_folder(options.model.model)) {
    copy_folder_files(options.model.model, type, folder);
  } else {
    make_folder_files(model.config(), peft::GgufFile::open(options.model.model), type, folder);
  }
  peft::write_safetensors_shards(folder, tensors, max_shard);
  folder.commit();
  return tensors.size();
}

/// Metadata of a GGUF are carried over, but for what describes how the weights are stored.
std::size_t write_gguf_file(const MergeOptions& options, MergedModel& model, peft::StoredType type) {
  const fs::path path = options.model.model;
  peft::GgufMetadata metadata;
  std::vector<std::string> notes;
  if (is_model_folder(path)) {
    const fs::path plain = path.has_filename() ? path : path.parent_path();
    put_hyperparameters(model.config(), plain.filename().string(), metadata);
    put_tokenizer(read_tokenizer(path), model.config().vocab_size, metadata, notes);
  } else {
    const auto file = peft::GgufFile::open(path);
    for (const peft::GgufValue& value : file.metadata()) metadata.copy(value);
    metadata.remove("general.quantization_version");
    metadata.remove("general.alignment");
  }
  // llama.cpp's numbers for "all F32", "mostly F16", "mostly BF16".
  metadata.set("general.file_type", type == peft::StoredType::kF32 ? 0u : type == peft::StoredType::kF16 ? 1u : 32u);
  const std::vector<peft::DeferredTensor> tensors = model.gguf_tensors(type);
  peft::write_gguf(options.out, metadata, tensors);
  for (const std::string& note : notes) std::fprintf(stderr, "%s\n", note.c_str());
  return tensors.size();
}

int run_merge(const MergeOptions& options) {
  const fs::path out = options.out;
  const std::string ending = out.extension().string();
  const bool to_folder = ending != ".gguf" && ending != ".safetensors";
  const Index max_shard = parse_size("--max-shard-size", options.max_shard_size);
  check_target(out, options.model.model, to_folder);
  const peft::StoredType type = stored_type(options.model.dtype);
  MergedModel model(open_model(options.model.model), options.model.adapter);
  std::size_t count = 0;
  if (ending == ".gguf") {
    count = write_gguf_file(options, model, type);
  } else if (to_folder) {
    count = write_folder(options, model, type, max_shard);
  } else {
    const std::vector<peft::DeferredTensor> tensors = model.tensors(type);
    peft::AtomicFile file(options.out);
    peft::write_safetensors(file.writer(), std::span<const peft::DeferredTensor>(tensors));
    file.commit();
    count = tensors.size();
  }
  std::fprintf(stderr, "%s: %zu tensors (%s), %lld of them with the adapter's update\n", options.out.c_str(), count,
               options.model.dtype.c_str(), static_cast<long long>(model.changed()));
  return 0;
}

}  // namespace

void add_merge_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App& command = *app.add_subcommand("merge", "write the model with an adapter merged into its weights");
  options->model.add_model_to(command, true);
  command.get_option("--adapter")->required();
  command.add_option("--dtype", options->model.dtype, "type of the written weights; the sum is f32")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  command.add_option("--out", options->out, "folder of a Hugging Face model, FILE.gguf, or FILE.safetensors: weights alone")->required();
  command.add_option("--max-shard-size", options->max_shard_size, "of a folder's files of weights")->capture_default_str();
  command.callback([options, &run] {
    run = [options] {
      const Threads threads(options->model.threads);
      return run_merge(*options);
    };
  });
}

}  // namespace peft_examples
