// A BERT that learns to sort texts into classes: LoRA on query and value, and a new head. The encoder is a Hugging Face
// folder (config.json, model.safetensors, tokenizer.json), the data are JSON lines with "text" and "label". `peft train
// --task classify` does the same for every method, with files; here are the parts it is made of.
//
//   example_02_classify_questions MODEL TRAIN.jsonl VAL.jsonl TEST.jsonl

#include <cstdio>
#include <exception>
#include <numeric>

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

constexpr std::uint64_t kSeed = 0;
constexpr Index kMaxLength = 128;

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

int run(char** argv) {
  // Texts as ids between [CLS] and [SEP], each with its class.
  const auto training_records = read_labelled_jsonl(argv[2]);
  const LabelSet labels = LabelSet::of(training_records);
  const peft_examples::WordPieceTokenizer tokenizer(peft_examples::open_tokenizer(argv[1]));
  const auto data = [&](const std::vector<LabelledRecord>& records) {
    return ClassificationData(records, labels, [&](std::string_view text) { return tokenizer.encode(text); }, kMaxLength,
                              tokenizer.spec().prefix, tokenizer.spec().suffix);
  };
  const ClassificationData training = data(training_records), validation = data(read_labelled_jsonl(argv[3])),
                           test = data(read_labelled_jsonl(argv[4]));

  // The model with one adapter: LoRA, and a trained copy of the head.
  Model model = peft_examples::load_bert_classifier<float>(peft_examples::open_bert_folder(argv[1]), labels.size(), kSeed);
  AdapterRegistry<float> registry;
  LoraConfig lora{.r = 8, .lora_alpha = 16, .target_modules = {"query", "value"}, .modules_to_save = {"classifier"}};
  lora.task_type = "SEQ_CLS";
  const auto adapter = registry.add_adapter("default", lora, model.adapter_sites(), kSeed);
  registry.set_adapter("default");
  model.select(registry.selection());
  print_trainable_parameters(adapter->parameter_count(), model.parameter_count() + adapter->parameter_count());

  TrainerConfig config;
  config.learning_rate = 1e-3;
  config.num_train_epochs = 5;
  config.per_device_train_batch_size = 16;
  config.save_strategy = IntervalStrategy::kNo;
  config.seed = kSeed;
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
  if (argc != 5) {
    std::fputs("usage: example_02_classify_questions MODEL TRAIN.jsonl VAL.jsonl TEST.jsonl\n", stderr);
    return 2;
  }
  return run(argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
