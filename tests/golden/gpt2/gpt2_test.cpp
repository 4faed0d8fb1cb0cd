#include <fstream>
#include <nlohmann/json.hpp>

#include "golden/gpt2/gpt2_host.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/io/safetensors.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/gpt2/";

struct Tiny {
  Tiny() : file(SafetensorsFile::open(kFolder + "tiny.safetensors")) {
    std::ifstream(kFolder + "tiny.json") >> json;
    model.heads = 4;
    model.wte = matrix("base.transformer.wte.weight");
    model.wpe = matrix("base.transformer.wpe.weight");
    for (int i = 0; i < 2; ++i) {
      const std::string path = "transformer.h." + std::to_string(i) + ".";
      const auto linear = [&](const std::string& name) {
        return AdaptedLinear<float>(path + name, gpt2::Conv1D{matrix("base." + path + name + ".weight"),
                                                              vector("base." + path + name + ".bias")});
      };
      model.blocks.push_back({norm(path + "ln_1"), norm(path + "ln_2"), linear("attn.c_attn"), linear("attn.c_proj"),
                              linear("mlp.c_fc"), linear("mlp.c_proj")});
    }
    model.ln_f = norm("transformer.ln_f");
    batch.ids = json["ids"].get<std::vector<std::int32_t>>();
    batch.targets = json["targets"].get<std::vector<std::int32_t>>();
    for (const Index n : json["lengths"].get<std::vector<Index>>()) {
      for (Index i = 0; i < n; ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.offsets.push_back(batch.offsets.back() + n);
    }
  }
  Matrix<float> matrix(const std::string& name) const {
    INFO(name);
    REQUIRE(file.find(name) != nullptr);
    return file.find(name)->to_matrix();
  }
  Buffer<float> vector(const std::string& name) const {
    const Matrix<float> values = matrix(name);
    Buffer<float> result(values.size());
    std::copy_n(values.data(), values.size(), result.data());
    return result;
  }
  gpt2::Norm norm(const std::string& name) const { return {vector("base." + name + ".weight"), vector("base." + name + ".bias")}; }

  SafetensorsFile file;
  nlohmann::json json;
  gpt2::Model model;
  PackedBatch batch;
};

}  // namespace

TEST_CASE("a tiny GPT-2 whose weights are [in, out] equals transformers and peft with fan_in_fan_out") {
  Tiny tiny;
  LoraConfig config;
  config.r = 4;
  config.lora_alpha = 8;
  config.target_modules = {"c_attn", "c_proj"};
  config.fan_in_fan_out = true;
  AdapterRegistry<float> registry;
  const std::vector<AdaptedLinear<float>*> sites = tiny.model.sites();
  registry.add_adapter("default", config, std::span<AdaptedLinear<float>* const>(sites), 0);
  std::vector<std::string> modules;
  registry.adapter("default")->for_each_module([&](const std::string& name, Lora<float>&) { modules.push_back(name); });
  CHECK(modules == tiny.json["modules"].get<std::vector<std::string>>());
  registry.for_each_parameter("default", [&](const ParameterInfo& info, VectorView<float> value, VectorView<float> grad) {
    const Matrix<float> start = tiny.matrix("adapter." + std::string(info.name));
    REQUIRE(start.size() == value.size);
    std::copy_n(start.data(), value.size, value.data);
    std::fill(grad.begin(), grad.end(), 0.0f);
  });
  registry.set_adapter("default");
  const TrainContext<float> context{registry.selection(), 0, 0, 0, true};

  // Logits of size ~3 from sums of up to 128 products, float32 on both sides.
  const Matrix<float> logits = tiny.model.logits(tiny.batch, context), expected = tiny.matrix("logits");
  for (Index i = 0; i < logits.size(); ++i) REQUIRE(std::fabs(logits.flat()[i] - expected.flat()[i]) <= 2e-5f);

  LossSum sum;
  tiny.model.forward_backward(tiny.batch, 1.0 / tiny.json["label_tokens"].get<double>(), context, sum);
  CHECK(sum.mean() == Approx(tiny.json["loss"].get<double>()).epsilon(1e-6));
  int seen = 0;
  registry.for_each_parameter("default", [&](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
    const Matrix<float> want = tiny.matrix("grad." + std::string(info.name));
    double norm = 0, difference = 0;
    for (Index i = 0; i < grad.size; ++i) {
      const double value = static_cast<double>(want.flat()[i]);
      norm += value * value;
      difference += (static_cast<double>(grad[i]) - value) * (static_cast<double>(grad[i]) - value);
    }
    INFO(info.name);
    // Two float32 backward passes of a few hundred roundings each.
    CHECK(std::sqrt(difference) <= 300 * 0x1p-24 * std::sqrt(norm));
    ++seen;
  });
  CHECK(seen == 12);

  // Merged: W' [out, in] of the library is the transpose of what Conv1D keeps.
  const auto& c_attn = tiny.model.blocks[0].c_attn;
  const auto change = c_attn.merge_change(registry.selection());
  REQUIRE(change.only_terms());
  const Matrix<float> merged = c_attn.base().merged_weight(change.terms);
  const Matrix<float> kept = tiny.matrix("merged");
  for (Index i = 0; i < merged.rows(); ++i) {
    for (Index j = 0; j < merged.cols(); ++j) REQUIRE(std::fabs(merged(i, j) - kept(j, i)) <= 4 * 0x1p-24f);
  }
}
