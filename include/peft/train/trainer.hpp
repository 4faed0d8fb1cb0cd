#pragma once
/// The training loop: what Hugging Face's Trainer does, for any TrainableModel and any TrainingData.
///
/// One optimizer step takes batch × accumulate records; its loss is
///   L = Σ over their label tokens of −log p(token) / number of those label tokens
/// The records go through the model in sub-batches of a bounded number of tokens, so that memory does not grow with the
/// step; gradients add up to the same sum (float sums are taken in another order where the cut differs), and dropout
/// masks go by the row in the whole step, so that the cut changes none.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/clip.hpp"
#include "peft/train/evaluate_loss.hpp"
#include "peft/train/grad_scaler.hpp"
#include "peft/train/parameter_tensors.hpp"
#include "peft/train/run_identity.hpp"
#include "peft/train/trainable_model.hpp"
#include "peft/train/trainer_config.hpp"
#include "peft/train/trainer_events.hpp"
#include "peft/train/trainer_state.hpp"
#include "peft/train/training_data.hpp"

PEFT_BEGIN_NAMESPACE

/// Trains `model` on `training`. Model and data must outlive the trainer. One thread at a time.
template <TrainableModel M, TrainingData D>
class Trainer {
 public:
  using accumulator_type = typename M::accumulator_type;
  using Events = TrainerEvents<accumulator_type>;
  using State = TrainerState<accumulator_type>;

  /// `validation`: nullptr = no evaluation. `executor` runs the optimizer; the model has its own.
  /// Throws ConfigError for a setting out of range or data without a record or a label.
  Trainer(M& model, TrainerConfig config, const D& training, const D* validation = nullptr, Events events = {},
          ExecutorRef executor = default_executor())
      : model_(model),
        config_(config),
        training_(training),
        validation_(validation),
        events_(std::move(events)),
        executor_(executor),
        optimizer_(config.adamw()) {
    config_.validate();
    check_data("training", training_);
    if (validation_ != nullptr) check_data("validation", *validation_);
    steps_per_epoch_ = config_.steps_per_epoch(training_.records());
    total_steps_ = config_.total_steps(training_.records());
    identity_ = run_identity(config_, training_);
    if (config_.load_best_model_at_end && events_.hooks.state && events_.hooks.on_update) {
      fail<ConfigError>("Trainer: load_best_model_at_end brings parameters back, not what works beside the optimizer "
                        "(AdaLoRA's ranks); expected false: the best adapter is saved as it is found");
    }
  }

  Index total_steps() const noexcept { return total_steps_; }
  Index steps_per_epoch() const noexcept { return steps_per_epoch_; }
  const TrainerConfig& config() const noexcept { return config_; }
  /// What decides the bits of this run besides its state.
  const RunIdentity& identity() const noexcept { return identity_; }

  /// Trains from where the state stands to the end, to an early stop, or until `stop` becomes true: then the step under
  /// way is dropped, on_save is called with kInterrupted, and the status says so; run() again, or restore() in another
  /// process, goes on as if nothing had happened. Throws NumericError where a loss, a gradient or a parameter stops
  /// being finite; on_save is called before that with the last good state, never with a parameter that is not finite.
  TrainerResult run(const std::atomic<bool>* stop = nullptr) {
    stop_ = stop;
    seconds_of_run_ = 0.0;
    steps_of_run_ = 0;
    while (true) {
      if (evaluation_due() && !evaluate()) return interrupted();
      if (save_due()) save(SaveReason::kPeriodic);
      if (is_finished()) break;
      if (!train_step()) return interrupted();
    }
    if (config_.load_best_model_at_end && !best_.empty()) assign_parameters(model_, state().best);
    save(SaveReason::kFinal);
    return result(progress_.stopped_early ? TrainerStatus::kStoppedEarly : TrainerStatus::kCompleted);
  }

  /// Whether all steps are done, or an early stop was met.
  bool is_finished() const noexcept { return progress_.stopped_early || progress_.global_step >= total_steps_; }

  /// The state between two steps; refers to this trainer's and the model's memory.
  State state() {
    State state;
    state.progress = progress();
    state.identity = identity_;
    state.parameters = parameter_tensors(model_);
    state.moments = optimizer_.moments();
    if (optimizer_.config().paged) {
      state.done = [this](std::span<const std::byte> bytes) { optimizer_.release(bytes); };
    }
    for (const OwnedTensor<A>& tensor : best_) state.best.push_back(tensor.view());
    if (events_.hooks.state) state.hooks = events_.hooks.state();
    return state;
  }

