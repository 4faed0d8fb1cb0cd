#include "cli/merged_model.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
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

const std::vector<std::string> kModels{"llama2", "llama3", "qwen2", "qwen3"};

std::vector<std::string> texts() {
  return Json::parse(read_file(std::string(PEFT_GOLDEN_DIR) + "/tokenizer/texts.json")).get<std::vector<std::string>>();
}
peft::Matrix<float> logits_of(const fs::path& path) {
  auto model = load_llama<float>(open_model(path));
  return logits(model);
}
/// Tokenizers give the same ids, templates and ends.
void same_tokenizer(const fs::path& a, const fs::path& b) {
  const BpeTokenizer one(open_tokenizer(a)), other(open_tokenizer(b));
  for (const std::string& text : texts()) {
    INFO(text);
    CHECK(one.encode_whole(text) == other.encode_whole(text));
    CHECK(one.decode(one.encode(text)) == other.decode(one.encode(text)));
  }
  CHECK(one.spec().stops == other.spec().stops);
}

/// Models of every kind with an adapter each.
struct Models {
  ScratchFolder folder;
  std::string data = folder / "data.jsonl";

  Models() {
    write_file(data, R"({"instruction": "the code", "output": "E-1"})" "\n" R"({"instruction": "more", "output": "E-22"})" "\n");
  }
  std::string trained(const fs::path& model, const std::string& name) const {
    const Outcome outcome = run(folder, {"train", "--model", model, "--data", data, "--out", folder / name, "--template", "plain",
                                         "--epochs", "2", "--lr", "0.05", "--target-modules", "all-linear", "--json"});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return folder / name;
  }
  Outcome merge(const fs::path& model, const std::string& adapter, const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"merge", "--model", model, "--adapter", adapter, "--out", folder / out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(folder, arguments);
  }
};

}  // namespace

TEST_CASE("a Hugging Face folder gives the losses of the GGUF with the same weights, and trains to the same adapter") {
  const Models models;
  for (const std::string name : {"llama2", "qwen2", "qwen3"}) {
    INFO(name);
    const auto eval = [&](const fs::path& model) {
      const Outcome outcome = run(models.folder, {"eval", "--model", model, "--data", models.data, "--template", "plain",
                                                  "--metrics", "loss", "--json"});
      INFO(outcome.err);
      REQUIRE(outcome.status == 0);
      Json json = Json::parse(outcome.json().dump());
      for (const char* clock : {"seconds", "tok_s", "peak_rss_mib", "model", "eval_s"}) json.erase(clock);
      return json;
    };
    const fs::path folder = model_folder(models.folder, name), gguf = model_gguf(models.folder, name);
    const Json from_folder = eval(folder);
    CHECK(from_folder == eval(gguf));
    CHECK(from_folder.dump().find("\"loss\"") != std::string::npos);
    models.trained(folder, "a-" + name);
    models.trained(gguf, "b-" + name);
    CHECK(read_file(models.folder / ("a-" + name + "/adapter_model.safetensors")) ==
          read_file(models.folder / ("b-" + name + "/adapter_model.safetensors")));
  }
}

