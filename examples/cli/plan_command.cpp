/// peft plan: what a training would take in memory, and what a budget would make of it, without reading a model's weights, or
/// without having the model.

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "cli/command.hpp"
#include "cli/memory_options.hpp"
#include "cli/memory_plan.hpp"
#include "cli/method.hpp"
#include "cli/session.hpp"
#include "cli/size.hpp"
#include "hosts/byte_characters.hpp"
#include "hosts/llama_shapes.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/zero_llama.hpp"
#include "peft/full_config.hpp"
#include "peft/train/trainer_config.hpp"

namespace peft_examples {
namespace {

struct PlanOptions {
  WeightOptions weights;
  MethodOptions method;
  MemoryOptions memory;
  std::string model, shape, optimizer = "adamw_torch", optimizer_memory = "256M", saved_activations = "f32",
      weights_memory;
  Index max_length = 256, sub_batch = 512, batch = 4, accumulate = 4;
  int threads = 0;
  bool json = false;
};

/// The method without a start that is computed from weights, which takes no other memory.
MethodChoice with_plain_start(MethodChoice choice) {
  const auto* parts = std::get_if<peft::AnyConfig>(&choice.config);
  const auto* lora = parts != nullptr ? parts->get_if<peft::LoraConfig>() : nullptr;
  if (lora != nullptr && std::holds_alternative<std::string>(lora->init_lora_weights)) {
    peft::LoraConfig plain = *lora;
    plain.init_lora_weights = true;
    choice.config = peft::AnyConfig(std::move(plain));
  }
  return choice;
}

/// Of full fine-tuning, whose copies of a large model's weights need not be made to be counted.
std::optional<LlamaMethodMemory> full_memory(const MethodChoice& choice, const LlamaConfig& config) {
  const auto* parts = std::get_if<peft::AnyConfig>(&choice.config);
  const auto* full = parts != nullptr ? parts->get_if<peft::FullConfig>() : nullptr;
  if (full == nullptr || full->bias_only || !full->target_modules.empty()) return std::nullopt;
  LlamaMethodMemory result;
  LlamaMethodMemory::Layer layer;
  layer.attention = true;
  result.layers.assign(static_cast<std::size_t>(config.num_hidden_layers), layer);
  result.trains_head = true;
  for_each_llama_tensor(config, [&](const std::string&, const std::vector<Index>& shape) {
    result.parameters.push_back(shape.size() == 2 ? shape[0] * shape[1] : shape[0]);
  });
  return result;
}

/// A tokenizer of bytes, for methods that ask for one.
BpeTokenizer byte_tokenizer() {
  TokenizerSpec spec;
  for (unsigned byte = 0; byte < 256; ++byte) spec.tokens.push_back(ByteCharacters::get().character(static_cast<std::uint8_t>(byte)));
  spec.pre_tokenizer.push_back({});
  return BpeTokenizer(std::move(spec));
}

template <Scalar T>
LlamaMethodMemory memory_of(const MethodChoice& choice, const LlamaConfig& config, const BpeTokenizer& tokenizer) {
  if (auto full = full_memory(choice, config)) return *std::move(full);
  Llama<T> model = zero_llama<T>(config);
  peft::AdapterRegistry<T> registry;
  const StartedMethod<T> started = start_method<T>(with_plain_start(choice), tokenizer, model, registry, 0);
  return method_memory(model);
}

void print_row(const std::string& how, const MemoryPlan& plan) {
  fmt::print("{:<34}{:>11}{:>11}{:>11}{:>13}{:>11}{:>11}{:>11}{:>7.2f}\n", how, memory_text(plan.weights), memory_text(plan.parameters),
             memory_text(plan.optimizer), memory_text(plan.activations), memory_text(plan.workspace), memory_text(plan.program),
             memory_text(plan.total()), plan.time);
}

int run_plan(const PlanOptions& options) {
  const bool is_there = !options.model.empty();
  std::optional<ModelSource> source;
  if (is_there) source.emplace(open_model(options.model));
  const LlamaConfig config = is_there ? source->config : llama_shape(options.shape);
  const MethodChoice choice = options.method.choose(is_there ? options.model : options.shape, 1000, Task::kGenerate);
  const BpeTokenizer tokenizer = is_there ? BpeTokenizer(open_tokenizer(options.model)) : byte_tokenizer();
  PlannedTraining training(config);
  with_dtype(options.weights.dtype, [&]<Scalar T>() {
    training.number_bytes = static_cast<Index>(sizeof(T));
    training.method = memory_of<T>(choice, config, tokenizer);
  });
  const WeightStorage storage = options.weights.storage();
  training.weights = is_there ? weight_bytes(*source, storage, training.number_bytes) : weight_bytes(config, storage, training.number_bytes);
  if (!options.weights_memory.empty()) {
    training.weights = std::min(training.weights, parse_size("--weights-memory", options.weights_memory));
  }
  training.threads = options.threads > 0 ? options.threads : peft::default_executor().concurrency();
  training.longest = options.max_length;
  training.most = options.max_length * options.batch * options.accumulate;
  training.may_round = options.memory.budget_may_round;
  training.given = {.sub_batch = options.sub_batch,
                    .checkpoints = options.memory.checkpoint_activations,
                    .rounds = options.saved_activations == "bf16",
                    .optimizer = peft::optimizer_type_from(options.optimizer),
                    .optimizer_memory = parse_size("--optimizer-memory", options.optimizer_memory)};
  if (training.given.rounds && training.number_bytes != 4) {
    peft::fail<peft::ConfigError>("--saved-activations bf16: activations of --dtype {} have 16 bits already; leave it out", options.weights.dtype);
  }
  const auto budget = options.memory.bytes();
  const MemoryPlan plan = budget ? training.fit(*budget) : training.plan(training.given);
  if (options.json) {
    nlohmann::ordered_json json = plan.json();
    json["trainable"] = training.method.parameter_count();
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}: weights {}; {}, {} trained parameters; records of up to {} tokens\n", is_there ? options.model : options.shape,
             options.weights.text(), choice.name, training.method.parameter_count(), options.max_length);
  fmt::print("{:<34}{:>11}{:>11}{:>11}{:>13}{:>11}{:>11}{:>11}{:>7}\n", "", "weights", "trained", "optimizer", "activations", "workspace",
             "program", "together", "time");
  if (budget) {
    print_row("fits", plan);
    fmt::print("--memory-budget {}: {}\n", options.memory.budget, training.text_of(plan.choice));
    return 0;
  }
  print_row("as it is", plan);
  const auto with = [&](const char* how, bool checkpoints, bool rounds) {
    MemoryChoice other = training.given;
    if (checkpoints == other.checkpoints && rounds == other.rounds) return;
    other.checkpoints = checkpoints;
    other.rounds = rounds;
    print_row(how, training.plan(other));
  };
  with("--checkpoint-activations", true, false);
  if (training.number_bytes == 4) {
    with("--saved-activations bf16", false, true);
    with("both", true, true);
  }
  return 0;
}

}  // namespace

