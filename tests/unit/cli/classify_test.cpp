// --task classify through the program: every method trained, tested, read again from its folder alone, resumed; and what does
// not fit is refused by name.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "peft/checkpoint/adapterhub_head.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/prompt_learning_directory.hpp"
#include "support/catch.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;
using peft::Index;

namespace {

using Arguments = std::vector<std::string>;

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }
Arguments joined(Arguments first, const Arguments& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

/// The tiny BERT of the goldens with a vocabulary, and texts whose class a word says.
struct Classes {
  ScratchFolder folder;
  std::string model = folder / "bert", train = folder / "train.jsonl", val = folder / "val.jsonl";

  Classes() {
    fs::create_directories(model);
    for (const char* name : {"config.json", "model.safetensors"}) {
      fs::copy_file(std::string(PEFT_GOLDEN_DIR) + "/bert/tiny/" + name, fs::path(model) / name);
    }
    std::string vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
    for (int i = 5; i < 60; ++i) vocabulary += "w" + std::to_string(i) + "\n";
    write_file(fs::path(model) / "vocab.txt", vocabulary);
    write_file(train, records(24, 0));
    write_file(val, records(9, 24));
  }
  static std::string records(int count, int from) {
    const char* const names[] = {"Herz \\u2665", "lung", "rare"};
    std::string lines;
    for (int i = from; i < from + count; ++i) {
      lines += R"({"text": "w)" + std::to_string(10 + i % 7) + " w" + std::to_string(20 + i % 3) + " w" + std::to_string(30 + i % 5) +
               R"(", "label": ")" + names[i % 3] + "\"}\n";
    }
    return lines;
  }
  Arguments training(const std::string& name, const Arguments& more) const {
    return joined({"train", "--task", "classify", "--model", model, "--data", train, "--val", val, "--out", folder / name,
                   "--batch", "8", "--accumulate", "1", "--epochs", "12", "--dropout-of-base", "0", "--json"},
                  more);
  }
  Outcome trained(const std::string& name, const Arguments& more) const {
    Outcome outcome = run(folder, training(name, more));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome;
  }
  Outcome eval(const std::string& name, const Arguments& more = {}) const {
    return run(folder, joined({"eval", "--task", "classify", "--model", model, "--adapter", folder / name, "--data", val, "--json"}, more));
  }
};

struct Case {
  std::string method;
  Arguments options;
  Index added;  ///< trained beside the head
};

/// Of the tiny BERT: hidden 32, feed-forward 48, two layers, 60 words, 40 positions, 2 types; a head of 3 · 33.
const std::vector<Case> kCases{
    {"lora", {"--r", "2", "--lr", "0.02"}, 2 * 2 * 2 * 64},
    {"rslora", {"--r", "2", "--lr", "0.02"}, 2 * 2 * 2 * 64},
    {"dora", {"--r", "2", "--lr", "0.02"}, 2 * 2 * (2 * 64 + 32)},
    {"ia3", {"--lr", "0.1"}, 2 * (32 + 32 + 32 + 48)},
    {"vera", {"--r", "4", "--lr", "0.1"}, 2 * 2 * (4 + 32)},
    {"loha", {"--r", "2", "--lr", "0.05"}, 2 * 2 * 2 * 2 * 64},
    {"lokr", {"--r", "2", "--alpha", "4", "--lr", "0.05"}, -1},
    {"adalora", {"--init-r", "4", "--target-r", "2", "--lr", "0.05"}, 2 * 2 * 4 * 65},
    {"bitfit", {"--lr", "0.05"}, 32 + 2 * (4 * 32 + 48 + 32 + 2 * 32) + 32},
    {"ln-tuning", {"--lr", "0.05"}, 5 * 64},
    {"full", {"--lr", "0.005"}, (60 + 40 + 2) * 32 + 64 + 2 * (4 * 32 * 33 + 48 * 33 + 32 * 49 + 2 * 64) + 32 * 33},
    {"head", {"--lr", "0.1"}, 0},
    {"prefix", {"--num-virtual-tokens", "4", "--lr", "0.05"}, 4 * 2 * 2 * 32},
    {"prompt", {"--num-virtual-tokens", "4", "--lr", "0.05"}, 4 * 32},
    {"p-tuning", {"--num-virtual-tokens", "3", "--encoder-hidden-size", "8", "--lr", "0.02"}, 3 * 32 + 32 * 8 + 8 + 8 * 8 + 8 + 8 * 32 + 32},
    {"adapter", {"--reduction-factor", "8", "--lr", "0.02"}, 2 * (2 * 32 * 4 + 4 + 32)},
    {"houlsby", {"--reduction-factor", "8", "--lr", "0.02"}, 4 * (2 * 32 * 4 + 4 + 32)},
    {"parallel", {"--reduction-factor", "8", "--lr", "0.02"}, 2 * (2 * 32 * 4 + 4 + 32)},
};

