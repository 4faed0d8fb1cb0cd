/// peft quantize: writes a model with its layers' linears in four bits, as bitsandbytes has them: a Hugging Face folder that
/// transformers loads, or a safetensors file of the weights alone.

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "cli/command.hpp"
#include "cli/model_folder.hpp"
#include "cli/progress.hpp"
#include "cli/quantization_report.hpp"
#include "cli/quantized_model.hpp"
#include "cli/session.hpp"
#include "cli/size.hpp"
#include "hosts/open_model.hpp"
#include "peft/checkpoint/bnb_config_json.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/atomic_file.hpp"
#include "peft/io/safetensors_shards.hpp"

namespace peft_examples {
namespace {

struct QuantizeOptions {
  ModelOptions model;
  std::string type = "nf4";
  std::string compute_dtype = "f32";
  std::string out;
  std::string max_shard_size = "5GB";
  bool report = false;
};

template <peft::FourBitCode kCode>
void quantize(const QuantizeOptions& options, const ModelSource& source, bool to_folder) {
  const Index max_shard = parse_size("--max-shard-size", options.max_shard_size);
  const peft::StoredType others = stored_type(options.model.dtype);
  const WeightStorage& storage = options.model.quantized;
  Progress progress;
  QuantizedModel<kCode> model(source, {.block_size = storage.block_size, .double_quant = storage.double_quant}, others,
                              [&](Index done, Index total) {
                                progress.update(static_cast<double>(done) / static_cast<double>(total),
                                                fmt::format("{} of {} weights quantised", done, total));
                              });
  progress.finish();
  if (to_folder) {
    const peft::Json quantization = peft::bnb_config_to_json(
        {.quant_type = kCode, .use_double_quant = storage.double_quant, .compute_dtype = torch_name(stored_type(options.compute_dtype))});
    peft::AtomicDirectory folder(options.out, peft::ExistingFolder::kReplace);
    write_folder_files(options.model.model, source.config, others, &quantization, folder);
    peft::write_safetensors_shards(folder, model.files().tensors(), max_shard);
    folder.commit();
  } else {
    peft::AtomicFile file(options.out);
    peft::write_safetensors(file.writer(), std::span<const peft::DeferredTensor>(model.files().tensors()));
    file.commit();
  }
  print_errors(model.files().layers(), options.report);
  fmt::print(stderr, "{}: {} weights in {}, blocks of {}{}; the others {}\n", options.out, model.files().layers().size(), options.type,
             storage.block_size, storage.double_quant ? ", quantised twice" : "", options.model.dtype);
}

int run_quantize(const QuantizeOptions& options) {
  const std::filesystem::path out = options.out;
  const bool to_folder = out.extension() != ".safetensors";
  if (out.extension() == ".gguf") {
    peft::fail<peft::ConfigError>("--out {}: a GGUF has no NF4 or FP4; expected a folder, or FILE.safetensors", options.out);
  }
  check_target(out, options.model.model, to_folder, "quantize");
  const ModelSource source = open_model(options.model.model);
  if (options.type == "nf4") {
    quantize<peft::FourBitCode::kNf4>(options, source, to_folder);
  } else {
    quantize<peft::FourBitCode::kFp4>(options, source, to_folder);
  }
  return 0;
}

}  // namespace

void add_quantize_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<QuantizeOptions>();
  CLI::App& command = *app.add_subcommand("quantize", "write the model with its layers' linears in four bits, as bitsandbytes has them");
  options->model.add_model_to(command, false);
  options->model.dtype = "bf16";
  options->model.quantized.double_quant = false;
  command.add_option("--type", options->type, "nf4 or fp4")->check(CLI::IsMember({"nf4", "fp4"}))->capture_default_str();
  command.add_option("--block", options->model.quantized.block_size, "weights that share a scale, a power of two from 32 to 4096")
      ->capture_default_str();
  command.add_flag("--double-quant,!--no-double-quant", options->model.quantized.double_quant, "scales are quantised too");
  command.add_option("--dtype", options->model.dtype, "type of the other tensors: embedding, head, norms, biases")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  command.add_option("--compute-dtype", options->compute_dtype, "in which Python is told to compute (bnb_4bit_compute_dtype)")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  command.add_option("--out", options->out, "folder of a Hugging Face model, or FILE.safetensors: weights alone")->required();
  command.add_option("--max-shard-size", options->max_shard_size, "of a folder's files of weights")->capture_default_str();
  command.add_flag("--report", options->report, "print each weight's error");
  command.callback([options, &run] {
    run = [options] {
      const Threads threads(options->model.threads);
      return run_quantize(*options);
    };
  });
}

}  // namespace peft_examples
