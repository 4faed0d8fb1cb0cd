#pragma once
/// What --task classify measures on records.

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "cli/session.hpp"

namespace peft_examples {

struct ClassifyEvalOptions {
  ModelOptions model;
  std::string data, predictions;
  std::vector<std::string> labels;  ///< the classes' names, where neither adapter nor model has them
  Index max_length = 256, max_records = -1;
  bool json = false;
};

inline void add_labels_option(CLI::App& command, std::vector<std::string>& labels) {
  command.add_option("--labels", labels, "the classes' names with commas, where neither the adapter nor the model has them [classify]")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

/// Measures and prints; returns the exit status (classify_command.cpp).
int eval_classifier(const ClassifyEvalOptions& options);

}  // namespace peft_examples
