#include <sstream>

#include "cli/answers.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/data/instruction_data.hpp"
#include "peft/merge.hpp"
#include "support/catch.hpp"
#include "support/tiny_gguf.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;
using peft::Index;

namespace {

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

/// metrics.jsonl without what depends on the clock.
std::vector<nlohmann::json> metrics(const fs::path& folder) {
  std::vector<nlohmann::json> result;
  std::istringstream lines(read_file(folder / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    result.push_back(nlohmann::json::parse(line));
    result.back().erase("tok_s");
  }
  return result;
}

std::size_t lines_of(const fs::path& path) {
  const std::string text = read_file(path);
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("train: learns, counts what it trained on, and leaves everything that belongs to a run") {
  const Workplace place;
  const Outcome outcome = run(place.folder, place.training("run"));
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  const nlohmann::json json = outcome.json();
  CHECK(json["status"] == "completed");
  CHECK(json["steps"] == 9);
  CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>() - 0.5);
  CHECK(json["peak_rss_mib"].get<double>() > 1.0);
  CHECK(json["tok_s"].get<double>() > 0.0);
  CHECK(json["train_s"].get<double>() > 0.0);

  peft_examples::ModelOptions options;
  options.model = place.model;
  const peft_examples::Session<float> session(options);
  const peft::InstructionData data(peft::read_instruction_jsonl(place.train), peft::PromptTemplate("chatml"),
                                   [&](std::string_view text) { return session.tokenizer().encode(text); }, 256);
  Index tokens = 0, labels = 0;
  for (Index i = 0; i < data.records(); ++i) tokens += data.tokens(i), labels += data.label_tokens(i);
  CHECK(json["tokens"] == 3 * tokens);
  CHECK(json["label_tokens"] == 3 * labels);
  // r·(in + out) of q, k, v, o, gate, up, down, in two layers.
  CHECK(json["trainable"] == 2 * 4 * (64 + 48 + 48 + 64 + 80 + 80 + 80));
  CHECK(has(outcome.err, "trainable params: 3,712 || all params: "));

  const fs::path folder = place.folder / "run";
  for (const char* file : {"adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "loss.svg",
                           "checkpoint-last/train_state.safetensors", "checkpoint-best/adapter_model.safetensors"}) {
    INFO(file);
    CHECK(fs::exists(folder / file));
  }
  CHECK(has(read_file(folder / "loss.svg"), "<svg"));
  CHECK(metrics(folder).size() == 9 + 4);  // before, after each epoch
  const peft::PeftAdapter adapter = peft::load_peft_adapter(folder);
  CHECK(adapter.modules.size() == 14);
  CHECK(adapter.config.task_type == "CAUSAL_LM");
}

TEST_CASE("train: the same bits for any number of threads, others for another seed") {
  const Workplace place;
  const std::vector<std::string> dropout{"--lora-dropout", "0.1", "--max-steps", "4"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), dropout.begin(), dropout.end());
    return more;
  };
  REQUIRE(run(place.folder, place.training("one", with({"--threads", "1"}))).status == 0);
  REQUIRE(run(place.folder, place.training("three", with({"--threads", "3"}))).status == 0);
  REQUIRE(run(place.folder, place.training("other", with({"--seed", "1"}))).status == 0);
  CHECK(place.adapter_bytes("one") == place.adapter_bytes("three"));
  CHECK(metrics(place.folder / "one") == metrics(place.folder / "three"));
  CHECK(place.adapter_bytes("one") != place.adapter_bytes("other"));
}