/// Trains with a head of `head` parameters, tests, and reads the folder again.
void check_learns(const Classes& place, const Case& one, Index head) {
  INFO(one.method);
  const Outcome training = place.trained(one.method, joined({"--method", one.method, "--test", place.val}, one.options));
  const nlohmann::json json = training.json();
  CHECK(has(training.err, "macro-F1"));
  CHECK(json["method"] == one.method);
  CHECK(json["labels"] == nlohmann::json{"Herz \u2665", "lung", "rare"});
  if (one.added >= 0) CHECK(json["trainable"] == one.added + head);
  CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>() - 0.02);
  CHECK(json["test"]["records"] == 9);
  CHECK(json["test"]["accuracy"] == json["val_accuracy"]);
  CHECK(json["test"]["macro_f1"] == json["val_macro_f1"]);

  const Outcome outcome = place.eval(one.method, {"--predictions", place.folder / "predictions.jsonl"});
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  const nlohmann::json eval = outcome.json();
  // A P-tuning's encoder is folded into rows, an AdaLoRA's dead columns are gone: sums in another order.
  CHECK(eval["loss"].get<double>() == Approx(json["val_loss_after"].get<double>()).epsilon(1e-5));
  CHECK(eval["confusion"] == json["test"]["confusion"]);
  CHECK(eval["classes"][1]["label"] == "lung");
  const std::string predictions = read_file(place.folder / "predictions.jsonl");
  CHECK(std::count(predictions.begin(), predictions.end(), '\n') == 9);
  const auto first = nlohmann::json::parse(predictions.substr(0, predictions.find('\n')));
  CHECK(first["label"] == "Herz \u2665");

  const nlohmann::json said = run(place.folder, {"classify", "--model", place.model, "--adapter", place.folder / one.method,
                                                 "--text", first["text"].get<std::string>(), "--json"}).json();
  CHECK(said["label"] == first["predicted"]);
  CHECK(said["probabilities"].size() == 3);
  CHECK(said["probabilities"]["lung"].get<double>() == Approx(first["probabilities"]["lung"].get<double>()).epsilon(1e-5));
  const Outcome inspect = run(place.folder, {"inspect", place.folder / one.method, "--json"});
  INFO(inspect.err);
  CHECK(inspect.status == 0);
}

}  // namespace

TEST_CASE("classify: every method learns, is tested, and its folder alone says the same classes") {
  const Classes place;
  for (const Case& one : kCases) check_learns(place, one, 3 * 33);
  // The task is learned, not only a little.
  CHECK(place.eval("lora").json()["accuracy"] == 1.0);
}