TEST_CASE("merge: folders and GGUFs that load again with the adapter's logits and the model's tokenizer") {
  const Models models;
  for (const std::string& name : kModels) {
    INFO(name);
    const fs::path folder = model_folder(models.folder, name), gguf = model_gguf(models.folder, name);
    const std::string adapter = models.trained(folder, "adapter-" + name);
    for (const fs::path& base : {folder, gguf}) {
      INFO(base);
      const std::string kind = base == folder ? "-of-folder" : "-of-gguf";
      for (const std::string& out : {name + kind, name + kind + ".gguf", name + kind + ".safetensors"}) {
        const Outcome outcome = models.merge(base, adapter, out, {"--max-shard-size", "16KB"});
        INFO(outcome.err);
        REQUIRE(outcome.status == 0);
      }
      // What the merged model should say: the base with the adapter at run time; sums in another order.
      ModelOptions options;
      options.model = base;
      options.adapter = adapter;
      Session<float> session(options);
      const peft::Matrix<float> expected = logits(session.model()), merged = logits_of(models.folder / (name + kind));
      session.model().select({});
      CHECK(distance(logits(session.model()), expected) > 1e-2);  // the adapter says something
      CHECK(distance(merged, expected) <= 0x1p8 * 0x1p-24);
      const peft::Matrix<float> as_gguf = logits_of(models.folder / (name + kind + ".gguf"));
      if (name != "llama3") {
        CHECK(std::equal(merged.flat().begin(), merged.flat().end(), as_gguf.flat().begin()));
      } else {
        CHECK(distance(as_gguf, expected) <= 0x1p8 * 0x1p-24);  // its frequencies are quotients, rounded once more
      }
      CHECK(fs::exists(models.folder / (name + kind) / "model.safetensors.index.json"));
      CHECK(fs::exists(models.folder / (name + kind) / "generation_config.json"));
      same_tokenizer(models.folder / (name + kind), base);
      same_tokenizer(models.folder / (name + kind + ".gguf"), base);
      // The weights alone: what the folder's shards hold.
      const auto alone = peft::SafetensorsFile::open(models.folder / (name + kind + ".safetensors"));
      const auto shards = peft::SafetensorsFile::open_folder(models.folder / (name + kind));
      REQUIRE(alone.tensors().size() == shards.tensors().size());
      for (const peft::TensorRef& tensor : alone.tensors()) {
        const auto& same = shards.tensor(tensor.name);
        CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), same.bytes.begin(), same.bytes.end()));
      }
    }
    // The two bases hold the same weights.
    for (const char* ending : {"/model.safetensors.index.json", ".safetensors"}) {
      CHECK(read_file(models.folder / (name + "-of-folder" + ending)) == read_file(models.folder / (name + "-of-gguf" + ending)));
    }
  }
}

TEST_CASE("merge: narrower types, rounded once; vectors of a GGUF stay F32") {
  const Models models;
  const fs::path base = model_folder(models.folder, "qwen2");
  const std::string adapter = models.trained(base, "adapter");
  REQUIRE(models.merge(base, adapter, "wide.safetensors").status == 0);
  const auto wide = peft::SafetensorsFile::open(models.folder / "wide.safetensors");
  for (const std::string dtype : {"bf16", "f16"}) {
    REQUIRE(models.merge(base, adapter, dtype, {"--dtype", dtype}).status == 0);
    REQUIRE(models.merge(base, adapter, dtype + ".gguf", {"--dtype", dtype}).status == 0);
    const peft::StoredType type = dtype == "bf16" ? peft::StoredType::kBF16 : peft::StoredType::kF16;
    const Json config = Json::parse(read_file(models.folder / (dtype + "/config.json")));
    CHECK(config["dtype"] == (dtype == "bf16" ? "bfloat16" : "float16"));
    CHECK(read_file(models.folder / (dtype + "/tokenizer.json")) == read_file(base / "tokenizer.json"));
    const auto folder = peft::SafetensorsFile::open_folder(models.folder / dtype);
    const auto gguf = peft::GgufFile::open(models.folder / (dtype + ".gguf"));
    CHECK(gguf.get<int>("general.file_type") == (dtype == "bf16" ? 32 : 1));
    for (const peft::TensorRef& tensor : wide.tensors()) {
      const peft::Matrix<float> exact = tensor.to_matrix(), stored = folder.tensor(tensor.name).to_matrix();
      const auto& in_gguf = gguf.tensor(gguf_tensor_name(tensor.name).value());
      CHECK(folder.tensor(tensor.name).type == type);
      CHECK(in_gguf.type == (tensor.shape.size() == 1 ? peft::StoredType::kF32 : type));
      for (Index i = 0; i < exact.size(); ++i) {
        const float value = exact.flat()[i];
        const float narrow = dtype == "bf16" ? static_cast<float>(peft::bf16(value)) : static_cast<float>(peft::f16(value));
        REQUIRE(stored.flat()[i] == narrow);
        REQUIRE(in_gguf.to_matrix().flat()[i] == (tensor.shape.size() == 1 ? value : narrow));
      }
    }
  }
}