TEST_CASE("train: Ctrl-C saves, says how to go on, and --resume ends where an uninterrupted run does, bit for bit") {
  const Workplace place;
  const std::vector<std::string> longer{"--epochs", "100", "--lora-dropout", "0.1", "--save-steps", "1000"};
  REQUIRE(run(place.folder, place.training("whole", longer)).status == 0);
  const Outcome stopped = run(place.folder, place.training("run", longer), [&](pid_t process) {
    while (lines_of(place.folder / "run/metrics.jsonl") < 8 && ::kill(process, 0) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ::kill(process, SIGINT);
  });
  INFO(stopped.err);
  REQUIRE(stopped.status == 130);
  CHECK(stopped.json()["status"] == "interrupted");
  CHECK(has(stopped.err, "--resume"));
  auto resume = longer;
  resume.emplace_back("--resume");
  const Outcome resumed = run(place.folder, place.training("run", resume));
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK(has(resumed.err, "going on after step"));
  CHECK(place.adapter_bytes("run") == place.adapter_bytes("whole"));
  CHECK(metrics(place.folder / "run") == metrics(place.folder / "whole"));
  CHECK(resumed.json()["steps"] == 300);

  // Other settings are no continuation.
  resume.insert(resume.end(), {"--lr", "0.02"});
  const Outcome other = run(place.folder, place.training("run", resume));
  CHECK(other.status == 1);
  CHECK(has(other.err, "learning_rate is"));
  CHECK(place.adapter_bytes("run") == place.adapter_bytes("whole"));
}

TEST_CASE("train: optimizers by Hugging Face's names; paged ones leave the same adapter, and what does not fit is refused") {
  const Workplace place;
  const auto trained = [&](const char* folder, std::vector<std::string> more) {
    more.insert(more.end(), {"--max-steps", "3"});
    const Outcome outcome = run(place.folder, place.training(folder, std::move(more)));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(io_test::names_in(place.folder / folder).size() == io_test::names_in(place.folder / "plain").size());
    return place.adapter_bytes(folder);
  };
  const std::string plain = trained("plain", {"--optimizer", "adamw_torch"});
  CHECK(trained("paged", {"--optimizer", "paged_adamw_32bit", "--optimizer-memory", "1M"}) == plain);
  // The adapter's matrices have fewer than 4096 elements each: their moments stay in 32 bits.
  CHECK(trained("eight", {"--optimizer", "paged_adamw_8bit"}) == plain);
  const auto refused = [&](std::vector<std::string> more, const char* why) {
    const Outcome outcome = run(place.folder, place.training("plain", std::move(more)));
    INFO(outcome.err);
    CHECK(outcome.status != 0);
    CHECK(has(outcome.err, why));
    CHECK(place.adapter_bytes("plain") == plain);
  };
  refused({"--optimizer", "adamw_bnb_8bit", "--resume"}, "adamw_8bit");
  refused({"--optimizer", "sgd"}, "sgd");
  refused({"--optimizer-memory", "1M"}, "for paged optimizers");
  refused({"--optimizer", "paged_adamw", "--optimizer-memory", "much"}, "--optimizer-memory is \"much\"");
}

TEST_CASE("train: a budget of memory chooses what fits, says so, and names the least that works; plan says the same beforehand") {
  const Workplace place;
  constexpr Index kRecords = 64, kSteps = 2;  // records of one length, all of them in each step
  std::string lines;
  for (Index i = 0; i < kRecords; ++i) lines += R"({"instruction": "the code of all?", "output": "E-1)" + std::to_string(i % 3) + "\"}\n";
  write_file(place.train, lines);
  const std::vector<std::string> short_run{"--max-steps", std::to_string(kSteps), "--batch", std::to_string(kRecords), "--accumulate", "1",
                                           "--threads", "1", "--max-tokens-per-sub-batch", "1000000"};
  const auto training = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.end(), short_run.begin(), short_run.end());
    return run(place.folder, place.training(name, std::move(more)));
  };
  const Outcome plain = training("plain", {});
  REQUIRE(plain.status == 0);
  CHECK(has(plain.err, "memory: weights "));
  CHECK(has(plain.err, " were predicted"));
  const nlohmann::json wanted = plain.json()["memory_plan"];
  // No more is planned for than a step has.
  const Index length = plain.json()["tokens"].get<Index>() / (kRecords * kSteps);
  std::vector<std::string> plan{"plan", "--model", place.model, "--r", "4", "--target-modules", "all-linear", "--max-length",
                                std::to_string(length), "--json"};
  plan.insert(plan.end(), short_run.begin() + 2, short_run.end());
  const Outcome planned = run(place.folder, plan);
  INFO(planned.err);
  REQUIRE(planned.status == 0);
  nlohmann::json same = planned.json();
  CHECK(same["trainable"] == plain.json()["trainable"]);
  same.erase("trainable");
  CHECK(same == wanted);

  const Outcome refused = training("none", {"--memory-budget", "2M"});
  INFO(refused.err);
  CHECK(refused.status == 1);
  CHECK(has(refused.err, "the least that this training works in is "));
  const std::string words = "works in is ";
  const Index least = std::stol(refused.err.substr(refused.err.find(words) + words.size()));
  CHECK(training("none", {"--memory-budget", std::to_string(least - 1) + "M"}).status == 1);
  const Outcome tight = training("tight", {"--memory-budget", std::to_string(least) + "M"});
  INFO(tight.err);
  REQUIRE(tight.status == 0);
  CHECK(has(tight.err, "sub-batches of "));
  CHECK(tight.json()["memory_plan"]["total"].get<Index>() <= least << 20);
  CHECK(tight.json()["memory_plan"]["saved_activations"] == "f32");
  const Outcome wide = training("wide", {"--memory-budget", "1G"});
  REQUIRE(wide.status == 0);
  CHECK(has(wide.err, "all as it is"));
  CHECK(wide.json()["memory_plan"] == wanted);
  CHECK(place.adapter_bytes("wide") == place.adapter_bytes("plain"));

  CHECK(has(training("none", {"--memory-budget", "20K"}).err, "the weights alone"));
  CHECK(training("none", {"--budget-may-round"}).status == 2);
  CHECK_FALSE(std::filesystem::exists(place.folder / "none"));
}

