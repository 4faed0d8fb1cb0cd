#pragma once
/// A trainer's state as the library's train-state file, and back, bit for bit.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/checkpoint/train_state.hpp"
#include "peft/kernels/dispatch.hpp"
#include "peft/train/trainer_state.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {
/// Groups of moments, by torch's names; those in 8 bits are two tensors each.
inline const std::string kExpAvg = "exp_avg", kExpAvgSq = "exp_avg_sq", kCodes = "_8bit", kAbsmax = "_absmax";
}  // namespace detail

/// The instruction set that computes here, as a train state records it.
inline std::string own_isa() { return std::string(kernels::name_of(kernels::float_isa(kernels::active_isa()))); }

/// `state` to be written: refers to the same memory. `more` is added to its identity: what the trainer cannot know,
/// such as the model's file.
template <std::floating_point A>
TrainState to_train_state(const TrainerState<A>& state, const RunIdentity& more) {
  TrainState result;
  result.isa = own_isa();
  result.fingerprint = more;
  result.fingerprint.insert(result.fingerprint.end(), state.identity.begin(), state.identity.end());
  const TrainerProgress& p = state.progress;
  const auto whole = [&](const char* name, Index value) { result.scalars[name] = std::int64_t{value}; };
  const auto number = [&](const char* name, const std::optional<double>& value) {
    if (value) result.scalars[name] = *value;
  };
  whole("global_step", p.global_step);
  whole("optimizer_steps", p.optimizer_steps);
  whole("tokens", p.tokens);
  whole("label_tokens", p.label_tokens);
  number("loss_sum", p.loss_sum);
  number("train_seconds", p.train_seconds);
  number("loss_scale", p.loss_scale);
  whole("growth_tracker", p.growth_tracker);
  whole("evaluated_step", p.evaluated_step);
  number("val_loss_before", p.val_loss_before);
  number("val_loss", p.val_loss);
  number("best_loss", p.best_loss);
  whole("best_step", p.best_step);
  whole("evaluations_without_gain", p.evaluations_without_gain);
  result.scalars["stopped_early"] = p.stopped_early;
  const auto group = [&](std::string_view name, const NamedTensors<A>& tensors) {
    for (const NamedTensor<A>& tensor : tensors) result.add(name, tensor.name, tensor.rows, tensor.cols, tensor.values);
  };
  group("parameter", state.parameters);
  for (const Moments<A>& one : state.moments) {
    const auto moment = [&](const std::string& name, VectorView<const A> values, const EightBitMoment& codes) {
      if (one.is_8bit()) {
        result.add(name + detail::kCodes, one.name, one.rows, one.cols, codes.codes);
        result.add(name + detail::kAbsmax, one.name, Index{1}, codes.absmax.size, codes.absmax);
      } else {
        result.add(name, one.name, one.rows, one.cols, values);
      }
    };
    moment(detail::kExpAvg, one.m, one.m_8bit);
    moment(detail::kExpAvgSq, one.v, one.v_8bit);
  }
  result.done = state.done;
  group("best", state.best);
  group("hooks", state.hooks);
  return result;
}

/// A state that was read, with its memory; the moments stay in the file.
template <std::floating_point A>
class LoadedTrainerState {
 public:
  /// Copies what `file` holds, but for the moments. Throws FormatError for what is missing or of another type, ShapeError for
  /// maxima that do not fit their codes, NumericError for matrices that are not finite. `identity` of the result is the whole
  /// fingerprint of the file.
  explicit LoadedTrainerState(const TrainState& file) {
    state_.identity = file.fingerprint;
    TrainerProgress& p = state_.progress;
    p.global_step = file.get<Index>("global_step");
    p.optimizer_steps = file.get<Index>("optimizer_steps");
    p.tokens = file.get<Index>("tokens");
    p.label_tokens = file.get<Index>("label_tokens");
    p.loss_sum = file.get<double>("loss_sum");
    p.train_seconds = file.get<double>("train_seconds");
    p.loss_scale = file.get<double>("loss_scale");
    p.growth_tracker = file.get<Index>("growth_tracker");
    p.evaluated_step = file.get<Index>("evaluated_step");
    p.val_loss_before = file.find_scalar<double>("val_loss_before");
    p.val_loss = file.find_scalar<double>("val_loss");
    p.best_loss = file.find_scalar<double>("best_loss");
    p.best_step = file.get<Index>("best_step");
    p.evaluations_without_gain = file.get<Index>("evaluations_without_gain");
    p.stopped_early = file.get<bool>("stopped_early");
    if (p.global_step < 0 || p.optimizer_steps < 0 || p.optimizer_steps > p.global_step) {
      fail<FormatError>("{}: global_step is {} and optimizer_steps {}; expected 0 <= optimizer_steps <= global_step",
                        file.where(), p.global_step, p.optimizer_steps);
    }
    read_group(file, "parameter", state_.parameters);
    read_moments(file);
    read_group(file, "best", state_.best);
    read_group(file, "hooks", state_.hooks);
  }

