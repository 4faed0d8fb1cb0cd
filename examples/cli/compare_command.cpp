/// peft compare: trains several methods under one budget and lays them side by side: what they cost, what they reach, what
/// the model forgets. Each training and each measurement is a process of its own, so that its peak of memory is its own.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "cli/child_process.hpp"
#include "cli/command.hpp"
#include "cli/compare_report.hpp"
#include "cli/compare_svg.hpp"
#include "cli/general_text.hpp"
#include "cli/method_options.hpp"
#include "peft/error.hpp"
#include "peft/io/atomic_file.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

struct CompareOptions {
  std::string data, val, test, general, out;
  std::vector<std::string> methods{"lora", "adapter", "prefix", "prompt"};
  std::vector<std::string> method_options;  ///< "prefix:--num-virtual-tokens=8"
  bool json = false;
  /// What every training, and every measurement, is told as it was given here.
  Arguments of_train{}, of_eval{};
};

/// An option that goes on to the commands that are run. `help` is theirs.
struct PassedOption {
  const char* name;
  const char* help;
  bool to_train, to_eval;
};
constexpr PassedOption kPassed[] = {
    {"--dtype", "how weights are kept: f32, bf16, f16, native, nf4, fp4 or int8; see train --help", true, true},
    {"--block", "weights that share a scale [nf4, fp4]", true, true},
    {"--threads", "threads to compute with; 0: all processors", true, true},
    {"--template", "how a record becomes a prompt: chatml, alpaca or plain", true, true},
    {"--max-length", "tokens of a record; longer ones are cut on the right", true, true},
    {"--max-records", "only the first so many training records", true, false},
    {"--epochs", "passes over the training data; may be a fraction", true, false},
    {"--max-steps", "optimizer steps, whatever --epochs says", true, false},
    {"--batch", "records of a batch", true, false},
    {"--accumulate", "batches of one optimizer step", true, false},
    {"--lr-scheduler", "how the learning rate goes on: linear, cosine, constant or constant_with_warmup", true, false},
    {"--warmup-ratio", "share of all steps with a rising learning rate", true, false},
    {"--seed", "of each method's start, the records' order and dropout", true, false},
    {"--max-tokens", "tokens of an answer", false, true},
};

class Comparison {
 public:
  Comparison(const CompareOptions& options, std::string model) : options_(options), model_(std::move(model)) {}

  int operator()() {
    std::error_code error;
    fs::create_directories(options_.out, error);
    if (error) peft::fail<peft::IoError>("making the folder {}: {}", options_.out, error.message());
    if (options_.general.empty()) {
      general_ = fs::path(options_.out) / "general.jsonl";
      write(general_, kGeneralText);
    } else {
      general_ = options_.general;
    }
    ComparedMethod base{.method = "none"};
    if (!measure("the model as it is", base, {}, true)) return finish();
    methods_.push_back(base);
    for (const std::string& method : options_.methods) {
      methods_.push_back({.method = method});
      if (!train(methods_.back())) return finish();
      report();
    }
    return finish();
  }

 private:
  /// False where it was stopped.
  bool train(ComparedMethod& one) {
    const fs::path folder = fs::path(options_.out) / one.method;
    Arguments arguments{"train", "--model", model_, "--data", options_.data, "--val", options_.val, "--out", folder.string(),
                        "--method", one.method, "--json"};
    append(arguments, options_.of_train);
    append(arguments, options_of(one.method));
    const std::optional<nlohmann::json> result = run(one.method + ": training", one, arguments);
    if (!result) return !stop_.came();
    one.trainable = result->at("trainable").get<Index>();
    one.total = result->at("total").get<Index>();
    one.bytes = result->at("bytes").get<Index>();
    one.steps = result->at("steps").get<Index>();
    one.learning_rate = result->at("learning_rate").get<double>();
    one.tok_s = result->at("tok_s").get<double>();
    one.peak_rss_mib = result->at("peak_rss_mib").get<double>();
    one.val_loss = result->at("val_loss_after").get<double>();
    return measure(one.method, one, folder.string(), false);
  }

  /// Losses and answers of a model, with an adapter or without. False where it was stopped.
  bool measure(const std::string& who, ComparedMethod& one, const std::string& adapter, bool with_validation) {
    const auto eval = [&](const std::string& what, const std::string& data, const std::string& metrics) {
      Arguments arguments{"eval", "--model", model_, "--data", data, "--metrics", metrics, "--json"};
      if (!adapter.empty()) arguments.insert(arguments.end(), {"--adapter", adapter});
      if (one.method == "qlora") append(arguments, {"--dtype", "nf4"});  // later ones win
      append(arguments, options_.of_eval);
      for (const std::string& option : options_of(one.method)) {
        const std::string name = option.substr(0, option.find('='));
        const bool of_base = name == "--dtype" || name == "--block" || name == "--double-quant" || name == "--no-double-quant";
        if (of_base) arguments.push_back(option);  // of the base that it was trained on
      }
      return run(who + ": " + what, one, arguments);
    };
    const auto test = eval("answers", options_.test, "loss,rouge");
    if (!test) return !stop_.came();
    one.test_loss = test->at("loss").get<double>();
    one.rouge_l = test->at("rougeL").get<double>();
    const auto general = eval("general text", general_.string(), "loss");
    if (!general) return !stop_.came();
    one.general_loss = general->at("loss").get<double>();
    if (!methods_.empty() && methods_.front().general_loss) one.forgetting = *one.general_loss - *methods_.front().general_loss;
    if (!with_validation) return true;
    const auto validation = eval("validation", options_.val, "loss");
    if (!validation) return !stop_.came();
    one.val_loss = validation->at("loss").get<double>();
    return true;
  }

