// The training loop with a toy model: what defines a step, evaluation, early stop, broken numbers.

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "peft/core/thread_pool.hpp"
#include "peft/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/central_differences.hpp"
#include "unit/train/run_record.hpp"
#include "unit/train/toy_model.hpp"

using namespace peft;
using train_test::Listener;
using train_test::same_bits;
using train_test::ToyData;
using train_test::ToyModel;

namespace {

template <class A>
using ToyTrainer = Trainer<ToyModel<A>, ToyData>;

TrainerConfig small_config() {
  TrainerConfig config;
  config.learning_rate = 0.02;
  config.per_device_train_batch_size = 2;
  config.gradient_accumulation_steps = 3;
  config.max_tokens_per_sub_batch = 16;
  config.seed = 9;
  return config;
}

/// The gradient of one accumulated batch of all of `data`, cut at `max_tokens`, as the first step of a training with seed
/// 3 has it; one value per element of each parameter.
template <class A>
std::vector<A> gradient(const ToyData& data, Index max_tokens, double& loss) {
  ToyModel<A> model;
  const std::vector<Index> order = epoch_order(data.records(), 3, 0);
  Index labels = 0;
  for (Index i = 0; i < data.records(); ++i) labels += data.label_tokens(i);
  SubBatches<ToyData> cut(data, order, max_tokens);
  PackedBatch batch;
  LossSum sum;
  while (cut.next(batch)) model.forward_backward(batch, 1.0 / static_cast<double>(labels), 3, 0, sum);
  loss = sum.mean();
  std::vector<A> result;
  model.for_each_parameter([&](const ParameterInfo&, VectorView<A>, VectorView<A> grad) {
    result.insert(result.end(), grad.begin(), grad.end());
  });
  return result;
}

template <class A>
void check_cuts() {
  const ToyData data(13, 2);
  double whole_loss = 0.0;
  const std::vector<A> whole = gradient<A>(data, 1 << 20, whole_loss);
  double square = 0.0;
  for (const A value : whole) square += static_cast<double>(value) * static_cast<double>(value);
  // Sums over at most 130 rows, taken in two orders: each partial sum is at most Σ|terms|, which is within a small
  // factor of the norm here; norm × eps × rows.
  const double tolerance = std::sqrt(square) * 130 * static_cast<double>(std::numeric_limits<A>::epsilon());
  for (const Index max_tokens : {1, 7, 12, 20, 33, 64, 500}) {
    double loss = 0.0;
    const std::vector<A> cut = gradient<A>(data, max_tokens, loss);
    CAPTURE(max_tokens);
    CHECK(loss == Approx(whole_loss).epsilon(130 * static_cast<double>(std::numeric_limits<A>::epsilon())));
    for (std::size_t i = 0; i < whole.size(); ++i) {
      CHECK(std::abs(static_cast<double>(cut[i]) - static_cast<double>(whole[i])) <= tolerance);
    }
  }
}

}  // namespace

TEST_CASE("The toy model's gradient is right") {
  const ToyData data(4, 1);
  ToyModel<double> model;
  PackedBatch batch;
  for (Index i = 0; i < 4; ++i) data.append(i, batch);
  LossSum sum;
  model.forward_backward(batch, 0.5, 1, 2, sum);
  const auto loss = [&] {
    ToyModel<double> copy = model;
    LossSum other;
    copy.forward_backward(batch, 0.5, 1, 2, other);
    return 0.5 * other.loss;
  };
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<double> value, VectorView<double> grad) {
    INFO(info.name);
    peft_test::check_differences(
        value, grad, [&](double& number) { return peft_test::second_order_difference(number, 1e-5, loss); },
        [](double) { return 1e-8; });
  });
}

TEST_CASE("Cutting an accumulated batch changes neither loss nor gradient nor dropout masks") {
  check_cuts<float>();
  check_cuts<double>();
}

TEST_CASE("A step's loss is the mean over all its label tokens") {
  const ToyData data(13, 2);
  double loss = 0.0;
  double square = 0.0;
  for (const double value : gradient<double>(data, 20, loss)) square += value * value;
  ToyModel<double> model;
  Listener<double> listener;
  TrainerConfig config = small_config();
  config.seed = 3;
  config.per_device_train_batch_size = 13;
  config.gradient_accumulation_steps = 1;
  config.max_steps = 1;
  config.max_tokens_per_sub_batch = 20;
  ToyTrainer<double>(model, config, data, nullptr, listener.events()).run();
  REQUIRE(listener.steps.size() == 1);
  CHECK(listener.steps[0].loss == loss);
  CHECK(listener.steps[0].grad_norm == Approx(std::sqrt(square)).epsilon(1e-14));
}

