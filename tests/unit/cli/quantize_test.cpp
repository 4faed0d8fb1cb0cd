#include <algorithm>

#include "hosts/open_model.hpp"
#include "support/catch.hpp"
#include "support/model_folder.hpp"
#include "unit/cli/logits.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
using namespace peft_examples;
using peft_test::model_folder;
using peft_test::model_gguf;
namespace fs = std::filesystem;
using peft::Json;

namespace {

peft::Matrix<float> answer(const fs::path& path, const WeightStorage& storage) {
  auto model = load_llama<float>(open_model(path), storage);
  return logits(model);
}
bool same(const peft::Matrix<float>& a, const peft::Matrix<float>& b) {
  return std::equal(a.flat().begin(), a.flat().end(), b.flat().begin(), b.flat().end());
}

}  // namespace

TEST_CASE("quantize: a folder computes what --dtype nf4 or fp4 does with its base, and is one of bitsandbytes'") {
  const ScratchFolder place;
  for (const std::string name : {"llama2", "qwen2"}) {
    const fs::path folder = model_folder(place, name), gguf = model_gguf(place, name);
    for (const fs::path& base : {folder, gguf}) {
      for (const bool fp4 : {false, true}) {
        INFO(base << ", fp4 " << fp4);
        const std::string type = fp4 ? "fp4" : "nf4", out = place / (name + "-" + type + (base == folder ? "-f" : "-g"));
        std::vector<std::string> arguments{"quantize", "--model", base, "--out", out, "--type", type, "--block", "32",
                                           "--dtype", "f32", "--report", "--max-shard-size", "16KB"};
        if (!fp4) arguments.push_back("--double-quant");
        const Outcome outcome = run(place, arguments);
        INFO(outcome.err);
        REQUIRE(outcome.status == 0);
        WeightStorage quantized{fp4 ? WeightStorage::Kind::kFp4 : WeightStorage::Kind::kNf4, 32, !fp4};
        const peft::Matrix<float> expected = answer(base, quantized), native = answer(out, {WeightStorage::Kind::kFile});
        CHECK(same(native, expected));
        CHECK(distance(answer(out, {}), expected) <= 0x1p8 * 0x1p-24);  // the same values in memory, sums in another order
        CHECK(distance(answer(base, {}), expected) > 1e-3);
        const Json config = Json::parse(read_file(fs::path(out) / "config.json"));
        CHECK(config["quantization_config"]["bnb_4bit_quant_type"] == type);
        CHECK(config["quantization_config"]["bnb_4bit_use_double_quant"] == !fp4);
        CHECK(config["quantization_config"]["quant_method"] == "bitsandbytes");
        CHECK(fs::exists(fs::path(out) / "tokenizer.json"));
        // A line per weight: seven of each layer, below the head of the table.
        const ModelSource source = open_model(out);
        CHECK(source.four_bit.size() == static_cast<std::size_t>(7 * source.config.num_hidden_layers));
        CHECK(static_cast<std::size_t>(std::count(outcome.out.begin(), outcome.out.end(), '\n')) == source.four_bit.size() + 1);
      }
    }
    // Both bases hold the same weights, and a file of the weights alone has what a folder has.
    const std::string alone = place / (name + ".safetensors");
    REQUIRE(run(place, {"quantize", "--model", gguf, "--out", alone, "--block", "32", "--double-quant", "--dtype", "f32"}).status == 0);
    const auto one = peft::SafetensorsFile::open(alone);
    const auto from_folder = peft::SafetensorsFile::open_folder(place / (name + "-nf4-f"));
    REQUIRE(one.tensors().size() == from_folder.tensors().size());
    for (const peft::TensorRef& tensor : one.tensors()) {
      const peft::TensorRef& other = from_folder.tensor(tensor.name);
      CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(), other.bytes.end()));
    }
  }
}

TEST_CASE("quantize: on such a folder adapters are trained and merged; what does not fit is refused by name") {
  const ScratchFolder place;
  const fs::path base = model_folder(place, "qwen2");
  const std::string out = place / "small", data = place / "data.jsonl";
  write_file(data, R"({"instruction": "the code", "output": "E-1"})" "\n" R"({"instruction": "more", "output": "E-22"})" "\n");
  REQUIRE(run(place, {"quantize", "--model", base, "--out", out}).status == 0);
  const auto train = [&](const std::string& dtype) {
    return run(place, {"train", "--model", out, "--data", data, "--out", place / ("adapter-" + dtype), "--template", "plain",
                       "--epochs", "2", "--lr", "0.05", "--dtype", dtype, "--json"});
  };
  const Outcome native = train("native");
  INFO(native.err);
  REQUIRE(native.status == 0);
  const Outcome again = train("nf4");
  CHECK(again.status == 1);
  CHECK(again.err.find("in nf4 already; expected them as the file has them (--dtype native)") != std::string::npos);
  // Merged, it is a model of plain weights.
  const Outcome merged = run(place, {"merge", "--model", out, "--adapter", place / "adapter-native", "--out", place / "merged"});
  INFO(merged.err);
  REQUIRE(merged.status == 0);
  CHECK_FALSE(Json::parse(read_file(place / "merged/config.json")).contains("quantization_config"));
  CHECK(open_model(place / "merged").four_bit.empty());

  const auto refused = [&](std::vector<std::string> arguments, const std::string& message) {
    INFO(message);
    const Outcome outcome = run(place, arguments);
    CHECK(outcome.status == 1);
    CHECK(outcome.err.find(message) != std::string::npos);
  };
  refused({"quantize", "--model", out, "--out", place / "twice"}, "its weights are in four bits already");
  refused({"quantize", "--model", base, "--out", place / "x.gguf"}, "a GGUF has no NF4 or FP4");
  refused({"quantize", "--model", base, "--out", base.string()}, "is the base model");
  refused({"quantize", "--model", base, "--out", place / "odd", "--block", "48"}, "the block size is 48");
  CHECK_FALSE(fs::exists(place / "odd"));
  // A file that was quantised by something else.
  Json config = Json::parse(read_file(fs::path(out) / "config.json"));
  const auto with = [&](const char* key, const Json& value, const std::string& message) {
    Json changed = config;
    changed["quantization_config"][key] = value;
    write_file(fs::path(out) / "config.json", changed.dump());
    refused({"generate", "--model", out, "--prompt", "the code"}, message);
  };
  with("quant_method", "gptq", "quantised by \"gptq\"");
  with("bnb_4bit_quant_type", "int4", "bnb_4bit_quant_type is \"int4\"");
  with("bnb_4bit_quant_storage", "bfloat16", "bnb_4bit_quant_storage is \"bfloat16\"");
}
