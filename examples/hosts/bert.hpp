#pragma once
/// BERT with a classification head, as transformers' BertForSequenceClassification or AdapterHub's BertAdapterModel; in
/// reading order hosts/bert_embeddings.hpp, hosts/bert_encoder.hpp, hosts/bert_head.hpp. A sequence's class is the target of
/// its first position; the loss is the mean cross-entropy over the sequences.
///
/// Where methods enter: adapter_sites() (linears, norms, tables and the head, by name), set_adapters() (behind attention and
/// feed-forward), set_prefix() and set_prompt(). A new head learns nothing unless something trains it: "classifier" among
/// the modules_to_save, as Python PEFT has it for task_type SEQ_CLS, or an adapter of train_head()'s kind beside the method
/// (of AdapterHub's head: peft::ClassificationHeadConfig::training()).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_encoder.hpp"
#include "hosts/bert_head.hpp"
#include "peft/adapter_sites.hpp"
#include "peft/classification_head_config.hpp"
#include "peft/dense_linear.hpp"
#include "peft/full_config.hpp"
#include "peft/loss_sum.hpp"
#include "peft/ops/cross_entropy.hpp"
#include "peft/selection.hpp"

namespace peft_examples {

/// Movable; sites stay where they are.
template <Scalar T>
class BertForSequenceClassification {
 public:
  using value_type = T;
  using A = Accumulator<T>;
  using accumulator_type = A;

  /// classifier [classes, hidden] with a bias. Throws ConfigError, ShapeError; also where the encoder has no pooler.
  BertForSequenceClassification(BertConfig config, BertWeights<T> weights, peft::DenseLinear<T> classifier)
      : BertForSequenceClassification(
            std::make_unique<BertHead<T>>(config.hidden_size, need_pooler(weights), std::move(classifier)), std::move(config),
            std::move(weights)) {}
  /// With a new head of AdapterHub's own for `classes`; a pooler among the weights is not used. Throws as above.
  BertForSequenceClassification(BertConfig config, BertWeights<T> weights, const peft::ClassificationHeadConfig& head, Index classes,
                                std::uint64_t seed)
      : BertForSequenceClassification(std::make_unique<BertHead<T>>(config.hidden_size, head, classes, seed), std::move(config),
                                      std::move(weights)) {}

  /// A new last layer for `classes`, as transformers starts one.
  static peft::DenseLinear<T> make_classifier(Index classes, Index hidden, std::uint64_t seed) {
    return BertHead<T>::make_linear("classifier", classes, hidden, seed);
  }
  /// The configuration of an adapter that trains transformers' head alone; AdapterHub's: ClassificationHeadConfig::training().
  static peft::FullConfig train_head() { return {.target_modules = {"classifier"}, .task_type = "SEQ_CLS"}; }

  BertEncoder<T>& encoder() noexcept { return *encoder_; }
  const BertConfig& config() const noexcept { return encoder_->config(); }
  Index classes() const noexcept { return head_->classes(); }
  /// What AdapterHub's head is; none: the head is transformers'.
  const std::optional<peft::ClassificationHeadConfig>& head_config() const noexcept { return head_->config(); }
  /// Everything that adapters attach to by name: the linears of encoder and head, the tables, all norms. It views memory of
  /// this model, valid as long as it lives.
  peft::AdapterSites<T> adapter_sites() const noexcept { return {linears_, tables_, norms_}; }
  /// The same without AdapterHub's head, which is no part of the base, as transformers' is: what a method beside it is of.
  peft::AdapterSites<T> base_sites() const noexcept {
    const std::span<AdaptedLinear<T>* const> all = linears_;
    return {head_config() ? all.first(encoder_linears_) : all, tables_, norms_};
  }
  /// Parameters of the base model, with the head.
  Index parameter_count() const { return encoder_->parameter_count() + head_->parameter_count(); }
  void set_executor(ExecutorRef executor) noexcept {
    executor_ = executor;
    encoder_->set_executor(executor);
  }

  /// What forward_backward trains and evaluate uses.
  void select(peft::Selection<T> selection) { selection_ = std::move(selection); }
  const peft::Selection<T>& selection() const noexcept { return selection_; }
  /// Puts bottleneck adapters behind, or beside, attention and feed-forward; nullptr: none. They are trained with whatever
  /// else is. Throws ShapeError for those of another model, ConfigError for those of another architecture.
  void set_adapters(std::shared_ptr<peft::AdapterSet<T>> adapters) { encoder_->adapters().set(std::move(adapters)); }
  /// Several, composed as `setup` says by their names. Where it shares rows out, sequence i is the batch's. Throws as above,
  /// and ConfigError as peft::AdapterComposition, or for a name that is none of theirs.
  void set_adapters(const peft::AdapterSetup& setup, std::vector<std::shared_ptr<peft::AdapterSet<T>>> adapters) {
    encoder_->adapters().set(setup, std::move(adapters));
  }
  peft::PromptHost prompt_host() const noexcept {
    const BertConfig& c = config();
    return {c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_attention_heads, c.head_dim()};
  }
  /// Puts a trained prefix, or learned vectors, before every sequence; nullptr: none. Throws ShapeError for one of another
  /// model, ConfigError for both at once.
  void set_prefix(std::shared_ptr<peft::PrefixCache<T>> prefix) {
    encoder_->virtual_tokens().set_prefix(std::move(prefix), prompt_host());
  }
  void set_prompt(std::shared_ptr<peft::PromptEmbedding<T>> prompt) {
    encoder_->virtual_tokens().set_prompt(std::move(prompt), prompt_host());
  }
  /// Virtual tokens before every sequence.
  Index num_virtual_tokens() const noexcept { return std::as_const(*encoder_).virtual_tokens().count(); }