  TrainerProgress progress() const {
    TrainerProgress progress = progress_;
    progress.optimizer_steps = optimizer_.steps();
    progress.loss_scale = scaler_.scale();
    progress.growth_tracker = scaler_.growth_tracker();
    return progress;
  }

  /// Continues from a state of a trainer with the same settings, data and parameters; copies what it refers to. Throws
  /// ConfigError, naming the setting, the data or the parameter that differs, and changes nothing then.
  void restore(const State& state) {
    check_identity(state.identity, identity_);
    check_tensors(model_, "parameters", state.parameters);
    std::vector<Moments<A>> moments;
    if (!state.moments.empty() || state.progress.optimizer_steps > 0) moments = moments_of_parameters(state);
    if (!state.best.empty()) check_tensors(model_, "best", state.best);
    check_same_tensors("hooks", events_.hooks.state ? events_.hooks.state() : NamedTensors<A>(), state.hooks);
    optimizer_.restore(moments, state.progress.optimizer_steps, [&](std::span<const std::byte> bytes) {
      if (state.done) state.done(bytes);
    });
    assign_parameters(model_, state.parameters);
    if (events_.hooks.restore) events_.hooks.restore(state.hooks);
    best_.clear();
    for (const NamedTensor<A>& tensor : state.best) {
      best_.push_back({tensor.name, tensor.rows, tensor.cols, clone_values(tensor.values)});
    }
    progress_ = state.progress;
    scaler_.restore(state.progress.loss_scale, state.progress.growth_tracker);
    saved_step_ = progress_.global_step;
  }

 private:
  using A = accumulator_type;
  using Clock = std::chrono::steady_clock;
  /// A loss scale below this means that no scale helps: the gradients themselves are broken.
  static constexpr double kLeastLossScale = 1.0;

