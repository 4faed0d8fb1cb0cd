// Every method through the program: trained, resumed, evaluated, asked, inspected; and what does not fit is refused by
// name.

#include <algorithm>
#include <cmath>
#include <functional>

#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/prompt_learning_directory.hpp"
#include "support/catch.hpp"
#include "support/model_folder.hpp"
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

/// A workplace whose trainings name a method.
struct Methods : Workplace {
  /// Few steps of a method, into folder/name.
  Arguments training(const std::string& name, const Arguments& more) const {
    return joined({"train", "--model", model, "--data", train, "--val", val, "--out", folder / name, "--batch", "4",
                   "--accumulate", "1", "--epochs", "4", "--json"},
                  more);
  }
  Outcome eval(const std::string& name, const Arguments& more = {}) const {
    return run(folder, joined({"eval", "--model", model, "--adapter", folder / name, "--data", val, "--max-tokens", "6", "--json"}, more));
  }
  Outcome trained(const std::string& name, const Arguments& more) const {
    Outcome outcome = run(folder, training(name, more));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome;
  }
};

struct Case {
  std::string method;
  Arguments options;
  std::string peft_type;
  Index trainable;
};

/// Of TinyGguf: hidden 32, keys 16 wide, feed-forward 48, two layers. The learning rates make twelve steps tell.
const std::vector<Case> kCases{
    {"lora", {"--r", "2", "--lr", "0.01"}, "LORA", 2 * (2 * (32 + 32) + 2 * (32 + 16))},
    {"rslora", {"--r", "2", "--lr", "0.01"}, "LORA", 2 * (2 * (32 + 32) + 2 * (32 + 16))},
    {"dora", {"--r", "2", "--lr", "0.01"}, "LORA", 2 * (2 * (32 + 32) + 32 + 2 * (32 + 16) + 16)},
    {"ia3", {"--lr", "0.1"}, "IA3", 2 * (16 + 16 + 48)},
    {"vera", {"--r", "4", "--lr", "0.1"}, "VERA", 2 * (4 + 32 + 4 + 16)},
    {"loha", {"--r", "2", "--lr", "0.05"}, "LOHA", 2 * (2 * 2 * (32 + 32) + 2 * 2 * (32 + 16))},
    {"lokr", {"--r", "2", "--alpha", "4", "--lr", "0.05"}, "LOKR", 0},
    {"adalora", {"--init-r", "4", "--target-r", "2", "--lr", "0.05"}, "ADALORA", 2 * (4 * (32 + 32 + 1) + 4 * (32 + 16 + 1))},
    {"prefix", {"--num-virtual-tokens", "4", "--lr", "0.05"}, "PREFIX_TUNING", 4 * 2 * 2 * 16},
    {"prompt", {"--num-virtual-tokens", "4", "--lr", "0.1"}, "PROMPT_TUNING", 4 * 32},
    {"p-tuning", {"--num-virtual-tokens", "4", "--encoder-hidden-size", "8", "--lr", "0.05"}, "P_TUNING",
     4 * 32 + 32 * 8 + 8 + 8 * 8 + 8 + 8 * 32 + 32},
    {"ln-tuning", {"--lr", "0.1"}, "LN_TUNING", (2 * 2 + 1) * 32},
    // The embedding of 261 tokens, which is the head too; norms; q, k, v, o, gate, up, down.
    {"full", {"--lr", "0.01"}, "FULL", 261 * 32 + 5 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)},
    {"adapter", {"--reduction-factor", "8", "--lr", "0.05"}, "", 2 * (32 * 4 + 4 + 4 * 32 + 32)},
    {"houlsby", {"--reduction-factor", "8", "--lr", "0.05"}, "", 4 * (32 * 4 + 4 + 4 * 32 + 32)},
    {"parallel", {"--reduction-factor", "8", "--lr", "0.05"}, "", 2 * (32 * 4 + 4 + 4 * 32 + 32)},
};

}  // namespace

