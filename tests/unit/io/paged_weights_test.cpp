#include "peft/io/paged_weights.hpp"

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "peft/io/mapped_file.hpp"
#include "scratch.hpp"
#include "support/catch.hpp"
#include "support/resident.hpp"

using io_test::ScratchFolder;
using io_test::write_file;
using peft::MappedFile;
using peft::PagedWeights;

namespace {

constexpr std::size_t kStage = std::size_t{256} << 10;

/// Eight stages in a file, in two parts each; the first is a table of rows.
struct Stages {
  ScratchFolder folder;
  std::size_t count = 8;
  std::shared_ptr<const MappedFile> file;
  std::vector<PagedWeights::Stage> list;

  Stages() {
    std::string content(count * kStage, '\0');
    for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i % 251);
    write_file(folder / "weights", content);
    file = MappedFile::open(folder / "weights");
    for (std::size_t i = 0; i < count; ++i) {
      const auto bytes = file->bytes().subspan(i * kStage, kStage);
      list.push_back({{bytes.subspan(1000), bytes.first(1000)}, i == 0});
    }
  }
  /// Reads all of a stage; whether it was what the file has.
  bool read(std::size_t stage) const {
    bool same = true;
    for (std::size_t i = stage * kStage; i < (stage + 1) * kStage; i += 64) {
      same = same && file->bytes()[i] == static_cast<std::byte>(i % 251);
    }
    return same;
  }
  std::size_t resident() const { return peft_test::resident_bytes(folder / "weights").value_or(0); }
};

}  // namespace

TEST_CASE("paged weights: passes up and down keep the budget and read what the file has") {
  const Stages stages;
  const std::size_t least = kStage, whole = stages.count * least;
  for (const std::size_t budget : {least, 3 * least, whole}) {
    INFO("budget " << budget);
    PagedWeights paged(stages.list, budget);
    CHECK(stages.resident() == 0);
    std::size_t most = 0;
    bool same = true;
    const auto use = [&](std::size_t stage) {
      paged.enter(stage);
      if (stage > 0) same = same && stages.read(stage);
      most = std::max(most, stages.resident());
      CHECK(paged.resident() <= budget);
    };
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t i = 0; i < stages.count; ++i) use(i);
      for (std::size_t i = stages.count; i-- > 1;) use(i);
    }
    CHECK(same);
    CHECK(most <= budget);
    if (budget == whole) CHECK((most == 0 || most >= (stages.count - 1) * kStage));  // nothing was given back
  }
}

TEST_CASE("paged weights: too small a budget is refused with the least that works, bytes in no file count") {
  const Stages stages;
  const std::vector<char> converted(10000);
  auto list = stages.list;
  list[3].parts.emplace_back(std::as_bytes(std::span(converted)));
  list[4].parts.emplace_back(std::as_bytes(std::span(converted)));  // the same bytes
  const auto message_of = [&](std::size_t budget) {
    return io_test::message_of<peft::ConfigError>([&] { PagedWeights(list, budget); });
  };
  const std::string message = message_of(1000);
  CHECK(message.find("10000 of them in no file") != std::string::npos);
  const std::string start = "the budget is 1000; the least that works is ";
  const std::size_t at = message.find(start);
  REQUIRE(at != std::string::npos);
  const std::size_t least = std::stoul(message.substr(at + start.size()));
  CHECK(least == kStage + 10000);
  CHECK_NOTHROW(PagedWeights(list, least));
  CHECK(message_of(least - 1).find(std::to_string(least)) != std::string::npos);
  PagedWeights none;
  none.enter(3);
  CHECK(none.empty());
}
