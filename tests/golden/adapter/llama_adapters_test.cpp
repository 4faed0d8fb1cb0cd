// Bottleneck adapters in a whole Llama against AdapterHub's adapters 1.3.0 (make_llama_adapters.py): logits, losses, every
// gradient and five steps of AdamW; alone and composed; with a cache.
#include <memory>

#include "golden/adapter/golden_file.hpp"
#include "golden/adapter/setups.hpp"
#include "hosts/llama_loader.hpp"
#include "hosts/open_model.hpp"
#include "peft/train/adamw.hpp"

using namespace adapter_golden;
using namespace peft_examples;

namespace {

const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/adapter/llama";

// Both compute in float32: two layers' sums of at most 20 products, an adapter's two products and a norm or two behind each
// of four branches, a softmax; some thousand roundings of 2^-24 in each direction.
constexpr double kTolerance = 2000 * 0x1p-24;
// Adam divides gradients by their size: relative errors of gradients that cancel are what five steps add up, at most
// lr·5 times them.
constexpr double kAfterSteps = 2e-4;

PackedBatch batch_of(const Json& json) {
  PackedBatch batch;
  for (const Json& sequence : json["sequences"]) {
    const auto ids = sequence.get<std::vector<std::int32_t>>();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      batch.ids.push_back(ids[i]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.targets.push_back(i + 1 < ids.size() ? ids[i + 1] : -1);
    }
    batch.offsets.push_back(batch.tokens());
  }
  return batch;
}

/// A key's bias adds the same to all scores of a row, which softmax takes away again: its gradient is 0 but for roundings,
/// by whose signs Adam steps.
bool is_without_effect(const ParameterInfo& info) { return info.name.ends_with(".key.bias"); }

template <Scalar T>
void check_case(const GoldenFile& file, const Json& json, const Json& test) {
  using A = Accumulator<T>;
  const std::string name = test["name"];
  INFO(name);
  Llama<T> model = load_llama<T>(open_model(kFolder));
  const AdapterConfig config = config_of(test["config"]);
  const auto make = [&](const std::string& adapter) {
    return std::make_shared<AdapterSet<T>>(adapter, AdapterLayout::kLlama, config, model.config().hidden_size,
                                           model.config().num_hidden_layers);
  };
  const auto set_values = [&](const ParameterInfo& info, VectorView<A> value) {
    const Matrix<float> start = file.part(name + "." + std::string(info.name), 0);
    REQUIRE(start.size() == value.size);
    for (Index i = 0; i < value.size; ++i) value[i] = static_cast<A>(start.flat()[i]);
  };
  std::shared_ptr<AdapterFusionSet<T>> fusion;
  std::size_t fixed = 0;
  if (test.contains("static")) {
    const AdapterSetup setup = setup_of(test["setup"]);
    std::vector<std::shared_ptr<AdapterSet<T>>> sets;
    for (const std::string& adapter : setup.names()) {
      sets.push_back(make(adapter));
      sets.back()->for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
        set_values(info, value);
        ++fixed;
      });
    }
    fusion = std::make_shared<AdapterFusionSet<T>>(
        setup.names(), AdapterLayout::kLlama,
        test["static"].get<bool>() ? AdapterFusionConfig::static_fusion() : AdapterFusionConfig::dynamic_fusion(),
        model.config().hidden_size, model.config().num_hidden_layers, config.mh_adapter, config.output_adapter);
    model.set_adapters(setup, sets, fusion);
  } else if (test.contains("setup")) {
    model.set_adapters(setup_of(test["setup"]), {make("a"), make("b")});
  } else {
    model.set_adapters(make("task"));
  }
  const auto as_float = [](VectorView<A> values) {
    Matrix<float> result(1, values.size);
    for (Index i = 0; i < values.size; ++i) result(0, i) = static_cast<float>(values[i]);
    return result;
  };
  std::size_t parameters = 0;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    set_values(info, value);
    ++parameters;
  });
  CHECK(parameters + fixed == file.count(name + ".layers."));
  if (fusion != nullptr) {
    double regularization = 0;
    fusion->for_each_fusion([&](const AdapterFusion<T>& layer) { regularization += layer.regularization_loss(); });
    CHECK(regularization == Approx(test["regularization"].get<double>()).epsilon(1e-5));
  }
  const PackedBatch batch = batch_of(json);
  Matrix<A> logits(batch.tokens(), model.config().vocab_size);
  model.logits(batch, logits);
  CHECK(distance(as_float(logits.flat()).flat(), file.whole(name + ".logits")) <= kTolerance);

  AdamW<A> optimizer({.weight_decay = json["decay"].get<double>()});
  const auto losses = test["losses"].get<std::vector<double>>();
  for (std::size_t step = 0; step < losses.size(); ++step) {
    model.for_each_parameter([](const ParameterInfo&, auto, VectorView<A> grad) {
      for (A& value : grad) value = 0;
    });
    LossSum sum;
    const auto count = static_cast<double>(batch.label_tokens());
    model.forward_backward(batch, 1.0 / count, 0, static_cast<std::uint32_t>(step), sum);
    CHECK(sum.loss / count == Approx(losses[step]).epsilon(2e-5));
    if (step == 0) {
      model.for_each_parameter([&](const ParameterInfo& info, auto, VectorView<A> grad) {
        INFO("gradient of " << std::string(info.name));
        if (is_without_effect(info)) {
          for (const A value : grad) CHECK(std::abs(value) <= 1e-6);
          return;
        }
        CHECK(distance(as_float(grad).flat(), file.part(name + "." + std::string(info.name), 1)) <= kTolerance);
      });
    }
    optimizer.step(model, json["lr"].get<double>());
  }
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, auto) {
    if (is_without_effect(info)) return;
    INFO(std::string(info.name) << " after five steps");
    CHECK(distance(as_float(value).flat(), file.part(name + "." + std::string(info.name), 2)) <= kAfterSteps);
  });
}