  /// The last line of what the program says, as JSON; nothing where it failed: then `one` has the error.
  std::optional<nlohmann::json> run(const std::string& what, ComparedMethod& one, const Arguments& arguments) {
    std::fprintf(stderr, "== %s\n", what.c_str());
    const ChildResult result = run_again(arguments, stop_);
    if (result.status == 0) {
      const nlohmann::json json = nlohmann::json::parse(last_line(result.out), nullptr, false);
      if (json.is_object()) return json;
    }
    one.error = fmt::format("{}: {}", what, result.error.empty() ? fmt::format("exit status {}", result.status) : result.error);
    return {};
  }

  /// What --method-option says of a method.
  Arguments options_of(const std::string& method) const {
    Arguments result;
    for (const std::string& option : options_.method_options) {
      if (option.starts_with(method + ":")) result.push_back(option.substr(method.size() + 1));
    }
    return result;
  }
  static void append(Arguments& to, const Arguments& words) { to.insert(to.end(), words.begin(), words.end()); }
  static void write(const fs::path& path, std::string_view text) {
    peft::AtomicFile file(path);
    file.write(text);
    file.commit();
  }

  void report() const {
    const fs::path folder = options_.out;
    write(folder / "compare.md", compare_markdown(methods_));
    write(folder / "compare.json", compare_json(methods_).dump(1) + "\n");
    write(folder / "compare.svg", compare_svg(methods_, fmt::format("Methods on {}", fs::path(options_.data).filename().string())));
  }

  int finish() {
    if (methods_.empty()) methods_.push_back({.method = "none", .error = "the model could not be measured"});
    report();
    std::fputs(compare_markdown(methods_).c_str(), stdout);
    if (options_.json) std::printf("%s\n", compare_json(methods_).dump().c_str());
    if (stop_.came()) return kInterruptedStatus;
    const bool failed = std::any_of(methods_.begin(), methods_.end(), [](const ComparedMethod& one) { return !one.error.empty(); });
    return failed ? 1 : 0;
  }

  const CompareOptions& options_;
  std::string model_;
  fs::path general_;
  StopSignal stop_;
  std::vector<ComparedMethod> methods_;
};

}  // namespace

void add_compare_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<CompareOptions>();
  auto model = std::make_shared<std::string>();
  CompareOptions& o = *options;
  CLI::App& command = *app.add_subcommand("compare", "train several methods under one budget and lay them side by side");
  command.add_option("--model", *model, "GGUF file or Hugging Face folder of the base model")->required()->check(CLI::ExistingPath);
  command.add_option("--data", o.data, "training records")->required()->check(CLI::ExistingFile);
  command.add_option("--val", o.val, "validation records")->required()->check(CLI::ExistingFile);
  command.add_option("--test", o.test, "records that are answered for ROUGE-L")->required()->check(CLI::ExistingFile);
  command.add_option("--general", o.general, "records of general text, for what is forgotten; without it the program's own")
      ->check(CLI::ExistingFile);
  command.add_option("--methods", o.methods, "with commas; each with its defaults and learning rate, see train --help")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->check(CLI::IsMember(method_names(Task::kGenerate)))
      ->default_str("lora,adapter,prefix,prompt");
  command.add_option("--method-option", o.method_options,
                     "of one method's training, as prefix:--num-virtual-tokens=8 or lora:--lr=1e-3; may be given often")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_option("--out", o.out, "folder for a run per method, compare.md, compare.json and compare.svg")->required();
  for (const PassedOption& passed : kPassed) {
    command.add_option_function<std::string>(
        passed.name,
        [&o, passed](const std::string& value) {
          if (passed.to_train) o.of_train.insert(o.of_train.end(), {passed.name, value});
          if (passed.to_eval) o.of_eval.insert(o.of_eval.end(), {passed.name, value});
        },
        passed.help);
  }
  command.add_flag_function(
      "--double-quant,!--no-double-quant",
      [&o](std::int64_t given) {
        const char* name = given > 0 ? "--double-quant" : "--no-double-quant";
        o.of_train.emplace_back(name);
        o.of_eval.emplace_back(name);
      },
      "the scales in 8 bits, or not [nf4, fp4; default: on]");
  command.add_flag("--json", o.json, "last line of stdout: the table as JSON");
  command.callback([options, model, &run] {
    for (std::size_t i = 0; i < options->methods.size(); ++i) {
      const auto& all = options->methods;
      if (std::find(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(i), all[i]) != all.begin() + static_cast<std::ptrdiff_t>(i)) {
        throw CLI::ValidationError("--methods", all[i] + " stands there twice");
      }
    }
    for (const std::string& option : options->method_options) {
      const std::string method = option.substr(0, option.find(':'));
      const bool is_known = std::find(options->methods.begin(), options->methods.end(), method) != options->methods.end();
      if (!is_known || !option.substr(method.size()).starts_with(":--")) {
        throw CLI::ValidationError("--method-option", option + " is none; expected METHOD:--OPTION=VALUE with a method of --methods");
      }
    }
    run = [options, model] { return Comparison(*options, *model)(); };
  });
}

}  // namespace peft_examples
