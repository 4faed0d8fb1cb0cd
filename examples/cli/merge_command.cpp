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
#include "cli/quantization_report.hpp"
#include "cli/quantized_merge.hpp"
#include "cli/size.hpp"
#include "hosts/metadata_writer.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "peft/checkpoint/bnb_config_json.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/atomic_file.hpp"
#include "peft/io/gguf_writer.hpp"
#include "peft/io/safetensors_shards.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;

struct MergeOptions {
  ModelOptions model;
  std::string out;
  std::string max_shard_size = "5GB";
  std::string others = "bf16";  ///< of --dtype nf4 and fp4: type of what is not in four bits
  bool report = false;
  bool has_form = false;        ///< whether --block or --double-quant was given
};

/// A folder, or a file of the tensors alone.
void write_model(const MergeOptions& options, const LlamaConfig& config, peft::StoredType type, const peft::Json* quantization,
                 const std::vector<peft::DeferredTensor>& tensors, bool to_folder) {
  if (to_folder) {
    const Index max_shard = parse_size("--max-shard-size", options.max_shard_size);
    peft::AtomicDirectory folder(options.out, peft::ExistingFolder::kReplace);
    write_folder_files(options.model.model, config, type, quantization, folder);
    peft::write_safetensors_shards(folder, tensors, max_shard);
    folder.commit();
  } else {
    peft::AtomicFile file(options.out);
    peft::write_safetensors(file.writer(), std::span<const peft::DeferredTensor>(tensors));
    file.commit();
  }
}

/// The type of a base that has four bits; none where it has plain weights.
std::optional<peft::FourBitCode> four_bits_of(const ModelSource& source) {
  if (source.four_bit.empty()) return std::nullopt;
  return std::visit([](const auto& tensor) { return tensor.code(); }, source.four_bit.begin()->second);
}

template <peft::FourBitCode kCode>
void merge_to_four_bits(const MergeOptions& options, const ModelSource& source, MergedModel& model, bool to_folder) {
  const WeightStorage& form = options.model.quantized;
  const peft::StoredType others = stored_type(options.others);
  QuantizedTensors<kCode> files;
  add_merged<kCode>(model, source, {.block_size = form.block_size, .double_quant = form.double_quant}, others, files);
  peft::Json quantization = peft::bnb_config_to_json({.quant_type = kCode, .use_double_quant = form.double_quant});
  if (!source.four_bit.empty()) quantization = read_json(std::filesystem::path(options.model.model) / "config.json")["quantization_config"];
  write_model(options, model.config(), others, &quantization, files.tensors(), to_folder);
  print_errors(files.layers(), options.report);
  if (source.four_bit.empty()) {
    std::fprintf(stderr, "%s: %zu weights with %lld updates added, then quantised to %s; the others %s\n", options.out.c_str(),
                 files.layers().size(), static_cast<long long>(model.changed()), options.model.dtype.c_str(), options.others.c_str());
  } else {
    std::fprintf(stderr, "%s: %zu weights of %s decoded, their updates added, and quantised again in their own form; %zu without an "
                         "update as they were; the others %s\n",
                 options.out.c_str(), files.layers().size(), options.model.dtype.c_str(),
                 source.four_bit.size() - files.layers().size(), options.others.c_str());
  }
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
  (void)parse_size("--max-shard-size", options.max_shard_size);
  check_target(out, options.model.model, to_folder, "merge");
  const ModelSource source = open_model(options.model.model);
  const std::optional<peft::FourBitCode> base = four_bits_of(source);
  if (options.model.is_quantized()) {
    if (ending == ".gguf") {
      peft::fail<peft::ConfigError>("--out {}: a GGUF has no NF4 or FP4; expected a folder, or FILE.safetensors", options.out);
    }
    if (base && (options.has_form || peft::name_of(*base) != options.model.dtype)) {
      peft::fail<peft::ConfigError>("--dtype {}{}: the base is in {} already, whose form its merged weights keep; expected --dtype {} "
                                    "without --block and --double-quant, or plain weights: f32, bf16, f16",
                                    options.model.dtype, options.has_form ? " with a form" : "", peft::name_of(*base), peft::name_of(*base));
    }
  }
  MergedModel model(source, options.model.adapter);
  if (options.model.is_quantized()) {
    if (options.model.dtype == "nf4") {
      merge_to_four_bits<peft::FourBitCode::kNf4>(options, source, model, to_folder);
    } else {
      merge_to_four_bits<peft::FourBitCode::kFp4>(options, source, model, to_folder);
    }
    return 0;
  }
  const peft::StoredType type = stored_type(options.model.dtype);
  if (base) {
    std::fprintf(stderr, "%s: its weights are in %s; updates are added to their decoded values, which are written as %s\n",
                 options.model.model.c_str(), std::string(peft::name_of(*base)).c_str(), options.model.dtype.c_str());
  }
  std::size_t count = 0;
  if (ending == ".gguf") {
    count = write_gguf_file(options, model, type);
  } else {
    const std::vector<peft::DeferredTensor> tensors = model.tensors(type);
    write_model(options, model.config(), type, nullptr, tensors, to_folder);
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
  options->model.quantized.double_quant = false;
  command.add_option("--dtype", options->model.dtype,
                     "type of the written weights; the sum is f32. nf4, fp4: the layers' linears are quantised after it, those of a base "
                     "in four bits in their own form")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "nf4", "fp4"}))
      ->capture_default_str();
  command.add_option("--block", options->model.quantized.block_size, "weights that share a scale, a power of two from 32 to 4096 [nf4, fp4]")
      ->capture_default_str();
  command.add_flag("--double-quant,!--no-double-quant", options->model.quantized.double_quant, "scales are quantised too [nf4, fp4]");
  command.add_option("--others", options->others, "type of the other tensors: embedding, head, norms, biases [nf4, fp4]")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  command.add_flag("--report", options->report, "print what quantising lost of each weight [nf4, fp4]");
  command.add_option("--out", options->out, "folder of a Hugging Face model, FILE.gguf, or FILE.safetensors: weights alone")->required();
  command.add_option("--max-shard-size", options->max_shard_size, "of a folder's files of weights")->capture_default_str();
  command.callback([options, &command, &run] {
    options->model.check(command);
    for (const char* name : {"--others", "--report"}) {
      if (command.count(name) == 0 || options->model.is_quantized()) continue;
      throw CLI::ValidationError(name, "is no option of --dtype " + options->model.dtype + "; it belongs to nf4 and fp4");
    }
    options->has_form = command.count("--block") + command.count("--double-quant") > 0;
    run = [options] {
      const Threads threads(options->model.threads);
      return run_merge(*options);
    };
  });
}

}  // namespace peft_examples