TEST_CASE("batch × accumulate alone defines a step") {
  const ToyData data(20, 3);
  std::vector<train_test::SavedState<float>> ends;
  for (const auto& [batch, accumulate] : {std::pair<Index, Index>{6, 1}, {3, 2}, {1, 6}}) {
    ToyModel<float> model;
    TrainerConfig config = small_config();
    config.per_device_train_batch_size = batch;
    config.gradient_accumulation_steps = accumulate;
    config.num_train_epochs = 2;
    ToyTrainer<float> trainer(model, config, data);
    trainer.run();
    ends.emplace_back(trainer.state());
  }
  CHECK(same_bits(ends[0].view(), ends[1].view()));
  CHECK(same_bits(ends[0].view(), ends[2].view()));
}

TEST_CASE("Epochs: every record once in another order, the rest of an epoch is a step, steps as HF counts them") {
  const std::vector<Index> first = epoch_order(50, 1, 0);
  const std::vector<Index> second = epoch_order(50, 1, 1);
  CHECK(first == epoch_order(50, 1, 0));
  CHECK(first != second);
  CHECK(first != epoch_order(50, 2, 0));
  for (std::vector<Index> order : {first, second}) {
    std::sort(order.begin(), order.end());
    for (Index i = 0; i < 50; ++i) CHECK(order[static_cast<std::size_t>(i)] == i);
  }

  // Three records: six orders, each in a sixth of 6,000 seeds; 1000 ± 29, so that 130 is beyond four deviations.
  std::map<std::vector<Index>, int> orders;
  for (std::uint64_t seed = 0; seed < 6000; ++seed) ++orders[epoch_order(3, seed, 0)];
  CHECK(orders.size() == 6);
  for (const auto& [order, times] : orders) CHECK(std::abs(times - 1000) < 130);

  TrainerConfig config = small_config();  // six records a step
  CHECK(config.steps_per_epoch(20) == 4);
  CHECK(config.steps_per_epoch(18) == 3);
  CHECK(config.total_steps(20) == 12);
  config.num_train_epochs = 0.6;
  CHECK(config.total_steps(20) == 3);  // ⌈2.4⌉
  config.max_steps = 7;
  CHECK(config.total_steps(20) == 7);

  const ToyData data(20, 3);
  ToyModel<float> model;
  Listener<float> listener;
  ToyTrainer<float> trainer(model, config, data, nullptr, listener.events());
  const TrainerResult result = trainer.run();
  REQUIRE(listener.steps.size() == 7);
  Index tokens = 0, labels = 0;
  for (Index i = 0; i < 20; ++i) {
    tokens += data.tokens(i);
    labels += data.label_tokens(i);
  }
  Index seen = 0, seen_labels = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    seen += listener.steps[i].tokens;
    seen_labels += listener.steps[i].label_tokens;
  }
  CHECK(seen == tokens);
  CHECK(seen_labels == labels);
  CHECK(listener.steps[3].epoch == 1.0);
  CHECK(listener.steps[4].epoch == 1.25);
  CHECK(result.steps == 7);
  CHECK(result.status == TrainerStatus::kCompleted);
  CHECK(result.tokens > tokens);
  CHECK(result.train_s > 0.0);
  CHECK(result.tok_s == Approx(static_cast<double>(result.tokens) / result.train_s));
  double loss = 0.0;
  for (const MetricsRecord& step : listener.steps) loss += step.loss * static_cast<double>(step.label_tokens);
  CHECK(result.train_loss == Approx(loss / static_cast<double>(result.label_tokens)));
  CHECK(listener.steps[0].learning_rate == 0.02);
  CHECK(listener.steps[6].learning_rate == Approx(0.02 / 7));
}

