// A BERT that learns to sort texts into classes: LoRA on query and value with a new head, the head alone, or the whole
// model. The encoder is a Hugging Face folder (config.json, model.safetensors, tokenizer.json), the data are JSON lines
// with "text" and "label".
//
//   example_02_classify_questions MODEL TRAIN.jsonl VAL.jsonl TEST.jsonl [method=lora|full|head] [epochs=5]
//       [learning_rate=1e-3] [seed=0] [r=8] [lora_alpha=16] [batch=16] [max_length=128] [max_steps=-1]
//       [dropout=P: the base's in training, instead of its configuration's]

#include <cstdio>
#include <exception>
#include <map>
#include <numeric>
#include <string>

#include "hosts/bert_loader.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/word_piece_tokenizer.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/data/classification_data.hpp"
#include "peft/eval/classification.hpp"
#include "peft/train/trainer.hpp"

namespace {

using namespace peft;
using Model = peft_examples::BertForSequenceClassification<float>;

/// "name=value" arguments behind the four paths, over these defaults.
std::map<std::string, std::string> settings(int argc, char** argv) {
  std::map<std::string, std::string> values{{"method", "lora"}, {"epochs", "5"}, {"learning_rate", "1e-3"},
                                            {"seed", "0"},      {"r", "8"},      {"lora_alpha", "16"},
                                            {"batch", "16"},    {"max_length", "128"}, {"max_steps", "-1"},
                                            {"dropout", ""}};
  for (int i = 5; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::size_t equals = argument.find('=');
    const auto known = values.find(argument.substr(0, equals));
    if (equals == std::string::npos || known == values.end()) fail<ConfigError>("{}: expected NAME=VALUE of a known name", argument);
    known->second = argument.substr(equals + 1);
  }
  return values;
}

ConfusionMatrix confusion(Model& model, const ClassificationData& data, Index max_tokens) {
  ConfusionMatrix result(model.classes());
  std::vector<Index> order(static_cast<std::size_t>(data.records()));
  std::iota(order.begin(), order.end(), Index{0});
  SubBatches<ClassificationData> cut(data, order, max_tokens);
  PackedBatch batch;
  while (cut.next(batch)) {
    const Matrix<float>& logits = model.predict(batch);
    for (Index i = 0; i < batch.sequences(); ++i) {
      const std::int32_t truth = batch.targets[static_cast<std::size_t>(batch.offsets[static_cast<std::size_t>(i)])];
      result.add(truth, predicted_class(VectorView<const float>(logits.row(i), logits.cols())));
    }
  }
  return result;
}

int run(int argc, char** argv) {
  auto values = settings(argc, argv);
  const std::uint64_t seed = std::stoull(values["seed"]);
  const auto training_records = read_labelled_jsonl(argv[2]);
  const LabelSet labels = LabelSet::of(training_records);
  const peft_examples::WordPieceTokenizer tokenizer(peft_examples::open_tokenizer(argv[1]));
  const auto tokenize = [&](std::string_view text) { return tokenizer.encode(text); };
  const auto data = [&](const std::vector<LabelledRecord>& records) {
    return ClassificationData(records, labels, tokenize, std::stol(values["max_length"]), tokenizer.spec().prefix,
                              tokenizer.spec().suffix);
  };
  const ClassificationData training = data(training_records), validation = data(read_labelled_jsonl(argv[3])),
                           test = data(read_labelled_jsonl(argv[4]));

  Model model = peft_examples::load_bert_classifier<float>(peft_examples::open_bert_folder(argv[1]), labels.size(), seed);
  if (!values["dropout"].empty()) {
    const float p = std::stof(values["dropout"]);
    model.encoder().set_dropout(p, p, p);
  }
  AdapterRegistry<float> registry;
  const std::string& method = values["method"];
  if (method == "lora") {
    LoraConfig config;
    config.r = std::stol(values["r"]);
    config.lora_alpha = std::stod(values["lora_alpha"]);
    config.target_modules = {"query", "value"};
    config.modules_to_save = {"classifier"};
    config.task_type = "SEQ_CLS";
    registry.add_adapter("default", config, model.adapter_sites(), seed);
  } else if (method == "full") {
    registry.add_adapter("default", FullConfig{}, model.adapter_sites(), seed);
  } else if (method == "head") {
    registry.add_adapter("default", Model::train_head(), model.adapter_sites(), seed);
  } else {
    fail<ConfigError>("method={}: expected lora, full or head", method);
  }
  registry.set_adapter("default");
  model.select(registry.selection());
  Index trainable = 0;
  model.for_each_parameter([&](const ParameterInfo&, VectorView<float> value, VectorView<float>) { trainable += value.size; });
  print_trainable_parameters(trainable, model.parameter_count() + (method == "lora" ? registry.adapter("default")->parameter_count() : 0));

  TrainerConfig config;
  config.learning_rate = std::stod(values["learning_rate"]);
  config.num_train_epochs = std::stod(values["epochs"]);
  config.max_steps = std::stol(values["max_steps"]);
  config.per_device_train_batch_size = std::stol(values["batch"]);
  config.save_strategy = IntervalStrategy::kNo;
  config.seed = seed;
  TrainerEvents<float> events;
  events.on_evaluate = [](const EvaluationEvent& event) {
    std::printf("epoch %.0f: validation loss %.4f, accuracy %.4f\n", event.record.epoch, event.record.loss,
                static_cast<double>(event.sum.correct) / static_cast<double>(event.sum.tokens));
  };
  Trainer<Model, ClassificationData> trainer(model, config, training, &validation, events);
  const TrainerResult result = trainer.run();
  std::printf("%ld steps, %.1f s, %.0f tokens/s, training loss %.4f\n\ntest\n", static_cast<long>(result.steps), result.train_s,
              result.tok_s, result.train_loss);
  std::fputs(classification_report(confusion(model, test, config.max_tokens_per_sub_batch), labels.names()).c_str(), stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 5) {
    std::fputs("usage: example_02_classify_questions MODEL TRAIN.jsonl VAL.jsonl TEST.jsonl [NAME=VALUE …]\n", stderr);
    return 2;
  }
  return run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