TEST_CASE("plan: a shape without its model; what full fine-tuning would take, too") {
  const ScratchFolder folder;
  const auto plan = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"plan", "--shape", "llama-7b", "--dtype", "nf4", "--threads", "1", "--json"});
    const Outcome outcome = run(folder, more);
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json();
  };
  const nlohmann::json lora = plan({});
  CHECK(lora["trainable"] == 32 * 2 * 8 * (4096 + 4096));  // r·(in + out) of q and v in each layer
  // 6476005376 weights of the layers' linears: four bits each, a byte per 64 and four more per 64·256; embedding and head in bf16.
  const double linears = 32.0 * (4 * 4096.0 * 4096 + 3 * 4096.0 * 11008), others = 2 * 2 * 4096.0 * 32000;
  CHECK(lora["weights"].get<double>() / (linears * (0.5 + 1.0 / 64 + 4.0 / (64 * 256)) + others) == Approx(1).margin(1e-3));
  const nlohmann::json again = plan({"--checkpoint-activations"});
  CHECK(again["activations"].get<double>() < 0.15 * lora["activations"].get<double>());
  CHECK(again["weights"] == lora["weights"]);
  const nlohmann::json full = plan({"--method", "full"});
  CHECK(full["trainable"] == 6738415616);
  CHECK(full["parameters"] == 6738415616 * 8);
  CHECK(plan({"--memory-budget", "4600M"})["checkpoint_activations"] == true);
  CHECK(run(folder, {"plan"}).status == 2);
  CHECK(run(folder, {"plan", "--shape", "llama-8b"}).status == 2);
}

