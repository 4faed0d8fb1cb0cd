#pragma once
/// BERT with a classification head, as transformers' BertForSequenceClassification:
///   h [sequences, hidden] = encoder's first row,  p = dropout(tanh(pooler(h))),  z = p·Wᵀ + b  [sequences, classes]
/// A sequence's class is the target of its first position; the loss is the mean cross-entropy over the sequences. The head
/// is trained with whatever else is, as Python PEFT does for task_type SEQ_CLS, which puts "classifier" among the
/// modules_to_save.

#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_encoder.hpp"
#include "peft/core/rng.hpp"
#include "peft/dense_linear.hpp"
#include "peft/loss_sum.hpp"
#include "peft/ops/cross_entropy.hpp"
#include "peft/selection.hpp"

namespace peft_examples {

template <Scalar T>
class BertForSequenceClassification {
 public:
  using value_type = T;
  using A = Accumulator<T>;
  using accumulator_type = A;

  /// classifier [classes, hidden] with a bias. Throws ConfigError, ShapeError; also where the encoder has no pooler.
  BertForSequenceClassification(BertConfig config, BertWeights<T> weights, peft::DenseLinear<A> classifier)
      : pooler_("bert.pooler.dense", need_pooler(weights)),
        encoder_(std::move(config), std::move(weights), "bert."),
        classifier_(std::move(classifier)) {
    const Index hidden = encoder_.config().hidden_size;
    check(pooler_.name(), pooler_.out_features(), pooler_.in_features(), hidden, hidden);
    check("classifier", classifier_.out_features(), classifier_.in_features(), classifier_.out_features(), hidden);
    check("classifier.bias", classifier_.bias().size, 1, classifier_.out_features(), 1);
  }

  /// A new head for `classes`: weights normal with standard deviation 0.02, biases 0, as transformers starts one.
  static peft::DenseLinear<A> make_classifier(Index classes, Index hidden, std::uint64_t seed) {
    peft::Philox random(seed, peft::ModuleId("classifier").hash());
    Matrix<A> weight(classes, hidden);
    for (A& value : weight.flat()) value = static_cast<A>(0.02f * random.normal());
    return peft::DenseLinear<A>(std::move(weight), Buffer<A>::zeros(classes));
  }

  BertEncoder<T>& encoder() noexcept { return encoder_; }
  const BertConfig& config() const noexcept { return encoder_.config(); }
  Index classes() const noexcept { return classifier_.out_features(); }
  peft::DenseLinear<A>& classifier() noexcept { return classifier_; }
  /// Every linear that adapters may attach to, in the order of the model; the head is none.
  std::vector<AdaptedLinear<T>*> sites() {
    std::vector<AdaptedLinear<T>*> result = encoder_.sites();
    result.push_back(&pooler_.adapted());
    return result;
  }
  Index parameter_count() const {
    return encoder_.parameter_count() + pooler_.parameter_count() + classifier_.in_features() * classifier_.out_features() +
           classifier_.bias().size;
  }
  void set_executor(ExecutorRef executor) noexcept {
    executor_ = executor;
    encoder_.set_executor(executor);
  }

  /// What forward_backward trains beside the head, and evaluate uses.
  void select(peft::Selection<T> selection) { selection_ = std::move(selection); }
  const peft::Selection<T>& selection() const noexcept { return selection_; }
  /// Trains also what wanted(name) says of the base, by Hugging Face's names; full fine-tuning: everything. Throws
  /// ConfigError for activations of 16 bits, whose weights would not take small steps.
  template <class Wanted>
  void train_base(Wanted&& wanted) {
    if constexpr (!std::is_same_v<T, A>) {
      peft::fail<peft::ConfigError>("Bert: the base can be trained with activations in float or double");
    } else {
      encoder_.train_base(wanted);
      pooler_.train(wanted);
    }
  }
  void train_base() {
    train_base([](std::string_view) { return true; });
  }

  // -- peft::TrainableModel ------------------------------------------------------------------------------------------
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (const auto& active : selection_.active()) active.adapter->for_each_parameter(visit);
    encoder_.for_each_base_parameter(visit);
    pooler_.for_each_parameter(visit);
    ensure_head_gradients();
    const MatrixView<A> weight = classifier_.writable_weight();
    visit(peft::ParameterInfo{"classifier.weight", peft::ParameterRole::kOther, true, weight.rows, weight.cols},
          VectorView<A>(weight.data, weight.rows * weight.cols), classifier_.weight_grad().flat());
    const VectorView<A> bias = classifier_.writable_bias();
    visit(peft::ParameterInfo{"classifier.bias", peft::ParameterRole::kBias, false, 1, bias.size, 1}, bias,
          classifier_.bias_grad().view());
  }

  void forward_backward(const peft::PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        peft::LossSum& sum) {
    const peft::TrainContext<T> context{selection_, seed, step, batch.first_row, true};
    forward(batch, context);
    loss(batch, grad_scale, true, sum);
    const peft::TrainContext<T> own = per_sequence(batch, context);
    const MatrixView<const A> d_logits = std::as_const(logits_).view();
    const MatrixView<const A> pooled = std::as_const(pooled_).view();
    classifier_.template backward_weight<A>(d_logits, pooled, executor_);
    classifier_.template backward_bias<A>(d_logits, executor_);
    if (!trains_below()) return;
    classifier_.template backward_input<A>(d_logits, pooled_.view(), Accumulate::kOverwrite, executor_);
    peft::ops::dropout<A>(pooled_, config().head_dropout(), head_key(own), executor_);
    d_.resize_discard(batch.sequences(), config().hidden_size);
    for (Index i = 0; i < d_.size(); ++i) d_.flat()[i] = static_cast<T>(pooled_.flat()[i]);
    peft::ops::activation_backward<T>(peft::Activation::kTanh, d_, pooler_out_, pooler_out_, executor_);
    pooler_.backward(std::as_const(pooler_out_).view(), std::as_const(*first_).view(), of_pooler_, d_,
                     Accumulate::kOverwrite, own, executor_);
    encoder_.backward(batch, d_, context, BertRows::kFirst);
  }

