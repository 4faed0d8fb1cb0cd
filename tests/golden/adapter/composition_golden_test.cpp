// Compositions of adapters, and AdapterFusion, against AdapterHub's adapters 1.3.0 (make_adapter.py), after the
// feed-forward of a tiny BERT's and a tiny Llama's layer.
#include <memory>

#include "golden/adapter/golden_file.hpp"
#include "golden/adapter/setups.hpp"
#include "peft/adapter_composition.hpp"
#include "peft/train/adamw.hpp"

using namespace adapter_golden;

namespace {

// As adapter_golden_test.cpp; up to three adapters stand behind each other, and a softmax.
constexpr double kTolerance = 1500 * 0x1p-24;
constexpr double kAfterSteps = 2e-4;

/// The parameters of a case, with the golden's names.
struct Parts {
  std::vector<std::pair<std::string, std::unique_ptr<Adapter<float>>>> adapters;
  std::unique_ptr<AdapterFusion<float>> fusion;

  using accumulator_type = float;
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (auto& [name, adapter] : adapters) adapter->for_each_parameter(visit, name + ":");
    if (fusion != nullptr) fusion->for_each_parameter(visit, "fusion:");
  }
};

const AdapterSetup* fuse_in(const AdapterSetup& setup) {
  if (setup.kind() == AdapterSetup::Kind::kFuse) return &setup;
  for (const AdapterSetup& child : setup.children()) {
    if (const AdapterSetup* found = fuse_in(child)) return found;
  }
  return nullptr;
}

template <class Norm>
void check_case(const GoldenFile& file, const std::string& prefix, const Json& test, Norm&& norm) {
  const Matrix<float> h = file.part(prefix + "rows", 0), r = file.part(prefix + "rows", 1);
  const Matrix<float> target = file.part(prefix + "rows", 2);
  const Index rows = h.rows(), hidden = h.cols();
  const AdapterSetup setup = setup_of(test["setup"]);
  CHECK(setup.text() == test["name"].get<std::string>());
  Parts parts;
  typename AdapterComposition<float>::NamedAdapters adapters;
  typename AdapterComposition<float>::NamedFusions fusions;
  for (const std::string& name : setup.names()) {
    parts.adapters.emplace_back(name, std::make_unique<Adapter<float>>(hidden, config_of(test["config"])));
    adapters.emplace_back(name, parts.adapters.back().second.get());
  }
  if (!test["fusion"].is_null()) {
    parts.fusion = std::make_unique<AdapterFusion<float>>(hidden, adapter_fusion_config_from_json(test["fusion"], "golden"));
    fusions.emplace_back(fuse_in(setup)->name(), parts.fusion.get());
  }
  bool has_steps = true;
  parts.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    const Matrix<float> theirs = file.part(prefix + std::string(info.name), 0);
    REQUIRE(theirs.size() == value.size);
    std::copy(theirs.flat().begin(), theirs.flat().end(), value.begin());
    has_steps = has_steps && file.parts(prefix + std::string(info.name)) == 3;
  });
  const AdapterComposition<float> composition(setup, adapters, fusions);
  const std::vector<Index> offsets{0, 3, 6, 9, 12};
  REQUIRE(rows == 12);
  typename AdapterComposition<float>::Saved saved;
  AdamW<float> optimizer({.weight_decay = 0.05});
  Matrix<float> y(rows, hidden), dy(rows, hidden), dh(rows, hidden), dr(rows, hidden);
  for (int step = 0; step < (has_steps ? 5 : 1); ++step) {
    parts.for_each_parameter([](const ParameterInfo&, auto, VectorView<float> grad) {
      for (float& value : grad) value = 0;
    });
    composition.forward(h.view(), r.view(), norm, offsets, y.view(), saved);
    for (Index i = 0; i < y.size(); ++i) dy.flat()[i] = y.flat()[i] - target.flat()[i];
    composition.backward(dy.view(), h.view(), r.view(), norm, offsets, saved, dh.view(), dr.view());
    if (step == 0) {
      CHECK(distance(std::as_const(y).flat(), file.part(prefix + "rows", 3)) <= kTolerance);
      CHECK(distance(std::as_const(dh).flat(), file.part(prefix + "rows", 4)) <= kTolerance);
      CHECK(distance(std::as_const(dr).flat(), file.part(prefix + "rows", 5)) <= kTolerance);
      parts.for_each_parameter([&](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
        INFO("gradient of " << std::string(info.name));
        const Matrix<float> theirs = file.part(prefix + std::string(info.name), 1);
        if (info.name == "fusion:key.bias") {  // softmax does not see it: only roundings, of terms of size 1
          for (float value : grad) CHECK(std::fabs(value) <= 1e-4f);
          for (float value : theirs.flat()) CHECK(std::fabs(value) <= 1e-4f);
        } else {
          CHECK(distance(grad, theirs) <= kTolerance);
        }
      });
    }
    optimizer.step(parts, 1e-2);
  }
  if (!has_steps) return;
  parts.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    if (info.name == "fusion:key.bias") return;  // Adam makes full steps of its roundings
    INFO(std::string(info.name) << " after five steps");
    CHECK(distance(value, file.part(prefix + std::string(info.name), 2)) <= kAfterSteps);
  });
}

}  // namespace

TEST_CASE("Compositions and AdapterFusion are AdapterHub's: forward, gradients, five steps") {
  const Json golden = read_json("compositions.json");
  const GoldenFile file("compositions.safetensors");
  REQUIRE(golden["cases"].size() >= 24);
  for (std::size_t i = 0; i < golden["cases"].size(); ++i) {
    const Json& test = golden["cases"][i];
    INFO(i << ": " << test["name"].get<std::string>() << " in " << test["host"].get<std::string>() << " "
           << test["config"].dump() << " " << test["fusion"].dump());
    const std::string prefix = std::to_string(i) + ".";
    if (test["host"] == "bert") {
      const Matrix<float> weight = file.part(prefix + "norm", 0), bias = file.part(prefix + "norm", 1);
      check_case(file, prefix, test, ops::LayerNormView<float>{weight.flat(), bias.flat(), 1e-12f});
    } else {
      check_case(file, prefix, test, ops::NoNorm());
    }
  }
}
