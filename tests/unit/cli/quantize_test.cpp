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

TEST_CASE("merge: into four bits the sum is quantised; a base in four bits keeps its form and the bytes of what stays") {
  const ScratchFolder place;
  const fs::path base = model_folder(place, "qwen2");
  const std::string data = place / "data.jsonl", small = place / "small";
  write_file(data, R"({"instruction": "the code", "output": "E-1"})" "\n" R"({"instruction": "more", "output": "E-22"})" "\n");
  const auto succeed = [&](std::vector<std::string> arguments) {
    const Outcome outcome = run(place, std::move(arguments));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome;
  };
  REQUIRE(run(place, {"quantize", "--model", base, "--out", small, "--block", "32", "--double-quant"}).status == 0);
  for (const bool packed : {false, true}) {
    const std::string model = packed ? small : base.string(), name = packed ? "packed" : "plain";
    succeed({"train", "--model", model, "--data", data, "--out", place / name, "--template", "plain", "--epochs", "4", "--lr", "0.05",
             "--dtype", packed ? "native" : "f32", "--json"});
    const std::string adapter = place / name, four = place / (name + "-nf4"), wide = place / (name + "-f32");
    std::vector<std::string> to_four{"merge", "--model", model, "--adapter", adapter, "--out", four, "--dtype", "nf4", "--others", "f32", "--report"};
    if (!packed) to_four.insert(to_four.end(), {"--block", "32"});
    const Outcome merged = succeed(to_four);
    const Outcome as_floats = succeed({"merge", "--model", model, "--adapter", adapter, "--out", wide});
    CHECK((as_floats.err.find("its weights are in nf4") != std::string::npos) == packed);
    CHECK(merged.err.find(packed ? "decoded, their updates added, and quantised again in their own form" : "then quantised to nf4") != std::string::npos);
    const ModelSource source = open_model(four), before = open_model(model);
    const auto layers = static_cast<std::size_t>(source.config.num_hidden_layers);
    CHECK(source.four_bit.size() == 7 * layers);
    // A line for each weight that was quantised, below the head of the table: two of a layer have an update.
    CHECK(static_cast<std::size_t>(std::count(merged.out.begin(), merged.out.end(), '\n')) == (packed ? 2 * layers : 7 * layers) + 1);
    CHECK(merged.err.find("changed their sign") != std::string::npos);
    if (packed) {
      const auto codes = [](const ModelSource& of, const std::string& weight) {
        const auto& storage = std::get<peft::Nf4Tensor>(of.four_bit.find(weight)->second).storage();
        return std::vector<std::uint8_t>(storage.codes.begin(), storage.codes.end());
      };
      const std::string layer = "model.layers.0.";
      CHECK(codes(source, layer + "mlp.up_proj.weight") == codes(before, layer + "mlp.up_proj.weight"));
      CHECK(codes(source, layer + "self_attn.q_proj.weight") != codes(before, layer + "self_attn.q_proj.weight"));
      const auto& form = std::get<peft::Nf4Tensor>(source.four_bit.find(layer + "self_attn.q_proj.weight")->second);
      CHECK(form.block_size() == 32);
      CHECK(form.is_double_quantized());
    } else {
      // The same as quantising what was merged in floats.
      const std::string again = place / "again";
      succeed({"quantize", "--model", wide, "--out", again, "--block", "32", "--dtype", "f32"});
      CHECK(same(answer(four, {WeightStorage::Kind::kFile}), answer(again, {WeightStorage::Kind::kFile})));
    }
    CHECK(distance(answer(four, {}), answer(wide, {})) > 1e-4);
  }
  const auto refused = [&](std::vector<std::string> more, const std::string& message) {
    std::vector<std::string> arguments{"merge", "--model", small, "--adapter", place / "packed", "--out", place / "other"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(place, arguments);
    INFO(message << " in " << outcome.err);
    CHECK(outcome.status != 0);
    CHECK(outcome.err.find(message) != std::string::npos);
  };
  refused({"--dtype", "fp4"}, "the base is in nf4 already");
  refused({"--dtype", "nf4", "--block", "64"}, "the base is in nf4 already");
  refused({"--report"}, "is no option of --dtype f32");
}

TEST_CASE("--dtype int8: the layers' linears in rows of eight bits are nearer to the model than four bits") {
  const ScratchFolder place;
  for (const std::string name : {"llama2", "qwen2"}) {
    const fs::path gguf = model_gguf(place, name);
    const peft::Matrix<float> plain = answer(gguf, {}), eight = answer(gguf, {WeightStorage::Kind::kInt8});
    CHECK(distance(eight, plain) > 0);
    CHECK(distance(eight, plain) < 0.3 * distance(answer(gguf, {WeightStorage::Kind::kNf4}), plain));
  }
  const fs::path base = model_folder(place, "qwen2");
  const Outcome outcome = run(place, {"generate", "--model", base, "--prompt", "the code", "--dtype", "int8", "--max-tokens", "4"});
  INFO(outcome.err);
  CHECK(outcome.status == 0);
}
