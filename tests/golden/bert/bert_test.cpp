#include "golden/bert/tiny_bert.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/train/trainable_model.hpp"

using namespace peft;
using namespace bert_test;
using peft_examples::BertEncoder;
using peft_examples::BertForSequenceClassification;
using peft_examples::BertRows;
using peft_examples::BertSource;

static_assert(TrainableModel<BertForSequenceClassification<float>> && TrainableModel<BertForSequenceClassification<double>> &&
              TrainableModel<BertForSequenceClassification<bf16>>);

TEMPLATE_TEST_CASE("a tiny BERT with LoRA equals transformers and peft: hidden states, logits, loss, gradients, five steps", "",
                   float, double) {
  using T = TestType;
  Tiny<T> tiny;
  CHECK(tiny.source.config.labels == std::vector<std::string>{"heart", "lung", "rare"});
  // Hidden states are normed and of size ~1; sums of up to 48 products through two layers of float32 on both sides.
  auto encoder = peft_examples::load_bert_encoder<T>(tiny.source);
  const peft::TrainContext<T> evaluation{{}, 0, 0, 0, false};
  check_close(encoder.forward(tiny.batch, evaluation, BertRows::kAll), tiny.golden("base.hidden", tiny.batch.tokens(), 32), 5e-6);
  check_close(tiny.model.predict(tiny.batch), tiny.golden("base.logits", 4, 3), 5e-6);
  CHECK(tiny.loss() == Approx(tiny.json["full_losses"][0].template get<double>()).epsilon(1e-6));
  tiny.attach_lora();
  check_close(tiny.model.predict(tiny.batch), tiny.golden("lora.logits", 4, 3), 5e-6);
  CHECK(tiny.loss() == Approx(tiny.json["lora_losses"][0].template get<double>()).epsilon(1e-6));
  CHECK(tiny.check_gradients("lora.grad.") == 2 * 2 * 2 + 2);
  tiny.check_steps("lora_losses");
}

TEMPLATE_TEST_CASE("a tiny BERT trained in full equals transformers: gradients of all parameters, five steps", "", float, double) {
  using T = TestType;
  Tiny<T> tiny;
  tiny.attach(FullConfig{});
  CHECK(tiny.check_gradients("full.grad.") == 5 + 2 * 16 + 2 + 2);
  Index count = 0;
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    count += grad.size;
    CHECK(info.decay == !(std::string(info.name).ends_with(".bias") || std::string(info.name).find("LayerNorm") != std::string::npos));
  });
  CHECK(count == tiny.model.parameter_count());
  tiny.check_steps("full_losses");
  // The norm furthest down, after five steps of a rate that ends at a fifth of 1e-2.
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    if (info.name != "bert.encoder.layer.0.attention.output.LayerNorm.weight") return;
    const Matrix<float> want = tiny.golden("full.after", 1, 32);
    for (Index i = 0; i < 32; ++i) CHECK(static_cast<double>(value[i]) == Approx(static_cast<double>(want(0, i))).margin(1e-3));
  });
}

TEST_CASE("parts of the base are trained alone: the head, biases, norms, one module; nothing without an adapter") {
  const auto check = [](const auto& config, int count) {
    Tiny<float> tiny;
    tiny.attach(config);
    CHECK(tiny.check_gradients("full.grad.") == count);
    std::vector<std::string> names;
    tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto) { names.emplace_back(info.name); });
    return names;
  };
  CHECK(check(BertForSequenceClassification<float>::train_head(), 2) ==
        std::vector<std::string>{"classifier.weight", "classifier.bias"});
  CHECK(check(FullConfig{.bias_only = true}, 1 + 2 * 8 + 1 + 1).size() == 19);
  check(FullConfig{.bias_only = true, .modules_to_save = {"classifier"}}, 20);
  check(FullConfig{.target_modules = {"LayerNorm", "classifier"}}, 2 + 2 * 4 + 2);
  check(FullConfig{.target_modules = {"layer.1.output.dense"}}, 2);
  check(FullConfig{.target_modules = {"word_embeddings"}}, 1);
  Tiny<float> tiny;
  int seen = 0;
  tiny.model.for_each_parameter([&](const ParameterInfo&, auto, auto) { ++seen; });
  CHECK(seen == 0);
  CHECK_THROWS_WITH(tiny.attach(FullConfig{.target_modules = {"score"}}), Catch::Contains("target_modules names \"score\""));
  CHECK_THROWS_WITH(tiny.attach(FullConfig{.bias_only = true, .target_modules = {"classifier"}}), Catch::Contains("bias_only"));
}

TEST_CASE("gradients of a BERT with every dropout by central differences in double") {
  Tiny<double> tiny;
  tiny.attach_lora(0.2f);
  tiny.model.encoder().set_dropout(0.15f, 0.25f, 0.3f);
  tiny.attach(FullConfig{.target_modules = {"LayerNorm", "key"}});
  tiny.batch.first_row = 40;
  tiny.batch.first_sequence = 9;
  LossSum sum;
  tiny.zero_gradients();
  tiny.model.forward_backward(tiny.batch, 1.0, 5, 3, sum);
  CHECK(sum.loss != Approx(4 * tiny.loss()).epsilon(1e-3));
  CHECK(tiny.check_differences() == 10 + 2 * (5 + 2));
}