  void evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) {
    forward(batch, peft::TrainContext<T>{selection_, 0, 0, 0, false});
    loss(batch, 0.0, false, sum);
  }

  /// Logits [sequences, classes] without dropout; targets are not looked at. They stay until the next call.
  const Matrix<A>& predict(const peft::PackedBatch& batch) {
    forward(batch, peft::TrainContext<T>{selection_, 0, 0, 0, false});
    return logits_;
  }

 private:
  static peft::AnyLinear<T> need_pooler(BertWeights<T>& weights) {
    if (!weights.pooler) {
      peft::fail<peft::ConfigError>("Bert: the encoder has no pooler, which a classification head reads; expected "
                                    "pooler.dense among the weights");
    }
    return std::move(*weights.pooler);
  }
  static void check(const std::string& what, Index rows, Index cols, Index r, Index c) {
    if (rows != r || cols != c) {
      peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", what, rows, cols, r, c);
    }
  }
  /// Behind the encoder there is one row per sequence, and masks go by it.
  static peft::TrainContext<T> per_sequence(const peft::PackedBatch& batch, peft::TrainContext<T> context) {
    context.first_row = batch.first_sequence;
    return context;
  }
  static peft::DropoutKey head_key(const peft::TrainContext<T>& context) {
    const std::uint64_t hash = peft::ModuleId("classifier").hash();
    return {context.seed, context.step, static_cast<std::uint32_t>(hash ^ (hash >> 32)), context.first_row};
  }
  bool trains_below() {
    bool any = !selection_.is_empty() || pooler_.is_trained();
    encoder_.for_each_base_parameter([&](const peft::ParameterInfo&, VectorView<A>, VectorView<A>) { any = true; });
    return any;
  }
  void ensure_head_gradients() {
    const Matrix<A> none(0, classes()), no_input(0, classifier_.in_features());
    classifier_.template backward_weight<A>(none.view(), no_input.view());
    classifier_.template backward_bias<A>(none.view());
  }

  void forward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    const Index sequences = batch.sequences(), hidden = config().hidden_size;
    first_ = &encoder_.forward(batch, context, BertRows::kFirst);
    pooler_out_.resize_discard(sequences, hidden);
    pooled_.resize_discard(sequences, hidden);
    logits_.resize_discard(sequences, classes());
    const peft::TrainContext<T> own = per_sequence(batch, context);
    pooler_.forward(std::as_const(*first_).view(), pooler_out_, of_pooler_, own, executor_);
    for (Index i = 0; i < pooled_.size(); ++i) pooled_.flat()[i] = static_cast<A>(pooler_out_.flat()[i]);
    peft::ops::activation_forward<A>(peft::Activation::kTanh, pooled_, pooled_, executor_);
    if (context.dropout) peft::ops::dropout<A>(pooled_, config().head_dropout(), head_key(own), executor_);
    classifier_.template forward<A>(std::as_const(pooled_).view(), logits_.view(), executor_);
  }

  /// Adds to `sum`; with `want_grad` the logits become their gradients.
  void loss(const peft::PackedBatch& batch, double grad_scale, bool want_grad, peft::LossSum& sum) {
    const Index sequences = batch.sequences();
    labels_.clear();
    for (Index i = 0; i < batch.tokens(); ++i) {
      const bool is_first = batch.offsets[labels_.size()] == i;
      const std::int32_t target = batch.targets[static_cast<std::size_t>(i)];
      if (is_first) labels_.push_back(target);
      if (!is_first && target >= 0) {
        peft::fail<peft::ShapeError>("Bert: position {} has the target {}; expected a sequence's class at its first position "
                                     "and -1 elsewhere",
                                     i, target);
      }
    }
    losses_.resize_discard(sequences);
    correct_.resize_discard(sequences);
    peft::ops::cross_entropy<A>(logits_, {labels_.data(), sequences}, static_cast<A>(grad_scale), want_grad, losses_.view(),
                                correct_.view(), executor_);
    for (Index i = 0; i < sequences; ++i) {
      if (labels_[static_cast<std::size_t>(i)] < 0) continue;
      sum.loss = peft::rounded(sum.loss + losses_[i]);
      sum.correct += correct_[i];
      sum.tokens += 1;
    }
  }

  TrainableLinear<T> pooler_;
  BertEncoder<T> encoder_;
  peft::DenseLinear<A> classifier_;
  peft::Selection<T> selection_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  const Matrix<T>* first_ = nullptr;
  Matrix<T> pooler_out_, d_;
  Matrix<A> pooled_, logits_;
  typename TrainableLinear<T>::Saved of_pooler_;
  std::vector<std::int32_t> labels_;
  Buffer<double> losses_;
  Buffer<std::uint8_t> correct_;
};

}  // namespace peft_examples