TEST_CASE("train: a run that stands in the folder is kept") {
  const Workplace place;
  REQUIRE(run(place.folder, place.training("run", {"--max-steps", "2"})).status == 0);
  const std::string first = place.adapter_bytes("run");
  const Outcome again = run(place.folder, place.training("run", {"--max-steps", "3"}));
  REQUIRE(again.status == 0);
  CHECK(has(again.err, "run.old1"));
  CHECK(place.adapter_bytes("run.old1") == first);
  CHECK(place.adapter_bytes("run") != first);
}

TEST_CASE("train: bf16 and f16 activations learn what f32 does") {
  const Workplace place;
  const double wide = run(place.folder, place.training("f32")).json()["val_loss_after"];
  for (const std::string dtype : {"bf16", "f16"}) {
    const Outcome outcome = run(place.folder, place.training(dtype, {"--dtype", dtype}));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    // bf16 rounds each activation by 2⁻⁹ of itself: through nine steps the loss stays near, not equal.
    CHECK(outcome.json()["val_loss_after"].get<double>() == Approx(wide).margin(0.15));
  }
}

TEST_CASE("train and eval: weights as the file has them learn what f32 does; in four bits by --dtype or --method qlora") {
  const Workplace place;
  const std::string model = place.folder / "blocks.gguf";
  write_file(model, peft_test::TinyGguf{.intermediate = 64, .in_blocks = true}.bytes());
  const auto train = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.end(), {"--model", model});
    const Outcome outcome = run(place.folder, place.training(name, std::move(more)));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json()["val_loss_after"].get<double>();
  };
  CHECK(train("native", {"--dtype", "native"}) == Approx(train("f32", {})).epsilon(1e-6));
  const double once = train("once", {"--dtype", "nf4", "--block", "32", "--no-double-quant"});
  CHECK(train("nf4", {"--dtype", "nf4"}) != once);
  train("qlora", {"--method", "qlora"});
  CHECK(place.adapter_bytes("qlora") == place.adapter_bytes("nf4"));
  const auto loss = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", "--model", model, "--adapter", place.folder / "nf4", "--data", place.train, "--metrics",
                               "loss", "--json"});
    const Outcome outcome = run(place.folder, more);
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json()["loss"].get<double>();
  };
  CHECK(loss({"--dtype", "native"}) == Approx(loss({})).epsilon(1e-6));
  CHECK(loss({"--dtype", "fp4"}) != loss({"--dtype", "nf4"}));
  // With activations in 8 bits it is another computation, and a near one.
  const double full = loss({"--dtype", "nf4", "--block", "32"});
  const double int8 = loss({"--dtype", "nf4", "--block", "32", "--int8-activations"});
  CHECK(int8 != full);
  CHECK(int8 == Approx(full).epsilon(0.01));
  const Outcome refused = run(place.folder, {"eval", "--model", model, "--data", place.train, "--metrics", "loss", "--dtype", "native",
                                             "--int8-activations"});
  CHECK(refused.status == 1);
  CHECK(has(refused.err, "activations in 8 bits over a weight in Q"));
}

TEST_CASE("train: a configuration file instead of options") {
  const Workplace place;
  REQUIRE(run(place.folder, place.training("run", {"--max-steps", "1"})).status == 0);
  const std::string config = place.folder / "run/adapter_config.json";
  std::vector<std::string> arguments{"train", "--model", place.model, "--data", place.train, "--out", place.folder / "again",
                                     "--config", config, "--max-steps", "1", "--json"};
  const Outcome outcome = run(place.folder, arguments);
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  CHECK(outcome.json()["val_loss_before"].is_null());
  CHECK(peft::load_peft_adapter(place.folder / "again").config.r == 4);
  arguments.insert(arguments.end(), {"--r", "8"});
  CHECK(run(place.folder, arguments).status == 2);
  write_file(config, R"({"peft_type": "LORA", "target_modules": ["q_proj"], "use_qalora": true})");
  arguments.resize(arguments.size() - 2);
  const Outcome refused = run(place.folder, arguments);
  CHECK(refused.status == 1);
  CHECK(has(refused.err, "use_qalora"));
}

