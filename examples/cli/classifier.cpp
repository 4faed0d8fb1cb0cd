/// The BERT classifier and all methods on it, compiled once.

#include "cli/classifier.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <system_error>
#include <utility>
#include <variant>

#include "cli/adapter_kind.hpp"
#include "cli/start_parts.hpp"
#include "hosts/bert_loader.hpp"
#include "hosts/open_tokenizer.hpp"
#include "peft/checkpoint/class_labels.hpp"
#include "peft/core/rounded.hpp"
#include "peft/pipeline/adapterhub_loader.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "peft/train/training_data.hpp"

namespace peft_examples {

template class BertForSequenceClassification<float>;

namespace {

namespace fs = std::filesystem;
using Model = Classifier::Model;
constexpr const char* kName = "default";
constexpr const char* kHeadAdapter = "classifier";

BertSource open_base(const ModelOptions& options) {
  if (options.dtype != "f32") {
    peft::fail<peft::ConfigError>("--task classify: --dtype is {}; expected f32, in which classifiers are computed", options.dtype);
  }
  std::error_code error;
  if (!fs::is_directory(options.model, error)) {
    peft::fail<peft::ConfigError>("--task classify: --model {} is a file; expected the Hugging Face folder of a BERT "
                                  "(config.json, model.safetensors, tokenizer.json): GGUF files hold models that generate",
                                  options.model);
  }
  return open_bert_folder(options.model);
}

/// A training begins with a head of its own.
BertSource without_head(BertSource source) {
  source.tensors.erase("classifier.weight");
  return source;
}

peft::LabelSet classes_of(const ModelOptions& options, const BertSource& source, const std::vector<std::string>& asked) {
  if (!asked.empty()) return peft::LabelSet(asked);
  if (options.adapter.empty()) {
    if (!source.has("classifier.weight") || source.config.labels.empty()) {
      peft::fail<peft::ConfigError>("--model {}: it has no classification head with names of its classes (classifier.weight, "
                                    "id2label); expected --adapter with a folder that `peft train --task classify` wrote",
                                    options.model);
    }
    return peft::LabelSet(source.config.labels);
  }
  std::vector<std::string> labels = peft::load_class_labels(options.adapter);
  if (labels.empty() && peft::has_adapterhub_head(options.adapter)) labels = peft::load_adapterhub_head(options.adapter).labels;
  if (labels.empty()) labels = source.config.labels;
  if (labels.size() < 2) {
    peft::fail<peft::ConfigError>("--adapter {}: neither it (labels.json, head_config.json) nor the model (id2label) names the "
                                  "classes; expected --labels with their names in the order of the head's rows",
                                  options.adapter);
  }
  return peft::LabelSet(std::move(labels));
}

peft::FullConfig training_of_head(const Model& model) {
  return model.head_config() ? model.head_config()->training() : Model::train_head();
}

/// The head's own adapter, of whose file's tensors.
std::shared_ptr<peft::NamedAdapter<float>> head_of(const fs::path& folder, std::vector<peft::TensorRef> tensors,
                                                   const Model& model) {
  if (tensors.empty()) {
    peft::fail<peft::ConfigError>("adapter {}: it has no classification head beside its method; it was trained for another "
                                  "task, or saved without its head",
                                  folder.string());
  }
  return peft::make_adapter<float>(kHeadAdapter, peft::AnyPeftAdapter{training_of_head(model), folder, std::move(tensors)},
                                   model.adapter_sites());
}

std::shared_ptr<peft::PrefixCache<float>> make(const peft::PrefixTuningConfig& config, const WordPieceTokenizer&, const Model&,
                                               std::uint64_t seed) {
  return std::make_shared<peft::PrefixCache<float>>(config, seed);
}
std::shared_ptr<peft::PromptEmbedding<float>> make(const peft::PromptTuningConfig& config, const WordPieceTokenizer& tokenizer,
                                                   Model& model, std::uint64_t seed) {
  std::vector<std::int32_t> ids;
  if (config.prompt_tuning_init_text) ids = tokenizer.encode(*config.prompt_tuning_init_text);
  return std::make_shared<peft::PromptEmbedding<float>>(config, model.encoder().embeddings().words().table(), ids, seed);
}
std::shared_ptr<peft::PromptEmbedding<float>> make(const peft::PromptEncoderConfig& config, const WordPieceTokenizer&, const Model&,
                                                   std::uint64_t seed) {
  return std::make_shared<peft::PromptEmbedding<float>>(config, seed);
}
void put(std::shared_ptr<peft::PrefixCache<float>> prefix, Model& model) { model.set_prefix(std::move(prefix)); }
void put(std::shared_ptr<peft::PromptEmbedding<float>> prompt, Model& model) { model.set_prompt(std::move(prompt)); }

}  // namespace

Classifier::Classifier(const ModelOptions& options, const BertSource& source, peft::LabelSet labels, const OwnHead& head,
                       std::uint64_t seed)
    : tokenizer_(open_tokenizer(options.model)),
      labels_(std::move(labels)),
      model_(head ? load_bert_classifier<float>(source, *head, labels_.size(), seed)
                  : load_bert_classifier<float>(source, labels_.size(), seed)) {}

Classifier::Classifier(const ModelOptions& options, peft::LabelSet labels, Head head, std::uint64_t seed)
    : Classifier(options, without_head(open_base(options)), std::move(labels),
                 head == Head::kAdapterHub ? OwnHead(peft::ClassificationHeadConfig{.name = kName}) : OwnHead(), seed) {}

/// Of the adapter's folder, where its head is AdapterHub's own. Throws ConfigError for that of another model.
Classifier::OwnHead Classifier::own_head_of(const ModelOptions& options, const BertSource& source) {
  if (options.adapter.empty() || !peft::has_adapterhub_head(options.adapter)) return {};
  const peft::AdapterHubHead head = peft::load_adapterhub_head(options.adapter);
  if (!head.own) return {};
  if (head.hidden_size != source.config.hidden_size) {
    peft::fail<peft::ConfigError>("--adapter {}: its head is of a model with hidden_size {}; expected {}, that of --model {}",
                                  options.adapter, head.hidden_size, source.config.hidden_size, options.model);
  }
  return head.own;
}

Classifier::Classifier(const ModelOptions& options, const BertSource& source, const std::vector<std::string>& labels)
    : Classifier(options, source, classes_of(options, source, labels), own_head_of(options, source), 0) {
  if (!options.adapter.empty()) {
    load(options.adapter);
    return;
  }
  const Index own = source.has("classifier.weight") ? source.tensor("classifier.weight").rows() : 0;
  if (own != labels_.size()) {
    peft::fail<peft::ConfigError>("--model {}: its head has {} classes, --labels names {}; expected as many", options.model, own,
                                  labels_.size());
  }
}
Classifier::Classifier(const ModelOptions& options, const std::vector<std::string>& labels)
    : Classifier(options, open_base(options), labels) {}

void Classifier::check_context() const {
  const Index around = static_cast<Index>(tokenizer_.spec().prefix.size() + tokenizer_.spec().suffix.size());
  if (context() > around) return;
  peft::fail<peft::ConfigError>("num_virtual_tokens is {}; the model reads {} tokens, and at least {} of them must be left",
                                model_.num_virtual_tokens(), model_.config().max_position_embeddings, around + 1);
}

StartedMethod<float> Classifier::start(const MethodChoice& choice, std::uint64_t seed) {
  const OwnHead& own = model_.head_config();
  const peft::AdapterHubInfo info{kName, "bert", own ? "BertAdapterModel" : "BertForSequenceClassification", choice.base_model,
                                  model_.config().hidden_size};
  const auto new_head = [&] { return registry_.add_adapter(kHeadAdapter, training_of_head(model_), model_.adapter_sites(), seed); };
  const auto set_head = [&](peft::SavedAdapter<float>& adapter, std::shared_ptr<peft::NamedAdapter<float>> head) {
    if (own) {
      adapter.set_own_head(labels_.names(), std::move(head), *own, info);
    } else {
      adapter.set_classes(labels_.names(), std::move(head));
    }
  };
  if (const auto* parts = std::get_if<peft::AnyConfig>(&choice.config)) {
    StartedMethod<float> started = start_parts<float>(kName, *parts, model_, model_.base_sites(), registry_, seed);
    set_head(started.adapter, own ? new_head() : nullptr);
    if (own) registry_.set_adapters({{kName, 1.0}, {kHeadAdapter, 1.0}});
    model_.select(registry_.selection());
    return started;
  }
  if (!choice.prefix_init_text.empty()) {
    peft::fail<peft::ConfigError>("--prefix-init-text: a BERT's keys and values depend on what follows; expected a random start, "
                                  "or --task generate");
  }
  const auto head = new_head();
  registry_.set_adapter(kHeadAdapter);
  model_.select(registry_.selection());
  const auto with_head = [&](peft::SavedAdapter<float> adapter) {
    set_head(adapter, head);
    check_context();
    return StartedMethod<float>{std::move(adapter)};
  };
  if (const auto* tokens = std::get_if<peft::PromptLearningConfig>(&choice.config)) {
    return std::visit(
        [&](const auto& config) {
          auto method = make(config.fit_to(model_.prompt_host()), tokenizer_, model_, seed);
          put(method, model_);
          return with_head(std::move(method));
        },
        *tokens);
  }
  const BertConfig& c = model_.config();
  auto adapters = std::make_shared<peft::AdapterSet<float>>(kName, peft::AdapterLayout::kBert,
                                                            std::get<peft::AdapterConfig>(choice.config), c.hidden_size,
                                                            c.num_hidden_layers, seed);
  model_.set_adapters(adapters);
  return with_head(peft::SavedAdapter<float>(std::move(adapters), info));
}

void Classifier::load(const std::string& folder) {
  const AdapterKind kind = adapter_kind(folder);
  std::vector<std::pair<std::string, double>> active;
  const auto add = [&](std::shared_ptr<peft::NamedAdapter<float>> adapter) {
    active.emplace_back(adapter->name(), 1.0);
    registry_.add_adapter(std::move(adapter));
  };
  std::vector<peft::TensorRef> head;
  if (model_.head_config() || (kind == AdapterKind::kBottleneck && peft::has_adapterhub_head(folder))) {
    peft::AdapterHubHead file = peft::load_adapterhub_head(folder);
    if (static_cast<Index>(file.labels.size()) != labels_.size()) {
      peft::fail<peft::ConfigError>("adapter {}: its head has {} classes, {} are named; expected as many", folder, file.labels.size(),
                                    labels_.size());
    }
    head = std::move(file.tensors);
  }
  if (kind == AdapterKind::kParts) {
    auto adapter = peft::make_adapter<float>(kName, peft::load_any_peft_adapter(folder), model_.base_sites());
    if (!model_.head_config() && adapter->find<peft::TrainedLinear<float>>(peft::ModuleId("classifier")) == nullptr) {
      peft::fail<peft::ConfigError>("adapter {}: it has no classification head (base_model.model.classifier.weight); expected one "
                                    "of task_type SEQ_CLS, with \"classifier\" among its modules_to_save",
                                    folder);
    }
    add(std::move(adapter));
  } else if (kind == AdapterKind::kBottleneck) {
    if (!head.empty()) model_.set_adapters(peft::load_adapterhub<float>(folder, model_.config().num_hidden_layers));
  } else {
    const peft::PromptLearningAdapter file = peft::load_prompt_learning(folder);
    if (head.empty()) head = file.modules;
    if (kind == AdapterKind::kPrefix) {
      model_.set_prefix(peft::make_prefix_cache<float>(file));
    } else {
      model_.set_prompt(peft::make_prompt_embedding<float>(file));
    }
    check_context();
  }
  if (kind != AdapterKind::kParts || model_.head_config()) add(head_of(folder, std::move(head), model_));
  registry_.set_adapters(active);
  model_.select(registry_.selection());
}

peft::ClassificationData Classifier::tokenize(const std::string& path, std::span<const peft::LabelledRecord> records,
                                              Index max_length, Progress& progress) const {
  const bool at_context = max_length > context();
  if (at_context) max_length = context();
  const auto encode = [&](std::string_view text) { return tokenizer_.encode(text); };
  peft::ClassificationData data(records, labels_, encode, max_length, tokenizer_.spec().prefix, tokenizer_.spec().suffix);
  if (data.cut_records() > 0) {
    progress.line(fmt::format("{}: {} of {} records are longer than {} {} and cut on the right", path, data.cut_records(),
                              data.records(), at_context ? "the model's positions," : "--max-length", max_length));
  }
  return data;
}

bool Classifier::run(const peft::ClassificationData& data, const std::atomic<bool>* stop,
                     const std::function<void(Index, VectorView<const float>)>& on_logits,
                     const std::function<void(Index)>& on_work) {
  constexpr Index kTokens = 2048;
  std::vector<Index> order(static_cast<std::size_t>(data.records()));
  std::iota(order.begin(), order.end(), Index{0});
  peft::SubBatches<peft::ClassificationData> cut(data, order, kTokens);
  peft::PackedBatch batch;
  Index record = 0;
  while (cut.next(batch)) {
    if (stop != nullptr && stop->load()) return false;
    const Matrix<float>& logits = model_.predict(batch);
    for (Index i = 0; i < logits.rows(); ++i) on_logits(record++, VectorView<const float>(logits.row(i), logits.cols()));
    if (on_work) on_work(record);
  }
  return true;
}

std::vector<double> probabilities_of(VectorView<const float> logits) {
  double most = static_cast<double>(logits[0]), sum = 0.0;
  for (Index i = 1; i < logits.size; ++i) most = std::max(most, static_cast<double>(logits[i]));
  std::vector<double> result;
  for (Index i = 0; i < logits.size; ++i) {
    result.push_back(std::exp(static_cast<double>(logits[i]) - most));
    sum = peft::rounded(sum + result.back());
  }
  for (double& value : result) value = peft::quotient(value, sum);
  return result;
}

}  // namespace peft_examples
