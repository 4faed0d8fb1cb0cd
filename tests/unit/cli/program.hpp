#pragma once
/// Runs the program as a user does.

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "support/tiny_gguf.hpp"

namespace cli_test {

using io_test::read_file;
using io_test::ScratchFolder;
using io_test::write_file;

struct Outcome {
  int status = -1;  ///< exit status; 128 + number for a signal
  std::string out, err;

  /// The last line of stdout.
  nlohmann::json json() const {
    const std::size_t end = out.find_last_not_of('\n');
    const std::size_t begin = out.rfind('\n', end);
    return nlohmann::json::parse(out.substr(begin == std::string::npos ? 0 : begin + 1, end + 1 - (begin == std::string::npos ? 0 : begin + 1)));
  }
};

/// Starts the program; `meanwhile(process)` is called once it runs.
inline Outcome run(const ScratchFolder& folder, const std::vector<std::string>& arguments,
                   const std::function<void(pid_t)>& meanwhile = {}) {
  const std::string out = folder / "stdout.txt", err = folder / "stderr.txt";
  std::vector<char*> argv{const_cast<char*>(PEFT_PROGRAM)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t process = ::fork();
  if (process == 0) {
    ::dup2(::open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 1);
    ::dup2(::open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  if (meanwhile) meanwhile(process);
  int state = 0;
  ::waitpid(process, &state, 0);
  return {WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state), read_file(out), read_file(err)};
}

/// For run(): Ctrl-C to a training once the metrics in its folder `run` are under way.
inline std::function<void(pid_t)> interrupt_training(const std::string& run) {
  return [metrics = std::filesystem::path(run) / "metrics.jsonl"](pid_t process) {
    while ((!std::filesystem::exists(metrics) || std::filesystem::file_size(metrics) < 2000) && ::kill(process, 0) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ::kill(process, SIGINT);
  };
}

/// A tiny model and a file of questions that can be learned.
struct Workplace {
  ScratchFolder folder;
  std::string model = folder / "tiny.gguf", train = folder / "train.jsonl", val = folder / "val.jsonl";

  Workplace() {
    write_file(model, peft_test::TinyGguf{}.bytes());
    std::string lines;
    for (int i = 0; i < 12; ++i) {
      lines += R"({"instruction": "the code of )" + std::string(1, static_cast<char>('a' + i % 3)) + R"(?", "input": ")" +
               std::string(static_cast<std::size_t>(i), 'x') + R"(", "output": "E-1)" + std::to_string(i % 3) +
               R"(", "facts": ["E-1)" + std::to_string(i % 3) + "\"]}\n";
    }
    write_file(train, lines);
    write_file(val, R"({"instruction": "code the b", "output": "E-11"})" "\n" R"({"instruction": "c, please", "output": "E-12", "facts": ["E-12"]})" "\n");
  }

  /// A short training into folder/name.
  std::vector<std::string> training(const std::string& name, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"train", "--model", model, "--data", train, "--val", val, "--out", folder / name,
                                       "--r", "4", "--target-modules", "all-linear", "--lr", "0.01", "--batch", "2",
                                       "--accumulate", "2", "--epochs", "3", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string adapter_bytes(const std::string& name) const { return read_file(folder / (name + "/adapter_model.safetensors")); }
};

}  // namespace cli_test