TEST_CASE("eval: loss, BLEU, ROUGE, facts; predictions for people") {
  const Workplace place;
  const nlohmann::json trained = run(place.folder, place.training("run")).json();
  const std::string predictions = place.folder / "predictions.jsonl";
  const Outcome outcome = run(place.folder, {"eval", "--model", place.model, "--adapter", place.folder / "run", "--data",
                                             place.val, "--predictions", predictions, "--max-tokens", "12", "--json"});
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  const nlohmann::json json = outcome.json();
  CHECK(json["loss"].get<double>() == trained["val_loss_after"].get<double>());
  CHECK(json["perplexity"].get<double>() == Approx(std::exp(json["loss"].get<double>())));
  CHECK(json["label_tokens"] == 2 * 6);  // E - 1 1 <|im_end|> \n
  CHECK(json["facts"] == 1);
  std::vector<std::string> answers, references;
  std::istringstream lines(read_file(predictions));
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    answers.push_back(record["answer"]);
    references.push_back(record["reference"]);
    CHECK(record["rougeL"].get<double>() ==
          peft::rouge(answers.back(), references.back(), peft::RougeMode::kWords).rougeL.fmeasure);
  }
  REQUIRE(answers.size() == 2);
  CHECK(json["bleu"].get<double>() == peft::corpus_bleu(answers, references).score);
  CHECK(json["rougeL"].get<double>() == peft::mean_rouge(answers, references).mean.rougeL.fmeasure);

  const Outcome base = run(place.folder, {"eval", "--model", place.model, "--data", place.val, "--metrics", "loss", "--json"});
  REQUIRE(base.status == 0);
  CHECK(base.json()["loss"].get<double>() == trained["val_loss_before"].get<double>());
  CHECK(base.json()["bleu"].is_null());
}

TEST_CASE("generate: streams what --json gives whole; the adapter speaks") {
  const Workplace place;
  REQUIRE(run(place.folder, place.training("run", {"--epochs", "40"})).status == 0);
  const std::vector<std::string> arguments{"generate", "--model", place.model, "--adapter", place.folder / "run", "--prompt",
                                           "the code of b?", "--max-tokens", "20"};
  const Outcome streamed = run(place.folder, arguments);
  REQUIRE(streamed.status == 0);
  auto whole = arguments;
  whole.emplace_back("--json");
  const nlohmann::json json = run(place.folder, whole).json();
  CHECK(streamed.out == json["text"].get<std::string>() + "\n");
  CHECK(json["text"] == "E-11");
  CHECK(json["prompt_s"].get<double>() > 0.0);
  CHECK(json["prompt_tokens"].get<Index>() > 10);
  auto drawn = arguments;
  drawn.insert(drawn.end(), {"--temperature", "5", "--seed", "4"});
  const std::string once = run(place.folder, drawn).out;
  CHECK(once == run(place.folder, drawn).out);
  drawn.insert(drawn.end(), {"--seed", "5"});
  CHECK(once != run(place.folder, drawn).out);
}

