// What works beside the optimizer: called where it should be, part of the state, refused where the state is another's.

#include "peft/train/optimizer_hooks.hpp"

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "peft/train/trainer.hpp"
#include "support/catch.hpp"
#include "unit/train/run_record.hpp"
#include "unit/train/toy_model.hpp"

using namespace peft;
using train_test::same_bits;
using train_test::SavedState;
using train_test::ToyData;
using train_test::ToyModel;

namespace {

using Model = ToyModel<float>;
using ToyTrainer = Trainer<Model, ToyData>;

TrainerConfig short_config() {
  TrainerConfig config;
  config.learning_rate = 0.05;
  config.max_steps = 9;
  config.per_device_train_batch_size = 4;
  config.max_grad_norm = 0.3;
  config.save_strategy = IntervalStrategy::kNo;
  return config;
}

/// A hook with a memory: it adds to a gradient, and now and then sets a parameter to what its memory has become.
struct Memory {
  Model& model;
  std::vector<float> memory = std::vector<float>(3);
  std::vector<Index> steps{};
  std::vector<double> scales{}, loss_scales{};

  OptimizerHooks<float> hooks() {
    OptimizerHooks<float> hooks;
    hooks.on_gradients = [this](double loss_scale) {
      loss_scales.push_back(loss_scale);
      model.bias.grad[0] += static_cast<float>(loss_scale) * 0.25f;
    };
    hooks.on_update = [this](Index step, double grad_scale) {
      steps.push_back(step);
      scales.push_back(grad_scale);
      memory[0] = 0.5f * memory[0] + std::fabs(static_cast<float>(grad_scale) * model.w1.grad[3]);
      memory[1] += 1.0f;
      if (step % 4 == 0) model.w1.value[3] = memory[0];
    };
    hooks.state = [this] { return NamedTensors<float>{{"memory", 1, 3, {memory.data(), 3}}}; };
    hooks.restore = [this](const NamedTensors<float>& state) {
      const auto& values = find_tensor(state, "memory", "hooks").values;
      std::copy(values.begin(), values.end(), memory.begin());
    };
    return hooks;
  }
};

}  // namespace

TEST_CASE("hooks add to the gradients before their norm, and see the update with what the optimizer took") {
  const ToyData data(20, 3);
  Model model;
  Memory memory{model};
  TrainerEvents<float> events;
  events.hooks = memory.hooks();
  std::vector<double> norms;
  events.on_step = [&](const StepEvent& event) { norms.push_back(event.record.grad_norm); };
  TrainerConfig config = short_config();
  config.fp16 = true;
  model.after_backward = [&model](std::uint32_t step, LossSum&) {
    if (step == 2) model.bias.grad[1] = std::numeric_limits<float>::infinity();
  };
  ToyTrainer trainer(model, config, data, nullptr, events);
  trainer.run();
  CHECK(memory.steps == std::vector<Index>{1, 2, 4, 5, 6, 7, 8, 9});  // the third was skipped
  REQUIRE(memory.loss_scales.size() == 9);
  CHECK(memory.loss_scales[3] == 0.5 * memory.loss_scales[2]);
  std::size_t at = 0;
  for (const Index step : memory.steps) {
    const auto i = static_cast<std::size_t>(step - 1);
    CHECK(memory.scales[at++] == Approx(std::min(1.0, 0.3 / norms[i]) / memory.loss_scales[i]).epsilon(1e-5));
  }

  // Without the addition the first step's norm is another.
  Model other;
  events.hooks = {};
  std::vector<double> with = norms;
  norms.clear();
  ToyTrainer plain(other, short_config(), data, nullptr, events);
  plain.run();
  CHECK(std::fabs(norms[0] - with[0]) > 1e-3);
}

TEST_CASE("a hook's memory is part of the state: stopped anywhere, the run ends with the same bits") {
  const ToyData data(20, 3);
  const auto run = [&](int every) {
    std::optional<SavedState<float>> file;
    while (true) {
      Model model;
      Memory memory{model};
      TrainerEvents<float> events;
      events.hooks = memory.hooks();
      std::atomic<bool> stop{false};
      int work = 0;
      events.on_work = [&](const WorkEvent&) { stop = ++work >= every; };
      ToyTrainer trainer(model, short_config(), data, nullptr, events);
      if (file) trainer.restore(file->view());
      const TrainerStatus status = trainer.run(&stop).status;
      file.emplace(trainer.state());
      if (status != TrainerStatus::kInterrupted) return std::move(*file);
    }
  };
  const SavedState<float> whole = run(1 << 30);
  REQUIRE(whole.view().hooks.size() == 1);
  CHECK(whole.view().hooks[0].values[1] == 9.0f);
  for (const int every : {2, 3, 5}) {
    INFO(every);
    CHECK(same_bits(run(every).view(), whole.view()));
  }

  // A state of another kind is refused, and nothing changed.
  Model model;
  ToyTrainer bare(model, short_config(), data);
  CHECK_THROWS_WITH(bare.restore(whole.view()), Catch::Contains("1 tensors of kind hooks; expected 0"));
  Memory memory{model};
  TrainerEvents<float> events;
  events.hooks = memory.hooks();
  ToyTrainer hooked(model, short_config(), data, nullptr, events);
  TrainerState<float> state = whole.view();
  state.hooks.clear();
  CHECK_THROWS_WITH(hooked.restore(state), Catch::Contains("0 tensors of kind hooks; expected 1"));
  state = whole.view();
  state.hooks[0].name = "other";
  CHECK_THROWS_WITH(hooked.restore(state), Catch::Contains("no hooks of parameter memory"));
  CHECK(memory.memory == std::vector<float>(3));

  TrainerConfig best = short_config();
  best.load_best_model_at_end = true;
  CHECK_THROWS_WITH(ToyTrainer(model, best, data, &data, events), Catch::Contains("load_best_model_at_end"));
}