TEST_CASE("a BERT's training step: same bits for any threads; a cut of the batch changes no mask") {
  Tiny<float> tiny;
  tiny.attach_lora(0.2f);
  tiny.attach(FullConfig{.target_modules = {"LayerNorm", "embeddings", "key", "dense"}});
  tiny.model.encoder().set_dropout(0.15f, 0.25f, 0.3f);
  const auto run = [&](const std::vector<PackedBatch>& parts) {
    tiny.zero_gradients();
    LossSum sum;
    for (const PackedBatch& part : parts) tiny.model.forward_backward(part, 0.25, 5, 3, sum);
    std::vector<std::vector<float>> result{{static_cast<float>(sum.loss)}};
    tiny.model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) { result.emplace_back(grad.begin(), grad.end()); });
    return result;
  };
  ThreadPool one(1), three(3);
  tiny.model.set_executor(one);
  const auto expected = run({tiny.batch});
  tiny.model.set_executor(three);
  CHECK(run({tiny.batch}) == expected);
  std::vector<PackedBatch> parts(2);
  for (Index s = 0; s < 4; ++s) {
    PackedBatch& part = parts[s < 2 ? 0 : 1];
    if (s == 2) part.first_row = tiny.batch.offsets[2], part.first_sequence = 2;
    for (Index i = tiny.batch.offsets[static_cast<std::size_t>(s)]; i < tiny.batch.offsets[static_cast<std::size_t>(s) + 1]; ++i) {
      const auto at = static_cast<std::size_t>(i);
      part.ids.push_back(tiny.batch.ids[at]);
      part.positions.push_back(tiny.batch.positions[at]);
      part.targets.push_back(tiny.batch.targets[at]);
    }
    part.offsets.push_back(part.tokens());
  }
  const auto cut = run(parts);
  for (std::size_t p = 0; p < expected.size(); ++p) {
    for (std::size_t i = 0; i < expected[p].size(); ++i) CHECK(cut[p][i] == Approx(expected[p][i]).epsilon(1e-3).margin(2e-5));
  }
}

TEST_CASE("a BERT in bf16 stays near float") {
  Tiny<float> wide;
  Tiny<bf16> narrow;
  wide.attach_lora();
  narrow.attach_lora();
  const Matrix<float>& expected = wide.model.predict(wide.batch);
  const Matrix<float>& got = narrow.model.predict(narrow.batch);
  // Eight digits in two layers of weights and activations of size up to 1.
  for (Index i = 0; i < got.size(); ++i) CHECK(std::fabs(got.flat()[i] - expected.flat()[i]) <= 0.1f);
  LossSum sum;
  narrow.zero_gradients();
  narrow.model.forward_backward(narrow.batch, 0.25, 0, 0, sum);
  CHECK(sum.mean() == Approx(wide.loss()).epsilon(0.05));
}

TEST_CASE("a BERT refuses what does not fit") {
  Tiny<float> tiny;
  PackedBatch late = tiny.batch;
  late.targets[3] = 1;
  LossSum sum;
  CHECK_THROWS_WITH(tiny.model.evaluate(late, sum), Catch::Contains("position 3"));
  PackedBatch long_one;
  for (std::int32_t i = 0; i < 41; ++i) {
    long_one.ids.push_back(1);
    long_one.positions.push_back(i);
    long_one.targets.push_back(i == 0 ? 0 : -1);
  }
  long_one.offsets.push_back(41);
  CHECK_THROWS_WITH(tiny.model.evaluate(long_one, sum), Catch::Contains("41 tokens") && Catch::Contains("at most 40"));
  CHECK_THROWS_WITH(tiny.model.encoder().set_dropout(1.0f, 0, 0), Catch::Contains("hidden_dropout_prob"));
  // Files.
  CHECK(peft_examples::load_bert_classifier<float>(tiny.source, 5, 1).classes() == 5);
  BertSource headless = tiny.source;
  headless.tensors.erase("classifier.weight");
  CHECK_THROWS_WITH(peft_examples::load_bert_classifier<float>(headless, 0, 1), Catch::Contains("number of classes"));
  BertSource without_pooler = headless;
  without_pooler.tensors.erase("pooler.dense.weight");
  CHECK_THROWS_WITH(peft_examples::load_bert_classifier<float>(without_pooler, 2, 1), Catch::Contains("pooler"));
  BertSource missing = tiny.source;
  missing.tensors.erase("encoder.layer.1.output.dense.bias");
  CHECK_THROWS_WITH(peft_examples::load_bert_encoder<float>(missing), Catch::Contains("encoder.layer.1.output.dense.bias"));
  BertSource extra = tiny.source;
  extra.tensors.emplace("encoder.layer.7.output.dense.bias", extra.tensors.at("pooler.dense.bias"));
  CHECK_THROWS_WITH(peft_examples::load_bert_encoder<float>(extra), Catch::Contains("no place"));
  // Configurations.
  const peft::Json base = peft_examples::read_json(kFolder + "tiny/config.json");
  const auto refuse = [&](const char* field, const peft::Json& value, const std::string& words) {
    peft::Json json = base;
    json[field] = value;
    INFO(field);
    CHECK_THROWS_WITH(peft_examples::read_bert_config(peft_examples::JsonFields(json, "FILE")), Catch::Contains(words));
  };
  refuse("model_type", "roberta", "model_type is \"roberta\"");
  refuse("position_embedding_type", "relative_key", "position_embedding_type");
  refuse("is_decoder", true, "is_decoder");
  refuse("hidden_act", "quick_gelu", "hidden_act");
  refuse("num_attention_heads", 5, "multiple");
  refuse("hidden_dropout_prob", 1.5, "hidden_dropout_prob");
  refuse("id2label", {{"0", "a"}, {"2", "b"}}, "has no 1");
  refuse("vocab_size", "many", "vocab_size");
  refuse("quantization_config", peft::Json::object(), "quantization_config");
}
