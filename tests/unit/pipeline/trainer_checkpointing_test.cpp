// The files of a run: a resumed run equals one that never stopped, bit for bit, whatever interrupted it: a stop, a loss
// that is not a number, a full disk, a kill.

#include "peft/pipeline/trainer_checkpointing.hpp"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <thread>

#include "peft/adapter_registry.hpp"
#include "peft/core/rng.hpp"
#include "peft/dense_linear.hpp"
#include "peft/pipeline/adalora_training.hpp"
#include "peft/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"
#include "unit/train/run_record.hpp"
#include "unit/train/toy_model.hpp"

using namespace peft;
using namespace io_test;
using train_test::same_bits;
using train_test::SavedState;
using train_test::ToyData;

namespace {

/// Two adapted layers over a frozen table: h = tanh(q(e_t)), z = v(h); loss = log Σ exp z − z_u.
class AdaptedToy {
 public:
  using accumulator_type = float;
  static constexpr Index kVocabulary = 11, kWidth = 8;

  AdaptedToy() : q_("layers.0.q_proj", random_layer(kWidth, 1)), v_("layers.0.v_proj", random_layer(kVocabulary, 2)) {}

  std::array<AdaptedLinear<float>*, 2> sites() { return {&q_, &v_}; }
  void train(std::shared_ptr<NamedAdapter<float>> adapter) {
    adapter_ = std::move(adapter);
    std::vector<Selection<float>::Active> active;
    active.push_back({adapter_, 1.0});
    selection_ = Selection<float>(std::move(active));
  }

  void forward_backward(const PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        LossSum& sum) {
    run(batch, static_cast<float>(grad_scale), {selection_, seed, step, batch.first_row, true}, true, sum);
    if (after_backward) after_backward(step, sum);
  }
  void evaluate(const PackedBatch& batch, LossSum& sum) { run(batch, 0.0f, {selection_, 0, 0, 0, false}, false, sum); }
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    adapter_->for_each_parameter(visit);
  }

  /// Called after each sub-batch: tests break numbers here.
  std::function<void(std::uint32_t step, LossSum&)> after_backward;

 private:
  static DenseLinear<float> random_layer(Index out, std::uint64_t seed) {
    Matrix<float> weight(out, kWidth);
    Philox random(seed);
    for (float& value : weight.flat()) value = 0.4f * random.normal();
    return DenseLinear<float>(std::move(weight));
  }

  void run(const PackedBatch& batch, float grad_scale, const TrainContext<float>& context, bool train, LossSum& sum) {
    const Index n = batch.tokens();
    Matrix<float> x(n, kWidth), h(n, kWidth), z(n, kVocabulary);
    for (Index i = 0; i < n; ++i) {
      for (Index k = 0; k < kWidth; ++k) {
        x.view()(i, k) = std::sin(static_cast<float>((batch.ids[static_cast<std::size_t>(i)] + 1) * (k + 2)));
      }
    }
    AdaptedLinear<float>::Saved saved_q, saved_v;
    q_.forward(std::as_const(x).view(), h.view(), saved_q, context, ExecutorRef());
    for (float& value : h.flat()) value = std::tanh(value);
    v_.forward(std::as_const(h).view(), z.view(), saved_v, context, ExecutorRef());
    for (Index i = 0; i < n; ++i) {
      const std::int32_t target = batch.targets[static_cast<std::size_t>(i)];
      float* row = &z.view()(i, 0);
      float total = 0.0f;
      for (Index j = 0; j < kVocabulary; ++j) total += std::exp(row[j]);
      if (target >= 0) {
        sum.loss += static_cast<double>(std::log(total) - row[target]);
        sum.tokens += 1;
      }
      for (Index j = 0; j < kVocabulary; ++j) {  // z becomes dz
        row[j] = target < 0 ? 0.0f : grad_scale * (std::exp(row[j]) / total - (j == target ? 1.0f : 0.0f));
      }
    }
    if (!train) return;
    Matrix<float> dh(n, kWidth);
    v_.backward(std::as_const(z).view(), std::as_const(h).view(), saved_v, dh.view(), Accumulate::kOverwrite, context,
                ExecutorRef());
    for (Index i = 0; i < dh.size(); ++i) dh.flat()[i] *= 1.0f - h.flat()[i] * h.flat()[i];
    q_.backward(std::as_const(dh).view(), std::as_const(x).view(), saved_q, MatrixView<float>{},
                Accumulate::kOverwrite, context, ExecutorRef());
  }