  /// A state's moments in the order of the model's parameters. Throws ConfigError unless there is one of each, of its shape.
  std::vector<Moments<A>> moments_of_parameters(const State& state) {
    std::vector<Moments<A>> result;
    model_.for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A>) {
      const auto found = std::find_if(state.moments.begin(), state.moments.end(),
                                      [&](const Moments<A>& one) { return one.name == info.name; });
      if (found == state.moments.end()) {
        fail<ConfigError>("the state has no moments of parameter {}; it belongs to another adapter or model", info.name);
      }
      if (found->rows != info.rows || found->cols != info.cols) {
        fail<ConfigError>("the state's moments of parameter {} are [{}, {}]; expected [{}, {}], as the model has it", info.name,
                          found->rows, found->cols, info.rows, info.cols);
      }
      result.push_back(*found);
    });
    if (state.moments.size() != result.size()) {
      fail<ConfigError>("the state has the moments of {} parameters; expected {}, those of the model", state.moments.size(),
                        result.size());
    }
    return result;
  }

  // -- one step ------------------------------------------------------------------------------------------------------

  /// Returns false, with nothing changed but gradients, where a stop was asked for.
  bool train_step() {
    const auto begin = Clock::now();
    const Index step = progress_.global_step;
    const std::span<const Index> records = records_of_step(step);
    Index labels = 0;
    for (const Index record : records) labels += training_.label_tokens(record);
    const double loss_scale = config_.fp16 ? scaler_.scale() : 1.0;
    const double grad_scale = labels > 0 ? quotient(loss_scale, static_cast<double>(labels)) : 0.0;
    zero_gradients();
    LossSum sum;
    Index tokens = 0;
    SubBatches<D> cut(training_, records, config_.max_tokens_per_sub_batch);
    Index done = 0;
    while (true) {
      if (detail::stop_requested(stop_)) return false;
      if (!cut.next(batch_)) break;
      model_.forward_backward(batch_, grad_scale, config_.seed, static_cast<std::uint32_t>(step), sum);
      tokens += batch_.tokens();
      done += batch_.sequences();
      if (events_.on_work) {
        events_.on_work({false, step + 1, total_steps_, done, static_cast<Index>(records.size())});
      }
    }
    if (sum.tokens != labels) {
      fail<ShapeError>("Trainer: the model summed the losses of {} label tokens in step {}; expected {}", sum.tokens,
                       step + 1, labels);
    }
    if (events_.hooks.on_gradients) events_.hooks.on_gradients(loss_scale);
    const double norm = quotient(gradient_norm(model_, executor_), loss_scale);
    const double rate = config_.schedule(training_.records()).at(optimizer_.steps());
    const bool updated = update(sum, norm, rate, loss_scale);

    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    progress_.global_step = step + 1;
    progress_.tokens += tokens;
    if (is_finite(sum.loss)) {
      progress_.label_tokens += labels;
      progress_.loss_sum = rounded(progress_.loss_sum + sum.loss);
    }
    progress_.train_seconds += seconds;
    seconds_of_run_ += seconds;
    ++steps_of_run_;
    if (events_.on_step) {
      const MetricsRecord record{MetricsRecord::Kind::kStep, step + 1, epoch_of(step + 1), sum.mean(), labels, rate,
                                 norm, tokens, seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0, !updated};
      const double pace = seconds_of_run_ / static_cast<double>(steps_of_run_);
      events_.on_step({record, total_steps_, pace * static_cast<double>(total_steps_ - step - 1)});
    }
    return true;
  }

  /// Updates the parameters from the summed gradients; false where the step is skipped.
  bool update(const LossSum& sum, double norm, double rate, double loss_scale) {
    const bool finite = is_finite(sum.loss) && is_finite(norm);
    if (!finite && (!config_.fp16 || loss_scale * 0.5 < kLeastLossScale)) fail_on_numbers(sum, norm, loss_scale);
    if (config_.fp16) scaler_.update(!finite);
    if (!finite || sum.tokens == 0) return false;
    const double grad_scale = quotient(clip_coefficient(norm, config_.max_grad_norm), loss_scale);
    optimizer_.step(model_, rate, grad_scale, executor_);
    if (events_.hooks.on_update) events_.hooks.on_update(progress_.global_step + 1, grad_scale);
    if (const std::optional<std::string> name = first_non_finite(model_, false)) {
      fail<NumericError>("Trainer: parameter {} is not finite after step {} (learning rate {}, gradient norm {}); what "
                         "was saved before stays; lower the learning rate",
                         *name, progress_.global_step + 1, rate, norm);
    }
    return true;
  }

  /// Saves the parameters, which the broken step has not touched, and throws.
  [[noreturn]] void fail_on_numbers(const LossSum& sum, double norm, double loss_scale) {
    std::string what;
    if (!is_finite(sum.loss)) {
      what = fmt::format("the loss is {}", sum.loss);
    } else {
      what = fmt::format("the gradient of {} is not finite (norm {})",
                         first_non_finite(model_, true).value_or("a parameter"), norm);
    }
    if (config_.fp16) what += fmt::format(", with a loss scale of {}", loss_scale);
    const Index good = progress_.global_step;
    if (!first_non_finite(model_, false)) save(SaveReason::kNumericError);
    fail<NumericError>("Trainer: in step {} {}; expected finite numbers. The state after step {} is kept. Lower the "
                       "learning rate, or look for broken weights or records",
                       good + 1, what, good);
  }

  std::span<const Index> records_of_step(Index step) {
    const Index epoch = step / steps_per_epoch_;
    if (epoch != order_epoch_) {
      order_ = epoch_order(training_.records(), config_.seed, epoch);
      order_epoch_ = epoch;
    }
    const Index first = (step % steps_per_epoch_) * config_.records_per_step();
    const Index last = std::min(first + config_.records_per_step(), static_cast<Index>(order_.size()));
    return {order_.data() + first, static_cast<std::size_t>(last - first)};
  }

  double epoch_of(Index step) const noexcept {
    return static_cast<double>(step) / static_cast<double>(steps_per_epoch_);
  }

  void zero_gradients() {
    model_.for_each_parameter([](const ParameterInfo&, VectorView<A>, VectorView<A> grad) {
      std::fill(grad.begin(), grad.end(), A(0));
    });
  }

  // -- evaluation ----------------------------------------------------------------------------------------------------

  bool evaluation_due() const noexcept {
    const Index step = progress_.global_step;
    if (validation_ == nullptr || progress_.evaluated_step == step) return false;
    if (step == 0) return config_.eval_on_start;
    if (is_finished()) return true;
    return recurs(config_.eval_strategy, config_.eval_steps, step);
  }

  bool recurs(IntervalStrategy strategy, Index every, Index step) const noexcept {
    switch (strategy) {
      case IntervalStrategy::kSteps:
        return step % every == 0;
      case IntervalStrategy::kEpoch:
        return step % steps_per_epoch_ == 0;
      default:
        return false;
    }
  }

  /// Returns false, with nothing changed, where a stop was asked for.
  bool evaluate() {
    const Index step = progress_.global_step;
    LossSum sum;
    const bool complete = evaluate_loss(
        model_, *validation_, config_.max_tokens_per_sub_batch, sum, stop_, [&](Index done) {
          if (events_.on_work) events_.on_work({true, step, total_steps_, done, validation_->records()});
        });
    if (!complete) return false;
    const double loss = sum.mean();
    if (!is_finite(loss)) {
      if (!first_non_finite(model_, false)) save(SaveReason::kNumericError);
      fail<NumericError>("Trainer: the validation loss after step {} is {}; expected a finite number. Look for broken "
                         "weights or validation records",
                         step, loss);
    }
    progress_.evaluated_step = step;
    progress_.val_loss = loss;
    bool is_best = false;
    if (step == 0) {
      progress_.val_loss_before = loss;
    } else {
      is_best = judge(loss);
    }
    if (events_.on_evaluate) {
      const MetricsRecord record{.kind = MetricsRecord::Kind::kEvaluation, .step = step, .epoch = epoch_of(step),
                                 .loss = loss, .label_tokens = sum.tokens};
      events_.on_evaluate({record, sum, is_best});
    }
    if (is_best) save(SaveReason::kBest);
    return true;
  }

  /// Best loss and patience, as Hugging Face's Trainer and EarlyStoppingCallback go by them; the evaluation before
  /// training does not take part.
  bool judge(double loss) {
    const std::optional<double> best = progress_.best_loss;
    if (!best || *best - loss > config_.early_stopping_threshold) {
      progress_.evaluations_without_gain = 0;
    } else {
      ++progress_.evaluations_without_gain;
      if (config_.early_stopping_patience > 0 &&
          progress_.evaluations_without_gain >= config_.early_stopping_patience) {
        progress_.stopped_early = true;
      }
    }
    if (best && loss >= *best) return false;
    progress_.best_loss = loss;
    progress_.best_step = progress_.global_step;
    if (config_.load_best_model_at_end) keep_best();
    return true;
  }

  void keep_best() {
    best_.clear();
    for (const NamedTensor<A>& tensor : parameter_tensors(model_)) {
      best_.push_back({tensor.name, tensor.rows, tensor.cols, clone_values(tensor.values)});
    }
  }

  // -- saving and results --------------------------------------------------------------------------------------------

  bool save_due() const noexcept {
    const Index step = progress_.global_step;
    return step > 0 && step != saved_step_ && !is_finished() && recurs(config_.save_strategy, config_.save_steps, step);
  }

  void save(SaveReason reason) {
    if (reason != SaveReason::kBest) saved_step_ = progress_.global_step;
    if (events_.on_save) events_.on_save(reason, state());
  }

  TrainerResult interrupted() {
    save(SaveReason::kInterrupted);
    return result(TrainerStatus::kInterrupted);
  }

  TrainerResult result(TrainerStatus status) const {
    const bool best_loaded = status != TrainerStatus::kInterrupted && config_.load_best_model_at_end && !best_.empty();
    const auto mean = [](double sum, Index count) { return count > 0 ? sum / static_cast<double>(count) : 0.0; };
    TrainerResult result;
    result.status = status;
    result.steps = progress_.global_step;
    result.total_steps = total_steps_;
    result.tokens = progress_.tokens;
    result.label_tokens = progress_.label_tokens;
    result.train_s = progress_.train_seconds;
    result.tok_s = result.train_s > 0.0 ? static_cast<double>(result.tokens) / result.train_s : 0.0;
    result.train_loss = mean(progress_.loss_sum, progress_.label_tokens);
    result.val_loss_before = progress_.val_loss_before;
    result.val_loss_after = best_loaded ? progress_.best_loss : progress_.val_loss;
    result.best_val_loss = progress_.best_loss;
    result.best_step = progress_.best_step;
    return result;
  }

  static void check_data(std::string_view which, const D& data) {
    Index labels = 0;
    for (Index i = 0; i < data.records(); ++i) labels += data.label_tokens(i);
    if (labels == 0) {
      fail<ConfigError>("Trainer: the {} data has {} records with {} label tokens; expected at least one of each",
                        which, Index{data.records()}, labels);
    }
  }

  M& model_;
  TrainerConfig config_;
  const D& training_;
  const D* validation_;
  Events events_;
  ExecutorRef executor_;
  Index steps_per_epoch_ = 0;
  Index total_steps_ = 0;
  RunIdentity identity_;

  AdamW<A> optimizer_;
  GradScaler scaler_;
  TrainerProgress progress_;
  std::vector<OwnedTensor<A>> best_;

  const std::atomic<bool>* stop_ = nullptr;
  std::vector<Index> order_;
  Index order_epoch_ = -1;
  PackedBatch batch_;
  Index saved_step_ = 0;
  double seconds_of_run_ = 0.0;
  Index steps_of_run_ = 0;
};

PEFT_END_NAMESPACE
