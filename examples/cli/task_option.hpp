#pragma once
/// --task, and the options that belong to one task.

#include <CLI/CLI.hpp>

#include <map>
#include <string>
#include <vector>

#include "cli/method_options.hpp"

namespace peft_examples {

inline void add_task_option(CLI::App& command, Task& task) {
  command.add_option("--task", task, "generate: a causal language model answers; classify: a BERT with a head says a class")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Task>{{"generate", Task::kGenerate}, {"classify", Task::kClassify}}))
      ->type_name("TASK")
      ->default_str("generate");
}

/// Throws CLI::ValidationError for an option that was given and is the other task's.
inline void refuse_options_of_other_task(const CLI::App& command, Task task) {
  static const std::vector<std::string> of_generate{"--template", "--metrics",  "--bleu-tokenize",     "--show",
                                                    "--max-tokens", "--saved-activations", "--memory-budget", "--budget-may-round",
                                                    "--synthetic",  "--weights-memory",    "--int8-activations"};
  static const std::vector<std::string> of_classify{"--test", "--labels", "--dropout-of-base", "--head"};
  std::vector<std::string> refused = task == Task::kGenerate ? of_classify : of_generate;
  if (task == Task::kClassify && command.get_name() == "eval") refused.emplace_back("--batch");  // of answers
  for (const std::string& name : refused) {
    const CLI::Option* option = command.get_option_no_throw(name);
    if (option == nullptr || option->count() == 0) continue;
    throw CLI::ValidationError(name, task == Task::kGenerate ? "is an option of --task classify" : "is none of --task classify");
  }
}

}  // namespace peft_examples