TEST_CASE("Training learns; it evaluates before, after each epoch and after") {
  const ToyData data(60, 3), validation(20, 4);
  ToyModel<float> model;
  Listener<float> listener;
  TrainerConfig config = small_config();
  config.num_train_epochs = 3.5;
  config.save_strategy = IntervalStrategy::kEpoch;
  ToyTrainer<float> trainer(model, config, data, &validation, listener.events());
  const TrainerResult result = trainer.run();
  REQUIRE(trainer.total_steps() == 35);
  std::vector<Index> at;
  for (const MetricsRecord& one : listener.evaluations) at.push_back(one.step);
  CHECK(at == std::vector<Index>{0, 10, 20, 30, 35});
  REQUIRE(result.val_loss_before);
  CHECK(*result.val_loss_before == listener.evaluations.front().loss);
  CHECK(*result.val_loss_after == listener.evaluations.back().loss);
  CHECK(*result.val_loss_before > 2.2);
  CHECK(*result.val_loss_after < 1.6);
  CHECK(*result.val_loss_after == evaluate_loss(model, validation, 1000).mean());
  std::vector<Index> saved;
  for (const auto& [reason, step] : listener.saves) {
    if (reason == SaveReason::kPeriodic || reason == SaveReason::kFinal) saved.push_back(step);
  }
  CHECK(saved == std::vector<Index>{10, 20, 30, 35});
  CHECK(listener.saves.back().first == SaveReason::kFinal);

  config.eval_strategy = IntervalStrategy::kSteps;
  config.eval_steps = 12;
  config.eval_on_start = false;
  ToyModel<float> again;
  Listener<float> second;
  ToyTrainer<float>(again, config, data, &validation, second.events()).run();
  at.clear();
  for (const MetricsRecord& one : second.evaluations) at.push_back(one.step);
  CHECK(at == std::vector<Index>{12, 24, 35});
}

TEST_CASE("Early stop keeps the best parameters") {
  // Training and validation follow different rules: what is learned of one is wrong for the other.
  const ToyData data(30, 3), other(20, 4, 7);
  ToyModel<float> model;
  Listener<float> listener;
  TrainerConfig config = small_config();
  config.learning_rate = 0.05;
  config.num_train_epochs = 40;
  config.early_stopping_patience = 3;
  config.load_best_model_at_end = true;
  ToyTrainer<float> trainer(model, config, data, &other, listener.events());
  const TrainerResult result = trainer.run();
  CHECK(result.status == TrainerStatus::kStoppedEarly);
  CHECK(result.steps < result.total_steps);
  REQUIRE(listener.evaluations.size() >= 4);
  // Three evaluations after the best one.
  CHECK(result.steps == result.best_step + 3 * trainer.steps_per_epoch());
  double best = 1e9;
  for (std::size_t i = 1; i < listener.evaluations.size(); ++i) best = std::min(best, listener.evaluations[i].loss);
  CHECK(*result.best_val_loss == best);
  CHECK(*result.val_loss_after == best);
  CHECK(evaluate_loss(model, other, 16).mean() == best);
  CHECK(listener.evaluations.back().loss > best);
  std::size_t best_saves = 0;
  for (const auto& [reason, step] : listener.saves) best_saves += reason == SaveReason::kBest ? 1 : 0;
  CHECK(best_saves >= 1);
}

TEST_CASE("A loss or gradient that is not finite ends training with the last good state saved") {
  const ToyData data(30, 3);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const bool in_loss : {true, false}) {
    ToyModel<float> good;
    TrainerConfig config = small_config();
    config.max_steps = 3;
    config.lr_scheduler_type = SchedulerType::kConstant;
    ToyTrainer<float> until_three(good, config, data);
    until_three.run();

    ToyModel<float> model;
    model.after_backward = [&](std::uint32_t step, LossSum& sum) {
      if (step != 3) return;
      if (in_loss) sum.loss = nan;
      if (!in_loss) model.w2.grad[4] = infinity;
    };
    Listener<float> listener;
    config.max_steps = 10;
    ToyTrainer<float> trainer(model, config, data, nullptr, listener.events());
    CHECK_THROWS_WITH(trainer.run(), Catch::Contains("step 4") && Catch::Contains(in_loss ? "loss is" : "w2.weight"));
    REQUIRE(listener.saves.size() == 1);
    CHECK(listener.saves[0] == std::pair(SaveReason::kNumericError, Index{3}));
    CHECK(same_bits(listener.last_saved->view().parameters, until_three.state().parameters));
    CHECK(same_bits(parameter_tensors(model), until_three.state().parameters));
  }
}

TEST_CASE("A parameter or validation loss that is not finite is never saved") {
  const ToyData data(30, 3);
  ToyModel<float> model;
  TrainerConfig config = small_config();
  config.learning_rate = 1e38;  // the first update overflows
  config.weight_decay = 1e3;
  config.max_steps = 1;
  Listener<float> listener;
  ToyTrainer<float> trainer(model, config, data, nullptr, listener.events());
  CHECK_THROWS_AS(trainer.run(), NumericError);
  CHECK(listener.saves.empty());

  ToyModel<float> broken;
  broken.w1.value[3] = std::numeric_limits<float>::quiet_NaN();
  Listener<float> second;
  ToyTrainer<float> other(broken, small_config(), data, &data, second.events());
  CHECK_THROWS_WITH(other.run(), Catch::Contains("validation loss"));
  CHECK(second.saves.empty());
}