  const TrainerState<A>& state() const noexcept { return state_; }

 private:
  void read_group(const TrainState& file, std::string_view name, NamedTensors<A>& into) {
    for (const auto& [parameter, tensor] : file.group(name)) {
      Buffer<A> values(tensor->elements());
      copy_state<A>(*tensor, tensor->rows(), tensor->cols(), values.view());
      into.push_back({parameter, tensor->rows(), tensor->cols(), std::as_const(values).view()});
      memory_.push_back(std::move(values));
    }
  }

  void read_moments(const TrainState& file) {
    for (const auto& [name, tensor] : file.group(detail::kExpAvg)) {
      const TensorRef& other = matching(file, detail::kExpAvgSq, name, *tensor);
      state_.moments.push_back({name, tensor->rows(), tensor->cols(), view_state<A>(*tensor), view_state<A>(other), {}, {}});
      keep(tensor->file);
    }
    for (const auto& [name, tensor] : file.group(detail::kExpAvg + detail::kCodes)) {
      const TensorRef& other = matching(file, detail::kExpAvgSq + detail::kCodes, name, *tensor);
      state_.moments.push_back({name, tensor->rows(), tensor->cols(), {}, {}, eight_bit(file, detail::kExpAvg, name, *tensor),
                                eight_bit(file, detail::kExpAvgSq, name, other)});
      keep(tensor->file);
    }
    std::sort(state_.moments.begin(), state_.moments.end(), [](const auto& x, const auto& y) { return x.name < y.name; });
  }

  /// One moment's codes with the maxima of their blocks. Throws FormatError and ShapeError.
  static EightBitMoment eight_bit(const TrainState& file, const std::string& group, const std::string& name,
                                  const TensorRef& codes) {
    const TensorRef* absmax = file.find(group + detail::kAbsmax, name);
    constexpr Index kBlock = kernels::kEightBitBlock;
    if (codes.type != StoredType::kU8 || absmax == nullptr) {
      fail<FormatError>("{}: it is {} {} maxima of its blocks; expected U8 and {}{}/{}", codes.where(), name_of(codes.type),
                        absmax != nullptr ? "with" : "without", group, detail::kAbsmax, name);
    }
    if (absmax->elements() != (codes.elements() + kBlock - 1) / kBlock) {
      fail<ShapeError>("{}: {} maxima; expected {}, one per {} of {} codes", absmax->where(), absmax->elements(),
                       (codes.elements() + kBlock - 1) / kBlock, kBlock, codes.elements());
    }
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(codes.bytes.data());
    return {{bytes, codes.elements()}, view_state<float>(*absmax)};
  }

  /// The second moment of a first one. Throws FormatError where there is none of its shape.
  static const TensorRef& matching(const TrainState& file, const std::string& group, const std::string& name,
                                   const TensorRef& first) {
    const TensorRef* found = file.find(group, name);
    if (found == nullptr || found->rows() != first.rows() || found->cols() != first.cols()) {
      fail<FormatError>("{}: {}/{} {}; expected {}, the shape of the first moment", file.where(), group, name,
                        found != nullptr ? "is " + found->shape_text() : "is missing", first.shape_text());
    }
    return *found;
  }

  void keep(const std::shared_ptr<const MappedFile>& file) {
    if (file == nullptr || file_ == file) return;
    file_ = file;
    state_.done = [file](std::span<const std::byte> bytes) { detail::forget_pages(*file, bytes); };
  }

  TrainerState<A> state_;
  std::vector<Buffer<A>> memory_;
  std::shared_ptr<const MappedFile> file_;
};

PEFT_END_NAMESPACE