TEST_CASE("classify: folders are those of Python PEFT and AdapterHub, with the head under their names") {
  const Classes place;
  const Arguments brief{"--max-steps", "1"};
  const auto training = [&](const std::string& method, const Arguments& more = {}) {
    place.trained(method, joined(joined({"--method", method}, brief), more));
    return place.folder / method;
  };
  const fs::path lora = training("lora");
  const peft::AnyPeftAdapter parts = peft::load_any_peft_adapter(lora);
  CHECK(parts.config.get_if<peft::LoraConfig>()->task_type == "SEQ_CLS");
  CHECK(parts.config.get_if<peft::LoraConfig>()->modules_to_save == std::vector<std::string>{"classifier"});
  const auto of_head = [](const auto& tensors) {
    return std::count_if(tensors.begin(), tensors.end(), [](const auto& t) { return t.name == "classifier.weight" || t.name == "classifier.bias"; });
  };
  CHECK(of_head(parts.tensors) == 2);
  CHECK(nlohmann::json::parse(read_file(lora / "labels.json"))["id2label"]["1"] == "lung");
  const fs::path prompt = training("prompt");
  CHECK(of_head(peft::load_prompt_learning(prompt).modules) == 2);
  const fs::path hub = training("houlsby");
  CHECK(of_head(peft::load_adapterhub_head(hub).tensors) == 2);
  CHECK(nlohmann::json::parse(read_file(hub / "adapter_config.json"))["model_class"] == "BertForSequenceClassification");
  CHECK_FALSE(fs::exists(hub / "labels.json"));

  // Python's folders have no labels: the model's, or those that are given.
  fs::remove(lora / "labels.json");
  CHECK(place.eval("lora").status == 1);  // the model's third class is named as the data's, the first is not
  CHECK(has(place.eval("lora").err, "Herz"));
  CHECK(place.eval("lora", {"--labels", "Herz \u2665,lung,rare"}).status == 0);
  const Outcome two = place.eval("lora", {"--labels", "Herz \u2665,lung"});
  CHECK(two.status == 1);
  CHECK(has(two.err, "classifier"));
}

TEST_CASE("classify: AdapterHub's own head learns beside any method, in its files; the pooler is not there") {
  const Classes place;
  const Arguments own{"--head", "adapterhub"};
  const Index head = 32 * 33 + 3 * 33;
  for (Case one : kCases) {
    const bool is_full = one.method == "full";
    if (!is_full && one.method != "houlsby" && one.method != "lora" && one.method != "prompt") continue;
    one.options = joined(one.options, own);
    check_learns(place, one, is_full ? head - 32 * 33 : head);
    const fs::path folder = place.folder / one.method;
    CHECK_FALSE(fs::exists(folder / "labels.json"));
    const peft::AdapterHubHead file = peft::load_adapterhub_head(folder);
    CHECK(file.own == peft::ClassificationHeadConfig{});
    CHECK(file.labels == std::vector<std::string>{"Herz \u2665", "lung", "rare"});
    const nlohmann::json inspected = run(place.folder, {"inspect", folder, "--json"}).json();
    CHECK(inspected["head"]["layers"] == 2);
    CHECK(inspected["labels"][1] == "lung");
    if (one.added >= 0) CHECK(inspected["parameters"] == one.added + (is_full ? head - 32 * 33 : head));
  }
  CHECK(nlohmann::json::parse(read_file(place.folder / "houlsby/adapter_config.json"))["model_class"] == "BertAdapterModel");
  CHECK(peft::load_any_peft_adapter(place.folder / "lora").config.get_if<peft::LoraConfig>()->modules_to_save.empty());
  for (const peft::TensorRef& tensor : peft::load_any_peft_adapter(place.folder / "full").tensors) {
    CHECK_FALSE(has(tensor.name, "pooler"));
    CHECK_FALSE(has(tensor.name, "heads."));
  }
  CHECK(peft::load_prompt_learning(place.folder / "prompt").modules.empty());

  // What does not fit, by name.
  const auto refused = [&](const Outcome& outcome, int status, const Arguments& words) {
    INFO(outcome.err);
    CHECK(outcome.status == status);
    for (const std::string& word : words) CHECK(has(outcome.err, word));
  };
  refused(place.eval("lora", {"--labels", "Herz \u2665,lung"}), 1, {"its head has 3 classes, 2 are named"});
  CHECK(place.eval("lora", {"--labels", "Herz \u2665,lung,rare"}).status == 0);
  refused(run(place.folder, place.training("new", {"--method", "head", "--head", "adapterhub"})), 2, {"--head", "--method head"});
  refused(run(place.folder, place.training("new", {"--head", "own"})), 2, {"--head", "own"});
  refused(run(place.folder, {"train", "--model", place.model, "--data", place.train, "--out", place.folder / "new", "--head", "adapterhub"}),
          2, {"--head", "is an option of --task classify"});
  CHECK_FALSE(fs::exists(place.folder / "new"));
  // A run goes on with the head that it began with.
  refused(run(place.folder, place.training("houlsby", {"--method", "houlsby", "--reduction-factor", "8", "--lr", "0.02", "--resume"})), 1,
          {"resuming", "--head is not set, but the saved run has \"adapterhub\"", "began with"});
  // A head of a wider model.
  const peft::Matrix<float> first = peft::Matrix<float>::zeros(24, 24), last = peft::Matrix<float>::zeros(3, 24);
  const auto bias_of = [](const char* name, const peft::Matrix<float>& weight) {
    return peft::tensor_ref<float>(name, peft::VectorView<const float>(weight.data(), weight.rows()));
  };
  peft::AtomicDirectory set(place.folder / "lora");
  peft::write_adapterhub_head(set, {"default", "bert", "BertAdapterModel", "bert", 24}, peft::ClassificationHeadConfig{},
                              {"Herz \u2665", "lung", "rare"},
                              std::vector<peft::TensorRef>{peft::tensor_ref<float>("heads.default.1.weight", first.view()),
                                                           bias_of("heads.default.1.bias", first),
                                                           peft::tensor_ref<float>("heads.default.4.weight", last.view()),
                                                           bias_of("heads.default.4.bias", last)});
  set.commit();
  refused(place.eval("lora"), 1, {"hidden_size 24; expected 32"});
}