  AdaptedLinear<float> q_, v_;
  std::shared_ptr<NamedAdapter<float>> adapter_;
  Selection<float> selection_;
};

/// What a run depends on; a test changes one thing.
struct Settings {
  LoraConfig lora{.r = 3, .lora_alpha = 6, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.25f};
  TrainerConfig train;
  std::uint64_t data_seed = 3;
  std::string model = "toy-1";
  std::optional<AdaLoraConfig> adalora{};  ///< instead of LoRA

  Settings() {
    lora.rank_pattern = {{"v_proj", 2}};
    train.learning_rate = 0.05;
    train.max_steps = 9;
    train.per_device_train_batch_size = 2;
    train.gradient_accumulation_steps = 2;
    train.max_tokens_per_sub_batch = 14;
    train.lr_scheduler_type = SchedulerType::kCosine;
    train.warmup_steps = 2;
    train.weight_decay = 0.1;
    train.max_grad_norm = 0.4;
    train.eval_strategy = IntervalStrategy::kSteps;
    train.eval_steps = 2;
    train.save_strategy = IntervalStrategy::kSteps;
    train.save_steps = 3;
    train.load_best_model_at_end = true;
  }
};

/// All objects of one process's part of a run.
struct Process {
  explicit Process(const std::filesystem::path& folder, const Settings& settings = {}, std::uint64_t start = 5,
                   TrainerEvents<float> events = {})
      : data(15, settings.data_seed),
        validation(6, 4),
        adapter(make(settings, start)),
        files(adapter, {folder, "Toy", {{"model", settings.model}}}),
        trainer((model.train(adapter), model), settings.train, data, &validation,
                files.events(with_hooks(settings, adapter, std::move(events))), ExecutorRef()) {}

  AdaptedToy model;
  ToyData data, validation;
  std::shared_ptr<NamedAdapter<float>> adapter;
  TrainerCheckpointing<float> files;
  Trainer<AdaptedToy, ToyData> trainer;

 private:
  std::shared_ptr<NamedAdapter<float>> make(const Settings& settings, std::uint64_t start) {
    const auto sites = model.sites();
    if (settings.adalora) {
      return make_adapter<float>("default", *settings.adalora, std::span<AdaptedLinear<float>* const>(sites), start);
    }
    return make_adapter<float>("default", settings.lora, std::span<AdaptedLinear<float>* const>(sites), start);
  }
  static TrainerEvents<float> with_hooks(const Settings& settings, const std::shared_ptr<NamedAdapter<float>>& adapter,
                                         TrainerEvents<float> events) {
    if (settings.adalora) events.hooks = adalora_hooks<float>(adapter);
    return events;
  }
};

/// metrics.jsonl without the speed, which no two runs share.
std::string metrics_of(const std::filesystem::path& folder) {
  std::string text = read_file(folder / "metrics.jsonl");
  for (std::size_t at; (at = text.find(",\"tok_s\":")) != std::string::npos;) {
    text.erase(at, text.find_first_of(",}", at + 1) - at);
  }
  return text;
}

/// The adapters of a run's folder, and its curve.
std::vector<std::string> adapters_of(const std::filesystem::path& folder) {
  std::vector<std::string> contents;
  for (const char* place : {".", "checkpoint-last", "checkpoint-best"}) {
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
      contents.push_back(read_file(folder / place / name));
      CHECK_FALSE(contents.back().empty());
    }
  }
  contents.push_back(read_file(folder / "loss.svg"));
  return contents;
}

