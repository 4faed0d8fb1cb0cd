// peft compare: a table of methods, each from a process of its own; one that fails is said, and the rest go on.

#include <sstream>

#include "cli/compare_report.hpp"
#include "cli/compare_svg.hpp"
#include "support/catch.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
using peft_examples::compare_svg;
using peft_examples::ComparedMethod;
namespace fs = std::filesystem;

namespace {

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

std::vector<std::string> comparison(const Workplace& place, const std::string& methods, const std::string& out) {
  return {"compare", "--model", place.model, "--data", place.train, "--val", place.val, "--test", place.val, "--methods", methods,
          "--out", place.folder / out, "--max-steps", "4", "--batch", "4", "--accumulate", "1", "--max-tokens", "4", "--template",
          "plain", "--json"};
}

}  // namespace

TEST_CASE("compare: two methods beside the model as it is; numbers are those of train and eval") {
  const Workplace place;
  auto arguments = comparison(place, "lora,prefix", "out");
  arguments.insert(arguments.end(), {"--method-option", "prefix:--num-virtual-tokens=10", "--method-option", "prefix:--lr=0.02"});
  const Outcome outcome = run(place.folder, arguments);
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  const nlohmann::json table = outcome.json();
  REQUIRE(table.size() == 3);
  const nlohmann::json &base = table[0], &lora = table[1], &prefix = table[2];
  CHECK(base["method"] == "none");
  CHECK(base["trainable"].is_null());
  CHECK(base["val_loss"].is_number());
  CHECK(lora["method"] == "lora");
  CHECK(lora["trainable"] == 2 * 8 * (64 + 48));
  CHECK(prefix["trainable"] == 10 * 2 * 2 * 16);
  CHECK(lora["learning_rate"] == 3e-4);
  CHECK(prefix["learning_rate"] == 0.02);
  for (const nlohmann::json& one : {lora, prefix}) {
    CHECK(one["steps"] == 4);
    CHECK(one["tok_s"].get<double>() > 0);
    CHECK(one["peak_rss_mib"].get<double>() > 1);
    CHECK(one["rougeL"].is_number());
    CHECK(one["forgetting"].get<double>() == one["general_loss"].get<double>() - base["general_loss"].get<double>());
    CHECK(one["forgetting"].get<double>() != 0.0);
    const std::string folder = place.folder / ("out/" + one["method"].get<std::string>());
    CHECK(one["bytes"] == fs::file_size(fs::path(folder) / "adapter_model.safetensors"));
    const nlohmann::json eval = run(place.folder, {"eval", "--model", place.model, "--adapter", folder, "--data", place.val,
                                                   "--metrics", "loss", "--template", "plain", "--json"}).json();
    CHECK(eval["loss"] == one["test_loss"]);
    CHECK(eval["loss"] == one["val_loss"]);
  }
  CHECK(has(outcome.out, "| prefix | 0.02 | 640 |"));
  CHECK(nlohmann::json::parse(read_file(place.folder / "out/compare.json")) == table);
  CHECK(has(outcome.out, read_file(place.folder / "out/compare.md")));
  CHECK(has(read_file(place.folder / "out/compare.svg"), "training speed"));
  std::istringstream general(read_file(place.folder / "out/general.jsonl"));
  int lines = 0;
  for (std::string line; std::getline(general, line);) ++lines;
  CHECK(lines == 40);
}

TEST_CASE("compare: a method that fails is in the table by its error, the others go on") {
  const Workplace place;
  auto arguments = comparison(place, "bitfit,ia3", "out");
  arguments.insert(arguments.end(), {"--general", place.val});
  const Outcome outcome = run(place.folder, arguments);
  INFO(outcome.err);
  CHECK(outcome.status == 1);
  const nlohmann::json table = outcome.json();
  REQUIRE(table.size() == 3);
  CHECK(has(table[1]["error"], "bitfit: training: peft: error: FullConfig"));
  CHECK_FALSE(table[2].contains("error"));
  CHECK(table[2]["general_loss"] == table[2]["test_loss"]);
  CHECK(has(outcome.out, "| bitfit | failed |"));
  CHECK(has(read_file(place.folder / "out/compare.svg"), "failed"));
  CHECK_FALSE(fs::exists(place.folder / "out/general.jsonl"));

  CHECK(run(place.folder, comparison(place, "lora,lora", "twice")).status == 2);
  CHECK(run(place.folder, comparison(place, "lore", "unknown")).status == 2);
  CHECK_FALSE(fs::exists(place.folder / "twice"));
  auto wrong = comparison(place, "lora", "option");
  wrong.insert(wrong.end(), {"--method-option", "prefix:--lr=1"});
  CHECK(run(place.folder, wrong).status == 2);
}

