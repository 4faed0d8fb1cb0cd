#include "hosts/bert_loader.hpp"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "peft/adapter_registry.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/clip.hpp"
#include "peft/train/schedule.hpp"
#include "peft/train/trainable_model.hpp"
#include "support/catch.hpp"

using namespace peft;
using peft_examples::BertEncoder;
using peft_examples::BertForSequenceClassification;
using peft_examples::BertRows;
using peft_examples::BertSource;

namespace {

const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/bert/";

// The tiny model of make_bert.py and its batch.
template <Scalar T>
struct Tiny {
  using A = Accumulator<T>;

  Tiny()
      : file(SafetensorsFile::open(kFolder + "tiny.safetensors")),
        source(peft_examples::open_bert_folder(kFolder + "tiny")),
        model(peft_examples::load_bert_classifier<T>(source, 0, 0)) {
    std::ifstream(kFolder + "tiny.json") >> json;
    const auto ids = json["ids"].get<std::vector<std::int32_t>>();
    const auto labels = json["labels"].get<std::vector<std::int32_t>>();
    const auto lengths = json["lengths"].get<std::vector<Index>>();
    auto next = ids.begin();
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (Index i = 0; i < lengths[s]; ++i) {
        batch.ids.push_back(*next++);
        batch.positions.push_back(static_cast<std::int32_t>(i));
        batch.targets.push_back(i == 0 ? labels[s] : -1);
      }
      batch.offsets.push_back(batch.tokens());
    }
  }

  void attach_lora(float dropout = 0.0f) {
    LoraConfig config;
    config.r = 4;
    config.lora_alpha = 8;
    config.lora_dropout = dropout;
    config.target_modules = {"query", "value"};
    config.modules_to_save = {"classifier"};
    attach(config);
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      assign("lora.start." + std::string(info.name), value);
    });
  }
  // Another adapter beside those that are attached.
  template <class Config>
  void attach(const Config& config) {
    registry.add_adapter(std::to_string(registry.names().size()), config, model.adapter_sites(), 0);
    std::vector<std::pair<std::string, double>> all;
    for (const std::string& name : registry.names()) all.emplace_back(name, 1.0);
    model.select(registry.selection_of(all));
  }
  void assign(const std::string& name, VectorView<A> value) const {
    const TensorRef* tensor = file.find(name);
    INFO(name);
    REQUIRE(tensor != nullptr);
    REQUIRE(tensor->elements() == value.size);
    Buffer<float> values(value.size);
    tensor->read_f32(values.data());
    for (Index i = 0; i < value.size; ++i) value[i] = static_cast<A>(values[i]);
  }
  Matrix<float> golden(const std::string& name, Index rows, Index cols) const {
    const TensorRef* tensor = file.find(name);
    INFO(name);
    REQUIRE(tensor != nullptr);
    REQUIRE(tensor->elements() == rows * cols);
    Matrix<float> result(rows, cols);
    tensor->read_f32(result.data());
    return result;
  }
  void zero_gradients() {
    model.for_each_parameter([](const ParameterInfo&, VectorView<A>, VectorView<A> grad) { std::fill(grad.begin(), grad.end(), A(0)); });
  }
  double loss() {
    LossSum sum;
    model.evaluate(batch, sum);
    CHECK(sum.tokens == 4);
    return sum.mean();
  }
  // Every gradient beside the golden of that name; returns how many there are.
  int check_gradients(const std::string& prefix) {
    zero_gradients();
    LossSum sum;
    model.forward_backward(batch, 0.25, 0, 0, sum);
    CHECK(sum.mean() == Approx(loss()).epsilon(1e-6));
    double largest = 0;
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A>) {
      const Matrix<float> want = golden(prefix + std::string(info.name), info.rows, info.cols);
      double norm = 0;
      for (const float value : want.flat()) norm += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::sqrt(norm));
    });
    int seen = 0;
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A> grad) {
      const Matrix<float> want = golden(prefix + std::string(info.name), info.rows, info.cols);
      double norm = 0, difference = 0;
      for (Index i = 0; i < grad.size; ++i) {
        const double expected = static_cast<double>(want.flat()[i]);
        norm += expected * expected;
        difference += (static_cast<double>(grad[i]) - expected) * (static_cast<double>(grad[i]) - expected);
      }
      INFO(info.name);
      // Two float32 backward passes of a few hundred roundings each. A key's bias moves all scores of a query alike, which
      // softmax does not see: its gradient is what is left of sums of the others' size.
      CHECK(std::sqrt(difference) <= 300 * 0x1p-24 * (std::sqrt(norm) + 0.01 * largest));
      ++seen;
    });
    return seen;
  }
  // Losses of five steps of AdamW, as make_bert.py takes them.
  void check_steps(const std::string& name) {
    AdamW<A> optimizer{AdamWConfig{}};
    const LearningRateSchedule schedule(SchedulerType::kLinear, 1e-2, 5, 0);
    Index step = 0;
    for (const double expected : json[name].template get<std::vector<double>>()) {
      zero_gradients();
      LossSum sum;
      model.forward_backward(batch, 0.25, 0, 0, sum);
      INFO(name << ", step " << step);
      // Adam's first steps have the size of the learning rate whatever the gradient's, noise included.
      CHECK(sum.mean() == Approx(expected).epsilon(2e-4));
      optimizer.step(model, schedule.at(step++), clip_coefficient(gradient_norm(model), 1.0));
    }
  }

  SafetensorsFile file;
  BertSource source;
  BertForSequenceClassification<T> model;
  AdapterRegistry<T> registry;
  PackedBatch batch;
  nlohmann::json json;
};

template <class A>
void check_close(const Matrix<A>& got, const Matrix<float>& want, double bound) {
  REQUIRE(got.size() == want.size());
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(got.flat()[i]) - static_cast<double>(want.flat()[i])));
  }
  CHECK(worst <= bound);
}

}  // namespace

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
  // A loss of the training forward pass: the masks of (seed, step) stay.
  const auto loss = [&] {
    LossSum sum;
    tiny.model.forward_backward(tiny.batch, 0.0, 5, 3, sum);
    return sum.loss;
  };
  tiny.zero_gradients();
  LossSum sum;
  tiny.model.forward_backward(tiny.batch, 1.0, 5, 3, sum);
  CHECK(sum.loss != Approx(4 * tiny.loss()).epsilon(1e-3));
  std::vector<Matrix<double>> gradients;
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    gradients.emplace_back(info.rows, info.cols);
    std::copy(grad.begin(), grad.end(), gradients.back().data());
  });
  std::size_t at = 0;
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    const Matrix<double>& gradient = gradients[at++];
    for (Index i = 0; i < value.size; i += 1 + value.size / 5) {
      const double before = value[i], h = 1e-5;
      value[i] = before + h;
      const double up = loss();
      value[i] = before - h;
      const double down = loss();
      value[i] = before;
      INFO(info.name << "[" << i << "]");
      CHECK((up - down) / (2 * h) == Approx(gradient.flat()[i]).epsilon(1e-6).margin(1e-8));
    }
  });
  CHECK(at == 10 + 2 * (5 + 2));
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
