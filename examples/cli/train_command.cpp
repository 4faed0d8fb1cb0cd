/// peft train: fits an adapter to an instruction file, watches loss and validation, and saves what was added; with --task
/// classify the same with texts and classes (classify_train.cpp).

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/records.hpp"
#include "cli/size.hpp"
#include "cli/task_option.hpp"
#include "cli/train_run.hpp"
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
        records_(peft::read_instruction_jsonl(options.data, options.max_records)),
        validation_records_(options.val.empty() ? std::vector<peft::InstructionRecord>()
                                                : peft::read_instruction_jsonl(options.val, options.max_val_records)),
        method_(options.method.choose(options.model.model,
                                      options.trainer.total_steps(static_cast<Index>(records_.size())), Task::kGenerate)),
        session_(options.model),
        started_(session_.start(method_, options.trainer.seed)),
        training_(tokenize(options.data, records_, progress)) {
    if (!options.val.empty()) validation_.emplace(tokenize(options.val, validation_records_, progress));
    if (method_.starts_from_inputs()) find_start(progress);
    check_invocation(progress);
    if (options.saved_activations == "bf16") session_.model().set_saved_activations(peft::DType::kBF16);
  }

  Model& model() noexcept { return session_.model(); }
  const Data& training() const noexcept { return training_; }
  const Data* validation() const noexcept { return validation_ ? &*validation_ : nullptr; }
  const MethodChoice& method() const noexcept { return method_; }
  const StartedMethod<T>& started() const noexcept { return started_; }

  void add_identity(peft::RunIdentity& identity) const {
    if (options_.saved_activations != "f32") identity.emplace_back("--saved-activations", options_.saved_activations);
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
  bool finish(nlohmann::ordered_json&, const StopSignal&) const noexcept { return true; }

 private:
  Data tokenize(const std::string& path, const std::vector<peft::InstructionRecord>& records, Progress& progress) {
    return tokenize_records(session_, path, records, template_, options_.max_length, progress);
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
  Session<T> session_;
  StartedMethod<T> started_;
  Data training_;
  std::optional<Data> validation_;
};

}  // namespace

void add_train_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<TrainOptions>();
  TrainOptions& o = *options;
  CLI::App& command = *app.add_subcommand("train", "fit an adapter to an instruction file, or to texts with their classes");
  o.model.add_to(command, false);
  add_task_option(command, o.task);
  command.add_option("--data", o.data, "training records: JSON lines with instruction, input, output; of classify: text, label")
      ->required()
      ->check(CLI::ExistingFile);
  command.add_option("--val", o.val, "validation records: losses before, after each epoch, at the end")
      ->check(CLI::ExistingFile);
  command.add_option("--test", o.test, "records for accuracy, macro-F1 and confusion matrix at the end [classify]")
      ->check(CLI::ExistingFile);
  command.add_option("--out", o.out, "folder for the adapter, checkpoints, metrics.jsonl and loss.svg")->required();
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
  command.add_option("--max-steps", t.max_steps, "optimizer steps, whatever --epochs says");
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
  command.add_option("--dropout-of-base", o.dropout, "in training, instead of what the model's config.json says [classify]")
      ->check(CLI::Range(0.0, 0.999));
  command.add_option("--seed", t.seed, "of the adapter's start, the records' order and dropout")->capture_default_str();
  command.add_flag("--resume", o.resume, "go on with the run in --out, bit for bit");
  command.add_flag("--json", o.json, "last line of stdout: the result as JSON");
  command.callback([options, &command, memory, &run] {
    options->method.check(options->task, options->head);
    if (options->method.wants_quantized()) {
      if (command.count("--dtype") == 0) options->model.dtype = "nf4";
      if (!options->model.is_quantized()) {
        throw CLI::ValidationError("--dtype", options->model.dtype + " is none of --method qlora; expected nf4 or fp4");
      }
    }
    options->model.check_training(command);
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
      if (settings.task == Task::kClassify) return train_classifier(settings);
      return with_dtype(settings.model.dtype, [&]<Scalar T>() { return TrainRun<InstructTask<T>>(settings)(); });
    };
  });
}

}  // namespace peft_examples
