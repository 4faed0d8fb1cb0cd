/// peft train: fits an adapter to an instruction file, watches loss and validation, and saves what was added; with --task
/// classify the same with texts and classes (classify_train.cpp).

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/changed_base.hpp"
#include "cli/fma_rate.hpp"
#include "cli/memory_plan.hpp"
#include "cli/records.hpp"
#include "cli/size.hpp"
#include "cli/synthetic_model.hpp"
#include "cli/task_option.hpp"
#include "cli/train_run.hpp"
#include "hosts/llama_shapes.hpp"
#include "hosts/open_model.hpp"
#include "hosts/page_weights.hpp"
#include "peft/activated_lora.hpp"

namespace peft_examples {
namespace {

/// A Llama that learns to answer.
template <Scalar T>
class InstructTask {
 public:
  using value_type = T;
  using Model = Llama<T>;
  using Data = peft::InstructionData;

  InstructTask(const TrainOptions& options, Progress& progress)
      : options_(options),
        template_(options.prompt_template),
        records_(read_records()),
        validation_records_(options.val.empty() ? std::vector<peft::InstructionRecord>()
                                                : peft::read_instruction_jsonl(options.val, options.max_val_records)),
        method_(options.method.choose(options.model.model,
                                      options.trainer.total_steps(static_cast<Index>(records_.size())), Task::kGenerate)),
        weights_(check_weights(options)),
        session_(options.model),
        started_(session_.start(checked(method_), options.trainer.seed)),
        training_(options.synthetic.empty() ? tokenize(options.data, records_, progress) : random_tokens()) {
    if (!options.weights_memory.empty()) page_base(progress);
    if (!options.val.empty()) validation_.emplace(tokenize(options.val, validation_records_, progress));
    plan_memory(progress);
    if (method_.starts_from_inputs()) find_start(progress);
    check_invocation(progress);
    tell_start(progress);
  }

  Model& model() noexcept { return session_.model(); }
  const Data& training() const noexcept { return training_; }
  const Data* validation() const noexcept { return validation_ ? &*validation_ : nullptr; }
  const MethodChoice& method() const noexcept { return method_; }
  const StartedMethod<T>& started() const noexcept { return started_; }

  /// Puts what the plan chose in the place of what was asked for.
  void adjust(peft::TrainerConfig& config) const {
    config.max_tokens_per_sub_batch = plan_.choice.sub_batch;
    config.optim = plan_.choice.optimizer;
    config.optimizer_memory = plan_.choice.optimizer_memory;
  }
  const MemoryPlan* plan() const noexcept { return &plan_; }

  void add_identity(peft::RunIdentity& identity) const {
    const MemoryChoice& memory = plan_.choice;
    if (memory.rounds) identity.emplace_back("--saved-activations", memory.checkpoints ? "bf16, checkpointed" : "bf16");
    if (memory.logit_bytes != MemoryChoice().logit_bytes) identity.emplace_back("bytes of logits", fmt::to_string(memory.logit_bytes));
    if (!method_.prefix_init_text.empty()) identity.emplace_back("--prefix-init-text", method_.prefix_init_text);
    if (const auto* fusion = std::get_if<FusionChoice>(&method_.config)) {
      for (const std::string& folder : fusion->adapters) {
        identity.emplace_back("--adapters " + folder,
                              file_fingerprint((std::filesystem::path(folder) / "adapter.safetensors").string()));
      }
    }
  }
  std::string evaluation_text(const peft::EvaluationEvent& event) const {
    return fmt::format("perplexity {:.2f}", std::exp(event.record.loss));
  }
  bool finish(const peft::TrainerResult& result, nlohmann::ordered_json& json, const StopSignal&) {
    if (!options_.synthetic.empty()) measure(result, json);
    if (started_.save_for_changed_base) save_changed_base(json);
    return true;
  }