TEST_CASE("classify: the model's own head is measured where there is no adapter") {
  const Classes place;
  std::string lines = Classes::records(9, 0);
  for (std::size_t at; (at = lines.find("Herz \\u2665")) != std::string::npos;) lines.replace(at, 11, "heart");
  write_file(place.folder / "own.jsonl", lines);
  const Outcome own = run(place.folder, {"eval", "--task", "classify", "--model", place.model, "--data", place.folder / "own.jsonl"});
  INFO(own.err);
  CHECK(own.status == 0);
  CHECK(has(own.out, "true \\ predicted"));
  CHECK(has(own.out, "heart"));
  const Outcome said = run(place.folder, {"classify", "--model", place.model, "--text", "w12 w20"});
  CHECK(said.status == 0);
  CHECK(has(said.out, " %  "));
}

TEST_CASE("classify: stopped and resumed, its activations checkpointed, it ends where an uninterrupted run does, bit for bit") {
  const Classes place;
  const std::vector<std::pair<std::string, Arguments>> cases{
      {"prompt", {"--method", "prompt", "--num-virtual-tokens", "3"}},
      {"houlsby", {"--method", "houlsby", "--reduction-factor", "8", "--dropout", "0.1"}},
      {"lora", {"--method", "lora", "--r", "2", "--bias", "all"}},
      {"own-head", {"--method", "adapter", "--reduction-factor", "8", "--head", "adapterhub"}},
  };
  for (const auto& [name, options] : cases) {
    INFO(name);
    const Arguments longer = joined(options, {"--epochs", "60", "--dropout-of-base", "0.1", "--save-steps", "1000",
                                              "--eval-steps", "1000", "--lr", "0.01"});
    REQUIRE(run(place.folder, place.training(name, longer)).status == 0);
    const std::string part = name + "-resumed";
    const Arguments again = joined(longer, {"--checkpoint-activations"});
    const Outcome stopped = run(place.folder, place.training(part, again), interrupt_training(place.folder / part));
    INFO(stopped.err);
    REQUIRE(stopped.status == 130);
    const Outcome resumed = run(place.folder, place.training(part, joined(again, {"--resume"})));
    INFO(resumed.err);
    REQUIRE(resumed.status == 0);
    for (const char* file : {"adapter_model.safetensors", "adapter.safetensors", "model_head.safetensors", "adapter_config.json",
                             "labels.json", "head_config.json"}) {
      CHECK(fs::exists(place.folder / (part + "/" + file)) == fs::exists(place.folder / (name + "/" + file)));
      if (fs::exists(place.folder / (name + "/" + file))) {
        CHECK(read_file(place.folder / (part + "/" + file)) == read_file(place.folder / (name + "/" + file)));
      }
    }
  }
}