  // -- peft::TrainableModel ------------------------------------------------------------------------------------------
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (const auto& active : selection_.active()) active.adapter->for_each_parameter(visit);
    encoder_->adapters().for_each_parameter(visit);
    encoder_->virtual_tokens().for_each_parameter(visit);
  }

  void forward_backward(const peft::PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        peft::LossSum& sum) {
    const peft::TrainContext<T> context{selection_, seed, step, batch.first_row, true};
    Matrix<A>& logits = forward(batch, context);
    loss(batch, logits, grad_scale, true, sum);
    const bool below = encoder_->is_trained(selection_);
    if (below) d_.resize_discard(batch.sequences(), config().hidden_size);
    head_->backward(below ? d_.view() : MatrixView<T>(), config().head_dropout(), per_sequence(batch, context), executor_);
    if (below) encoder_->backward(d_, context, BertRows::kFirst);
  }

  /// Returns the logits [sequences, classes]; they stay until the next call.
  const Matrix<A>& evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) {
    Matrix<A>& logits = forward(batch, evaluation());
    loss(batch, logits, 0.0, false, sum);
    return logits;
  }

  /// Logits [sequences, classes] without dropout; targets are not looked at. They stay until the next call.
  const Matrix<A>& predict(const peft::PackedBatch& batch) { return forward(batch, evaluation()); }

 private:
  BertForSequenceClassification(std::unique_ptr<BertHead<T>> head, BertConfig&& config, BertWeights<T>&& weights)
      : head_(std::move(head)),
        encoder_(std::make_unique<BertEncoder<T>>(std::move(config), std::move(weights), "bert.")),
        linears_(encoder_->linears()),
        encoder_linears_(linears_.size()),
        norms_(encoder_->norms()) {
    for (AdaptedLinear<T>* linear : head_->linears()) linears_.push_back(linear);
    for (auto* table : encoder_->embeddings().tables()) tables_.push_back(table);
  }

  static peft::AnyLinear<T> need_pooler(BertWeights<T>& weights) {
    if (!weights.pooler) {
      peft::fail<peft::ConfigError>("Bert: the encoder has no pooler, which a classification head reads; expected "
                                    "pooler.dense among the weights");
    }
    return std::move(*weights.pooler);
  }
  peft::TrainContext<T> evaluation() const { return {selection_, 0, 0, 0, false}; }
  /// Behind the encoder there is one row per sequence, and masks go by it.
  static peft::TrainContext<T> per_sequence(const peft::PackedBatch& batch, peft::TrainContext<T> context) {
    context.first_row = batch.first_sequence;
    return context;
  }

  Matrix<A>& forward(const peft::PackedBatch& batch, const peft::TrainContext<T>& context) {
    const Matrix<T>& first = encoder_->forward(batch, context, BertRows::kFirst);
    return head_->forward(first.view(), config().head_dropout(), per_sequence(batch, context), executor_);
  }

  /// Adds to `sum`; with `want_grad` the logits become their gradients.
  void loss(const peft::PackedBatch& batch, Matrix<A>& logits, double grad_scale, bool want_grad, peft::LossSum& sum) {
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
    peft::ops::cross_entropy<A>(logits, {labels_.data(), sequences}, static_cast<A>(grad_scale), want_grad, losses_.view(),
                                correct_.view(), executor_);
    for (Index i = 0; i < sequences; ++i) {
      if (labels_[static_cast<std::size_t>(i)] < 0) continue;
      sum.loss = peft::rounded(sum.loss + losses_[i]);
      sum.correct += correct_[i];
      sum.tokens += 1;
    }
  }

  std::unique_ptr<BertHead<T>> head_;
  std::unique_ptr<BertEncoder<T>> encoder_;
  std::vector<AdaptedLinear<T>*> linears_;
  std::size_t encoder_linears_;  ///< so many of them are the encoder's; the head's follow
  std::vector<peft::AdaptedNorm<T>*> norms_;
  std::vector<peft::AdaptedEmbedding<T>*> tables_;
  peft::Selection<T> selection_;
  ExecutorRef executor_ = peft::default_executor();
  // Memory that is kept from step to step.
  Matrix<T> d_;
  std::vector<std::int32_t> labels_;
  Buffer<double> losses_;
  Buffer<std::uint8_t> correct_;
};

}  // namespace peft_examples