 private:
  std::vector<peft::InstructionRecord> read_records() const {
    if (options_.synthetic.empty()) return peft::read_instruction_jsonl(options_.data, options_.max_records);
    return std::vector<peft::InstructionRecord>(static_cast<std::size_t>(options_.trainer.max_steps * options_.trainer.records_per_step()));
  }
  /// Records of --max-length random tokens, of which all but the first are labels.
  Data random_tokens() const {
    peft::Philox random(options_.trainer.seed, 1);
    Index count = options_.max_length;
    const auto next = [&](std::string_view) {
      count = options_.max_length - count;  // a prompt of one, then the rest
      count = count == 0 ? 1 : count;
      std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
      for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(static_cast<std::uint32_t>(session_.model().config().vocab_size)));
      return ids;
    };
    return Data(records_, template_, next, options_.max_length);
  }
  /// Of a synthetic model: what was measured, beside the machine's limit.
  void measure(const peft::TrainerResult& result, nlohmann::ordered_json& json) {
    double weights = 0;
    for (const AdaptedLinear<T>* linear : session_.model().adapter_sites().linears) {
      weights += static_cast<double>(linear->in_features()) * static_cast<double>(linear->out_features());
    }
    // Forward and input gradient of the base's linears; attention and LoRA are not counted.
    const double share = result.tok_s * 4 * weights * 1e-9 / fma_peak();
    fmt::print(stderr, "{}: {:.2f} tok/s, {:.0f} % of the processor's multiplications and additions in float; at most {:.0f} MiB in memory\n",
               options_.synthetic, result.tok_s, 100 * share, peak_rss_mib());
    json["synthetic"] = options_.synthetic;
    json["share_of_fma"] = share;
  }
  /// Where the start changed a quantised base, that base and the adapter for it, beside the one for the base as it was.
  void save_changed_base(nlohmann::ordered_json& json) {
    const std::filesystem::path folder = std::filesystem::path(options_.out) / "base";
    write_changed_base(options_.model.model, session_.model(), folder);
    started_.save_for_changed_base(folder / "adapter");
    json["changed_base"] = folder.string();
  }
  void page_base(Progress& progress) {
    const Index budget = parse_size("--weights-memory", options_.weights_memory);
    page_weights(session_.model(), budget);
    progress.line(fmt::format("weights: at most {} bytes in memory, the rest in {}", budget, options_.model.model));
  }
  Data tokenize(const std::string& path, const std::vector<peft::InstructionRecord>& records, Progress& progress) {
    return tokenize_records(session_, path, records, template_, options_.max_length, progress);
  }

  /// Of the base in memory; throws ConfigError where they alone exceed the budget, before they are read.
  static Index check_weights(const TrainOptions& options) {
    Index weights = weight_bytes(open_model(options.model.model), options.model.storage(), static_cast<Index>(sizeof(T)));
    if (!options.weights_memory.empty()) weights = std::min(weights, parse_size("--weights-memory", options.weights_memory));
    if (const auto budget = options.memory.bytes(); budget && weights > *budget) {
      peft::fail<peft::ConfigError>("--memory-budget {}: the weights alone take {} in {}; expected more, or weights in fewer bits "
                                    "(--dtype nf4)",
                                    options.memory.budget, memory_text(weights), options.model.text());
    }
    return weights;
  }
  /// Before anything runs on the model.
  void plan_memory(Progress& progress) {
    Llama<T>& model = session_.model();
    PlannedTraining training(model.config());
    training.method = method_memory(model);
    training.weights = weights_;
    training.number_bytes = static_cast<Index>(sizeof(T));
    training.threads = peft::default_executor().concurrency();
    training.longest = most_tokens(training_, 1);
    training.most = most_tokens(training_, options_.trainer.records_per_step());
    if (validation_) {
      training.longest = std::max(training.longest, most_tokens(*validation_, 1));
      training.most = std::max(training.most, most_tokens(*validation_, validation_->records()));
    }
    if (method_.starts_from_inputs()) training.longest *= options_.trainer.per_device_train_batch_size;
    training.value_copies = options_.trainer.load_best_model_at_end ? 1 : 0;
    training.may_round = options_.memory.budget_may_round;
    training.min_8bit_size = options_.trainer.min_8bit_size;
    training.given = {.sub_batch = options_.trainer.max_tokens_per_sub_batch,
                      .checkpoints = options_.memory.checkpoint_activations,
                      .rounds = options_.saved_activations == "bf16",
                      .optimizer = options_.trainer.optim,
                      .optimizer_memory = options_.trainer.optimizer_memory};
    const auto budget = options_.memory.bytes();
    plan_ = budget ? training.fit(*budget) : training.plan(training.given);
    progress.line(plan_.text());
    if (budget) {
      progress.line(fmt::format("--memory-budget {}: {}; a step takes about {:.2f} of its time without a budget", options_.memory.budget,
                                training.text_of(plan_.choice), plan_.time));
    }
    model.set_checkpointing(plan_.choice.checkpoints);
    model.set_logit_bytes(plan_.choice.logit_bytes);
    if (plan_.choice.rounds) model.set_saved_activations(peft::DType::kBF16);
  }
  /// Of `records` records of the data, the longest ones.
  static Index most_tokens(const Data& data, Index records) {
    std::vector<Index> lengths;
    for (Index i = 0; i < data.records(); ++i) lengths.push_back(data.tokens(i));
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    const auto end = lengths.begin() + std::min(records, data.records());
    return std::accumulate(lengths.begin(), end, Index{0});
  }

