#pragma once
/// What a run left, copied, so that two runs can be compared bit for bit and a state outlives its trainer.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
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
    for (const auto& one : state.moments) {
      const auto codes = [](const peft::EightBitMoment& from) {
        return Codes{{from.codes.begin(), from.codes.end()}, {from.absmax.begin(), from.absmax.end()}};
      };
      moments_.push_back({one.name, one.rows, one.cols, {one.m.begin(), one.m.end()}, {one.v.begin(), one.v.end()},
                          codes(one.m_8bit), codes(one.v_8bit)});
    }
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
    const auto view_of = [](const auto& values) {
      return peft::VectorView<const typename std::remove_cvref_t<decltype(values)>::value_type>(
          values.data(), static_cast<peft::Index>(values.size()));
    };
    for (const OwnMoments& one : moments_) {
      state.moments.push_back({one.name, one.rows, one.cols, view_of(one.m), view_of(one.v),
                               {view_of(one.m_8bit.codes), view_of(one.m_8bit.absmax)},
                               {view_of(one.v_8bit.codes), view_of(one.v_8bit.absmax)}});
    }
    refer(best_, state.best);
    refer(hooks_, state.hooks);
    return state;
  }

 private:
  struct Codes {
    std::vector<std::uint8_t> codes;
    std::vector<float> absmax;
  };
  struct OwnMoments {
    std::string name;
    peft::Index rows, cols;
    std::vector<A> m, v;
    Codes m_8bit, v_8bit;
  };

  peft::TrainerProgress progress_;
  peft::RunIdentity identity_;
  std::vector<peft::OwnedTensor<A>> parameters_, best_, hooks_;
  std::vector<OwnMoments> moments_;
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

template <class T>
bool same_bits(peft::VectorView<const T> x, peft::VectorView<const T> y) {
  return x.size == y.size && (x.empty() || std::memcmp(x.data, y.data, static_cast<std::size_t>(x.size) * sizeof(T)) == 0);
}
template <class A>
bool same_bits(const std::vector<peft::Moments<A>>& x, const std::vector<peft::Moments<A>>& y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const auto& a, const auto& b) {
    return a.name == b.name && same_bits(a.m, b.m) && same_bits(a.v, b.v) && same_bits(a.m_8bit.codes, b.m_8bit.codes) &&
           same_bits(a.v_8bit.codes, b.v_8bit.codes) && same_bits(a.m_8bit.absmax, b.m_8bit.absmax) &&
           same_bits(a.v_8bit.absmax, b.v_8bit.absmax);
  });
}

/// Everything but the seconds.
template <class A>
bool same_bits(const peft::TrainerState<A>& x, const peft::TrainerState<A>& y) {
  peft::TrainerProgress untimed = x.progress;
  untimed.train_seconds = y.progress.train_seconds;
  return untimed == y.progress && x.identity == y.identity && same_bits(x.parameters, y.parameters) &&
         same_bits(x.moments, y.moments) && same_bits(x.best, y.best) &&
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
