#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/bert_loader.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/word_piece_tokenizer.hpp"
#include "support/catch.hpp"

using namespace peft;

TEST_CASE("MiniLM's hidden states, pooler and sentence embeddings on real text equal transformers'") {
  const char* path = std::getenv("PEFT_TEST_ENCODER");
  if (path == nullptr || *path == '\0') {
    WARN("skipped: PEFT_TEST_ENCODER does not name the folder of all-MiniLM-L6-v2");
    return;
  }
  const auto source = peft_examples::open_bert_folder(path);
  auto encoder = peft_examples::load_bert_encoder<float>(source);
  // A head that shows the pooler's output.
  Matrix<float> identity = Matrix<float>::zeros(384, 384);
  for (Index i = 0; i < 384; ++i) identity(i, i) = 1.0f;
  peft_examples::BertForSequenceClassification<float> model(
      source.config, peft_examples::load_bert_weights<float>(source),
      DenseLinear<float>(std::move(identity), Buffer<float>::zeros(384)));
  CHECK(encoder.parameter_count() + 384 * 385 == 22713216);
  CHECK(model.parameter_count() == 22713216 + 384 * 385);
  const peft_examples::WordPieceTokenizer tokenizer(peft_examples::open_tokenizer(path));
  nlohmann::json golden;
  std::ifstream(std::string(PEFT_GOLDEN_DIR) + "/bert/minilm.json") >> golden;
  // All texts in one batch: packing changes nothing.
  PackedBatch batch;
  for (const auto& text : golden) {
    const auto ids = tokenizer.encode_whole(text["text"].get<std::string>());
    CHECK(ids == text["ids"].get<std::vector<std::int32_t>>());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      batch.ids.push_back(ids[i]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.targets.push_back(-1);
    }
    batch.offsets.push_back(batch.tokens());
  }
  const TrainContext<float> evaluation{{}, 0, 0, 0, false};
  const Matrix<float>& hidden = encoder.forward(batch, evaluation, peft_examples::BertRows::kAll);
  const Matrix<float> first = model.encoder().forward(batch, evaluation, peft_examples::BertRows::kFirst).clone();
  const Matrix<float>& pooled = model.predict(batch);
  const auto worst = [](const nlohmann::json& expected, const auto& value) {
    double largest = 0;
    for (std::size_t c = 0; c < 384; ++c) {
      largest = std::max(largest, std::fabs(static_cast<double>(value(static_cast<Index>(c))) - expected[c].get<double>()));
    }
    return largest;
  };
  for (std::size_t s = 0; s < golden.size(); ++s) {
    INFO(golden[s]["text"]);
    const Index begin = batch.offsets[s], end = batch.offsets[s + 1];
    // Hidden states of size up to 2, six layers deep, float32 on both sides.
    CHECK(worst(golden[s]["first"], [&](Index c) { return hidden(begin, c); }) <= 1e-4);
    CHECK(worst(golden[s]["first"], [&](Index c) { return first(static_cast<Index>(s), c); }) <= 1e-4);
    CHECK(worst(golden[s]["pooled"], [&](Index c) { return pooled(static_cast<Index>(s), c); }) <= 1e-4);
    CHECK(worst(golden[s]["last"], [&](Index c) { return hidden(end - 1, c); }) <= 1e-4);
    std::vector<double> mean(384, 0.0);
    double norm = 0;
    for (Index c = 0; c < 384; ++c) {
      double& value = mean[static_cast<std::size_t>(c)];
      for (Index i = begin; i < end; ++i) value += static_cast<double>(hidden(i, c));
      norm += value * value;
    }
    CHECK(worst(golden[s]["embedding"], [&](Index c) { return mean[static_cast<std::size_t>(c)] / std::sqrt(norm); }) <= 1e-5);
  }
}