  /// aLoRA: where its tokens do not stand it learns nothing.
  void check_invocation(Progress& progress) const {
    const std::vector<Index> tokens = method_.invocation_tokens();
    if (tokens.empty()) return;
    Index without = 0;
    for (Index i = 0; i < training_.records(); ++i) {
      const std::vector<std::int32_t>& ids = training_.at(i).ids;
      without += peft::invocation_start({ids.data(), static_cast<Index>(ids.size())}, tokens) < 0 ? 1 : 0;
    }
    if (without == training_.records()) {
      peft::fail<peft::ConfigError>("alora_invocation_tokens: none of the {} records of {} has them; expected ids as the tokenizer "
                                    "makes them of the template's words",
                                    without, options_.data);
    }
    if (without == 0) return;
    progress.line(fmt::format("{}: {} of {} records lack the invocation tokens; the adapter learns nothing from them", options_.data,
                               without, training_.records()));
  }

  /// Throws ConfigError for a start whose base could not be kept.
  const MethodChoice& checked(const MethodChoice& method) const {
    if (method.changes_base() && options_.model.dtype == "int8") {
      peft::fail<peft::ConfigError>("init_lora_weights changes the base, and one in int8 has no file; expected --dtype nf4, fp4 or f32");
    }
    return method;
  }
  /// What a start over a quantised base made of its error.
  void tell_start(Progress& progress) const {
    if (started_.left.empty()) return;
    peft::QuantizationError before, after;
    for (const auto& [name, own_before, own_after] : started_.left) {
      before += own_before, after += own_after;
      if (!options_.report_start) continue;
      progress.line(fmt::format("{}: SNR {:.2f} -> {:.2f} dB, relative {:.5f} -> {:.5f}, largest {:.2e} -> {:.2e}, sign flips {} -> {}", name,
                                own_before.snr(), own_after.snr(), own_before.relative_rms(), own_after.relative_rms(),
                                own_before.largest, own_after.largest, own_before.sign_flips, own_after.sign_flips));
    }
    progress.line(fmt::format("start: of {} weights the base and its update leave {:.5f} (SNR {:.2f} dB), the base as it was read "
                              "left {:.5f} (SNR {:.2f} dB)",
                              started_.left.size(), after.relative_rms(), after.snr(), before.relative_rms(), before.snr()));
  }

  /// EVA: before anything is counted or compared, for a resumed run as for a new one.
  void find_start(Progress& progress) {
    const FoundStart found =
        session_.start_from(method_, training_, options_.trainer.per_device_train_batch_size, options_.trainer.seed, started_,
                            [&](Index done) { progress.update(0, fmt::format("eva: {} batches of inputs", done)); });
    progress.finish();
    progress.line(fmt::format("eva: ranks and starts from {} batches of inputs{}", found.batches,
                               found.has_settled ? "" : ", in which not all components settled"));
  }

