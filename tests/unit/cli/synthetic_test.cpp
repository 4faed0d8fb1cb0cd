// Random weights of a shape, and a base whose weights stay in their file while adapters on it are trained.

#include "support/catch.hpp"
#include "support/model_folder.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;

namespace {

std::vector<std::string> tiny(const ScratchFolder& place, const std::string& out, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"train", "--synthetic", "llama-tiny", "--model", place / "model", "--out", place / out,
                                     "--steps", "2", "--max-length", "16", "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The number behind "the least that works is ".
long least_of(const Outcome& outcome) {
  const std::string start = "the least that works is ";
  const std::size_t at = outcome.err.find(start);
  return at == std::string::npos ? -1 : std::stol(outcome.err.substr(at + start.size()));
}

}  // namespace

TEST_CASE("train: on random weights of a shape; paged within a budget it gives the same bits") {
  const ScratchFolder place;
  const Outcome plain = run(place, tiny(place, "plain"));
  INFO(plain.err);
  REQUIRE(plain.status == 0);
  CHECK(plain.json()["tokens"] == 32);
  CHECK(plain.json()["label_tokens"] == 30);
  const Outcome cut = run(place, tiny(place, "cut", {"--max-tokens-per-sub-batch", "16"}));
  CHECK(plain.json()["memory_plan"]["activations"] == cut.json()["memory_plan"]["activations"]);
  CHECK(plain.json()["synthetic"] == "llama-tiny");
  CHECK(plain.json()["share_of_fma"].get<double>() > 0);
  CHECK(plain.json()["train_loss"].get<double>() < 20);
  const auto config = nlohmann::json::parse(read_file(place / "plain/adapter_config.json"));
  CHECK(config["r"] == 16);
  CHECK(config["target_modules"] == "all-linear");
  CHECK(plain.json()["trainable"] == 16 * 6 * (4 * (256 + 256) + 3 * (256 + 768)));

  // A layer has 354 KiB, the head 512.
  const long layer = 256 * (4 * 256 + 3 * 768) / 2, head = 2 * 1024 * 256, total = 6 * layer + 2 * head;
  const Outcome small = run(place, tiny(place, "small", {"--weights-memory", "10K"}));
  CHECK(small.status == 1);
  const long least = least_of(small);
  CHECK(least >= head);
  CHECK(least < head + head / 4);
  for (const long budget : {least, 2 * least, 2 * total}) {
    const std::string out = "paged-" + std::to_string(budget);
    const Outcome paged = run(place, tiny(place, out, {"--weights-memory", std::to_string(budget)}));
    INFO(paged.err);
    REQUIRE(paged.status == 0);
    CHECK(paged.json()["train_loss"] == plain.json()["train_loss"]);
    CHECK(read_file(place / (out + "/adapter_model.safetensors")) == read_file(place / "plain/adapter_model.safetensors"));
  }

  // The folder is a model as any other.
  CHECK(run(place, {"inspect", place / "model"}).status == 0);
  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& message) {
    INFO(message);
    const Outcome outcome = run(place, arguments);
    INFO(outcome.err);
    CHECK(outcome.status != 0);
    CHECK(outcome.err.find(message) != std::string::npos);
  };
  refused({"train", "--synthetic", "llama-7b", "--model", place / "model", "--out", place / "other"}, "holds another model");
  refused(tiny(place, "other", {"--data", place / "model/config.json"}), "is none of --synthetic");
  refused(tiny(place, "other", {"--weights-memory", "some"}), "--weights-memory is \"some\"");
  refused({"train", "--model", place / "model", "--out", place / "other"}, "--data is required");
  const std::string weights = place / "model/model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) - 1);
  refused(tiny(place, "other", {"--weights-memory", "1M"}), weights);
}

TEST_CASE("train: weights that are converted while they are read cannot be paged, and the message says so") {
  const ScratchFolder place;
  const fs::path base = peft_test::model_folder(place, "qwen2");
  write_file(place / "data.jsonl", R"({"instruction": "the code", "output": "E-1"})" "\n");
  const auto train = [&](const std::string& dtype, const std::string& budget) {
    return run(place, {"train", "--model", base, "--data", place / "data.jsonl", "--out", place / ("out-" + dtype), "--template", "plain",
                       "--dtype", dtype, "--steps", "1", "--weights-memory", budget});
  };
  const Outcome converted = train("bf16", "1K");
  CHECK(converted.err.find("converted when they were read") != std::string::npos);
  CHECK(train("bf16", std::to_string(least_of(converted))).status == 0);
  CHECK(train("native", std::to_string(least_of(train("native", "1K")))).status == 0);
}