/// What a run leaves that never stopped.
struct Whole {
  ScratchFolder folder;
  std::optional<SavedState<float>> state;
  explicit Whole(const Settings& settings = {}) {
    Process process(folder.path(), settings);
    process.files.begin(process.trainer);
    REQUIRE(process.trainer.run().status == TrainerStatus::kCompleted);
    state.emplace(process.trainer.state());
  }
  void check_same(const std::filesystem::path& other) const {
    CHECK(metrics_of(other) == metrics_of(folder.path()));
    CHECK(adapters_of(other) == adapters_of(folder.path()));
    const TrainState file = load_train_state(other / "checkpoint-last/train_state.safetensors");
    const LoadedTrainerState<float> loaded(file);
    TrainerState<float> view = loaded.state();
    view.identity = state->view().identity;  // the file's has the model and the adapter too
    TrainerState<float> wanted = state->view();
    for (auto* group : {&wanted.parameters, &wanted.best, &wanted.hooks}) {
      std::sort(group->begin(), group->end(), [](const auto& x, const auto& y) { return x.name < y.name; });
    }
    std::sort(wanted.moments.begin(), wanted.moments.end(), [](const auto& x, const auto& y) { return x.name < y.name; });
    CHECK(same_bits(view, wanted));
  }
};

/// The state of the folder's checkpoint and its adapter, which must be of the same step.
Index loadable_step(const std::filesystem::path& folder) {
  const auto place = AtomicDirectory::locate(folder / "checkpoint-last", "train_state.safetensors");
  const TrainState file = load_train_state(place);
  const LoadedTrainerState<float> loaded(file);
  const PeftAdapter adapter = load_peft_adapter(folder / "checkpoint-last");
  bool same = 2 * adapter.modules.size() == loaded.state().parameters.size();
  for (const NamedTensor<float>& parameter : loaded.state().parameters) {
    for (const LoraTensors& entry : adapter.modules) {
      const TensorRef& stored = parameter.name == entry.a.name ? entry.a : entry.b;
      if (parameter.name != stored.name) continue;
      const Matrix<float> values = stored.to_matrix();
      same = same && std::equal(values.flat().begin(), values.flat().end(), parameter.values.begin());
    }
  }
  CHECK(same);
  return loaded.state().progress.global_step;
}

/// Stops a run again and again, each time resumed by a new process: it ends as one that never stopped.
void check_interrupted(const Settings& settings) {
  const Whole whole(settings);
  for (const int every : {6, 7, 9, 13}) {
    INFO("stopped after every " << every << " sub-batches");
    const ScratchFolder folder;
    TrainerStatus status = TrainerStatus::kInterrupted;
    int starts = 0;
    std::optional<SavedState<float>> last;
    while (status == TrainerStatus::kInterrupted) {
      REQUIRE(++starts < 40);
      std::atomic<bool> stop{false};
      int work = 0;
      TrainerEvents<float> events;
      events.on_work = [&](const WorkEvent&) { stop = ++work >= every; };
      // Other starting values each time: what counts comes from the files. The speed of what was trained before counts
      // on.
      Settings own = settings;
      if (is_8bit(settings.train.optim) && starts % 2 == 0) own.train.optim = OptimizerType::kAdamW8bit;  // the same numbers
      Process process(folder.path(), own, starts == 1 ? 5 : 100 + static_cast<std::uint64_t>(starts), events);
      if (starts == 1) {
        process.files.begin(process.trainer);
      } else {
        CHECK_FALSE(process.files.resume(process.trainer).has_value());
        CHECK(process.trainer.progress() == last->view().progress);
      }
      status = process.trainer.run(&stop).status;
      last.emplace(process.trainer.state());
    }
    CHECK(starts > 2);
    CHECK(same_bits(last->view(), whole.state->view()));
    whole.check_same(folder.path());
  }
}

}  // namespace

TEST_CASE("run folder: a run that was interrupted and resumed by new processes equals one that never stopped") {
  check_interrupted({});
}

TEST_CASE("run folder: AdaLoRA's scores and ranks go on, bit for bit, wherever it was interrupted") {
  Settings settings;
  settings.train.load_best_model_at_end = false;
  settings.adalora = AdaLoraConfig{.target_r = 1, .init_r = 3, .tinit = 1, .tfinal = 3, .deltaT = 2, .total_step = 9,
                                   .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.25f};
  check_interrupted(settings);
}

