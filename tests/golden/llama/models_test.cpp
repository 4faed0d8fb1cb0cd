#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/open_model.hpp"
#include "peft/io/safetensors.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace peft_examples;

namespace {

const std::filesystem::path kFolder = std::string(PEFT_GOLDEN_DIR) + "/models";

struct Golden {
  explicit Golden(const std::string& model)
      : json(Json::parse(std::ifstream(kFolder / model / "golden.json"))),
        logits(SafetensorsFile::open(kFolder / model / "golden.safetensors").tensor("logits").to_matrix()) {
    batch.ids = json["ids"].get<std::vector<std::int32_t>>();
    for (Index i = 0; i < batch.tokens(); ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.targets.assign(batch.ids.begin() + 1, batch.ids.end());
    batch.targets.push_back(-1);
    batch.offsets.push_back(batch.tokens());
  }
  Json json;
  Matrix<float> logits;  // of some columns
  PackedBatch batch;
};

/// Distance of all columns' logits to transformers', relative to their norm; and of the loss.
template <Scalar T>
std::pair<double, double> distance(Llama<T>& model, const Golden& golden) {
  Matrix<Accumulator<T>> logits(golden.batch.tokens(), model.config().vocab_size);
  model.logits(golden.batch, logits);
  const auto columns = golden.json["columns"].get<std::vector<Index>>();
  double difference = 0, norm = 0;
  for (Index i = 0; i < logits.rows(); ++i) {
    for (std::size_t j = 0; j < columns.size(); ++j) {
      const auto want = static_cast<double>(golden.logits(i, static_cast<Index>(j)));
      const double off = static_cast<double>(logits(i, columns[j])) - want;
      difference += off * off;
      norm += want * want;
    }
  }
  LossSum sum;
  model.evaluate(golden.batch, sum);
  CHECK(sum.tokens == golden.batch.tokens() - 1);
  return {std::sqrt(difference / norm), std::fabs(sum.loss / golden.json["loss"].get<double>() - 1)};
}

template <Scalar T>
Matrix<Accumulator<T>> all_logits(Llama<T>& model, const Golden& golden) {
  Matrix<Accumulator<T>> logits(golden.batch.tokens(), model.config().vocab_size);
  model.logits(golden.batch, logits);
  return logits;
}

// Both compute in float32. A logit hangs on two layers; each step of them rounds sums of at most 24 products a few times,
// and the softmax of q·k, which are larger than 1 here, makes more of it: 2^8 roundings.
constexpr double kTolerance = 0x1p8 * 0x1p-24;

template <class A>
void check_gradient(const ParameterInfo& info, VectorView<A> grad, const Matrix<float>& want) {
  double norm = 0, difference = 0;
  for (Index i = 0; i < grad.size; ++i) {
    const auto expected = static_cast<double>(want.flat()[i]);
    norm += expected * expected;
    difference += (static_cast<double>(grad[i]) - expected) * (static_cast<double>(grad[i]) - expected);
  }
  INFO(info.name);
  // Forward and backward in float32: twice the roundings of the logits.
  CHECK(std::sqrt(difference) <= 2 * kTolerance * std::sqrt(norm));
}

}  // namespace

TEST_CASE("every model type's logits and loss equal transformers'") {
  for (const std::string name : {"llama2", "llama3", "linear", "yarn", "yarn_factor", "yarn_mscale", "mistral", "deepseek",
                                 "qwen2", "qwen3"}) {
    INFO(name);
    const Golden golden(name);
    auto model = load_llama<float>(open_model(kFolder / name));
    const auto [logits, loss] = distance(model, golden);
    CHECK(logits <= kTolerance);
    CHECK(loss <= kTolerance);
    auto exact = load_llama<double>(open_model(kFolder / name));
    const auto [exact_logits, exact_loss] = distance(exact, golden);
    CHECK(exact_logits <= kTolerance);
    CHECK(exact_loss <= kTolerance);
    // As it runs with a cache: all but the last token at once, then that.
    KvCache<float> cache(model.config(), golden.batch.tokens());
    KvCache<float>* caches[] = {&cache};
    Matrix<float> last(1, model.config().vocab_size);
    for (const auto& [first, count] : {std::pair<Index, Index>{0, golden.batch.tokens() - 1}, {golden.batch.tokens() - 1, 1}}) {
      model.infer({golden.batch.ids.data() + first, count}, {&count, 1}, caches, last);
    }
    const Matrix<float> whole = all_logits(model, golden);
    double worst = 0, norm = 0;
    for (Index j = 0; j < last.cols(); ++j) {
      const auto want = static_cast<double>(whole(whole.rows() - 1, j)), off = static_cast<double>(last(0, j)) - want;
      worst += off * off;
      norm += want * want;
    }
    CHECK(std::sqrt(worst / norm) <= kTolerance);
  }
}

TEST_CASE("a GGUF in llama.cpp's conventions has the numbers of the folder it was made of") {
  for (const std::string name : {"llama2", "llama3", "yarn", "qwen2", "qwen3"}) {
    INFO(name);
    const Golden golden(name);
    const GgufFile file = GgufFile::open(kFolder / name / "model.gguf.bin");
    auto from_gguf = load_llama<float>(open_gguf_model(file));
    auto from_folder = load_llama<float>(open_model(kFolder / name));
    const auto [logits, loss] = distance(from_gguf, golden);
    CHECK(logits <= kTolerance);
    CHECK(loss <= kTolerance);
    CHECK(from_gguf.parameter_count() == from_folder.parameter_count());
    if (name == "llama3") continue;  // its frequencies are quotients there, rounded once more
    const Matrix<float> a = all_logits(from_gguf, golden), b = all_logits(from_folder, golden);
    CHECK(std::equal(a.flat().begin(), a.flat().end(), b.flat().begin()));
  }
}

TEMPLATE_TEST_CASE("LoRA gradients through biases and norms of q and k equal peft's", "", float, double) {
  using T = TestType;
  for (const std::string name : {"qwen2", "qwen3"}) {
    INFO(name);
    const Golden golden(name);
    const auto file = SafetensorsFile::open(kFolder / name / "lora.safetensors");
    auto model = load_llama<T>(open_model(kFolder / name));
    const std::vector<AdaptedLinear<T>*> sites = model.sites();
    AdapterRegistry<T> registry;
    LoraConfig config;
    config.r = 2;
    config.lora_alpha = 4;
    config.target_modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    registry.add_adapter("default", config, sites, 0);
    registry.set_adapter("default");
    model.select(registry.selection());
    model.for_each_parameter([&](const ParameterInfo& info, auto value, auto grad) {
      const Matrix<float> start = file.tensor("adapter." + std::string(info.name)).to_matrix();
      REQUIRE(start.size() == value.size);
      for (Index i = 0; i < value.size; ++i) value[i] = start.flat()[i];
      std::fill_n(grad.data, grad.size, 0);
    });
    LossSum sum;
    model.forward_backward(golden.batch, 1.0 / static_cast<double>(golden.batch.tokens() - 1), 0, 0, sum);
    CHECK(sum.loss / static_cast<double>(sum.tokens) == Approx(std::stod(file.metadata().at("loss"))).epsilon(1e-5));
    std::size_t seen = 0;
    model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
      const Matrix<float> want = file.tensor("grad." + std::string(info.name)).to_matrix();
      check_gradient(info, grad, want);
      ++seen;
    });
    CHECK(seen == 2 * 7 * 2);
  }
}

