/// peft train: fits an adapter to an instruction file, watches loss and validation, and saves what was added.

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "cli/command.hpp"
#include "cli/process.hpp"
#include "cli/progress.hpp"
#include "cli/records.hpp"
#include "cli/session.hpp"
#include "peft/activated_lora.hpp"
#include "peft/pipeline/trainer_checkpointing.hpp"
#include "peft/train/trainer.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;

struct TrainOptions {
  ModelOptions model;
  MethodOptions method;
  std::string data, val, out, prompt_template = "chatml", saved_activations = "f32";
  Index max_length = 256, max_records = -1, max_val_records = -1;
  std::string scheduler = "linear";
  peft::TrainerConfig trainer;
  bool resume = false, json = false, has_learning_rate = false;

  TrainOptions() {
    trainer.num_train_epochs = 3;
    trainer.per_device_train_batch_size = 4;
    trainer.gradient_accumulation_steps = 4;
    trainer.seed = 0;
    trainer.save_steps = 50;
  }
};

/// Tells one model file from another: its size and FNV-1a over samples of its bytes (all of a small one's).
std::string file_fingerprint(const std::string& path) {
  const auto file = peft::MappedFile::open(path);
  const auto bytes = file->bytes();
  constexpr std::size_t kPiece = 4096, kPieces = 256;
  const std::size_t step = std::max(kPiece, bytes.size() / kPieces);
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (std::size_t begin = 0; begin < bytes.size(); begin += step) {
    for (const std::byte byte : bytes.subspan(begin, std::min(kPiece, bytes.size() - begin))) {
      hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001B3ull;
    }
  }
  return fmt::format("{} bytes, {:016x}", bytes.size(), hash);
}

/// The same for a model: a GGUF, or a folder's config.json and weights.
std::string model_fingerprint(const std::string& path) {
  if (!fs::is_directory(path)) return file_fingerprint(path);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) {
    const fs::path& file = entry.path();
    if (file.extension() == ".safetensors" || file.filename() == "config.json") names.push_back(file.filename().string());
  }
  std::sort(names.begin(), names.end());
  std::string result;
  for (const std::string& name : names) {
    result += fmt::format("{}{}: {}", result.empty() ? "" : "; ", name, file_fingerprint(fs::path(path) / name));
  }
  return result;
}

/// A run that stands in `folder` already is moved aside, not overwritten. Returns where to; empty: there was none.
fs::path keep_earlier_run(const fs::path& folder) {
  std::error_code error;
  const bool has_run = fs::exists(folder / "metrics.jsonl", error) || fs::exists(folder / "adapter_model.safetensors", error);
  if (!has_run) return {};
  for (int number = 1;; ++number) {
    const fs::path plain = folder.has_filename() ? folder : folder.parent_path();
    const fs::path target = plain.string() + ".old" + std::to_string(number);
    if (fs::exists(target, error)) continue;
    fs::rename(plain, target, error);
    if (error) {
      peft::fail<peft::IoError>("{} holds an earlier run, and it could not be moved to {}: {}; give another --out, or go on "
                                "with it: --resume",
                                plain.string(), target.string(), error.message());
    }
    return target;
  }
}

template <Scalar T>
class TrainRun {
 public:
  explicit TrainRun(const TrainOptions& options)
      : options_(options),
        template_(options.prompt_template),
        records_(peft::read_instruction_jsonl(options.data, options.max_records)),
        validation_records_(options.val.empty() ? std::vector<peft::InstructionRecord>()
                                                : peft::read_instruction_jsonl(options.val, options.max_val_records)),
        method_(options.method.choose(options.model.model, options.trainer.total_steps(static_cast<Index>(records_.size())))),
        session_(options.model),
        started_(session_.start(method_, options.trainer.seed)),
        training_(tokenize(options.data, records_)) {
    if (!options.val.empty()) validation_.emplace(tokenize(options.val, validation_records_));
  }

