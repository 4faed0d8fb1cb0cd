#pragma once
/// Connects a trainer with the files of a run. In the run's folder:
///   adapter_config.json, adapter_model.safetensors   the adapter that training leaves, once it is complete; a prefix and a
///                       prompt likewise (AdapterHub's adapters: adapter.safetensors)
///   checkpoint-last/    the adapter and train_state.safetensors: with this a run is resumed, bit for bit
///   checkpoint-best/    the adapter with the lowest validation loss
///   metrics.jsonl       a line per step and per evaluation, as they happen
///   loss.svg            their curves
/// Each folder is replaced in one step: a kill at any moment leaves the old files or the new ones.

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/train_state.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/atomic_file.hpp"
#include "peft/pipeline/metrics_file.hpp"
#include "peft/pipeline/saved_adapter.hpp"
#include "peft/pipeline/trainer_state_file.hpp"
#include "peft/train/loss_svg.hpp"
#include "peft/train/trainer_events.hpp"

PEFT_BEGIN_NAMESPACE

/// Where a run writes, and what tells it from another.
struct RunFolder {
  std::filesystem::path path;
  std::string title = "Loss";  ///< of loss.svg
  /// What decides the bits besides the trainer's settings and data: the model's file, the type of activations…
  RunIdentity identity{};
};

/// Saves the run of one adapter. Must outlive the trainer that has its events.
template <Scalar T>
class TrainerCheckpointing {
 public:
  using accumulator_type = Accumulator<T>;
  using Events = TrainerEvents<accumulator_type>;

  static constexpr const char* kLast = "checkpoint-last";
  static constexpr const char* kBest = "checkpoint-best";
  static constexpr const char* kStateFile = "train_state.safetensors";

  /// `adapter` is what the trainer trains. Writes nothing yet.
  TrainerCheckpointing(SavedAdapter<T> adapter, RunFolder folder)
      : adapter_(std::move(adapter)), folder_(std::move(folder)), metrics_(folder_.path / "metrics.jsonl") {
    folder_.identity.emplace_back("adapter_config.json", adapter_.config_text());
  }

  /// Whether `folder` holds a state that a run can go on from.
  static bool has_checkpoint(const std::filesystem::path& folder) {
    std::error_code error;
    return std::filesystem::exists(state_path(folder), error);
  }

  const std::filesystem::path& folder() const noexcept { return folder_.path; }
  std::filesystem::path metrics_path() const { return metrics_.path(); }
  std::filesystem::path picture_path() const { return folder_.path / "loss.svg"; }

  /// Begins a new run, in a folder that is made where there is none: its start takes the place of an older run's
  /// checkpoint, metrics and curves. Throws IoError; where the start cannot be saved, the older run's files are as they
  /// were.
  template <class Trainer>
  void begin(Trainer& trainer) {
    std::error_code error;
    std::filesystem::create_directories(folder_.path, error);
    if (error) fail<IoError>("making the run's folder {}: {}", folder_.path.string(), error.message());
    save_last(trainer.state());
    metrics_.begin();
    remove_best();
    draw();
  }

  /// Goes on from the folder's checkpoint. Returns what to tell the user where the saved run computed with another
  /// instruction set: then it goes on, but not bit for bit. Throws IoError where there is none, ConfigError where it
  /// was begun with other settings, data, model or adapter (the first that differs is named), FormatError for a broken
  /// file.
  template <class Trainer>
  std::optional<std::string> resume(Trainer& trainer) {
    if (!has_checkpoint(folder_.path)) {
      fail<IoError>("resuming in {}: there is no {}/{}; begin a new run", folder_.path.string(), kLast, kStateFile);
    }
    const TrainState file = load_train_state(state_path(folder_.path));
    RunIdentity own = folder_.identity;
    own.insert(own.end(), trainer.identity().begin(), trainer.identity().end());
    file.require_fingerprint(own);
    const LoadedTrainerState<accumulator_type> loaded(file);
    trainer.restore(loaded.state());
    metrics_.resume(loaded.state().progress.global_step, loaded.state().progress.evaluated_step);
    // A kill in begin() can leave an older run's best beside the start of this one.
    if (loaded.state().progress.best_step < 0) remove_best();
    draw();
    return file.isa_note(own_isa());
  }

  /// Listeners that write, and then call those of `then`. Give them to the trainer.
  Events events(Events then = {}) {
    Events events;
    events.on_work = std::move(then.on_work);
    events.hooks = std::move(then.hooks);
    events.on_step = [this, next = std::move(then.on_step)](const StepEvent& event) {
      metrics_.append(event.record);
      if (event.record.step % kStepsPerPicture == 0) draw();
      if (next) next(event);
    };
    events.on_evaluate = [this, next = std::move(then.on_evaluate)](const EvaluationEvent& event) {
      metrics_.append(event.record);
      draw();
      if (next) next(event);
    };
    events.on_save = [this, next = std::move(then.on_save)](SaveReason reason,
                                                            const TrainerState<accumulator_type>& state) {
      save(reason, state);
      if (next) next(reason, state);
    };
    return events;
  }

 private:
  using State = TrainerState<accumulator_type>;
  /// Steps between two drawings of the curves besides those after evaluations and saves.
  static constexpr Index kStepsPerPicture = 20;

  static std::filesystem::path state_path(const std::filesystem::path& folder) {
    return AtomicDirectory::locate(folder / kLast, kStateFile);
  }

  void save(SaveReason reason, const State& state) {
    if (reason == SaveReason::kBest) {
      AtomicDirectory set(folder_.path / kBest, ExistingFolder::kReplace);
      adapter_.write(set);
      set.commit();
      return;
    }
    save_last(state);
    if (reason == SaveReason::kFinal) {
      AtomicDirectory set(folder_.path);
      adapter_.write(set);
      set.commit();
    }
    draw();
  }

  void save_last(const State& state) {
    AtomicDirectory set(folder_.path / kLast, ExistingFolder::kReplace);
    adapter_.write(set);
    FileWriter file = set.create(kStateFile);
    write_train_state(file, to_train_state(state, folder_.identity));
    file.finish();
    set.commit();
  }

  /// Removes an older run's best adapter; files of others in its folder stay.
  void remove_best() {
    AtomicDirectory::restore(folder_.path / kBest);
    std::error_code ignored;
    for (const std::string_view name : {detail::kAdapterConfig, detail::kAdapterModel, detail::kHubAdapter.weights,
                                        detail::kHubHead.config, detail::kHubHead.weights, detail::kHubFusion.config,
                                        detail::kHubFusion.weights, detail::kClassLabels}) {
      std::filesystem::remove(folder_.path / kBest / name, ignored);
    }
    std::filesystem::remove(folder_.path / kBest, ignored);  // where it is empty
  }

  void draw() {
    AtomicFile file(picture_path());
    file.write(loss_svg(metrics_.log().records(), folder_.title));
    file.commit();
  }

  SavedAdapter<T> adapter_;
  RunFolder folder_;
  MetricsFile metrics_;
};

PEFT_END_NAMESPACE
