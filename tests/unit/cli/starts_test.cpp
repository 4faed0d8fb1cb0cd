// Starts of LoRA from the base's weights and from what the records make of its inputs, through the program: trained, resumed,
// and what is saved is a plain LoRA of the unchanged base. And aLoRA.

#include <cmath>

#include "peft/checkpoint/peft_directory.hpp"
#include "support/catch.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;
using peft::Index;

namespace {

using Arguments = std::vector<std::string>;

struct Starts : Workplace {
  Arguments with(const std::string& name, const Arguments& more) const {
    Arguments all{"train", "--model", model, "--data", train, "--val", val, "--out", folder / name, "--batch", "4", "--accumulate",
                  "1", "--epochs", "4", "--lr", "0.01", "--r", "4", "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  nlohmann::json trained(const std::string& name, const Arguments& more) const {
    const Outcome outcome = run(folder, with(name, more));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json();
  }
  double loss(const std::string& of, const std::string& adapter) const {
    Arguments all{"eval", "--model", of, "--data", val, "--metrics", "loss", "--json"};
    if (!adapter.empty()) all.insert(all.end(), {"--adapter", folder / adapter});
    const Outcome outcome = run(folder, all);
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json()["loss"].get<double>();
  }
  /// What the model says to a prompt, with an adapter or (empty) without.
  std::string answer(const std::string& adapter, const std::string& prompt, const std::string& prompt_template) const {
    Arguments all{"generate", "--model", model, "--prompt", prompt, "--template", prompt_template, "--max-tokens", "8", "--json"};
    if (!adapter.empty()) all.insert(all.end(), {"--adapter", folder / adapter});
    const Outcome outcome = run(folder, all);
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome.json()["text"].get<std::string>();
  }
  peft::LoraConfig config(const std::string& name) const {
    return *peft::load_any_peft_adapter(folder / name).config.get_if<peft::LoraConfig>();
  }
};

}  // namespace

TEST_CASE("starts from the base's weights: what is saved does on the unchanged base what was trained") {
  const Starts place;
  const double base = place.loss(place.model, "");
  const std::vector<std::pair<std::string, Arguments>> cases{
      {"pissa", {}},
      {"pissa_niter_4", {"--use-rslora"}},
      {"olora", {"--modules-to-save", "norm", "--trainable-token-indices", "45,49"}},
      {"pissa", {"--use-dora", "--target-modules", "o_proj,gate_proj"}},
      {"olora", {"--target-modules", "embed_tokens,down_proj"}},
      {"orthogonal", {}},
  };
  int number = 0;
  for (const auto& [start, more] : cases) {
    INFO(start << " " << number);
    const std::string name = start + std::to_string(number++);
    Arguments options = more;
    options.insert(options.end(), {"--init-lora-weights", start});
    const nlohmann::json json = place.trained(name, options);
    // 60 weights times [., 32] sums: the remainder W − sBA and sBA come back as W to 2^-24 relative, and so do the logits.
    CHECK(json["val_loss_before"].get<double>() == Approx(base).epsilon(1e-5));
    CHECK(json["val_loss_after"].get<double>() < base - 0.02);
    CHECK(place.loss(place.model, name) == Approx(json["val_loss_after"].get<double>()).epsilon(1e-5));
    const peft::LoraConfig config = place.config(name);
    const bool converted = start != "orthogonal";
    CHECK(config.r == (converted ? 8 : 4));
    if (converted) CHECK(config.init_lora_weights == std::variant<bool, std::string>(true));
    if (number == 5) continue;  // an embedding apart from the head that it is tied to does not merge
    const std::string merged = place.folder / (name + ".gguf");
    const Outcome outcome = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / name, "--out", merged});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(place.loss(merged, "") == Approx(json["val_loss_after"].get<double>()).epsilon(1e-5));
  }
}