  const TrainOptions& options_;
  peft::PromptTemplate template_;
  std::vector<peft::InstructionRecord> records_, validation_records_;
  MethodChoice method_;
  Index weights_;
  MemoryPlan plan_;
  Session<T> session_;
  StartedMethod<T> started_;
  Data training_;
  std::optional<Data> validation_;
};

std::string synthetic_help() {
  return "instead of --model and --data: random nf4 weights of this shape, built in the folder --model (peft-SHAPE) unless they are "
         "there, and random tokens, to measure a machine. Unless given: --r 16 --target-modules all-linear --max-length 128 "
         "--batch 1 --accumulate 1 --max-steps 1 --dtype native --out peft-SHAPE-run";
}

/// What --synthetic means for the other options; without it, that model, data and --out must be given.
void complete_synthetic(TrainOptions& o, CLI::App& command) {
  if (o.synthetic.empty()) {
    for (const auto& [name, value] : {std::pair{"--model", &o.model.model}, {"--data", &o.data}, {"--out", &o.out}}) {
      if (value->empty()) throw CLI::RequiredError(name);
    }
    std::string path = o.model.model;
    if (const std::string wrong = CLI::ExistingPath(path); !wrong.empty()) throw CLI::ValidationError("--model", wrong);
    return;
  }
  for (const char* name : {"--data", "--val"}) {
    if (command.count(name) > 0) throw CLI::ValidationError(name, "is none of --synthetic, whose data are random tokens");
  }
  const auto assume = [&](const char* name, const std::string& value) {
    CLI::Option* const option = command.get_option(name);
    if (option->count() > 0) return;
    option->add_result(value);
    option->run_callback();
  };
  assume("--model", "peft-" + o.synthetic);
  assume("--out", "peft-" + o.synthetic + "-run");
  assume("--dtype", "native");
  assume("--max-length", "128");
  assume("--batch", "1");
  assume("--accumulate", "1");
  assume("--max-steps", "1");
  if (command.count("--method") == 0 && command.count("--config") == 0) {
    assume("--r", "16");
    assume("--target-modules", "all-linear");
  }
  o.data = "random tokens";
}

}  // namespace