TEST_CASE("merge: the base's weight plus the update, under Hugging Face's names") {
  const Workplace place;
  REQUIRE(run(place.folder, place.training("run")).status == 0);
  const auto merge = [&](const std::string& out, const std::string& dtype) {
    const Outcome outcome = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / "run", "--out",
                                               place.folder / out, "--dtype", dtype});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
  };
  merge("wide.safetensors", "f32");
  const auto file = peft::SafetensorsFile::open(place.folder / "wide.safetensors");
  CHECK(file.tensors().size() == 2 + 2 * 9);
  peft_examples::ModelOptions options;
  options.model = place.model;
  peft_examples::Session<float> session(options);
  const peft::PeftAdapter adapter = peft::load_peft_adapter(place.folder / "run");
  double worst = 0, update = 0;
  for (const auto* site : session.sites()) {
    const peft::Matrix<float> merged = file.tensor(site->name() + ".weight").to_matrix();
    const peft::Matrix<float> base = peft::merged_weight(*site, peft::Selection<float>());
    const peft::LoraTensors& lora = *adapter.find(site->name());
    const peft::Matrix<float> a = lora.a.to_matrix(), b = lora.b.to_matrix();
    for (Index i = 0; i < base.rows(); ++i) {
      for (Index j = 0; j < base.cols(); ++j) {
        double sum = 0;
        for (Index k = 0; k < lora.r(); ++k) sum += static_cast<double>(b(i, k)) * static_cast<double>(a(k, j));
        update = std::max(update, std::fabs(8.0 * sum));  // alpha / r
        worst = std::max(worst, std::fabs(static_cast<double>(base(i, j)) + 8.0 * sum - static_cast<double>(merged(i, j))));
      }
    }
  }
  CHECK(update > 1e-3);
  CHECK(worst < 1e-6);  // weights and updates below 1: a few units of 2⁻²⁴
  merge("half.safetensors", "bf16");
  const auto half = peft::SafetensorsFile::open(place.folder / "half.safetensors");
  CHECK(half.tensor("model.norm.weight").type == peft::StoredType::kBF16);
  const auto narrow = half.tensor("model.layers.1.mlp.up_proj.weight").to_matrix();
  const auto full = file.tensor("model.layers.1.mlp.up_proj.weight").to_matrix();
  for (Index i = 0; i < full.size(); ++i) {
    REQUIRE(narrow.data()[i] == static_cast<float>(peft::bf16(full.data()[i])));
  }
}

TEST_CASE("inspect: what is in a file or folder, and why it would not load") {
  const Workplace place;
  REQUIRE(run(place.folder, place.training("run", {"--max-steps", "1"})).status == 0);
  const auto inspect = [&](const std::string& path) { return run(place.folder, {"inspect", path, "--json"}); };
  const auto check = [&](const std::string& path, const std::string& kind) {
    const Outcome outcome = inspect(path);
    INFO(outcome.out << outcome.err);
    CHECK(outcome.status == 0);
    CHECK(outcome.json()["kind"] == kind);
    CHECK(outcome.json()["loads"] == true);
    return outcome.json();
  };
  CHECK(check(place.model, "GGUF")["tensors"] == 20);
  CHECK(check(place.folder / "run", "PEFT adapter")["parameters"] == 3712);
  CHECK(check(place.folder / "run/adapter_model.safetensors", "safetensors")["tensors"] == 28);
  CHECK(check(place.folder / "run/checkpoint-last/train_state.safetensors", "train state")["state"]["global_step"] == "1");
  CHECK(check(place.folder / "run/adapter_config.json", "adapter configuration")["config"]["r"] == 4);
  CHECK(check(place.train, "instruction file")["records"] == 12);
  CHECK(has(run(place.folder, {"inspect", place.folder / "run"}).out, "loads"));

  const auto refused = [&](const std::string& path, const std::string& words) {
    const Outcome outcome = inspect(path);
    INFO(outcome.out);
    CHECK(outcome.status == 1);
    CHECK(outcome.json()["loads"] == false);
    CHECK(has(outcome.json()["problems"].dump(), words));
  };
  const std::string whole = read_file(place.model);
  write_file(place.folder / "cut.gguf", whole.substr(0, whole.size() - 100));
  refused(place.folder / "cut.gguf", "cut.gguf");
  write_file(place.folder / "other.gguf", peft_test::TinyGguf{.architecture = "mamba"}.bytes());
  refused(place.folder / "other.gguf", "mamba");
  write_file(place.folder / "cut.safetensors", place.adapter_bytes("run").substr(0, 200));
  refused(place.folder / "cut.safetensors", "cut.safetensors");
  refused(place.folder.path(), "adapter_config.json");
}

