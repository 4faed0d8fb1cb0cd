/// peft merge: writes the base model with an adapter added to its weights: a Hugging Face folder, a GGUF, or a safetensors
/// file of the weights alone.

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "cli/merged_model.hpp"
#include "cli/model_folder.hpp"
#include "cli/size.hpp"
#include "hosts/metadata_writer.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
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

/// Returns the number of tensors.
std::size_t write_folder(const MergeOptions& options, MergedModel& model, peft::StoredType type, Index max_shard) {
  const std::vector<peft::DeferredTensor> tensors = model.tensors(type);
  peft::AtomicDirectory folder(options.out, peft::ExistingFolder::kReplace);
  write_folder_files(options.model.model, model.config(), type, nullptr, folder);
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
  check_target(out, options.model.model, to_folder, "merge");
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