TEMPLATE_TEST_CASE("full fine-tuning's gradients of every parameter equal transformers', tied and untied", "", float, double) {
  using T = TestType;
  for (const std::string name : {"qwen3", "deepseek"}) {
    INFO(name);
    const Golden golden(name);
    const auto file = SafetensorsFile::open(kFolder / name / "full.safetensors");
    auto model = load_llama<T>(open_model(kFolder / name));
    CHECK(model.is_tied() == (name == "qwen3"));
    AdapterRegistry<T> registry;
    auto adapter = registry.add_adapter("default", FullConfig{}, model.adapter_sites(), 0);
    registry.set_adapter("default");
    model.select(registry.selection());
    CHECK(adapter->parameter_count() == model.parameter_count());
    LossSum sum;
    model.forward_backward(golden.batch, 1.0 / static_cast<double>(golden.batch.tokens() - 1), 0, 0, sum);
    CHECK(sum.loss == Approx(golden.json["loss"].get<double>()).epsilon(1e-5));
    std::size_t seen = 0;
    model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
      const Matrix<float> want = file.tensor(std::string(info.name)).to_matrix();
      REQUIRE(want.size() == grad.size);
      check_gradient(info, grad, want);
      ++seen;
    });
    CHECK(seen == file.tensors().size());
  }
}

TEST_CASE("a sequence that is longer than the context or the window is refused") {
  const Golden golden("mistral");
  auto model = load_llama<float>(open_model(kFolder / "mistral"));
  CHECK(model.config().max_position_embeddings == 64);
  CHECK(model.config().context() == golden.batch.tokens());
  PackedBatch longer = golden.batch;
  longer.ids.push_back(1);
  longer.targets.push_back(-1);
  longer.positions.push_back(static_cast<std::int32_t>(golden.batch.tokens()));
  longer.offsets.back() += 1;
  LossSum sum;
  CHECK_THROWS_WITH(model.evaluate(longer, sum), Catch::Contains("context of 24 tokens"));
}