  int operator()() {
    if (method_.starts_from_inputs()) find_start();
    check_invocation();
    if (options_.saved_activations == "bf16") session_.model().set_saved_activations(peft::DType::kBF16);
    trainable_ = started_.adapter.parameter_count();
    total_ = session_.model().parameter_count() + (method_.replaces_parameters() ? 0 : trainable_);
    progress_.line(fmt::format("{}: {} records, {} to validate; {} activations", options_.data, training_.records(),
                               validation_ ? validation_->records() : 0, options_.model.dtype));
    progress_.line(peft::trainable_parameters_text(trainable_, total_));

    peft::RunIdentity identity{{"model", model_fingerprint(options_.model.model)}, {"dtype", options_.model.dtype}};
    if (options_.saved_activations != "f32") identity.emplace_back("--saved-activations", options_.saved_activations);
    if (!method_.prefix_init_text.empty()) identity.emplace_back("--prefix-init-text", method_.prefix_init_text);
    if (const auto* fusion = std::get_if<FusionChoice>(&method_.config)) {
      for (const std::string& folder : fusion->adapters) {
        identity.emplace_back("--adapters " + folder, file_fingerprint((fs::path(folder) / "adapter.safetensors").string()));
      }
    }
    peft::TrainerCheckpointing<T> checkpointing(
        started_.adapter,
        {options_.out, fmt::format("Loss of {}", fs::path(options_.data).filename().string()), std::move(identity)});
    peft::TrainerConfig trainer_config = options_.trainer;
    if (!options_.has_learning_rate) trainer_config.learning_rate = method_.learning_rate;
    trainer_config.loraplus_lr_ratio = method_.loraplus_lr_ratio;
    trainer_config.fp16 = std::is_same_v<T, peft::f16>;
    peft::Trainer<Llama<T>, peft::InstructionData> trainer(session_.model(), trainer_config, training_,
                                                          validation_ ? &*validation_ : nullptr,
                                                          checkpointing.events(events()));
    if (options_.resume) {
      const auto note = checkpointing.resume(trainer);
      if (note) progress_.line(*note);
      progress_.line(fmt::format("going on after step {} of {}", trainer.progress().global_step, trainer.total_steps()));
    } else {
      const fs::path kept = keep_earlier_run(options_.out);
      if (!kept.empty()) progress_.line(fmt::format("the earlier run in {} is now {}", options_.out, kept.string()));
      checkpointing.begin(trainer);
      if (started_.save_parts) started_.save_parts(options_.out);
    }
    StopSignal stop;
    peft::TrainerResult result;
    try {
      result = trainer.run(stop.get());
    } catch (...) {
      progress_.finish();
      throw;
    }
    progress_.finish();
    return report(result, checkpointing);
  }

 private:
  peft::InstructionData tokenize(const std::string& path, const std::vector<peft::InstructionRecord>& records) {
    return tokenize_records(session_, path, records, template_, options_.max_length, progress_);
  }

  /// aLoRA: where its tokens do not stand it learns nothing.
  void check_invocation() {
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
    progress_.line(fmt::format("{}: {} of {} records lack the invocation tokens; the adapter learns nothing from them", options_.data,
                               without, training_.records()));
  }

  /// EVA: before anything is counted or compared, for a resumed run as for a new one.
  void find_start() {
    const FoundStart found =
        session_.start_from(method_, training_, options_.trainer.per_device_train_batch_size, options_.trainer.seed, started_,
                            [&](Index done) { progress_.update(0, fmt::format("eva: {} batches of inputs", done)); });
    progress_.finish();
    progress_.line(fmt::format("eva: ranks and starts from {} batches of inputs{}", found.batches,
                               found.has_settled ? "" : ", in which not all components settled"));
  }

  typename peft::TrainerCheckpointing<T>::Events events() {
    typename peft::TrainerCheckpointing<T>::Events events;
    events.hooks = started_.hooks;
    events.on_work = [this](const peft::WorkEvent& event) {
      if (event.evaluation) {
        progress_.update(done_, fmt::format("validating: {} of {} records", event.records_done, event.records));
      }
    };
    events.on_step = [this](const peft::StepEvent& event) {
      done_ = static_cast<double>(event.record.step) / static_cast<double>(event.total_steps);
      progress_.update(done_, fmt::format("step {}/{}  loss {:.4f}  {:.0f} tok/s  {} left{}", event.record.step,
                                          event.total_steps, event.record.loss, event.record.tokens_per_second,
                                          duration_text(event.seconds_left),
                                          event.record.skipped ? "  (skipped: loss scale)" : ""));
    };
    events.on_evaluate = [this](const peft::EvaluationEvent& event) {
      progress_.line(fmt::format("epoch {:.2f}  validation loss {:.4f}  perplexity {:.2f}{}", event.record.epoch,
                                 event.record.loss, std::exp(event.record.loss), event.is_best ? "  (best)" : ""));
    };
    return events;
  }