TEST_CASE("every method: trains, evaluates to the same loss, answers, and its folder is inspected") {
  const Methods place;
  const double base = run(place.folder, {"eval", "--model", place.model, "--data", place.val, "--metrics", "loss", "--json"}).json()["loss"];
  for (const Case& one : kCases) {
    INFO(one.method);
    const nlohmann::json json = place.trained(one.method, joined({"--method", one.method}, one.options)).json();
    CHECK(json["method"] == one.method);
    CHECK(json["steps"] == 12);
    if (one.trainable > 0) CHECK(json["trainable"] == one.trainable);
    CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>() - 0.02);
    const bool of_hub = one.peft_type.empty();
    CHECK(json["bytes"] == fs::file_size(place.folder / (one.method + (of_hub ? "/adapter.safetensors" : "/adapter_model.safetensors"))));

    const nlohmann::json config = nlohmann::json::parse(read_file(place.folder / (one.method + "/adapter_config.json")));
    if (of_hub) {
      CHECK(config["model_type"] == "llama");
      CHECK(config["model_class"] == "LlamaForCausalLM");
      CHECK(config["model_name"] == "tiny.gguf");
      CHECK(config["config"]["mh_adapter"] == (one.method == "houlsby"));
      CHECK(config["config"]["is_parallel"] == (one.method == "parallel"));
      CHECK(config["config"]["reduction_factor"] == 8);
    } else {
      CHECK(config["peft_type"] == one.peft_type);
      CHECK(config["task_type"] == "CAUSAL_LM");
      CHECK(config["base_model_name_or_path"] == "tiny.gguf");
      CHECK(config["inference_mode"] == true);
    }

    const Outcome eval = place.eval(one.method);
    INFO(eval.err);
    REQUIRE(eval.status == 0);
    // A P-tuning's encoder is folded into rows of f32, an AdaLoRA's dead columns are gone: sums in another order.
    CHECK(eval.json()["loss"].get<double>() == Approx(json["val_loss_after"].get<double>()).epsilon(1e-5));
    CHECK(std::fabs(eval.json()["loss"].get<double>() - base) > 1e-3);

    const Outcome answer = run(place.folder, {"generate", "--model", place.model, "--adapter", place.folder / one.method, "--prompt",
                                              "the code of b?", "--max-tokens", "5", "--json"});
    CHECK(answer.status == 0);
    const Outcome inspect = run(place.folder, {"inspect", place.folder / one.method, "--json"});
    INFO(inspect.out);
    CHECK(inspect.status == 0);
    CHECK(inspect.json()["kind"] == (of_hub ? "AdapterHub adapter" : "PEFT adapter"));
    if (!of_hub) CHECK(inspect.json()["config"]["peft_type"] == one.peft_type);
    CHECK(inspect.json()["parameters"].get<Index>() > 0);
    const Outcome of_config = run(place.folder, {"inspect", place.folder / (one.method + "/adapter_config.json"), "--json"});
    CHECK(of_config.json()["kind"] == "adapter configuration");
    CHECK(of_config.json()["config"] == inspect.json()["config"]);
  }
}

