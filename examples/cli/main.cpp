/// The `peft` program: train, evaluate, run, merge, quantise, inspect, plan and compare from the command line.

#include <cstdio>
#include <exception>
#include <new>

#include "cli/command.hpp"
#include "peft/error.hpp"
#include "peft/io/mapped_file_guard.hpp"
#include "peft/version.hpp"

int main(int argc, char** argv) {
  using namespace peft_examples;
  CLI::App app("peft: parameter-efficient fine-tuning");
  app.set_version_flag("--version", PEFT_VERSION_STRING);
  app.require_subcommand(1);
  // An option given twice counts as given last, so that scripts can have defaults.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Run run;
  add_train_command(app, run);
  add_eval_command(app, run);
  add_generate_command(app, run);
  add_classify_command(app, run);
  add_merge_command(app, run);
  add_quantize_command(app, run);
  add_inspect_command(app, run);
  add_plan_command(app, run);
  add_compare_command(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    peft::install_mapped_file_guard();
    return run();
  } catch (const std::bad_alloc&) {
    std::fputs("peft: error: there is not enough memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "peft: error: %s\n", error.what());
  }
  return 1;
}
