// Adapter against AdapterHub's adapters 1.3.0 (make_adapter.py): forward, every gradient and five steps of AdamW at one
// site of a tiny BERT and a tiny Llama; which sites a configuration has; every field of BnConfig.
#include "golden/adapter/golden_file.hpp"
#include "peft/adapter.hpp"
#include "peft/adapter_set.hpp"
#include "peft/train/adamw.hpp"

using namespace adapter_golden;

namespace {

// Sums of at most 8 + 4 + 8 terms and three norms, each behind the other, on both sides: some hundred roundings of 2^-24,
// and a norm multiplies by its 1/σ.
constexpr double kTolerance = 400 * 0x1p-24;
// Adam divides gradients by their size: relative errors of gradients that cancel are what five steps add up, at most
// lr·5 times them.
constexpr double kAfterSteps = 1e-4;

template <class Norm>
void check_case(const GoldenFile& file, const std::string& prefix, const AdapterConfig& config, const Json& golden,
                Norm&& norm) {
  const Matrix<float> h = file.part(prefix + "rows", 0), r = file.part(prefix + "rows", 1);
  const Matrix<float> target = file.part(prefix + "rows", 2);
  const Index rows = h.rows(), hidden = h.cols();
  Adapter<float> adapter(hidden, config, golden["sites"][0]["layer"].get<Index>());
  adapter.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    const Matrix<float> theirs = file.part(prefix + std::string(info.name), 0);
    REQUIRE(theirs.rows() == info.rows);
    REQUIRE(theirs.cols() == info.cols);
    std::copy(theirs.flat().begin(), theirs.flat().end(), value.begin());
  });
  Adapter<float>::Saved saved;
  AdamW<float> optimizer({.weight_decay = 0.05});
  Matrix<float> y(rows, hidden), dy(rows, hidden), dh(rows, hidden), dr(rows, hidden);
  for (int step = 0; step < 5; ++step) {
    adapter.zero_grad();
    adapter.forward(h.view(), r.view(), norm, y.view(), saved);
    for (Index i = 0; i < y.size(); ++i) dy.flat()[i] = y.flat()[i] - target.flat()[i];
    adapter.backward(dy.view(), h.view(), r.view(), norm, saved, dh.view(), dr.view());
    if (step == 0) {
      CHECK(distance(std::as_const(y).flat(), file.part(prefix + "rows", 3)) <= kTolerance);
      CHECK(distance(std::as_const(dh).flat(), file.part(prefix + "rows", 4)) <= kTolerance);
      CHECK(distance(std::as_const(dr).flat(), file.part(prefix + "rows", 5)) <= kTolerance);
      adapter.for_each_parameter([&](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
        INFO("gradient of " << std::string(info.name));
        CHECK(distance(grad, file.part(prefix + std::string(info.name), 1)) <= kTolerance);
      });
    }
    optimizer.step(adapter, 1e-2);
  }
  adapter.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    INFO(std::string(info.name) << " after five steps");
    CHECK(distance(value, file.part(prefix + std::string(info.name), 2)) <= kAfterSteps);
  });
}

/// Without the order of the members.
nlohmann::json sorted(const Json& json) { return nlohmann::json::parse(json.dump()); }

}  // namespace

TEST_CASE("Forward, gradients and five steps are AdapterHub's") {
  const Json golden = read_json("layers.json");
  const GoldenFile file("layers.safetensors");
  REQUIRE(golden["cases"].size() >= 28);
  for (std::size_t i = 0; i < golden["cases"].size(); ++i) {
    const Json& test = golden["cases"][i];
    INFO(test["name"].get<std::string>() << " in " << test["host"].get<std::string>());
    const std::string prefix = std::to_string(i) + ".";
    const AdapterConfig config = config_of(test["config"]);
    if (test["host"] == "bert") {
      const Matrix<float> weight = file.part(prefix + "norm", 0), bias = file.part(prefix + "norm", 1);
      check_case(file, prefix, config, test, ops::LayerNormView<float>{weight.flat(), bias.flat(), 1e-12f});
    } else {
      check_case(file, prefix, config, test, ops::NoNorm());
    }
  }
}