TEST_CASE("run folder: moments in 8 bits go on, bit for bit, in a file or in memory; another optimizer is refused") {
  Settings settings;
  settings.train.optim = OptimizerType::kPagedAdamW8bit;
  settings.train.min_8bit_size = 20;  // three of the four parameters
  check_interrupted(settings);

  const Whole whole(settings);
  const auto moments = whole.state->view().moments;
  REQUIRE(std::count_if(moments.begin(), moments.end(), [](const auto& one) { return one.is_8bit(); }) == 3);
  Settings other = settings;
  other.train.optim = OptimizerType::kPagedAdamW;
  Process in_32_bits(whole.folder.path(), other, 7);
  CHECK_THROWS_WITH(in_32_bits.files.resume(in_32_bits.trainer), Catch::Contains("optimizer is not set") && Catch::Contains("adamw_8bit"));
  CHECK_THROWS_WITH(in_32_bits.trainer.restore(whole.state->view()), Catch::Contains("adamw_torch") && Catch::Contains("adamw_8bit"));
  const Whole plain;
  Process in_8_bits(plain.folder.path(), settings, 7);
  CHECK_THROWS_WITH(in_8_bits.files.resume(in_8_bits.trainer), Catch::Contains("optimizer is \"adamw_8bit\""));

  // While a state is written, the memory of what is in the file can be given back; likewise while it is read.
  TrainerState<float> view = whole.state->view();
  std::size_t written = 0, all = 0;
  view.done = [&](std::span<const std::byte> bytes) { written += bytes.size(); };
  const TrainState to_write = to_train_state(view, {});
  save_train_state(whole.folder / "state.safetensors", to_write);
  for (const TensorRef& one : to_write.tensors) all += one.bytes.size();
  CHECK(written == all);
  CHECK(LoadedTrainerState<float>(load_train_state(whole.folder / "state.safetensors")).state().done);

  // A file that says one thing of its moments and holds another.
  const auto path = whole.folder.path() / "checkpoint-last/train_state.safetensors";
  const auto refused = [&](auto&& spoil, const char* why) {
    TrainState state = load_train_state(path);
    spoil(state);
    CHECK_THROWS_WITH(LoadedTrainerState<float>(state), Catch::Contains(why));
  };
  const std::string name = "layers.0.q_proj.lora_A.weight";
  const auto tensor = [&](TrainState& state, const std::string& group) -> TensorRef& {
    return const_cast<TensorRef&>(*state.find(group, name));
  };
  refused([&](TrainState& s) { tensor(s, "exp_avg_absmax").name += "x"; }, "without maxima");
  refused([&](TrainState& s) { tensor(s, "exp_avg_absmax").shape = {1, 0}; }, "0 maxima; expected 1");
  refused([&](TrainState& s) { tensor(s, "exp_avg_sq_8bit").name += "x"; }, "is missing");
  refused([&](TrainState& s) { tensor(s, "exp_avg_8bit").type = StoredType::kI8; }, "expected U8");
}