TEST_CASE("starts over weights in four bits: the changed base is kept, and on it the adapter is what was trained") {
  const Starts place;
  const double base = place.loss(place.model, "");
  const std::vector<std::pair<std::string, Arguments>> cases{
      {"loftq", {"--loftq-iter", "5", "--block", "32", "--report-start"}},
      {"pissa", {"--target-modules", "all-linear", "--no-double-quant"}},
      {"pissa_niter_4", {"--dtype", "fp4"}},
  };
  for (const auto& [start, more] : cases) {
    INFO(start);
    Arguments options{"--init-lora-weights", start};
    if (start != "pissa_niter_4") options.insert(options.end(), {"--dtype", "nf4"});
    options.insert(options.end(), more.begin(), more.end());
    const Outcome outcome = run(place.folder, place.with(start, options));
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(outcome.err.find("the base and its update leave") != std::string::npos);
    CHECK((outcome.err.find("sign flips") != std::string::npos) == (start == "loftq"));
    const nlohmann::json json = outcome.json();
    const double after = json["val_loss_after"].get<double>();
    CHECK(after < base - 0.02);
    // Decoded in memory, the changed base has the same values; sums go in another order.
    CHECK(place.loss(json["changed_base"].get<std::string>(), start + "/base/adapter") == Approx(after).epsilon(1e-5));
    CHECK(place.config(start + "/base/adapter").r == 4);
    // For the base as it was: the plain LoRA of twice the rank, but for what four bits left of the weight.
    CHECK(place.config(start).r == 8);
    CHECK(place.loss(place.model, start) == Approx(after).margin(0.2));
  }
  const auto refused = [&](const Arguments& options, const std::string& message) {
    const Outcome outcome = run(place.folder, place.with("refused", options));
    INFO(outcome.err);
    CHECK(outcome.status == 1);
    CHECK(outcome.err.find(message) != std::string::npos);
  };
  refused({"--init-lora-weights", "loftq"}, "is for a base whose weights are quantised");
  refused({"--init-lora-weights", "pissa", "--dtype", "int8"}, "one in int8 has no file");
}

TEST_CASE("EVA: ranks are shared out by the records, saved, and the budget stays") {
  const Starts place;
  const nlohmann::json json = place.trained("eva", {"--init-lora-weights", "eva", "--eva-rho", "2", "--target-modules", "q_proj,v_proj,down_proj"});
  CHECK(json["val_loss_before"].get<double>() == Approx(place.loss(place.model, "")).epsilon(1e-6));
  CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>() - 0.02);
  CHECK(place.loss(place.model, "eva") == Approx(json["val_loss_after"].get<double>()).epsilon(1e-6));
  const peft::AnyPeftAdapter adapter = peft::load_any_peft_adapter(place.folder / "eva");
  const peft::LoraConfig config = place.config("eva");
  CHECK_FALSE(config.rank_pattern.empty());
  Index ranks = 0;
  bool differ = false;
  for (const peft::TensorRef& tensor : adapter.tensors) {
    if (!tensor.name.ends_with("lora_A.weight")) continue;
    ranks += tensor.rows();
    differ = differ || tensor.rows() != 4;
  }
  CHECK(ranks == 4 * 3 * 2);  // r of each of six modules
  CHECK(differ);
  // Other records, another start.
  const nlohmann::json whitened = place.trained("whitened", {"--init-lora-weights", "eva", "--eva-whiten", "--max-steps", "1"});
  CHECK(whitened["steps"] == 1);
  const Outcome few = run(place.folder, place.with("few", {"--init-lora-weights", "eva", "--r", "16", "--target-modules", "down_proj",
                                                           "--max-records", "1"}));
  CHECK(few.status == 1);
  CHECK(few.err.find("got no batch of at least 32 rows") != std::string::npos);
}

TEST_CASE("a run that started from weights or records is resumed bit for bit, and only with its start") {
  const Starts place;
  const std::vector<std::pair<std::string, Arguments>> cases{
      {"pissa", {"--init-lora-weights", "pissa", "--lora-dropout", "0.2", "--load-best-model-at-end"}},
      {"eva", {"--init-lora-weights", "eva", "--lora-dropout", "0.2"}},
      {"loftq", {"--init-lora-weights", "loftq", "--loftq-iter", "2", "--dtype", "nf4"}},
  };
  for (const auto& [name, options] : cases) {
    INFO(name);
    Arguments longer = options;
    longer.insert(longer.end(), {"--epochs", "30", "--save-steps", "1000", "--eval-steps", "1000"});
    place.trained(name, longer);
    const std::string part = name + "-resumed";
    const Outcome stopped = run(place.folder, place.with(part, longer), interrupt_training(place.folder / part));
    INFO(stopped.err);
    REQUIRE(stopped.status == 130);
    longer.emplace_back("--resume");
    const Outcome resumed = run(place.folder, place.with(part, longer));
    INFO(resumed.err);
    REQUIRE(resumed.status == 0);
    CHECK(resumed.json()["steps"] == 90);
    CHECK(place.adapter_bytes(part) == place.adapter_bytes(name));
    CHECK(read_file(place.folder / (part + "/adapter_config.json")) == read_file(place.folder / (name + "/adapter_config.json")));
  }
  const Outcome other = run(place.folder, place.with("pissa", {"--init-lora-weights", "olora", "--lora-dropout", "0.2", "--resume",
                                                               "--load-best-model-at-end", "--epochs", "30", "--save-steps", "1000",
                                                               "--eval-steps", "1000"}));
  CHECK(other.status == 1);
  CHECK(other.err.find("adapter_config.json") != std::string::npos);
}