TEST_CASE("compare: how weights are kept is passed on, whether twice quantised, too") {
  const Workplace place;
  auto arguments = comparison(place, "lora", "out");
  arguments.insert(arguments.end(), {"--dtype", "nf4", "--no-double-quant", "--block", "32"});
  const Outcome outcome = run(place.folder, arguments);
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  const auto loss = [&](const std::string& flag) {
    return run(place.folder, {"eval", "--model", place.model, "--data", place.val, "--metrics", "loss", "--template", "plain", "--dtype",
                              "nf4", "--block", "32", flag, "--json"}).json()["loss"];
  };
  CHECK(outcome.json()[0]["val_loss"] == loss("--no-double-quant"));
  CHECK(outcome.json()[0]["val_loss"] != loss("--double-quant"));
  const nlohmann::json eval = run(place.folder, {"eval", "--model", place.model, "--adapter", place.folder / "out/lora", "--data", place.val,
                                                 "--metrics", "loss", "--template", "plain", "--dtype", "nf4", "--block", "32",
                                                 "--no-double-quant", "--json"}).json();
  CHECK(outcome.json()[1]["val_loss"] == eval["loss"]);

  // Where one method alone has another base, its losses are of that one.
  auto one = comparison(place, "qlora", "one");
  one.insert(one.end(), {"--method-option", "qlora:--no-double-quant", "--method-option", "qlora:--block=32"});
  const Outcome alone = run(place.folder, one);
  INFO(alone.err);
  REQUIRE(alone.status == 0);
  CHECK(alone.json()[1]["test_loss"] == alone.json()[1]["val_loss"]);  // eval's and train's, of the same records
}

TEST_CASE("compare: Ctrl-C ends the training under way, which is saved, and the comparison") {
  const Workplace place;
  auto arguments = comparison(place, "lora,prompt", "out");
  arguments.insert(arguments.end(), {"--max-steps", "100000"});
  const Outcome outcome = run(place.folder, arguments, [&](pid_t process) {
    const fs::path metrics = place.folder / "out/lora/metrics.jsonl";
    while (!fs::exists(metrics) && ::kill(process, 0) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ::kill(process, SIGINT);
  });
  INFO(outcome.err);
  CHECK(outcome.status == 130);
  CHECK(fs::exists(place.folder / "out/lora/checkpoint-last/train_state.safetensors"));
  CHECK_FALSE(fs::exists(place.folder / "out/prompt"));
}

TEST_CASE("compare: the picture's bars are as long as their numbers") {
  std::vector<ComparedMethod> methods{{.method = "none", .val_loss = 4.0},
                                      {.method = "a<b", .trainable = 10, .total = 1000, .tok_s = 50.0, .val_loss = 2.0},
                                      {.method = "full", .trainable = 1000, .total = 1000, .tok_s = 25.0, .val_loss = 1.0},
                                      {.method = "c", .val_loss = 9.0, .error = "no"}};
  const std::string svg = compare_svg(methods, "Title");
  CHECK(has(svg, "a&lt;b"));
  CHECK(has(svg, R"(width="178.0" height="18" rx="2" class="base")"));  // 4.0, the longest
  CHECK(has(svg, R"(width="89.0" height="18" rx="2" class="bar")"));    // 2.0
  CHECK(has(svg, R"(width="44.5" height="18" rx="2" class="bar")"));    // 1.0
  // 1 % and 100 %, from 0.1 % on: one decade of three and all three.
  CHECK(has(svg, R"(width="59.3" height="18" rx="2" class="bar")"));
  CHECK_FALSE(has(svg, "9.000"));
  CHECK(has(svg, ">failed<"));
  CHECK(compare_svg({}, "").find("</svg>") != std::string::npos);
}
