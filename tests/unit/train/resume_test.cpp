// Interruption at every point, and a resume that equals the run that never stopped, bit for bit.

#include <atomic>
#include <string>
#include <vector>

#include "peft/train/trainer.hpp"
#include "support/catch.hpp"
#include "unit/train/run_record.hpp"
#include "unit/train/toy_model.hpp"

using namespace peft;
using train_test::Listener;
using train_test::same_bits;
using train_test::SavedState;
using train_test::ToyData;
using train_test::ToyModel;

namespace {

template <class A>
using ToyTrainer = Trainer<ToyModel<A>, ToyData>;

/// Everything that a state holds is in play: warm-up, clipping, decay, dropout, loss scaling with a skipped step, best
/// parameters, patience.
TrainerConfig full_config() {
  TrainerConfig config;
  config.learning_rate = 0.05;
  config.num_train_epochs = 3;
  config.per_device_train_batch_size = 3;
  config.gradient_accumulation_steps = 2;
  config.max_tokens_per_sub_batch = 14;
  config.lr_scheduler_type = SchedulerType::kCosine;
  config.warmup_steps = 2;
  config.weight_decay = 0.1;
  config.max_grad_norm = 0.4;
  config.fp16 = true;
  config.early_stopping_patience = 4;
  config.load_best_model_at_end = true;
  config.eval_strategy = IntervalStrategy::kSteps;
  config.eval_steps = 2;
  config.save_strategy = IntervalStrategy::kNo;
  return config;
}

template <class A>
void overflow_in_step_five(ToyModel<A>& model) {
  model.after_backward = [&model](std::uint32_t step, LossSum&) {
    if (step == 4) model.bias.grad[2] = std::numeric_limits<A>::infinity();
  };
}

/// Runs to the end, stopping and resuming in a new trainer with a new model whenever the count of sub-batches since the
/// last start reaches `every`.
template <class A>
void check_resume(int every, const SavedState<A>& want, const Listener<A>& reference, const ToyData& data,
                  const ToyData& validation) {
  Listener<A> listener;
  std::optional<SavedState<A>> file;
  TrainerStatus status = TrainerStatus::kInterrupted;
  int starts = 0;
  while (status == TrainerStatus::kInterrupted) {
    REQUIRE(++starts < 400);
    ToyModel<A> model(file ? 1000 + static_cast<std::uint64_t>(starts) : 5);  // other numbers, to be overwritten
    if (file) {
      const ToyModel<A> original;
      model = original;  // the frozen table is the model's own and does not stand in a state
      for (auto* one : {&model.w1, &model.w2, &model.bias}) one->value.assign(one->value.size(), A(7));
    }
    overflow_in_step_five(model);
    std::atomic<bool> stop{false};
    TrainerEvents<A> events = listener.events();
    int work = 0;
    events.on_work = [&](const WorkEvent&) { stop = ++work >= every; };
    ToyTrainer<A> trainer(model, full_config(), data, &validation, events);
    if (file) trainer.restore(file->view());
    const TrainerResult result = trainer.run(&stop);
    status = result.status;
    file.emplace(trainer.state());
    if (status == TrainerStatus::kInterrupted) {
      REQUIRE(listener.saves.back().first == SaveReason::kInterrupted);
      REQUIRE(same_bits(listener.last_saved->view(), file->view()));
    }
  }
  CAPTURE(every, starts);
  CHECK(same_bits(file->view(), want.view()));
  CHECK(listener.steps == reference.steps);
  CHECK(listener.evaluations == reference.evaluations);
}

template <class A>
void check_all_interruptions(const ToyData& validation, TrainerStatus status) {
  const ToyData data(27, 3);
  ToyModel<A> model;
  overflow_in_step_five(model);
  Listener<A> reference;
  int work = 0;
  TrainerEvents<A> events = reference.events();
  events.on_work = [&](const WorkEvent&) { ++work; };
  ToyTrainer<A> whole(model, full_config(), data, &validation, events);
  const TrainerResult result = whole.run();
  REQUIRE(result.status == status);
  REQUIRE(result.best_step <= result.steps - (status == TrainerStatus::kStoppedEarly ? 8 : 0));
  REQUIRE(reference.steps[4].skipped);
  const SavedState<A> want(whole.state());
  REQUIRE(!want.view().best.empty());
  // What is under way at a stop is dropped, at most nine sub-batches (an evaluation); more between two stops is progress.
  for (int every = 12; every <= work + 1; ++every) check_resume<A>(every, want, reference, data, validation);
}

}  // namespace

TEST_CASE("A run that is interrupted anywhere and resumed equals one that never stopped, bit for bit") {
  check_all_interruptions<float>(ToyData(9, 4), TrainerStatus::kCompleted);
  check_all_interruptions<double>(ToyData(9, 4), TrainerStatus::kCompleted);
  // Validation by another rule: an early best, kept over many resumes, and an early stop.
  check_all_interruptions<float>(ToyData(9, 4, 7), TrainerStatus::kStoppedEarly);
}