TEST_CASE("every kind of method: stopped and resumed, its activations checkpointed, it ends where an uninterrupted run does, bit for bit") {
  const Methods place;
  const std::vector<std::pair<std::string, Arguments>> cases{
      {"prefix", {"--method", "prefix", "--prefix-projection", "--encoder-hidden-size", "8", "--num-virtual-tokens", "3"}},
      {"prompt", {"--method", "prompt", "--num-virtual-tokens", "3", "--dtype", "bf16"}},
      {"p-tuning",
       {"--method", "p-tuning", "--num-virtual-tokens", "3", "--encoder-reparameterization-type", "LSTM", "--encoder-hidden-size",
        "8", "--encoder-dropout", "0.1"}},
      {"adalora", {"--method", "adalora", "--init-r", "4", "--target-r", "2", "--tinit", "2", "--deltaT", "3", "--tfinal", "82"}},
      {"vera", {"--method", "vera", "--r", "4", "--vera-dropout", "0.1", "--modules-to-save", "norm,embed_tokens"}},
      {"houlsby", {"--method", "houlsby", "--reduction-factor", "8", "--dropout", "0.1"}},
  };
  for (const auto& [name, options] : cases) {
    INFO(name);
    const Arguments longer = joined(options, {"--epochs", "30", "--save-steps", "1000", "--eval-steps", "1000", "--lr", "0.01"});
    REQUIRE(run(place.folder, place.training(name, longer)).status == 0);
    const std::string part = name + "-resumed";
    const Arguments again = joined(longer, {"--checkpoint-activations"});
    const Outcome stopped = run(place.folder, place.training(part, again), interrupt_training(place.folder / part));
    INFO(stopped.err);
    REQUIRE(stopped.status == 130);
    const Outcome resumed = run(place.folder, place.training(part, joined(again, {"--resume"})));
    INFO(resumed.err);
    REQUIRE(resumed.status == 0);
    CHECK(resumed.json()["steps"] == 90);
    const std::string weights = name == "houlsby" ? "/adapter.safetensors" : "/adapter_model.safetensors";
    CHECK(read_file(place.folder / (part + weights)) == read_file(place.folder / (name + weights)));
    CHECK(read_file(place.folder / (part + "/adapter_config.json")) == read_file(place.folder / (name + "/adapter_config.json")));
  }
}

TEST_CASE("AdaLoRA: ranks fall to the budget, and the file has what is left, as PEFT writes it") {
  const Methods place;
  place.trained("run", {"--method", "adalora", "--init-r", "4", "--target-r", "1", "--lr", "0.05"});
  const peft::AnyPeftAdapter adapter = peft::load_any_peft_adapter(place.folder / "run");
  const auto* config = adapter.config.get_if<peft::AdaLoraConfig>();
  REQUIRE(config != nullptr);
  CHECK(config->total_step == 12);
  REQUIRE(config->rank_pattern.size() == 4);
  Index left = 0;
  for (const auto& [key, kept] : config->rank_pattern) {
    INFO(key);
    const Index rank = std::count(kept.begin(), kept.end(), true);
    left += rank;
    const auto e = std::find_if(adapter.tensors.begin(), adapter.tensors.end(), [&k = key](const auto& t) { return t.name == k; });
    REQUIRE(e != adapter.tensors.end());
    CHECK(e->rows() == rank);
  }
  CHECK(left == 4);  // target_r of each of four modules
  const Outcome best = run(place.folder, place.training("new", {"--method", "adalora", "--load-best-model-at-end"}));
  CHECK(best.status == 1);
  CHECK(has(best.err, "load_best_model_at_end"));
}

