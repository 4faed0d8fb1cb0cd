/// peft generate: answers one prompt, token by token as they come.

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "cli/process.hpp"
#include "cli/session.hpp"
#include "hosts/stream_decoder.hpp"
#include "peft/data/prompt_template.hpp"

namespace peft_examples {
namespace {

struct GenerateCommandOptions {
  ModelOptions model;
  std::string prompt, input, prompt_template = "chatml";
  GenerateOptions generate;
  bool json = false;
};

template <Scalar T>
int run_generate(const GenerateCommandOptions& options) {
  Session<T> session(options.model);
  std::string text = options.prompt;
  std::string_view stop_token;
  const bool raw = options.prompt_template == "none";
  const peft::PromptTemplate prompt_template(raw ? "plain" : options.prompt_template);
  if (!raw) {
    session.require_template(prompt_template);
    text = prompt_template.prompt({options.prompt, options.input, "", {}, 0});
    stop_token = prompt_template.stop_token();
  }
  const std::vector<std::vector<std::int32_t>> prompts{session.encode_prompt(text)};
  GenerateOptions settings = options.generate;
  settings.stop_ids = session.stop_ids(stop_token);

  StreamDecoder decoder(session.tokenizer());
  StopSignal stop;
  const auto begin = std::chrono::steady_clock::now();
  auto first = begin;
  const auto on_token = [&](std::size_t, std::int32_t id) {
    if (first == begin) first = std::chrono::steady_clock::now();
    const std::string piece = decoder.push(id);
    if (!options.json) std::fwrite(piece.data(), 1, piece.size(), stdout), std::fflush(stdout);
    return !stop.came();
  };
  const auto ids = generate<T>(session.model(), prompts, settings, 1, on_token).front();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - first;
  const auto later = static_cast<double>(ids.empty() ? 0 : ids.size() - 1);
  if (options.json) {
    const nlohmann::ordered_json json = {{"text", session.tokenizer().decode(ids)},
                                         {"prompt_tokens", prompts.front().size()},
                                         {"prompt_s", std::chrono::duration<double>(first - begin).count()},
                                         {"tokens", ids.size()},
                                         {"tok_s", seconds.count() > 0 ? later / seconds.count() : 0.0},
                                         {"peak_rss_mib", peak_rss_mib()}};
    std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  } else {
    const std::string rest = decoder.finish();
    std::fwrite(rest.data(), 1, rest.size(), stdout);
    std::puts("");
  }
  return stop.came() ? kInterruptedStatus : 0;
}

}  // namespace

void add_generate_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<GenerateCommandOptions>();
  GenerateCommandOptions& o = *options;
  CLI::App& command = *app.add_subcommand("generate", "answer a prompt");
  o.model.add_to(command, true);
  command.add_option("--prompt", o.prompt, "the instruction")->required();
  command.add_option("--input", o.input, "the instruction's input, where it has one");
  command.add_option("--template", o.prompt_template, "none: the prompt is continued as it is")
      ->check(CLI::IsMember({"chatml", "alpaca", "plain", "none"}))
      ->capture_default_str();
  command.add_option("--max-tokens", o.generate.max_tokens, "of the answer")->capture_default_str();
  command.add_option("--temperature", o.generate.temperature, "0: always the likeliest token")->capture_default_str();
  command.add_option("--top-p", o.generate.top_p, "draw from the likeliest tokens that reach this probability")->capture_default_str();
  command.add_option("--seed", o.generate.seed, "of the draws")->capture_default_str();
  command.add_flag("--json", o.json, "the answer and its speed as one line of JSON instead of a stream");
  command.callback([options, &command, &run] {
    options->model.check(command);
    run = [options] {
      options->generate.validate();
      const Threads threads(options->model.threads);
      return with_dtype(options->model.dtype, [&]<Scalar T>() { return run_generate<T>(*options); });
    };
  });
}

}  // namespace peft_examples
