/// peft train --task classify: a BERT and a head learn to say the class of a text.

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/classification_report.hpp"
#include "cli/classifier.hpp"
#include "cli/train_run.hpp"

namespace peft_examples {
namespace {

/// The model, and beside the loss of a validation the classes that it said.
class MeasuredClassifier {
 public:
  using value_type = float;
  using accumulator_type = float;

  MeasuredClassifier(Classifier::Model& model, Index classes) : model_(model), said_(classes) {}

  Index parameter_count() const { return model_.parameter_count(); }
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    model_.for_each_parameter(visit);
  }
  void forward_backward(const peft::PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        peft::LossSum& sum) {
    model_.forward_backward(batch, grad_scale, seed, step, sum);
  }
  void evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) {
    const Matrix<float>& logits = model_.evaluate(batch, sum);
    for (Index i = 0; i < logits.rows(); ++i) {
      const std::int32_t truth = batch.targets[static_cast<std::size_t>(batch.offsets[static_cast<std::size_t>(i)])];
      said_.add(truth, peft::predicted_class(VectorView<const float>(logits.row(i), logits.cols())));
    }
  }
  /// Of all evaluations since the last call.
  peft::ConfusionMatrix take() { return std::exchange(said_, peft::ConfusionMatrix(said_.classes())); }

 private:
  Classifier::Model& model_;
  peft::ConfusionMatrix said_;
};

class ClassifyTask {
 public:
  using value_type = float;
  using Model = MeasuredClassifier;
  using Data = peft::ClassificationData;

  ClassifyTask(const TrainOptions& options, Progress& progress)
      : options_(options),
        records_(peft::read_labelled_jsonl(options.data, options.max_records)),
        validation_records_(options.val.empty() ? std::vector<peft::LabelledRecord>()
                                                : peft::read_labelled_jsonl(options.val, options.max_val_records)),
        test_records_(options.test.empty() ? std::vector<peft::LabelledRecord>() : peft::read_labelled_jsonl(options.test)),
        method_(options.method.choose(options.model.model,
                                      options.trainer.total_steps(static_cast<Index>(records_.size())), Task::kClassify,
                                      options.head)),
        classifier_(options.model, peft::LabelSet::of(records_), options.head, options.trainer.seed),
        model_(classifier_.model(), classifier_.labels().size()),
        started_(classifier_.start(method_, options.trainer.seed)),
        training_(classifier_.tokenize(options.data, records_, options.max_length, progress)) {
    classifier_.model().encoder().set_checkpointing(options.memory.checkpoint_activations);
    if (options.dropout) classifier_.set_dropout(static_cast<float>(*options.dropout));
    if (!options.val.empty()) {
      validation_.emplace(classifier_.tokenize(options.val, validation_records_, options.max_length, progress));
    }
    if (!options.test.empty()) test_.emplace(classifier_.tokenize(options.test, test_records_, options.max_length, progress));
  }

  Model& model() noexcept { return model_; }
  const Data& training() const noexcept { return training_; }
  const Data* validation() const noexcept { return validation_ ? &*validation_ : nullptr; }
  const MethodChoice& method() const noexcept { return method_; }
  const StartedMethod<float>& started() const noexcept { return started_; }

  const MemoryPlan* plan() const noexcept { return nullptr; }
  void adjust(peft::TrainerConfig&) const noexcept {}
  void add_identity(peft::RunIdentity& identity) const {
    if (options_.head == Head::kAdapterHub) identity.emplace_back("--head", "adapterhub");
    if (options_.dropout) identity.emplace_back("--dropout-of-base", fmt::format("{}", *options_.dropout));
  }
  std::string evaluation_text(const peft::EvaluationEvent&) {
    last_ = model_.take();
    return fmt::format("accuracy {:.4f}  macro-F1 {:.4f}", last_->accuracy(), last_->macro_f1());
  }
  bool finish(const peft::TrainerResult&, nlohmann::ordered_json& json, const StopSignal& stop) {
    if (last_) {
      json["val_accuracy"] = last_->accuracy();
      json["val_macro_f1"] = last_->macro_f1();
    }
    json["labels"] = classifier_.labels().names();
    if (!test_) return true;
    peft::ConfusionMatrix said(classifier_.labels().size());
    const bool complete = classifier_.run(*test_, stop.get(), [&](Index record, VectorView<const float> logits) {
      said.add(test_->at(record).label, peft::predicted_class(logits));
    });
    if (!complete) return false;
    const auto& labels = classifier_.labels().names();
    if (!options_.json) std::printf("%s", peft::classification_report(said, labels).c_str());
    json["test"] = classification_json(said, labels);
    return true;
  }

 private:
  const TrainOptions& options_;
  std::vector<peft::LabelledRecord> records_, validation_records_, test_records_;
  MethodChoice method_;
  Classifier classifier_;
  Model model_;
  StartedMethod<float> started_;
  Data training_;
  std::optional<Data> validation_, test_;
  std::optional<peft::ConfusionMatrix> last_;
};

}  // namespace

int train_classifier(const TrainOptions& options) { return TrainRun<ClassifyTask>(options)(); }

}  // namespace peft_examples