TEST_CASE("AdapterFusion: two adapters that stay are mixed; trained, resumed, evaluated, inspected") {
  const Starts place;
  const auto adapter = [&](const std::string& name, const std::string& seed) {
    const Outcome outcome = run(place.folder, {"train", "--model", place.model, "--data", place.train, "--out", place.folder / name,
                                               "--method", "houlsby", "--reduction-factor", "8", "--lr", "0.05", "--epochs", "2",
                                               "--batch", "4", "--accumulate", "1", "--seed", seed});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
  };
  adapter("one", "1");
  adapter("two", "2");
  const auto with = [&](const std::string& name, const Arguments& more) {
    Arguments all{"train", "--model", place.model, "--data", place.train, "--val", place.val, "--out", place.folder / name,
                  "--method", "fusion", "--lr", "0.02", "--epochs", "4", "--batch", "4", "--accumulate", "1", "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return run(place.folder, all);
  };
  const std::string both = (place.folder / "one").string() + "," + (place.folder / "two").string();
  for (const std::string kind : {"dynamic", "static"}) {
    INFO(kind);
    const Outcome outcome = with(kind, {"--adapters", both, "--fusion", kind});
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    const nlohmann::json json = outcome.json();
    // Per site Wq, Wk [32, 32] with biases, and Wv; four sites.
    CHECK(json["trainable"] == 4 * (2 * (32 * 32 + 32) + (kind == "dynamic" ? 32 * 32 : 0)));
    CHECK(json["val_loss_after"].get<double>() != json["val_loss_before"].get<double>());
    CHECK(place.loss(place.model, kind) == Approx(json["val_loss_after"].get<double>()).epsilon(1e-6));
    CHECK(fs::exists(place.folder / (kind + "/adapter_fusion_config.json")));
    // The adapters within are those that were given, under the folders' names.
    CHECK(place.loss(place.model, kind + "/two") == place.loss(place.model, "two"));
    const Outcome inspect = run(place.folder, {"inspect", place.folder / kind, "--json"});
    INFO(inspect.out);
    CHECK(inspect.status == 0);
    CHECK(inspect.json()["kind"] == "AdapterHub AdapterFusion");
    CHECK(place.loss(place.model, kind + "/checkpoint-last") == place.loss(place.model, kind));
    CHECK(place.answer(kind, "the code of b?", "chatml") != place.answer("", "the code of b?", "chatml"));
  }
  const Outcome more = with("dynamic", {"--adapters", both, "--fusion", "dynamic", "--resume"});
  INFO(more.err);
  CHECK(more.status == 0);  // it is complete
  const Outcome other = with("dynamic", {"--adapters", (place.folder / "one").string() + "," + (place.folder / "static/two").string(), "--resume"});
  CHECK(other.status == 1);
  const Outcome alone = with("alone", {"--adapters", place.folder / "one"});
  CHECK(alone.status == 1);
  CHECK(alone.err.find("at least two folders") != std::string::npos);
  const Outcome merged = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / "dynamic", "--out", place.folder / "no.gguf"});
  CHECK(merged.status == 1);
  CHECK(merged.err.find("is an AdapterFusion") != std::string::npos);
}

TEST_CASE("an aLoRA: trained, evaluated, asked; where its tokens are missing, and merged, it is refused") {
  const Starts place;
  // The end of "<|im_start|>assistant\n" in a tokenizer of bytes: "nt\n".
  const Arguments options{"--alora-invocation-tokens", "110,116,10", "--target-modules", "q_proj,v_proj,down_proj"};
  const nlohmann::json json = place.trained("alora", options);
  CHECK(json["val_loss_before"].get<double>() == Approx(place.loss(place.model, "")).epsilon(1e-6));
  CHECK(json["val_loss_after"].get<double>() < json["val_loss_before"].get<double>() - 0.02);
  CHECK(place.loss(place.model, "alora") == Approx(json["val_loss_after"].get<double>()).epsilon(1e-6));
  CHECK(place.config("alora").alora_invocation_tokens == std::vector<Index>{110, 116, 10});
  // It acts elsewhere than the same LoRA, and not at all on a text without its tokens.
  CHECK(place.answer("alora", "the code of b?", "none") == place.answer("", "the code of b?", "none"));
  CHECK(place.answer("alora", "the code of b?", "chatml") != place.answer("", "the code of b?", "chatml"));
  const Outcome merged = run(place.folder, {"merge", "--model", place.model, "--adapter", place.folder / "alora", "--out", place.folder / "no.gguf"});
  CHECK(merged.status == 1);
  CHECK(merged.err.find("acts from its invocation tokens on") != std::string::npos);
  CHECK_FALSE(fs::exists(place.folder / "no.gguf"));
  const Outcome never = run(place.folder, place.with("never", {"--alora-invocation-tokens", "7,7,7"}));
  CHECK(never.status == 1);
  CHECK(never.err.find("none of the 12 records") != std::string::npos);
}
