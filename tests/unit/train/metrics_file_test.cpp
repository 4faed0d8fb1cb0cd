// metrics.jsonl: what a kill leaves, what a resumed run keeps, what a full disk says.

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "peft/pipeline/metrics_file.hpp"
#include "support/catch.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"
#include "unit/train/temporary_folder.hpp"

using namespace peft;
using train_test::TemporaryFolder;

namespace {

MetricsRecord step_record(Index step) {
  return {MetricsRecord::Kind::kStep, step, 0.1 * static_cast<double>(step), 2.0 / 3.0, 12, 1e-4, 0.5, 40, 99.5, false};
}
MetricsRecord evaluation_record(Index step) {
  return {.kind = MetricsRecord::Kind::kEvaluation, .step = step, .epoch = 0.1 * static_cast<double>(step), .loss = 1.25,
          .label_tokens = 7};
}

std::string content(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

ssize_t disk_is_full(int, const void*, std::size_t) {
  errno = ENOSPC;
  return -1;
}

}  // namespace

TEST_CASE("Metrics are on the disk line by line, and a resumed run keeps what it stands on") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  std::ofstream(path) << "of an older run\n";
  MetricsFile file(path);
  file.begin();
  CHECK(content(path).empty());
  std::string want;
  for (Index step = 1; step <= 4; ++step) {
    file.append(step_record(step));
    want += to_json(step_record(step)) + "\n";
    CHECK(content(path) == want);
    if (step % 2 != 0) continue;
    file.append(evaluation_record(step));
    want += to_json(evaluation_record(step)) + "\n";
    CHECK(content(path) == want);
  }
  // A kill in the middle of a line.
  std::ofstream(path, std::ios::app) << "{\"step\":5,\"epo";

  MetricsFile same(path);
  same.resume(4, 4);
  CHECK(content(path) == want);
  CHECK(same.log().records().size() == 6);

  // The state was saved after step 3: what came later will come again.
  MetricsFile resumed(path);
  resumed.resume(3, 2);
  REQUIRE(resumed.log().records().size() == 4);
  CHECK(resumed.log().records()[0] == step_record(1));
  CHECK(resumed.log().records()[2] == evaluation_record(2));
  CHECK(resumed.log().records()[3] == step_record(3));
  resumed.append(step_record(4));
  std::string again;
  for (const MetricsRecord& record : resumed.log().records()) again += to_json(record) + "\n";
  CHECK(content(path) == again);
}

TEST_CASE("Lines that are no records are dropped; numbers that JSON lacks come back") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  MetricsRecord skipped = step_record(2);
  skipped.skipped = true;
  skipped.grad_norm = std::numeric_limits<double>::infinity();
  std::ofstream(path) << "\n[]\n{}\nnull\n{\"step\":\"1\"}\n{\"step\":1,\"loss\":2}\n\xff\xfe\n"
                      << to_json(skipped) << "\n";
  MetricsFile file(path);
  file.resume(100, 100);
  REQUIRE(file.log().records().size() == 1);
  CHECK(file.log().records()[0].skipped);
  CHECK_FALSE(is_finite(file.log().records()[0].grad_norm));
  CHECK(file.log().records()[0].loss == skipped.loss);

  MetricsFile missing(folder.path() / "none.jsonl");
  missing.resume(3, 3);
  CHECK(missing.log().records().empty());
}

TEST_CASE("A full disk and a missing folder are errors that name the file") {
  const TemporaryFolder folder;
  MetricsFile file(folder.path() / "metrics.jsonl");
  file.begin();
  SystemCalls calls = posix_system_calls();
  calls.write = disk_is_full;
  set_system_calls(&calls);
  CHECK_THROWS_WITH(file.append(step_record(1)), Catch::Contains("metrics.jsonl") && Catch::Contains("No space"));
  set_system_calls(nullptr);
  MetricsFile nowhere(folder.path() / "no" / "metrics.jsonl");
  CHECK_THROWS_AS(nowhere.begin(), IoError);
  CHECK_THROWS_WITH(nowhere.append(step_record(1)), Catch::Contains("metrics.jsonl"));
}

TEST_CASE("Whatever call of an append fails, the lines before stay; short and interrupted writes are gone on with") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  int all = 0;
  // Appends a second line; its call `at` fails with `error`, and no write takes more than 20 bytes.
  const auto append = [&](int at, int error) {
    MetricsFile file(path);
    file.begin();
    file.append(step_record(1));
    io_test::FaultyCalls calls([&](int number, const std::string&) { return number == at ? error : 0; });
    calls.longest_write = 20;
    const std::string message = io_test::message_of<IoError>([&] { file.append(step_record(2)); });
    all = calls.count();
    return message;
  };
  CHECK(append(-1, 0).empty());
  const int calls_of_an_append = all;
  REQUIRE(calls_of_an_append > 5);  // open, several short writes, close
  for (int at = 0; at < calls_of_an_append; ++at) {
    INFO("call " << at);
    const std::string message = append(at, ENOSPC);
    CHECK(message.find(path.string()) != std::string::npos);
    CHECK(message.find("No space") != std::string::npos);
    // A line that was cut short is dropped, what was whole is not.
    MetricsFile resumed(path);
    resumed.resume(2, 2);
    REQUIRE(resumed.log().records().size() == (at + 1 < calls_of_an_append ? 1 : 2));
    CHECK(resumed.log().records()[0] == step_record(1));
    resumed.append(step_record(2));
    CHECK(append(at, EINTR).empty());
    MetricsFile whole(path);
    whole.resume(2, 2);
    CHECK(whole.log().records().size() == 2);
  }
}