TEST_CASE("virtual tokens: a text's activations and a text's embeddings start alike; they take room from the context") {
  const Methods place;
  const std::string text = "the code of a thing";
  const auto before = [&](const std::string& name, const Arguments& options) {
    return place.trained(name, joined(options, {"--num-virtual-tokens", "12", "--max-steps", "1"})).json()["val_loss_before"].get<double>();
  };
  const double prefix = before("prefix", {"--method", "prefix", "--prefix-init-text", text});
  const double prompt = before("prompt", {"--method", "prompt", "--prompt-tuning-init-text", text});
  CHECK(prefix == Approx(prompt).epsilon(1e-5));  // the same sums, in another order
  CHECK(std::fabs(prefix - before("random", {"--method", "prefix"})) > 1e-3);
  const auto config = nlohmann::json::parse(read_file(place.folder / "prompt/adapter_config.json"));
  CHECK(config["prompt_tuning_init"] == "TEXT");
  CHECK(config["prompt_tuning_init_text"] == text);
  CHECK(config["tokenizer_name_or_path"] == "tiny.gguf");

  // 256 positions, 230 of them virtual: the questions do not fit.
  const Outcome narrow = place.trained("narrow", {"--method", "prompt", "--num-virtual-tokens", "180", "--max-steps", "1", "--template", "plain"});
  CHECK(has(narrow.err, "what the virtual tokens leave of the context") == false);
  write_file(place.folder / "long.jsonl", R"({"instruction": "ok", "output": "E-1"})" "\n" R"({"instruction": ")" + std::string(100, 'x') +
                                              R"(", "output": "E-2"})" "\n");
  const Outcome eval = place.eval("narrow", {"--data", place.folder / "long.jsonl", "--template", "plain"});
  CHECK(eval.status == 1);
  CHECK(has(eval.err, "line 2: the prompt has"));
  CHECK(has(eval.err, "behind its 180 virtual tokens"));
  CHECK(has(eval.err, "1 of 2 records are longer than what the virtual tokens leave of the context, 76"));
  const Outcome full = run(place.folder, place.training("full", {"--method", "prefix", "--num-virtual-tokens", "255"}));
  CHECK(full.status == 1);
  CHECK(has(full.err, "num_virtual_tokens is 255; the model reads 256 tokens"));
}

TEST_CASE("options and configurations of another method are refused by name") {
  const Methods place;
  const auto refuse = [&](const Arguments& more, int status, const Arguments& words) {
    const Outcome outcome = run(place.folder, place.training("new", more));
    INFO(outcome.err);
    CHECK(outcome.status == status);
    for (const std::string& word : words) CHECK(has(outcome.err, word));
    CHECK_FALSE(fs::exists(place.folder / "new"));
  };
  refuse({"--num-virtual-tokens", "8"}, 2, {"--num-virtual-tokens", "--method lora", "prefix, prompt, p-tuning"});
  refuse({"--method", "prefix", "--r", "8"}, 2, {"--r", "--method prefix", "lora, rslora, dora"});
  refuse({"--method", "ia3", "--use-dora"}, 2, {"--use-dora", "--method ia3"});
  refuse({"--method", "houlsby", "--target-modules", "q_proj"}, 2, {"--target-modules", "--method houlsby"});
  refuse({"--method", "lore"}, 2, {"lore is no method", "p-tuning"});
  refuse({"--method", "prompt", "--prompt-tuning-init", "TEXT"}, 1, {"prompt_tuning_init_text"});
  refuse({"--method", "prefix", "--init-weights", "ones"}, 1, {"init_weights", "ones"});
  refuse({"--method", "vera", "--d-initial", "x"}, 1, {"--d-initial is \"x\""});
  refuse({"--method", "adalora", "--tfinal", "12"}, 1, {"tfinal 12"});
  refuse({"--method", "bitfit"}, 1, {"no parameter of that kind"});
  refuse({"--method", "parallel", "--non-linearity", "mish"}, 1, {"non_linearity", "mish"});
  refuse({"--init-lora-weights", "pizza"}, 1, {"init_lora_weights = \"pizza\""});
  refuse({"--method", "prefix", "--prefix-projection", "--prefix-init-text", "a"}, 1, {"prefix_projection"});

  place.trained("prefix", {"--method", "prefix", "--num-virtual-tokens", "4", "--max-steps", "1"});
  const std::string config = place.folder / "prefix/adapter_config.json";
  refuse({"--config", config, "--method", "lora"}, 1, {"PREFIX_TUNING", "LORA"});
  refuse({"--config", config, "--num-virtual-tokens", "3"}, 2, {"--num-virtual-tokens", "--config"});
  const nlohmann::json again = place.trained("again", {"--config", config, "--max-steps", "1"}).json();
  CHECK(again["method"] == "prefix");
  CHECK(again["learning_rate"] == 0.01);
  CHECK(peft::load_prompt_learning(place.folder / "again").prompt_embeddings.rows() == 4);
  CHECK(place.adapter_bytes("again") == place.adapter_bytes("prefix"));
  write_file(config, R"({"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": [], "layers": 3})");
  refuse({"--config", config}, 1, {"layers"});
}

