// AdamW, clipping, schedules and loss scaling against torch and transformers.

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "peft/train/adamw.hpp"
#include "peft/train/clip.hpp"
#include "peft/train/grad_scaler.hpp"
#include "peft/train/schedule.hpp"
#include "support/catch.hpp"
#include "unit/train/golden.hpp"

using namespace peft;
using train_test::golden;
using train_test::numbers;

namespace {

/// Two parameters: a matrix that decays and a bias that does not.
template <class A>
struct Pair {
  using accumulator_type = A;
  std::vector<A> weight, weight_grad, bias, bias_grad;
  bool reversed = false;
  std::string bias_name = "bias";

  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    const auto visit_weight = [&] {
      visit(ParameterInfo{"weight", ParameterRole::kLoraA, true, 5, static_cast<Index>(weight.size()) / 5},
            VectorView<A>(weight.data(), static_cast<Index>(weight.size())),
            VectorView<A>(weight_grad.data(), static_cast<Index>(weight_grad.size())));
    };
    const auto visit_bias = [&] {
      visit(ParameterInfo{bias_name, ParameterRole::kBias, false, 1, static_cast<Index>(bias.size())},
            VectorView<A>(bias.data(), static_cast<Index>(bias.size())),
            VectorView<A>(bias_grad.data(), static_cast<Index>(bias_grad.size())));
    };
    if (reversed) {
      visit_bias();
      visit_weight();
    } else {
      visit_weight();
      visit_bias();
    }
  }
};

template <class A>
void check_close(const std::vector<A>& got, const std::vector<A>& want, double per_value, double absolute) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double tolerance = per_value * std::abs(static_cast<double>(want[i])) + absolute;
    CAPTURE(i, got[i], want[i]);
    CHECK(std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i])) <= tolerance);
  }
}

template <class A>
std::vector<A> copy_of(VectorView<const A> values) {
  return std::vector<A>(values.begin(), values.end());
}

template <class A>
void check_adamw(const nlohmann::json& want) {
  const auto& config = want["config"];
  Pair<A> model{numbers<A>(want["weight"]), {}, numbers<A>(want["bias"]), {}};
  AdamW<A> optimizer(AdamWConfig{config["beta1"], config["beta2"], config["eps"], config["weight_decay"]});
  // Each of an update's roundings, about eight, is at most eps of a value no larger than |p| (the decay) or lr·|m̂|/√v̂.
  // By Cauchy and Schwarz |m|/√v ≤ (1−β₁)/√((1−β₂)(1−β₁²/β₂)) = 1.7, with the corrections below 4. Errors stay in p and
  // shrink in m and v. After t steps, norm × eps: t·eps·4·|p| + Σ eps·8·4·lr.
  const double eps = std::numeric_limits<A>::epsilon();
  double absolute = 0.0;
  double t = 0.0;
  for (const auto& step : want["steps"]) {
    model.weight_grad = numbers<A>(step["weight_grad"]);
    model.bias_grad = numbers<A>(step["bias_grad"]);
    const double norm = gradient_norm(model);
    // torch takes the norm in the parameters' type: a sum of 46 squares.
    CHECK(norm == Approx(step["norm"].get<double>()).epsilon(46 * eps));
    const double rate = step["lr"];
    optimizer.step(model, rate, clip_coefficient(norm, config["max_norm"]));
    t += 1.0;
    absolute += 32.0 * rate * eps;
    CAPTURE(t);
    check_close(model.weight, numbers<A>(step["weight"]), 4.0 * t * eps, absolute);
    check_close(model.bias, numbers<A>(step["bias"]), 4.0 * t * eps, absolute);
  }
  REQUIRE(optimizer.moments().size() == 2);
  REQUIRE(optimizer.steps() == 10);
  // Gradients are clipped to a norm of 1, so |m| <= 1 and v <= 1: about four roundings per step, decaying sums.
  check_close(copy_of(optimizer.moments()[0].m), numbers<A>(want["weight_exp_avg"]), 8 * eps, 8 * eps);
  check_close(copy_of(optimizer.moments()[0].v), numbers<A>(want["weight_exp_avg_sq"]), 64 * eps, 0.0);
  check_close(copy_of(optimizer.moments()[1].m), numbers<A>(want["bias_exp_avg"]), 8 * eps, 8 * eps);
  check_close(copy_of(optimizer.moments()[1].v), numbers<A>(want["bias_exp_avg_sq"]), 64 * eps, 0.0);
}

Pair<float> small_pair() { return {{1, 2, 3, 4, 5}, {1, 1, 1, 1, 1}, {1, 2}, {3, 4}}; }

}  // namespace

TEST_CASE("AdamW equals torch.optim.AdamW over ten clipped steps, float") { check_adamw<float>(golden("adamw.json")["float"]); }