TEST_CASE("A configuration has adapters where AdapterHub puts them, as wide, and as many parameters") {
  for (const Json& test : read_json("layers.json")["cases"]) {
    INFO(test["name"].get<std::string>());
    AdapterSet<float> set("task", AdapterLayout::kBert, config_of(test["config"]), 8, 2);
    std::size_t next = 0;
    for (Index layer = 0; layer < 2; ++layer) {
      for (const AdapterSite site : {AdapterSite::kAttention, AdapterSite::kOutput}) {
        const Adapter<float>* adapter = set.find(layer, site);
        if (adapter == nullptr) continue;
        REQUIRE(next < test["sites"].size());
        const Json& theirs = test["sites"][next++];
        CHECK(theirs["layer"].get<Index>() == layer);
        CHECK((theirs["site"] == "attention") == (site == AdapterSite::kAttention));
        CHECK(theirs["bottleneck"].get<Index>() == adapter->bottleneck_size());
      }
    }
    CHECK(next == test["sites"].size());
    CHECK(set.parameter_count() == test["parameters"].get<Index>());
    Index visited = 0;
    set.for_each_parameter([&](const ParameterInfo&, auto value, auto) { visited += value.size; });
    CHECK(visited == set.parameter_count());
  }
}

TEST_CASE("Every field of BnConfig is read or refused by name, and presets are AdapterHub's") {
  const Json golden = read_json("fields.json");
  const AdapterConfig defaults = bottleneck_config_from_json(golden["BnConfig"], "golden");
  CHECK(defaults == AdapterConfig{});
  CHECK(sorted(bottleneck_config_to_json(defaults)) == sorted(golden["BnConfig"]));
  int read = 0, refused = 0, silent = 0;
  for (const auto& [name, value] : golden["BnConfig"].items()) {
    INFO(name);
    // Another value of the same kind.
    Json json = golden["BnConfig"];
    json["output_adapter"] = true;
    json["original_ln_before"] = true;
    json[name] = name == "leave_out"            ? Json::array({1})
                 : name == "residual_before_ln" ? Json("post_add")
                 : name == "init_weights"       ? Json("houlsby")
                 : name == "non_linearity"      ? Json("tanh")
                 : name == "scaling"            ? Json("learned")
                 : name == "output_adapter"     ? Json(false)
                 : name == "inv_adapter"        ? Json("nice")
                 : name == "phm_c_init"         ? Json("uniform")
                 : value.is_boolean()           ? Json(!value.get<bool>())
                 : value.is_number() || value.is_null() ? Json(0.25)
                                                        : Json("other");
    if (name == "init_weights_seed") json[name] = 7;
    if (name == "output_adapter") json["mh_adapter"] = true;
    try {
      const AdapterConfig config = bottleneck_config_from_json(json, "test");
      if (bottleneck_config_to_json(config)[name] == json[name]) {
        ++read;
        AdapterConfig expected;
        expected.original_ln_before = true;
        if (name == "output_adapter") expected.mh_adapter = true;
        if (name != "original_ln_before") CHECK_FALSE(config == expected);
      } else {
        ++silent;  // matters only with a field that is refused
        CHECK((name.find("phm") != std::string::npos || name == "inv_adapter_reduction_factor" ||
               name == "hypercomplex_nonlinearity"));
      }
    } catch (const ConfigError& error) {
      ++refused;
      CHECK(std::string(error.what()).find(name) != std::string::npos);
    }
  }
  CHECK(read == 16);
  CHECK(refused == 5);
  CHECK(silent == 12);
  for (const auto& [name, fields] : golden["presets"].items()) {
    INFO(name);
    if (name == "seq_bn_inv" || name == "compacter") {
      CHECK_THROWS_AS(bottleneck_config_from_json(fields, "golden"), ConfigError);
      CHECK_THROWS_AS(AdapterConfig::named(name), ConfigError);
      continue;
    }
    CHECK(bottleneck_config_from_json(fields, "golden") == AdapterConfig::named(name));
    CHECK(sorted(bottleneck_config_to_json(AdapterConfig::named(name))) == sorted(fields));
  }
  CHECK(adapter_fusion_config_from_json(golden["dynamic"], "golden") == AdapterFusionConfig::dynamic_fusion());
  CHECK(adapter_fusion_config_from_json(golden["static"], "golden") == AdapterFusionConfig::static_fusion());
  CHECK(sorted(adapter_fusion_config_to_json(AdapterFusionConfig::static_fusion())) == sorted(golden["static"]));
}
