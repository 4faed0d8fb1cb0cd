#pragma once
/// A BERT classifier that is ready: weights, tokenizer, the names of its classes and, where asked for, an adapter. Defined in
/// classifier.cpp, so that only there the model and all methods on it are compiled.

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/method_options.hpp"
#include "cli/progress.hpp"
#include "cli/session.hpp"
#include "cli/started_method.hpp"
#include "hosts/bert.hpp"
#include "hosts/bert_folder.hpp"
#include "hosts/word_piece_tokenizer.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/classification_head_config.hpp"
#include "peft/data/classification_data.hpp"
#include "peft/eval/classification.hpp"

namespace peft_examples {

extern template class BertForSequenceClassification<float>;

class Classifier {
 public:
  using Model = BertForSequenceClassification<float>;

  /// For a training: with a new head for these classes, started from `seed`. Throws IoError, FormatError, ConfigError,
  /// ShapeError.
  Classifier(const ModelOptions& options, peft::LabelSet labels, Head head, std::uint64_t seed);
  /// With the adapter of `options`, whose folder has the head, or without one with the model's own head. The classes' names
  /// are `labels` where there are any, otherwise those of the adapter's folder, then the model's. Throws as above.
  Classifier(const ModelOptions& options, const std::vector<std::string>& labels);

  Model& model() noexcept { return model_; }
  const peft::LabelSet& labels() const noexcept { return labels_; }

  /// Puts a method on the model, with the head: both are trained from now on. Throws ConfigError for what does not fit the
  /// model, ShapeError for sizes that are another model's.
  StartedMethod<float> start(const MethodChoice& choice, std::uint64_t seed);
  /// Dropout of the base in training, instead of its configuration's. Throws ConfigError.
  void set_dropout(float p) { model_.encoder().set_dropout(p, p, p); }

  /// Tokens of a text, with those around it, that the model reads behind its virtual tokens.
  Index context() const noexcept { return model_.config().max_position_embeddings - model_.num_virtual_tokens(); }
  /// Tokenises records and says which were cut at max_length, or at the model's context. Throws ConfigError for a max_length
  /// that leaves nothing, FormatError for a label that is none of the classes'.
  peft::ClassificationData tokenize(const std::string& path, std::span<const peft::LabelledRecord> records, Index max_length,
                                    Progress& progress) const;

  /// Calls on_logits(record, logits) for every record in order; on_work(records done) after each batch. False where `stop`
  /// became true.
  bool run(const peft::ClassificationData& data, const std::atomic<bool>* stop,
           const std::function<void(Index, VectorView<const float>)>& on_logits,
           const std::function<void(Index)>& on_work = {});

 private:
  using OwnHead = std::optional<peft::ClassificationHeadConfig>;  ///< AdapterHub's; none: transformers'
  Classifier(const ModelOptions& options, const BertSource& source, peft::LabelSet labels, const OwnHead& head, std::uint64_t seed);
  Classifier(const ModelOptions& options, const BertSource& source, const std::vector<std::string>& labels);
  static OwnHead own_head_of(const ModelOptions& options, const BertSource& source);
  void load(const std::string& folder);
  void check_context() const;

  WordPieceTokenizer tokenizer_;
  peft::LabelSet labels_;
  Model model_;
  peft::AdapterRegistry<float> registry_;
};

/// Softmax of logits, in double.
std::vector<double> probabilities_of(VectorView<const float> logits);

}  // namespace peft_examples