TEST_CASE("The same trainer goes on after an interruption") {
  const ToyData data(27, 3);
  ToyModel<float> straight, stopped;
  ToyTrainer<float> whole(straight, full_config(), data);
  whole.run();
  std::atomic<bool> stop{false};
  TrainerEvents<float> events;
  events.on_step = [&](const StepEvent& event) { stop = event.record.step == 6; };
  ToyTrainer<float> trainer(stopped, full_config(), data, nullptr, events);
  CHECK(trainer.run(&stop).status == TrainerStatus::kInterrupted);
  CHECK(trainer.progress().global_step == 6);
  stop = false;
  CHECK(trainer.run(&stop).status == TrainerStatus::kCompleted);
  CHECK(same_bits(trainer.state(), whole.state()));
  // A finished run that is run again changes nothing.
  CHECK(trainer.run(&stop).steps == 15);
  CHECK(same_bits(trainer.state(), whole.state()));
}

TEST_CASE("A stop before the first step saves the start") {
  const ToyData data(27, 3);
  ToyModel<float> model;
  Listener<float> listener;
  std::atomic<bool> stop{true};
  ToyTrainer<float> trainer(model, full_config(), data, &data, listener.events());
  const TrainerResult result = trainer.run(&stop);
  CHECK(result.status == TrainerStatus::kInterrupted);
  CHECK(result.steps == 0);
  CHECK(listener.steps.empty());
  REQUIRE(listener.saves.size() == 1);
}

TEST_CASE("A state of another run is refused, by what differs, and changes nothing") {
  const ToyData data(27, 3), other_data(27, 3, 7);  // as long as the first, other ids
  ToyModel<float> model;
  TrainerConfig config = full_config();
  config.max_steps = 3;
  ToyTrainer<float> trainer(model, config, data);
  trainer.run();
  const SavedState<float> saved(trainer.state());

  const auto refused = [&](auto&& change, const ToyData& with, const char* name) {
    ToyModel<float> fresh;
    const ToyModel<float> untouched = fresh;
    TrainerConfig changed = config;
    change(changed);
    ToyTrainer<float> second(fresh, changed, with);
    CHECK_THROWS_WITH(second.restore(saved.view()), Catch::Contains(name));
    CHECK(fresh.w1.value == untouched.w1.value);
    CHECK(second.progress() == ToyTrainer<float>(fresh, changed, with).progress());
  };
  refused([](TrainerConfig& c) { c.learning_rate = 0.06; }, data, "learning_rate is 0.06, but the saved run has 0.05");
  refused([](TrainerConfig& c) { c.max_steps = 4; }, data, "optimizer steps");
  refused([](TrainerConfig& c) { c.gradient_accumulation_steps = 1; }, data, "batch × accumulate");
  refused([](TrainerConfig& c) { c.seed = 1; }, data, "seed");
  refused([](TrainerConfig& c) { c.max_tokens_per_sub_batch = 15; }, data, "max_tokens_per_sub_batch");
  refused([](TrainerConfig&) {}, other_data, "fingerprint");

  const auto spoilt = [&](auto&& change, const char* name) {
    ToyModel<float> fresh;
    ToyTrainer<float> second(fresh, config, data);
    TrainerState<float> state = saved.view();
    change(state);
    CHECK_THROWS_WITH(second.restore(state), Catch::Contains(name));
  };
  spoilt([](TrainerState<float>& s) { s.parameters[1].name = "w9"; }, "w2.weight");
  spoilt([](TrainerState<float>& s) { s.parameters.pop_back(); }, "bias");
  spoilt([](TrainerState<float>& s) { s.parameters.push_back({"more", 1, 1, s.parameters[0].values.slice(0, 1)}); },
         "4 tensors");
  spoilt([](TrainerState<float>& s) { s.parameters[0].rows = 1; }, "w1.weight");
  spoilt([](TrainerState<float>& s) { s.moments.pop_back(); }, "no moments of parameter bias");
  spoilt([](TrainerState<float>& s) { s.moments[1].v = {}; }, "moments of parameter w2.weight have 99 and 0 elements");
  spoilt([](TrainerState<float>& s) { s.moments[1].rows = 2; }, "moments of parameter w2.weight are [2, 9]");
  spoilt([](TrainerState<float>& s) { s.moments.push_back(s.moments[0]); }, "moments of 4 parameters");
  spoilt([](TrainerState<float>& s) { s.moments.clear(); }, "no moments");
  spoilt([](TrainerState<float>& s) { s.identity.erase(s.identity.begin()); }, "learning_rate");
}