  int report(const peft::TrainerResult& result, const peft::TrainerCheckpointing<T>& checkpointing) {
    const bool interrupted = result.status == peft::TrainerStatus::kInterrupted;
    if (interrupted) {
      progress_.line(fmt::format("stopped after step {} of {}; the state is saved. To go on, give the same command with "
                                 "--resume",
                                 result.steps, result.total_steps));
    } else {
      progress_.line(fmt::format("{} in {}: {} tokens, {:.0f} tok/s, training loss {:.4f}",
                                 result.status == peft::TrainerStatus::kStoppedEarly ? "stopped early" : "trained",
                                 duration_text(result.train_s), result.tokens, result.tok_s, result.train_loss));
      progress_.line(fmt::format("saved {} ({:.2f} MB), curve: {}", options_.out, static_cast<double>(saved_bytes()) / 1e6,
                                 checkpointing.picture_path().string()));
    }
    const auto number = [](const std::optional<double>& value) { return value ? nlohmann::ordered_json(*value) : nullptr; };
    if (options_.json) {
      const nlohmann::ordered_json json = {{"status", std::string(peft::name_of(result.status))},
                                           {"steps", result.steps},
                                           {"total_steps", result.total_steps},
                                           {"tokens", result.tokens},
                                           {"label_tokens", result.label_tokens},
                                           {"train_s", result.train_s},
                                           {"tok_s", result.tok_s},
                                           {"val_loss_before", number(result.val_loss_before)},
                                           {"val_loss_after", number(result.val_loss_after)},
                                           {"best_val_loss", number(result.best_val_loss)},
                                           {"train_loss", result.train_loss},
                                           {"peak_rss_mib", peak_rss_mib()},
                                           {"method", method_.name},
                                           {"learning_rate", options_.has_learning_rate ? options_.trainer.learning_rate
                                                                                        : method_.learning_rate},
                                           {"trainable", trainable_},
                                           {"total", total_},
                                           {"cut_records", training_.cut_records()},
                                           {"bytes", interrupted ? nlohmann::ordered_json() : nlohmann::ordered_json(saved_bytes())},
                                           {"out", options_.out},
                                           {"loss_svg", checkpointing.picture_path().string()}};
      std::printf("%s\n", json.dump().c_str());
    }
    return interrupted ? kInterruptedStatus : 0;
  }

  /// Of the adapter's weights on disk.
  std::uintmax_t saved_bytes() const {
    for (const char* name : {"adapter_model.safetensors", "adapter.safetensors", "model_adapter_fusion.safetensors"}) {
      std::error_code error;
      if (const auto bytes = fs::file_size(fs::path(options_.out) / name, error); !error) return bytes;
    }
    return 0;
  }

  const TrainOptions& options_;
  Progress progress_;
  peft::PromptTemplate template_;
  std::vector<peft::InstructionRecord> records_, validation_records_;
  MethodChoice method_;
  Session<T> session_;
  StartedMethod<T> started_;
  peft::InstructionData training_;
  std::optional<peft::InstructionData> validation_;
  Index trainable_ = 0, total_ = 0;
  double done_ = 0;
};

}  // namespace

void add_train_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<TrainOptions>();
  TrainOptions& o = *options;
  CLI::App& command = *app.add_subcommand("train", "fit an adapter to an instruction file");
  o.model.add_to(command, false);
  command.add_option("--data", o.data, "training records: JSON lines with instruction, input, output")
      ->required()
      ->check(CLI::ExistingFile);
  command.add_option("--val", o.val, "validation records: losses before, after each epoch, at the end")
      ->check(CLI::ExistingFile);
  command.add_option("--out", o.out, "folder for the adapter, checkpoints, metrics.jsonl and loss.svg")->required();
  o.method.add_to(command);
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
  command.add_option("--seed", t.seed, "of the adapter's start, the records' order and dropout")->capture_default_str();
  command.add_flag("--resume", o.resume, "go on with the run in --out, bit for bit");
  command.add_flag("--json", o.json, "last line of stdout: the result as JSON");
  command.callback([options, &command, &run] {
    options->method.check();
    run = [options, &command] {
      TrainOptions& settings = *options;
      settings.has_learning_rate = command.count("--lr") > 0;
      if (command.count("--eval-steps") > 0) settings.trainer.eval_strategy = peft::IntervalStrategy::kSteps;
      settings.trainer.lr_scheduler_type = peft::scheduler_type_from(settings.scheduler);
      settings.trainer.validate();
      if (settings.val.empty() && (settings.trainer.early_stopping_patience > 0 || settings.trainer.load_best_model_at_end)) {
        peft::fail<peft::ConfigError>("--early-stopping-patience and --load-best-model-at-end go by the validation loss; "
                                      "expected --val");
      }
      const Threads threads(settings.model.threads);
      return with_dtype(settings.model.dtype, [&]<Scalar T>() { return TrainRun<T>(settings)(); });
    };
  });
}

}  // namespace peft_examples