TEST_CASE("run folder: what stands in it, when") {
  const ScratchFolder scratch;
  const auto folder = scratch / "runs/first";
  CHECK_FALSE(TrainerCheckpointing<float>::has_checkpoint(folder));
  std::vector<std::string> reasons;
  TrainerEvents<float> events;
  events.on_save = [&](SaveReason reason, const TrainerState<float>& state) {
    reasons.emplace_back(name_of(reason));
    if (reason != SaveReason::kBest) CHECK(loadable_step(folder) == state.progress.global_step);
    CHECK(std::filesystem::exists(folder / "adapter_config.json") == (reason == SaveReason::kFinal));
  };
  Process process(folder, {}, 5, events);
  CHECK_FALSE(TrainerCheckpointing<float>::has_checkpoint(folder));
  process.files.begin(process.trainer);
  CHECK(TrainerCheckpointing<float>::has_checkpoint(folder));
  CHECK(loadable_step(folder) == 0);
  process.trainer.run();
  CHECK(std::count(reasons.begin(), reasons.end(), "periodic") == 2);
  CHECK(reasons.back() == "final");
  std::vector<std::string> names = names_in(folder);
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"adapter_config.json", "adapter_model.safetensors", "checkpoint-best",
                                          "checkpoint-last", "loss.svg", "metrics.jsonl"});
  CHECK(names_in(folder / "checkpoint-last").size() == 3);
  CHECK(names_in(folder / "checkpoint-best").size() == 2);
  // The last adapter is the best one, as load_best_model_at_end asks.
  CHECK(read_file(folder / "adapter_model.safetensors") ==
        read_file(folder / "checkpoint-best/adapter_model.safetensors"));
  const PeftAdapter saved = load_peft_adapter(folder);
  CHECK(saved.modules.size() == 2);
  CHECK(saved.config.rank_pattern == Settings().lora.rank_pattern);

  // A finished run that is resumed stays as it is.
  const auto before = adapters_of(folder);
  const std::string metrics = read_file(folder / "metrics.jsonl");
  Process again(folder, {}, 77);
  again.files.resume(again.trainer);
  CHECK(again.trainer.run().steps == 9);
  CHECK(adapters_of(folder) == before);
  CHECK(read_file(folder / "metrics.jsonl") == metrics);

  // A new run takes the place of the old one's checkpoint, metrics and best; where it cannot begin, nothing changes.
  Process other(folder, {}, 6);
  {
    FaultyCalls calls([](int, const std::string& call) { return call == "write" ? ENOSPC : 0; });
    CHECK_THROWS_WITH(other.files.begin(other.trainer), Catch::Contains("No space left"));
  }
  CHECK(adapters_of(folder) == before);
  CHECK(read_file(folder / "metrics.jsonl") == metrics);
  other.files.begin(other.trainer);
  CHECK(loadable_step(folder) == 0);
  CHECK(read_file(folder / "metrics.jsonl").empty());
  CHECK_FALSE(std::filesystem::exists(folder / "checkpoint-best"));
  CHECK(load_peft_adapter(folder).modules.size() == 2);
}

TEST_CASE("run folder: other settings, data, model or adapter are refused by name, and nothing changes") {
  const ScratchFolder folder;
  {
    std::atomic<bool> stop{false};
    TrainerEvents<float> events;
    events.on_step = [&](const StepEvent& event) { stop = event.record.step == 4; };
    Process process(folder.path(), {}, 5, events);
    process.files.begin(process.trainer);
    process.trainer.run(&stop);
  }
  const std::string state = read_file(folder / "checkpoint-last/train_state.safetensors");
  const std::string metrics = read_file(folder / "metrics.jsonl");
  const auto refused = [&](auto&& change, const char* expected) {
    Settings settings;
    change(settings);
    Process process(folder.path(), settings, 8);
    const SavedState<float> untouched(process.trainer.state());
    const std::string message = message_of<ConfigError>([&] { process.files.resume(process.trainer); });
    INFO(message);
    CHECK(message.find(expected) != std::string::npos);
    CHECK(message.find((folder / "checkpoint-last").string()) != std::string::npos);
    CHECK(same_bits(process.trainer.state(), untouched.view()));
    CHECK(read_file(folder / "checkpoint-last/train_state.safetensors") == state);
    CHECK(read_file(folder / "metrics.jsonl") == metrics);
  };
  refused([](Settings& s) { s.train.learning_rate = 0.06; },
          "learning_rate is \"0.06\", but the saved run has \"0.05\"");
  refused([](Settings& s) { s.train.seed = 7; }, "seed is \"7\"");
  refused([](Settings& s) { s.train.max_steps = 10; }, "optimizer steps is \"10\"");
  refused([](Settings& s) { s.data_seed = 9; }, "training data");
  refused([](Settings& s) { s.model = "toy-2"; }, "model is \"toy-2\", but the saved run has \"toy-1\"");
  refused([](Settings& s) { s.lora.r = 2; }, "adapter_config.json");
  refused([](Settings& s) { s.lora.lora_dropout = 0.0f; }, "adapter_config.json");
  {
    Settings same;
    same.lora.inference_mode = true;  // as an adapter has it that was loaded
    Process process(folder.path(), same, 8);
    process.files.resume(process.trainer);
    CHECK(process.trainer.progress().global_step == 4);
  }

  const ScratchFolder empty;
  Process process(empty.path());
  CHECK_THROWS_AS(process.files.resume(process.trainer), IoError);
  CHECK_THROWS_WITH(process.files.resume(process.trainer), Catch::Contains("there is no checkpoint-last/train_state"));
}