TEST_CASE("AdamW equals torch.optim.AdamW over ten clipped steps, double") {
  check_adamw<double>(golden("adamw.json")["double"]);
}

TEST_CASE("AdamW keeps moments by name") {
  Pair<float> model = small_pair();
  Pair<float> other = small_pair();
  AdamW<float> straight, turned;
  straight.step(model, 0.1);
  turned.step(other, 0.1);
  other.reversed = true;
  straight.step(model, 0.1);
  turned.step(other, 0.1);
  CHECK(model.weight == other.weight);
  CHECK(model.bias == other.bias);

  other.bias_name = "beta";
  CHECK_THROWS_WITH(turned.step(other, 0.1), Catch::Contains("beta"));
  model.bias.push_back(1.0f);
  model.bias_grad.push_back(1.0f);
  CHECK_THROWS_AS(straight.step(model, 0.1), ShapeError);
  Pair<float> same_names = small_pair();
  same_names.bias_name = "weight";
  AdamW<float> fresh;
  CHECK_THROWS_WITH(fresh.step(same_names, 0.1), Catch::Contains("weight"));
}

TEST_CASE("AdamW continues from saved moments bit for bit") {
  Pair<float> model = small_pair();
  AdamW<float> optimizer;
  optimizer.step(model, 0.1);
  Pair<float> copy = model;
  AdamW<float> resumed;
  resumed.restore(optimizer.moments(), 1);
  optimizer.step(model, 0.05);
  resumed.step(copy, 0.05);
  CHECK(model.weight == copy.weight);
  CHECK(model.bias == copy.bias);
}

TEST_CASE("AdamW refuses values out of range by name") {
  CHECK_THROWS_WITH(AdamW<float>({.beta1 = 1.0}), Catch::Contains("beta1"));
  CHECK_THROWS_WITH(AdamW<float>({.beta2 = -0.1}), Catch::Contains("beta2"));
  CHECK_THROWS_WITH(AdamW<float>({.eps = -1.0}), Catch::Contains("eps"));
  CHECK_THROWS_WITH(AdamW<float>({.weight_decay = std::numeric_limits<double>::infinity()}),
                    Catch::Contains("weight_decay"));
}

TEST_CASE("Clipping: the norm of all gradients, and no factor above 1") {
  Pair<float> model = small_pair();
  CHECK(gradient_norm(model) == std::sqrt(30.0));
  CHECK(clip_coefficient(2.0, 1.0) == 1.0 / (2.0 + 1e-6));
  CHECK(clip_coefficient(0.5, 1.0) == 1.0);
  CHECK(clip_coefficient(100.0, 0.0) == 1.0);
  model.bias_grad[1] = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(is_finite(gradient_norm(model)));
  model.bias_grad[1] = -std::numeric_limits<float>::infinity();
  CHECK_FALSE(is_finite(gradient_norm(model)));
}

TEST_CASE("Schedules equal transformers.get_scheduler") {
  const auto cases = golden("schedules.json");
  REQUIRE(cases.size() >= 32);
  for (const auto& one : cases) {
    const SchedulerType type = scheduler_type_from(one["type"].get<std::string>());
    const Index steps = one["steps"];
    const Index warmup = warmup_step_count(steps, one["warmup_steps"], one["warmup_ratio"]);
    const LearningRateSchedule schedule(type, one["learning_rate"], steps, warmup);
    for (std::size_t step = 0; step < one["rates"].size(); ++step) {
      CAPTURE(one["type"], steps, warmup, step);
      // Both in double; the cosine may differ in its last bit.
      CHECK(std::abs(schedule.at(static_cast<Index>(step)) - one["rates"][step].get<double>()) <= 3e-4 * 0x1p-51);
    }
  }
  CHECK_THROWS_WITH(scheduler_type_from("polynomial"), Catch::Contains("polynomial") && Catch::Contains("linear"));
}

TEST_CASE("Loss scaling moves as torch.amp.GradScaler") {
  for (const auto& one : golden("grad_scaler.json")) {
    const auto& config = one["config"];
    GradScaler scaler({config["init_scale"], config["growth_factor"], config["backoff_factor"],
                       config["growth_interval"]});
    for (std::size_t i = 0; i < one["scales"].size(); ++i) {
      scaler.update(one["overflows"][i].get<int>() != 0);
      CAPTURE(i);
      CHECK(scaler.scale() == one["scales"][i].get<double>());
      GradScaler copy({config["init_scale"], config["growth_factor"], config["backoff_factor"],
                       config["growth_interval"]});
      copy.restore(scaler.scale(), scaler.growth_tracker());
      scaler = copy;
    }
  }
  CHECK(GradScaler().scale() == 65536.0);
}