TEST_CASE("merge: an earlier merge is replaced whole; anything else in the way is refused and stays") {
  const Models models;
  const fs::path base = model_folder(models.folder, "qwen3");
  const std::string adapter = models.trained(base, "adapter");
  REQUIRE(models.merge(base, adapter, "out", {"--max-shard-size", "10KB"}).status == 0);
  REQUIRE(fs::exists(models.folder / "out/model.safetensors.index.json"));
  REQUIRE(models.merge(base, adapter, "out").status == 0);
  CHECK_FALSE(fs::exists(models.folder / "out/model.safetensors.index.json"));
  CHECK(fs::exists(models.folder / "out/model.safetensors"));
  const auto refuse = [&](const Outcome& outcome, const std::string& words) {
    INFO(outcome.err);
    CHECK(outcome.status == 1);
    CHECK(outcome.err.find(words) != std::string::npos);
  };
  write_file(models.folder / "out/notes.txt", "mine");
  refuse(models.merge(base, adapter, "out"), "notes.txt");
  CHECK(read_file(models.folder / "out/notes.txt") == "mine");
  refuse(models.merge(base, adapter, "qwen3"), "is the base model");
  refuse(models.merge(base, adapter, "data.jsonl"), "is a file");
  for (const std::string size : {"0", "-1", "5 parsecs", "GB", "nan"}) {
    refuse(models.merge(base, adapter, "new", {"--max-shard-size", size}), "--max-shard-size");
  }
  CHECK_FALSE(fs::exists(models.folder / "new"));
  // A tokenizer that a GGUF has no words for; a folder has.
  Json tokenizer = Json::parse(read_file(base / "tokenizer.json"));
  tokenizer["normalizer"] = {{"type", "NFKC"}};
  write_file(base / "tokenizer.json", tokenizer.dump());
  refuse(models.merge(base, adapter, "new.gguf"), "cannot say this normalizer");
  CHECK_FALSE(fs::exists(models.folder / "new.gguf"));
  CHECK(models.merge(base, adapter, "new").status == 0);
}

TEST_CASE("inspect: a folder tells what a GGUF tells, and what would not load") {
  const Models models;
  const auto inspect = [&](const fs::path& path) {
    const Outcome outcome = run(models.folder, {"inspect", path, "--json"});
    INFO(outcome.out << outcome.err);
    CHECK(outcome.status == (outcome.json()["loads"] == true ? 0 : 1));
    return Json::parse(outcome.json().dump());
  };
  for (const std::string& name : kModels) {
    INFO(name);
    const Json folder = inspect(model_folder(models.folder, name)), gguf = inspect(model_gguf(models.folder, name));
    CHECK(folder["kind"] == "Hugging Face model");
    CHECK(folder["loads"] == true);
    CHECK(gguf["loads"] == true);
    Json a = folder["model"], b = gguf["model"];
    if (name == "llama3") a.erase("rotary"), b.erase("rotary");
    CHECK(a == b);
    CHECK(folder["tokenizer"]["beginning of text"] == gguf["tokenizer"]["beginning of text"]);
    CHECK(folder["metadata"]["model_type"] == folder["model"]["type"]);
  }
  CHECK(inspect(model_folder(models.folder, "mistral"))["problems"].dump().find("tokenizer.json") != std::string::npos);
  const fs::path broken = model_folder(models.folder, "qwen2");
  Json config = Json::parse(read_file(broken / "config.json"));
  config["hidden_act"] = "gelu";
  write_file(broken / "config.json", config.dump());
  CHECK(inspect(broken)["problems"].dump().find("hidden_act") != std::string::npos);
  config["hidden_act"] = "silu";
  config["intermediate_size"] = 32;
  write_file(broken / "config.json", config.dump());
  CHECK(inspect(broken)["problems"].dump().find("expected [32, 16]") != std::string::npos);
  fs::remove(broken / "config.json");
  CHECK(inspect(broken)["problems"].dump().find("config.json") != std::string::npos);
  fs::remove(broken / "model.safetensors");
  CHECK(inspect(broken)["loads"] == false);
}