TEST_CASE("run folder: a state that is cut off or has a number that is none is refused, and nothing changes") {
  const ScratchFolder folder;
  Process first(folder.path());
  first.files.begin(first.trainer);
  first.trainer.run();
  const auto path = folder / "checkpoint-last/train_state.safetensors";
  const std::string good = read_file(path);
  const auto refused = [&](const std::string& content) {
    write_file(path, content);
    Process process(folder.path(), {}, 8);
    const SavedState<float> untouched(process.trainer.state());
    const std::string message = message_of<Error>([&] { process.files.resume(process.trainer); });
    INFO(message);
    CHECK(message.find(path.string()) != std::string::npos);
    CHECK(same_bits(process.trainer.state(), untouched.view()));
    return message;
  };
  for (const double part : {0.0, 0.001, 0.1, 0.5, 0.999}) {
    const auto length = static_cast<std::size_t>(part * static_cast<double>(good.size()));
    CHECK_FALSE(refused(good.substr(0, length)).empty());
  }
  std::string not_a_number = good;
  not_a_number.replace(good.size() - 4, 4, bytes_of(std::numeric_limits<float>::quiet_NaN()));
  CHECK(refused(not_a_number).find("expected finite numbers") != std::string::npos);
  std::string other_name = good;
  const std::string name = "exp_avg/layers.0.q_proj.lora_A.weight";
  other_name.replace(other_name.find(name), name.size(), "exp_avg/layers.0.q_proj.lora_X.weight");
  write_file(path, other_name);
  Process process(folder.path(), {}, 8);
  CHECK_THROWS_WITH(process.files.resume(process.trainer),
                    Catch::Contains("exp_avg_sq/layers.0.q_proj.lora_X.weight is missing"));
}

TEST_CASE("run folder: a loss that is not a number keeps the last good state, from which a run goes on") {
  const Whole whole;
  const ScratchFolder folder;
  {
    Process process(folder.path());
    process.model.after_backward = [](std::uint32_t step, LossSum& sum) {
      if (step == 4) sum.loss = std::numeric_limits<double>::quiet_NaN();
    };
    process.files.begin(process.trainer);
    CHECK_THROWS_WITH(process.trainer.run(), Catch::Contains("in step 5 the loss is nan"));
  }
  CHECK(loadable_step(folder.path()) == 4);
  CHECK_FALSE(std::filesystem::exists(folder / "adapter_config.json"));
  Process process(folder.path(), {}, 9);
  process.files.resume(process.trainer);
  process.trainer.run();
  whole.check_same(folder.path());
}

