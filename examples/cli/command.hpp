#pragma once
/// The commands of the program. Each adds itself to the command line; the one that was asked for leaves its work in `run`,
/// which returns the exit status.

#include <CLI/CLI.hpp>

#include <functional>

namespace peft_examples {

using Run = std::function<int()>;

void add_train_command(CLI::App& app, Run& run);
void add_eval_command(CLI::App& app, Run& run);
void add_generate_command(CLI::App& app, Run& run);
void add_classify_command(CLI::App& app, Run& run);
void add_merge_command(CLI::App& app, Run& run);
void add_quantize_command(CLI::App& app, Run& run);
void add_inspect_command(CLI::App& app, Run& run);
void add_plan_command(CLI::App& app, Run& run);
void add_compare_command(CLI::App& app, Run& run);

/// Exit status of a run that Ctrl-C stopped, as shells have it.
inline constexpr int kInterruptedStatus = 130;

}  // namespace peft_examples