TEST_CASE("Loss scaling skips a step that overflows, and leaves everything else as without it") {
  const ToyData data(30, 3);
  TrainerConfig config = small_config();
  config.max_steps = 8;

  // Without an overflow the scale, a power of two, changes no bit of gradients in float.
  ToyModel<float> plain, scaled;
  ToyTrainer<float> without(plain, config, data);
  without.run();
  config.fp16 = true;
  ToyTrainer<float> with(scaled, config, data);
  with.run();
  CHECK(same_bits(without.state().parameters, with.state().parameters));
  CHECK(with.progress().loss_scale == 65536.0);

  ToyModel<float> model;
  std::vector<float> before, after;
  model.after_backward = [&](std::uint32_t step, LossSum&) {
    if (step == 2) model.bias.grad[1] = std::numeric_limits<float>::quiet_NaN();
    if (step == 2) before = model.w1.value;
    if (step == 3 && after.empty()) after = model.w1.value;
  };
  Listener<float> listener;
  ToyTrainer<float> trainer(model, config, data, nullptr, listener.events());
  const TrainerResult result = trainer.run();
  CHECK(before == after);
  CHECK(listener.steps[2].skipped);
  CHECK_FALSE(listener.steps[3].skipped);
  CHECK(trainer.progress().loss_scale == 32768.0);
  CHECK(trainer.progress().optimizer_steps == 7);
  CHECK(result.steps == 8);
  // The schedule goes by updates, as in Hugging Face's Trainer.
  CHECK(listener.steps[2].learning_rate == listener.steps[3].learning_rate);

  ToyModel<float> hopeless;
  hopeless.after_backward = [&](std::uint32_t, LossSum&) {
    hopeless.bias.grad[1] = std::numeric_limits<float>::infinity();
  };
  config.max_steps = 100;
  Listener<float> second;
  ToyTrainer<float> stuck(hopeless, config, data, nullptr, second.events());
  CHECK_THROWS_WITH(stuck.run(), Catch::Contains("bias") && Catch::Contains("loss scale of 1"));
  CHECK(second.steps.size() == 16);  // 65536 = 2^16 is halved down to 1
}

TEST_CASE("The optimizer's bits do not depend on the number of threads") {
  const ToyData data(30, 3);
  ToyModel<float> one, four;
  SerialExecutor serial;
  ThreadPool pool(4);
  ToyTrainer<float> first(one, small_config(), data, nullptr, {}, serial);
  ToyTrainer<float> second(four, small_config(), data, nullptr, {}, pool);
  first.run();
  second.run();
  CHECK(same_bits(first.state(), second.state()));
}

TEST_CASE("Settings out of range and data without labels are refused by name") {
  const ToyData data(30, 3);
  ToyModel<float> model;
  const auto refused = [&](auto&& change, const char* name) {
    TrainerConfig config;
    change(config);
    CHECK_THROWS_WITH(ToyTrainer<float>(model, config, data), Catch::Contains(name));
  };
  refused([](TrainerConfig& c) { c.learning_rate = -1.0; }, "learning_rate");
  refused([](TrainerConfig& c) { c.num_train_epochs = 0.0; }, "num_train_epochs");
  refused([](TrainerConfig& c) { c.max_steps = 0; }, "max_steps");
  refused([](TrainerConfig& c) { c.per_device_train_batch_size = 0; }, "per_device_train_batch_size");
  refused([](TrainerConfig& c) { c.gradient_accumulation_steps = 0; }, "gradient_accumulation_steps");
  refused([](TrainerConfig& c) { c.max_tokens_per_sub_batch = 0; }, "max_tokens_per_sub_batch");
  refused([](TrainerConfig& c) { c.warmup_ratio = 1.5; }, "warmup_ratio");
  refused([](TrainerConfig& c) { c.warmup_steps = -1; }, "warmup_steps");
  refused([](TrainerConfig& c) { c.max_grad_norm = std::numeric_limits<double>::quiet_NaN(); }, "max_grad_norm");
  refused([](TrainerConfig& c) { c.adam_beta2 = 1.0; }, "beta2");
  refused([](TrainerConfig& c) { c.save_steps = 0; }, "save_steps");
  refused([](TrainerConfig& c) { c.early_stopping_patience = -2; }, "early_stopping_patience");
  const ToyData none(0, 1);
  CHECK_THROWS_WITH(ToyTrainer<float>(model, {}, none), Catch::Contains("training data has 0 records"));
  CHECK_THROWS_WITH(ToyTrainer<float>(model, {}, data, &none), Catch::Contains("validation data has 0 records"));
}
