#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/open_model.hpp"
#include "support/catch.hpp"

using namespace peft;

TEST_CASE("SmolLM2's logits on real text equal transformers'") {
  const char* path = std::getenv("PEFT_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    WARN("skipped: PEFT_TEST_MODEL does not name the GGUF of SmolLM2-135M-Instruct");
    return;
  }
  auto model = peft_examples::load_llama<float>(peft_examples::open_model(path));
  CHECK(model.parameter_count() == 134515008);
  nlohmann::json golden;
  std::ifstream(std::string(PEFT_GOLDEN_DIR) + "/llama/smollm2.json") >> golden;
  for (const auto& text : golden) {
    PackedBatch batch;
    batch.ids = text["ids"].get<std::vector<std::int32_t>>();
    for (Index i = 0; i < batch.tokens(); ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.targets.assign(batch.ids.size(), -1);
    batch.offsets.push_back(batch.tokens());
    Matrix<float> logits(batch.tokens(), model.config().vocab_size);
    model.logits(batch, logits);
    double worst = 0;
    for (Index i = 0; i < batch.tokens(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto ids = text["top_ids"][at].get<std::vector<Index>>();
      const auto values = text["top_values"][at].get<std::vector<double>>();
      for (std::size_t j = 0; j < ids.size(); ++j) {
        worst = std::max(worst, std::fabs(static_cast<double>(logits(i, ids[j])) - values[j]));
      }
      for (std::size_t j = 0; j < text["sample_columns"].size(); ++j) {
        const auto column = text["sample_columns"][j].get<Index>();
        worst = std::max(worst, std::fabs(static_cast<double>(logits(i, column)) - text["sample"][at][j].get<double>()));
      }
      const Index best = std::max_element(logits.row(i), logits.row(i) + logits.cols()) - logits.row(i);
      if (values[0] - values[1] > 4e-3) CHECK(best == ids[0]);
    }
    INFO(text["text"]);
    CHECK(worst <= 2e-3);
  }
}