TEST_CASE("merge: what is in the weights of linear layers; another method is refused by name") {
  const Methods place;
  for (const auto& [method, kind] : {std::pair<std::string, std::string>{"prefix", "a prefix"}, {"prompt", "a prompt"}, {"adapter", "a bottleneck adapter"}}) {
    place.trained(method, {"--method", method, "--max-steps", "1"});
    const Outcome outcome = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / method, "--out", place.folder / "merged.gguf"});
    CHECK(outcome.status == 1);
    CHECK(has(outcome.err, "is " + kind));
    CHECK_FALSE(fs::exists(place.folder / "merged.gguf"));
  }
  for (const std::string module : {"embed_tokens", "lm_head"}) {  // one matrix in the file
    place.trained(module, {"--modules-to-save", module, "--max-steps", "1"});
    const Outcome outcome = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / module, "--out", place.folder / "no.gguf"});
    CHECK(outcome.status == 1);
    CHECK(has(outcome.err, "which is the same matrix"));
  }
  const std::vector<std::pair<std::string, Arguments>> merged{
      {"ia3", {}}, {"adalora", {}}, {"dora", {"--modules-to-save", "norm"}}, {"ln-tuning", {}}, {"full", {}},
      {"lora", {"--trainable-token-indices", "45,49"}}};
  for (const auto& [method, more] : merged) {
    INFO(method);
    const double loss = place.trained(method, joined({"--method", method, "--lr", "0.05"}, more)).json()["val_loss_after"];
    const std::string out = place.folder / (method + ".gguf");
    const Outcome outcome = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / method, "--out", out});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    const Outcome eval = run(place.folder, {"eval", "--model", out, "--data", place.val, "--metrics", "loss", "--json"});
    REQUIRE(eval.status == 0);
    CHECK(eval.json()["loss"].get<double>() == Approx(loss).epsilon(1e-5));
  }
}

TEST_CASE("a model with biases: BitFit trains them, merging writes them; AdapterHub has no layout for it") {
  const Methods place;
  const std::string model = peft_test::model_folder(place.folder, "qwen2");
  const auto on_qwen2 = [&](const std::string& name, const Arguments& more) {
    return run(place.folder, joined(place.training(name, {"--model", model, "--template", "plain", "--lr", "0.05"}), more));
  };
  const std::vector<std::pair<std::string, Arguments>> cases{{"bitfit", {}}, {"ia3", {}}, {"lora", {"--bias", "all", "--target-modules", "q_proj"}}};
  for (const auto& [method, more] : cases) {
    INFO(method);
    const Outcome trained = on_qwen2(method, joined({"--method", method}, more));
    INFO(trained.err);
    REQUIRE(trained.status == 0);
    const nlohmann::json json = trained.json();
    CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>());
    const std::string out = place.folder / (method + "-merged");
    const Outcome outcome = run(place.folder, {"merge", "--model", model, "--adapter", place.folder / method, "--out", out});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    const Outcome eval = run(place.folder, {"eval", "--model", out, "--data", place.val, "--template", "plain", "--metrics", "loss", "--json"});
    CHECK(eval.json()["loss"].get<double>() == Approx(json["val_loss_after"].get<double>()).epsilon(1e-5));
  }
  const Outcome adapter = on_qwen2("adapter", {"--method", "adapter"});
  CHECK(adapter.status == 1);
  CHECK(has(adapter.err, "qwen2"));
  const Outcome bias = on_qwen2("bias", {"--method", "lora", "--lora-bias", "--target-modules", "o_proj"});
  REQUIRE(bias.status == 0);
  const Outcome refused = run(place.folder, {"merge", "--model", model, "--adapter", place.folder / "bias", "--out", place.folder / "no"});
  CHECK(refused.status == 1);
  CHECK(has(refused.err, "o_proj a bias"));
}
