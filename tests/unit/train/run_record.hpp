#pragma once
/// What a run left, copied, so that two runs can be compared bit for bit and a state outlives its trainer.

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peft/train/trainer.hpp"
#include "unit/train/toy_model.hpp"

namespace train_test {

/// A state with memory of its own: what a file would hold.
template <class A>
class SavedState {
 public:
  explicit SavedState(const peft::TrainerState<A>& state) : progress_(state.progress), identity_(state.identity) {
    const auto copy = [](const peft::NamedTensors<A>& tensors, std::vector<peft::OwnedTensor<A>>& to) {
      for (const auto& one : tensors) to.push_back({one.name, one.rows, one.cols, peft::clone_values(one.values)});
    };
    copy(state.parameters, parameters_);
    copy(state.exp_avg, exp_avg_);
    copy(state.exp_avg_sq, exp_avg_sq_);
    copy(state.best, best_);
    copy(state.hooks, hooks_);
  }
  peft::TrainerState<A> view() const {
    peft::TrainerState<A> state;
    state.progress = progress_;
    state.identity = identity_;
    const auto refer = [](const std::vector<peft::OwnedTensor<A>>& tensors, peft::NamedTensors<A>& to) {
      for (const auto& one : tensors) to.push_back(one.view());
    };
    refer(parameters_, state.parameters);
    refer(exp_avg_, state.exp_avg);
    refer(exp_avg_sq_, state.exp_avg_sq);
    refer(best_, state.best);
    refer(hooks_, state.hooks);
    return state;
  }

 private:
  peft::TrainerProgress progress_;
  peft::RunIdentity identity_;
  std::vector<peft::OwnedTensor<A>> parameters_, exp_avg_, exp_avg_sq_, best_, hooks_;
};

template <class A>
bool same_bits(const peft::NamedTensors<A>& x, const peft::NamedTensors<A>& y) {
  if (x.size() != y.size()) return false;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i].name != y[i].name || x[i].values.size != y[i].values.size) return false;
    const auto bytes = static_cast<std::size_t>(x[i].values.size) * sizeof(A);
    if (std::memcmp(x[i].values.data, y[i].values.data, bytes) != 0) return false;
  }
  return true;
}

/// Everything but the seconds.
template <class A>
bool same_bits(const peft::TrainerState<A>& x, const peft::TrainerState<A>& y) {
  peft::TrainerProgress untimed = x.progress;
  untimed.train_seconds = y.progress.train_seconds;
  return untimed == y.progress && x.identity == y.identity && same_bits(x.parameters, y.parameters) &&
         same_bits(x.exp_avg, y.exp_avg) && same_bits(x.exp_avg_sq, y.exp_avg_sq) && same_bits(x.best, y.best) &&
         same_bits(x.hooks, y.hooks);
}

/// Listens to a trainer and keeps what it tells.
template <class A>
struct Listener {
  std::vector<peft::MetricsRecord> steps, evaluations;
  std::vector<std::pair<peft::SaveReason, peft::Index>> saves;
  std::optional<SavedState<A>> last_saved;

  peft::TrainerEvents<A> events() {
    peft::TrainerEvents<A> events;
    events.on_step = [this](const peft::StepEvent& event) {
      steps.push_back(event.record);
      steps.back().tokens_per_second = 0.0;
    };
    events.on_evaluate = [this](const peft::EvaluationEvent& event) { evaluations.push_back(event.record); };
    events.on_save = [this](peft::SaveReason reason, const peft::TrainerState<A>& state) {
      saves.emplace_back(reason, state.progress.global_step);
      last_saved.emplace(state);
    };
    return events;
  }
};

}  // namespace train_test