/// The logits of the last positions with caches against those of the whole batch.
void check_cache(const Json& json, Llama<double>& model) {
  const PackedBatch batch = batch_of(json);
  const Index vocabulary = model.config().vocab_size, first = batch.offsets[1], second = batch.tokens() - first;
  Matrix<double> whole(batch.tokens(), vocabulary), last(2, vocabulary);
  model.logits(batch, whole);
  KvCache<double> one(model.config(), first), two(model.config(), second);
  KvCache<double>* caches[] = {&one, &two};
  std::vector<std::int32_t> ids(batch.ids.begin(), batch.ids.begin() + first - 1);
  ids.insert(ids.end(), batch.ids.begin() + first, batch.ids.end() - 1);
  std::vector<Index> counts = {first - 1, second - 1};
  model.infer({ids.data(), static_cast<Index>(ids.size())}, counts, caches, last);
  ids = {batch.ids[static_cast<std::size_t>(first) - 1], batch.ids.back()};
  counts = {1, 1};
  model.infer({ids.data(), 2}, counts, caches, last);
  for (Index j = 0; j < vocabulary; ++j) {
    CHECK(last(0, j) == Approx(whole(first - 1, j)).margin(1e-12));
    CHECK(last(1, j) == Approx(whole(batch.tokens() - 1, j)).margin(1e-12));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("a tiny Llama with adapters equals AdapterHub's: logits, losses, gradients, five steps", "", float,
                   double) {
  const GoldenFile file("llama/golden.safetensors");
  const Json json = adapter_golden::read_json("llama/golden.json");
  REQUIRE(json["cases"].size() == 6);
  for (const Json& test : json["cases"]) check_case<TestType>(file, json, test);
}

TEMPLATE_TEST_CASE("and with several, composed", "", float, double) {
  const GoldenFile file("llama/golden.safetensors");
  const Json json = adapter_golden::read_json("llama/golden.json");
  REQUIRE(json["blocks"].size() == 3);
  for (const Json& test : json["blocks"]) check_case<TestType>(file, json, test);
}

TEMPLATE_TEST_CASE("and AdapterFusion over adapters that stay", "", float, double) {
  const GoldenFile file("llama/golden.safetensors");
  const Json json = adapter_golden::read_json("llama/golden.json");
  REQUIRE(json["fusions"].size() == 2);
  for (const Json& test : json["fusions"]) check_case<TestType>(file, json, test);
}

TEST_CASE("composed adapters with caches, and names that are missing") {
  const Json json = adapter_golden::read_json("llama/golden.json");
  Llama<double> model = load_llama<double>(open_model(kFolder));
  std::vector<std::shared_ptr<AdapterSet<double>>> sets;
  for (const char* name : {"a", "b"}) {
    sets.push_back(std::make_shared<AdapterSet<double>>(name, AdapterLayout::kLlama, AdapterConfig::double_seq_bn(), 16, 2,
                                                        sets.size()));
  }
  for (const AdapterSetup& setup : {AdapterSetup::stack({"a", "b"}), AdapterSetup::batch_split({"a", "b"}, {1, 1})}) {
    model.set_adapters(setup, sets);
    CHECK(model.adapter_sets().size() == 2);
    check_cache(json, model);
  }
  const auto fusion = std::make_shared<AdapterFusionSet<double>>(std::vector<std::string>{"a", "b"}, AdapterLayout::kLlama,
                                                                 AdapterFusionConfig(), 16, 2, true, true, 5);
  model.set_adapters(AdapterSetup::fuse({"a", "b"}), sets, fusion);
  check_cache(json, model);
  CHECK_THROWS_WITH(model.set_adapters(AdapterSetup::fuse({"a", "b"}), sets), Catch::Contains("needs the AdapterFusion layer"));
  CHECK_THROWS_WITH(model.set_adapters(AdapterSetup::stack({"a", "c"}), sets), Catch::Contains("\"c\""));
  LossSum sum;
  model.set_adapters(AdapterSetup::batch_split({"a", "b"}, {1, 2}), sets);
  CHECK_THROWS_AS(model.evaluate(batch_of(json), sum), ShapeError);
}