void add_plan_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<PlanOptions>();
  PlanOptions& o = *options;
  CLI::App& command = *app.add_subcommand("plan", "what a training would take in memory, without reading the model or having it");
  CLI::Option* const model = command.add_option("--model", o.model, "GGUF file or Hugging Face folder of the base model")
                                 ->check(CLI::ExistingPath);
  command.add_option("--shape", o.shape, "instead of a model: a Llama of this shape, in a file of bf16")
      ->check(CLI::IsMember(llama_shape_names()))
      ->excludes(model);
  o.weights.add_to(command);
  o.method.add_to(command);
  command.add_option("--max-length", o.max_length, "tokens of a record, at most")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--max-tokens-per-sub-batch", o.sub_batch, "as of peft train")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--batch", o.batch, "records of a batch")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--accumulate", o.accumulate, "batches of a step")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--optimizer", o.optimizer, "as of peft train")
      ->check(CLI::IsMember({"adamw", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_32bit",
                             "paged_adamw_8bit"}))
      ->capture_default_str();
  command.add_option("--optimizer-memory", o.optimizer_memory, "of a paged optimizer's state, what may be in memory")->capture_default_str();
  command.add_option("--weights-memory", o.weights_memory, "as of peft train: of paged weights, what may be in memory");
  command.add_option("--saved-activations", o.saved_activations, "as of peft train")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  o.memory.add_to(command);
  command.add_option("--threads", o.threads, "threads to compute with; 0: all processors")->check(CLI::Range(0, 512));
  command.add_flag("--json", o.json, "the plan as JSON, sizes in bytes");
  command.callback([options, &command, &run] {
    if (options->model.empty() && options->shape.empty()) throw CLI::RequiredError("--model or --shape");
    options->method.check(Task::kGenerate, Head::kTransformers);
    if (options->method.wants_quantized() && command.count("--dtype") == 0) options->weights.dtype = "nf4";
    options->weights.check_training(command);
    options->memory.check();
    run = [options] { return run_plan(*options); };
  });
}

}  // namespace peft_examples