TEST_CASE("classify: what does not fit is refused by name, and nothing is left behind") {
  const Classes place;
  const auto refuse = [&](const Arguments& more, int status, const Arguments& words) {
    const Outcome outcome = run(place.folder, place.training("new", more));
    INFO(outcome.err);
    CHECK(outcome.status == status);
    for (const std::string& word : words) CHECK(has(outcome.err, word));
    CHECK_FALSE(fs::exists(place.folder / "new"));
  };
  const std::string gguf = place.folder / "tiny.gguf";
  write_file(gguf, peft_test::TinyGguf{}.bytes());
  refuse({"--model", gguf}, 1, {"tiny.gguf is a file", "Hugging Face folder of a BERT", "GGUF"});
  refuse({"--dtype", "bf16"}, 1, {"--dtype is bf16; expected f32"});
  refuse({"--template", "plain"}, 2, {"--template", "none of --task classify"});
  refuse({"--saved-activations", "bf16"}, 2, {"--saved-activations"});
  refuse({"--memory-budget", "1G"}, 2, {"--memory-budget", "none of --task classify"});
  refuse({"--method", "prefix", "--prefix-init-text", "w12"}, 1, {"--prefix-init-text"});
  refuse({"--method", "prompt", "--num-virtual-tokens", "38"}, 1, {"num_virtual_tokens is 38; the model reads 40"});
  refuse({"--target-modules", "q_proj"}, 1, {"q_proj", "query"});
  refuse({"--max-length", "2"}, 1, {"max_length is 2"});
  write_file(place.folder / "config.json", R"({"peft_type": "LORA", "target_modules": ["query"], "task_type": "CAUSAL_LM"})");
  refuse({"--config", place.folder / "config.json"}, 1, {"task_type is \"CAUSAL_LM\"", "SEQ_CLS"});
  write_file(place.folder / "one.jsonl", R"({"text": "w10", "label": "lung"})" "\n");
  refuse({"--data", place.folder / "one.jsonl"}, 1, {"1 labels", "two classes"});
  write_file(place.folder / "other.jsonl", R"({"text": "w10", "label": "skin"})" "\n");
  refuse({"--val", place.folder / "other.jsonl"}, 1, {"skin", "line 1"});
  write_file(place.folder / "instructions.jsonl", R"({"instruction": "w10", "output": "skin"})" "\n");
  refuse({"--data", place.folder / "instructions.jsonl"}, 1, {"text"});

  // The other task.
  const Outcome head = run(place.folder, {"train", "--model", gguf, "--data", place.train, "--out", place.folder / "new", "--method", "head"});
  CHECK(head.status == 2);
  CHECK(has(head.err, "--task classify"));
  const Outcome test = run(place.folder, {"train", "--model", gguf, "--data", place.train, "--out", place.folder / "new", "--test", place.val});
  CHECK(test.status == 2);
  CHECK(has(test.err, "is an option of --task classify"));

  // Folders without a head, and models of another kind.
  place.trained("lora", {"--method", "lora", "--max-steps", "1"});
  place.trained("houlsby", {"--method", "houlsby", "--max-steps", "1"});
  fs::remove(place.folder / "houlsby/head_config.json");
  fs::remove(place.folder / "houlsby/model_head.safetensors");
  const Outcome headless = place.eval("houlsby", {"--labels", "Herz \u2665,lung,rare"});
  CHECK(headless.status == 1);
  CHECK(has(headless.err, "no classification head"));
  std::string config = read_file(fs::path(place.model) / "config.json");
  config.replace(config.find("\"bert\""), 6, "\"llama\"");
  fs::create_directories(place.folder / "llama");
  write_file(place.folder / "llama/config.json", config);
  refuse({"--model", place.folder / "llama"}, 1, {"model_type is \"llama\""});
  const Outcome generate = run(place.folder, {"generate", "--model", place.model, "--adapter", place.folder / "lora", "--prompt", "w10"});
  CHECK(generate.status == 1);
  CHECK(has(generate.err, "tokenizer: WordPiece; expected byte pairs"));
  CHECK(has(generate.err, "--task classify"));
}
