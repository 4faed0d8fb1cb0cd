// The model's file loses its bytes while the program works on it: a message and an exit status instead of SIGBUS, and a
// run that goes on once the file is back.

#include "support/catch.hpp"
#include "unit/cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;

TEST_CASE("train: a model that is truncated meanwhile ends the run with a message, from which it is resumed") {
  const Workplace place;
  const std::vector<std::string> longer{"--epochs", "30", "--save-steps", "1"};
  REQUIRE(run(place.folder, place.training("whole", longer)).status == 0);
  const std::string model = read_file(place.model);
  const Outcome ended = run(place.folder, place.training("run", longer), [&](pid_t process) {
    const fs::path state = place.folder / "run/checkpoint-last/train_state.safetensors", metrics = place.folder / "run/metrics.jsonl";
    const auto has_steps = [&] { return fs::exists(state) && fs::exists(metrics) && fs::file_size(metrics) > 300; };
    while (!has_steps() && ::kill(process, 0) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    fs::resize_file(place.model, 100);
  });
  INFO(ended.err);
  REQUIRE(ended.status == 74);
  const std::string message = "error: reading " + place.model + ": byte ";
  REQUIRE(ended.err.find(message) != std::string::npos);
  CHECK(ended.err.find(" of " + std::to_string(model.size()) + " is no longer there", ended.err.find(message)) != std::string::npos);

  // While it is cut off, it is refused by name.
  const Outcome refused = run(place.folder, place.training("other", longer));
  CHECK(refused.status == 1);
  CHECK(refused.err.find("tiny.gguf") != std::string::npos);

  write_file(place.model, model);
  auto resume = longer;
  resume.emplace_back("--resume");
  const Outcome resumed = run(place.folder, place.training("run", resume));
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK(place.adapter_bytes("run") == place.adapter_bytes("whole"));
}