TEST_CASE("what is wrong is said with place and expectation, and nothing is left behind") {
  const Workplace place;
  const auto refuse = [&](std::vector<std::string> more, const std::string& words, int status = 1) {
    const Outcome outcome = run(place.folder, place.training("new", std::move(more)));
    INFO(outcome.err);
    CHECK(outcome.status == status);
    CHECK(has(outcome.err, words));
    CHECK_FALSE(fs::exists(place.folder / "new"));
  };
  const auto data = [&](const std::string& text) {
    write_file(place.folder / "bad.jsonl", text);
    return std::vector<std::string>{"--data", place.folder / "bad.jsonl"};
  };
  refuse(data("{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": }\n"), "bad.jsonl, line 2, column");
  refuse(data("{\"instruction\": \"a\"}\n"), "\"output\" is missing");
  refuse(data("\n\n"), "no record");
  refuse({"--data", place.folder / "none.jsonl"}, "none.jsonl", 2);
  refuse({"--r", "0"}, "--r", 2);
  refuse({"--dtype", "int3"}, "--dtype", 2);
  refuse({"--block", "64"}, "--block: is no option of --dtype f32", 2);
  refuse({"--no-double-quant", "--dtype", "native"}, "is no option of --dtype native", 2);
  refuse({"--int8-activations", "--dtype", "bf16"}, "--int8-activations: is no option of --dtype bf16", 2);
  refuse({"--int8-activations", "--dtype", "nf4"}, "is for eval and generate: rounding to 8 bits has no gradient", 2);
  refuse({"--method", "qlora", "--dtype", "bf16"}, "expected nf4 or fp4", 2);
  refuse({"--dtype", "nf4", "--block", "48"}, "the block size is 48");
  refuse({"--no-such-option"}, "--no-such-option", 2);
  refuse({"--target-modules", "query"}, "query");
  refuse({"--template", "none"}, "--template", 2);
  refuse({"--epochs", "-1"}, "num_train_epochs is -1");
  refuse({"--lr", "nan"}, "learning_rate");
  refuse({"--max-length", "1"}, "max_length is 1");
  refuse({"--resume"}, "begin a new run");
  write_file(place.folder / "cut.gguf", read_file(place.model).substr(0, 3000));
  refuse({"--model", place.folder / "cut.gguf"}, "cut.gguf");
  // Too long for a label to be left: every record says so, and there is nothing to train on.
  refuse({"--max-length", "12"}, "raise --max-length");

  REQUIRE(run(place.folder, place.training("run", {"--max-steps", "1"})).status == 0);
  const auto bytes = place.adapter_bytes("run");
  write_file(place.folder / "run/adapter_model.safetensors", bytes.substr(0, bytes.size() - 8));
  const Outcome eval = run(place.folder, {"eval", "--model", place.model, "--adapter", place.folder / "run", "--data", place.val});
  CHECK(eval.status == 1);
  CHECK(has(eval.err, "adapter_model.safetensors"));
  write_file(place.folder / "wide.gguf", peft_test::TinyGguf{.intermediate = 64}.bytes());
  write_file(place.folder / "run/adapter_model.safetensors", bytes);
  const Outcome other = run(place.folder, {"generate", "--model", place.folder / "wide.gguf", "--adapter", place.folder / "run", "--prompt", "x"});
  CHECK(other.status == 1);
  CHECK(has(other.err, "another shape"));
  CHECK(has(other.err, "mlp"));
}

TEST_CASE("train: a learning rate that breaks the numbers stops it, and the last good state stays") {
  const Workplace place;
  const Outcome outcome = run(place.folder, place.training("run", {"--lr", "1e30", "--max-grad-norm", "0"}));
  CHECK(outcome.status == 1);
  CHECK(has(outcome.err, "finite"));
  CHECK(has(outcome.err, "ower the learning rate"));
  CHECK_NOTHROW(peft::load_peft_adapter(place.folder / "run/checkpoint-last"));
}
