#pragma once
/// The options that trade time for memory.

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

#include "cli/size.hpp"

namespace peft_examples {

struct MemoryOptions {
  std::string budget;
  bool checkpoint_activations = false, budget_may_round = false;

  void add_to(CLI::App& command) {
    command.add_flag("--checkpoint-activations", checkpoint_activations,
                     "keep each layer's input only and make the rest again in backward: less memory, more time, the same bits");
    command.add_option("--memory-budget", budget,
                       "what the process may take, say 1G: chosen among smaller sub-batches, fewer logits at once, a paged optimizer "
                       "and checkpointed activations, whatever costs the least time; refused where nothing fits");
    command.add_flag("--budget-may-round", budget_may_round,
                     "--memory-budget may also choose --saved-activations bf16, which rounds gradients");
  }
  /// Throws CLI::ValidationError, ConfigError.
  std::optional<peft::Index> bytes() const {
    if (budget.empty()) return std::nullopt;
    return parse_size("--memory-budget", budget);
  }
  void check() const {
    if (budget_may_round && budget.empty()) throw CLI::ValidationError("--budget-may-round", "is an option of --memory-budget");
  }
};

}  // namespace peft_examples