void add_train_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<TrainOptions>();
  TrainOptions& o = *options;
  CLI::App& command = *app.add_subcommand("train", "fit an adapter to an instruction file, or to texts with their classes");
  o.model.add_to(command, false, true);
  add_task_option(command, o.task);
  command.add_option("--data", o.data, "training records: JSON lines with instruction, input, output; of classify: text, label")
      ->check(CLI::ExistingFile);
  command.add_option("--val", o.val, "validation records: losses before, after each epoch, at the end")
      ->check(CLI::ExistingFile);
  command.add_option("--test", o.test, "records for accuracy, macro-F1 and confusion matrix at the end [classify]")
      ->check(CLI::ExistingFile);
  command.add_option("--out", o.out, "folder for the adapter, checkpoints, metrics.jsonl and loss.svg");
  o.method.add_to(command);
  command.add_option("--head", o.head,
                     "transformers: BERT's pooler, frozen unless the method trains it, and a new linear; adapterhub: two new linears "
                     "with tanh between them, as AdapterHub's add_classification_head [classify]")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Head>{{"transformers", Head::kTransformers}, {"adapterhub", Head::kAdapterHub}}))
      ->type_name("HEAD")
      ->default_str("transformers");
  command.add_option("--template", o.prompt_template, "how a record becomes a prompt")
      ->check(CLI::IsMember({"chatml", "alpaca", "plain"}))
      ->capture_default_str();
  command.add_option("--max-length", o.max_length, "tokens of a record; longer ones are cut on the right")->capture_default_str();
  command.add_option("--max-records", o.max_records, "only the first so many training records");
  command.add_option("--max-val-records", o.max_val_records, "only the first so many validation records");
  peft::TrainerConfig& t = o.trainer;
  command.add_option("--epochs", t.num_train_epochs, "passes over the training data; may be a fraction")->capture_default_str();
  command.add_option("--max-steps,--steps", t.max_steps, "optimizer steps, whatever --epochs says");
  command.add_option("--batch", t.per_device_train_batch_size, "records of a batch")->capture_default_str();
  command.add_option("--accumulate", t.gradient_accumulation_steps, "batches of one optimizer step")->capture_default_str();
  command.add_option("--lr", t.learning_rate, "learning rate after warm-up; where it is not given the method's: --method")
      ->default_str("");
  command.add_option("--lr-scheduler", o.scheduler, "how the learning rate goes on from there")
      ->check(CLI::IsMember({"linear", "cosine", "constant", "constant_with_warmup"}))
      ->capture_default_str();
  command.add_option("--warmup-steps", t.warmup_steps, "optimizer steps of rising learning rate")->capture_default_str();
  command.add_option("--warmup-ratio", t.warmup_ratio, "the same as a share of all steps")->capture_default_str();
  command.add_option("--optimizer", o.optimizer,
                     "adamw_torch; adamw_8bit: its state in 8 bits; paged_adamw_32bit, paged_adamw_8bit: the state in a file in --out")
      ->check(CLI::IsMember({"adamw", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_32bit",
                             "paged_adamw_8bit"}))
      ->capture_default_str();
  CLI::Option* const memory = command.add_option("--optimizer-memory", o.optimizer_memory,
                                                 "of a paged optimizer's state, what may be in memory")
                                  ->capture_default_str();
  command.add_option("--weights-memory", o.weights_memory,
                     "of the base's weights, what may be in memory, say 512M; the rest stays in the model's file, from which layer "
                     "after layer is read. With --dtype native, or that of the file");
  command.add_option("--synthetic", o.synthetic, synthetic_help())->check(CLI::IsMember(llama_shape_names()));
  command.add_option("--weight-decay", t.weight_decay, "of AdamW")->capture_default_str();
  command.add_option("--max-grad-norm", t.max_grad_norm, "gradients are clipped to this norm; 0: never")->capture_default_str();
  command.add_option("--eval-steps", t.eval_steps, "validate every so many steps instead of after each epoch");
  command.add_option("--save-steps", t.save_steps, "steps between two saved states")->capture_default_str();
  command.add_option("--early-stopping-patience", t.early_stopping_patience,
                     "validations without a lower loss before it stops; 0: never");
  command.add_flag("--load-best-model-at-end", t.load_best_model_at_end, "save the adapter of the lowest validation loss");
  command.add_option("--max-tokens-per-sub-batch", t.max_tokens_per_sub_batch, "bounds memory, not the gradient")
      ->capture_default_str();
  command.add_option("--saved-activations", o.saved_activations,
                     "between forward and backward; bf16: half their memory, gradients of activations rounded to it")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  o.memory.add_to(command);
  command.add_option("--dropout-of-base", o.dropout, "in training, instead of what the model's config.json says [classify]")
      ->check(CLI::Range(0.0, 0.999));
  command.add_flag("--report-start", o.report_start, "print what a start over a quantised base leaves of each weight");
  command.add_option("--seed", t.seed, "of the adapter's start, the records' order and dropout")->capture_default_str();
  command.add_flag("--resume", o.resume, "go on with the run in --out, bit for bit");
  command.add_flag("--json", o.json, "last line of stdout: the result as JSON");
  command.callback([options, &command, memory, &run] {
    complete_synthetic(*options, command);
    options->method.check(options->task, options->head);
    if (options->method.wants_quantized()) {
      if (command.count("--dtype") == 0) options->model.dtype = "nf4";
      if (!options->model.is_quantized()) {
        throw CLI::ValidationError("--dtype", options->model.dtype + " is none of --method qlora; expected nf4 or fp4");
      }
    }
    options->model.check_training(command);
    options->memory.check();
    refuse_options_of_other_task(command, options->task);
    run = [options, &command, memory] {
      TrainOptions& settings = *options;
      settings.trainer.optim = peft::optimizer_type_from(settings.optimizer);
      settings.trainer.optimizer_memory = parse_size("--optimizer-memory", settings.optimizer_memory);
      settings.trainer.optimizer_folder = settings.out;
      if (memory->count() > 0 && !is_paged(settings.trainer.optim)) {
        peft::fail<peft::ConfigError>("--optimizer-memory is for paged optimizers; --optimizer is {}", settings.optimizer);
      }
      settings.has_learning_rate = command.count("--lr") > 0;
      if (command.count("--eval-steps") > 0) settings.trainer.eval_strategy = peft::IntervalStrategy::kSteps;
      settings.trainer.lr_scheduler_type = peft::scheduler_type_from(settings.scheduler);
      settings.trainer.validate();
      if (settings.val.empty() && (settings.trainer.early_stopping_patience > 0 || settings.trainer.load_best_model_at_end)) {
        peft::fail<peft::ConfigError>("--early-stopping-patience and --load-best-model-at-end go by the validation loss; "
                                      "expected --val");
      }
      const Threads threads(settings.model.threads);
      if (!settings.synthetic.empty()) {
        Progress progress;
        make_synthetic_model(settings.synthetic, settings.model.model, progress);
      }
      if (settings.task == Task::kClassify) return train_classifier(settings);
      return with_dtype(settings.model.dtype, [&]<Scalar T>() { return TrainRun<InstructTask<T>>(settings)(); });
    };
  });
}

}  // namespace peft_examples