TEST_CASE("run folder: whatever call fails, the old state or the new one is loaded and the run goes on from it") {
  Settings settings;
  settings.train.max_steps = 4;
  settings.train.save_strategy = IntervalStrategy::kNo;
  const Whole whole(settings);

  // A run stopped after step 2; then one step, its save and its curve under faults.
  const ScratchFolder started;
  const auto one_step = [&](const std::filesystem::path& folder, bool first) {
    std::atomic<bool> stop{false};
    TrainerEvents<float> events;
    events.on_step = [&](const StepEvent& event) { stop = event.record.step >= (first ? 2 : 3); };
    Process process(folder, settings, first ? 5 : 50, events);
    first ? process.files.begin(process.trainer) : static_cast<void>(process.files.resume(process.trainer));
    process.trainer.run(&stop);
  };
  one_step(started.path(), true);
  REQUIRE(loadable_step(started.path()) == 2);
  const auto copy_to = [&](const ScratchFolder& folder) {
    std::filesystem::copy(started.path(), folder.path(), std::filesystem::copy_options::recursive);
  };
  std::vector<std::string> names;
  {
    const ScratchFolder folder;
    copy_to(folder);
    FaultyCalls calls([&](int, const std::string& call) {
      names.push_back(call);
      return 0;
    });
    one_step(folder.path(), false);
  }
  REQUIRE(names.size() > 20);
  for (std::size_t at = 0; at < names.size(); ++at) {
    const ScratchFolder folder;
    copy_to(folder);
    const int error = at % 2 == 0 ? ENOSPC : EACCES;
    std::string message;
    {
      FaultyCalls calls([&](int number, const std::string&) { return number == static_cast<int>(at) ? error : 0; });
      message = message_of<IoError>([&] { one_step(folder.path(), false); });
    }
    INFO("call " << at << ", " << names[at] << ": " << error_text(error) << "; message: " << message);
    if (names[at] == "write" || names[at] == "fsync") {
      CHECK(message.find(error_text(error)) != std::string::npos);
      CHECK(message.find(folder.path().string()) != std::string::npos);
    }
    const Index step = loadable_step(folder.path());
    CHECK((step == 2 || step == 3));
    if (at % 4 != 0) continue;
    Process process(folder.path(), settings, 60);
    process.files.resume(process.trainer);
    process.trainer.run();
    whole.check_same(folder.path());
  }

  // Short and interrupted writes are gone on with.
  const ScratchFolder folder;
  copy_to(folder);
  bool again = false;
  {
    FaultyCalls calls([&](int, const std::string& call) {
      again = !again;
      return (call == "write" || call == "fsync") && again ? EINTR : 0;
    });
    calls.longest_write = 50;
    one_step(folder.path(), false);
  }
  CHECK(loadable_step(folder.path()) == 3);
}

TEST_CASE("run folder: kills at random moments; each time the run goes on, to the same bits") {
  Settings settings;
  settings.train.save_strategy = IntervalStrategy::kSteps;
  settings.train.save_steps = 1;
  const auto begin = std::chrono::steady_clock::now();
  const Whole whole(settings);
  const auto duration = std::chrono::steady_clock::now() - begin;
  // On a machine that is busy with other things, kills come early rather than take minutes.
  const auto longest_pause = std::min<std::int64_t>(std::chrono::nanoseconds(duration).count(), 200'000'000);
  const ScratchFolder scratch;
  Philox random(11);
  int kills = 0, completed = 0, resumed = 0;
  std::filesystem::path folder = scratch / "run-0";
  while (kills < peft_test::kKills || completed == 0) {
    const bool go_on = TrainerCheckpointing<float>::has_checkpoint(folder);
    const Index step = go_on ? loadable_step(folder) : 0;
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        Process process(folder, settings, go_on ? 70 : 5);
        go_on ? static_cast<void>(process.files.resume(process.trainer)) : process.files.begin(process.trainer);
        process.trainer.run();
      } catch (...) {
        ::_exit(3);
      }
      ::_exit(0);
    }
    if (kills < peft_test::kKills) {  // then one may run to its end
      const auto pause = static_cast<double>(longest_pause) * 0.8 * static_cast<double>(random.uniform(0.0f, 1.0f));
      std::this_thread::sleep_for(std::chrono::nanoseconds(static_cast<std::int64_t>(pause)));
      ::kill(child, SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
      ++kills;
      resumed += go_on ? 1 : 0;
      if (go_on) REQUIRE(TrainerCheckpointing<float>::has_checkpoint(folder));
      if (TrainerCheckpointing<float>::has_checkpoint(folder)) CHECK(loadable_step(folder) >= step);
      continue;
    }
    REQUIRE(WEXITSTATUS(status) == 0);
    whole.check_same(folder);
    ++completed;
    folder = scratch / ("run-" + std::to_string(completed));
  }
  CHECK(kills == peft_test::kKills);
  CHECK(resumed > 0);
}
