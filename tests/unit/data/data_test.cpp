#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "peft/data/instruction_data.hpp"
#include "peft/train/training_data.hpp"
#include "support/catch.hpp"

using namespace peft;

static_assert(TrainingData<InstructionData>);

namespace {

struct TemporaryFile {
  explicit TemporaryFile(const std::string& text)
      : path(std::filesystem::temp_directory_path() / ("peft_data_test_" + std::to_string(getpid()) + ".jsonl")) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::filesystem::path path;
};

std::vector<std::int32_t> bytes(std::string_view text) {
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

}  // namespace

TEST_CASE("an instruction file is read with all that editors leave in it") {
  const TemporaryFile file("\xEF\xBB\xBF{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\", \"facts\": [\"f\"]}\r\n"
                           "\n  \n{\"output\": \"\xE4\xBD\xA0\", \"instruction\": \"x\", \"input\": null, \"more\": [1]}");
  const auto records = read_instruction_jsonl(file.path);
  REQUIRE(records.size() == 2);
  CHECK(records[0].instruction == "a");
  CHECK(records[0].input == "b");
  CHECK(records[0].facts == std::vector<std::string>{"f"});
  CHECK(records[1].output == "\xE4\xBD\xA0");
  CHECK(records[1].input.empty());
  CHECK(records[1].line == 4);
  CHECK(read_instruction_jsonl(file.path, 1).size() == 1);
}

TEST_CASE("what does not fit is named with file, line and column") {
  const std::string good = "{\"instruction\": \"a\", \"output\": \"c\"}\n";
  const std::pair<std::string, std::string> cases[] = {
      {good + "{\"instruction\": \"a\", ", "line 2, column"},
      {good + good + "[1]", "line 3: a array"},
      {"{\"output\": \"c\"}", "\"instruction\" is missing"},
      {"{\"instruction\": \"c\"}", "\"output\" is missing"},
      {"{\"instruction\": 3, \"output\": \"c\"}", "\"instruction\" is a number"},
      {"{\"instruction\": \"a\", \"instruction\": \"b\", \"output\": \"c\"}", "twice"},
      {"{\"instruction\": \"a\", \"output\": \"\"}", "empty"},
      {"{\"instruction\": \"a\", \"output\": \"b\", \"facts\": \"c\"}", "facts"},
      {"{\"instruction\": \"a\", \"output\": \"b\", \"facts\": [1]}", "facts"},
      {"{\"instruction\": \"\xFF\", \"output\": \"b\"}", "line 1, column"},
      {good + "{\"instruction\": \"a\", \"output\": \"b\"} x", "line 2, column"},
      {good + "{\"instruction\": \"a\", \"output\": \"b\", \"more\": -1e999}", "line 2: a number is too large"},
      {"", "no record"},
      {"\n\n", "no record"},
  };
  for (const auto& [text, expected] : cases) {
    const TemporaryFile file(text);
    INFO(text);
    CHECK_THROWS_WITH(read_instruction_jsonl(file.path), Catch::Contains(expected) && Catch::Contains(file.path.string()));
    CHECK_THROWS_AS(read_instruction_jsonl(file.path), FormatError);
  }
  CHECK_THROWS_AS(read_instruction_jsonl("/no such folder/file.jsonl"), IoError);
}

TEST_CASE("prompt templates") {
  InstructionRecord with{"Do.", "It.", "Done.", {}, 0}, without{"Do.", "", "Done.", {}, 0};
  const PromptTemplate chatml("chatml");
  CHECK(chatml.prompt(with) == "<|im_start|>user\nDo.\nIt.<|im_end|>\n<|im_start|>assistant\n");
  CHECK(chatml.prompt(without) == "<|im_start|>user\nDo.<|im_end|>\n<|im_start|>assistant\n");
  CHECK(chatml.completion(with) == "Done.<|im_end|>\n");
  const PromptTemplate alpaca("alpaca");
  CHECK(alpaca.prompt(with).find("### Instruction:\nDo.\n\n### Input:\nIt.\n\n### Response:\n") != std::string::npos);
  CHECK(alpaca.prompt(without).find("Input") == std::string::npos);
  CHECK(PromptTemplate("plain").prompt(with) == "Do.\nIt.\n");
  CHECK_THROWS_WITH(PromptTemplate("vicuna"), Catch::Contains("vicuna") && Catch::Contains("chatml"));
}

TEST_CASE("labels are all ids of the second part, shifted by one; cuts are counted") {
  const std::vector<InstructionRecord> records{{"ab", "", "xyz", {}, 1}, {"abcdefghij", "", "x", {}, 2}};
  const InstructionData data(records, PromptTemplate("plain"), bytes, 6, 999);
  // "ab\n" + "xyz\n" + eos, cut to six.
  CHECK(data.at(0).ids == std::vector<std::int32_t>{'a', 'b', '\n', 'x', 'y', 'z'});
  CHECK(data.label_tokens(0) == 3);
  CHECK(data.label_tokens(1) == 0);
  CHECK(data.cut_records() == 2);
  CHECK(data.records_without_label() == 1);
  PackedBatch batch;
  data.append(0, batch);
  data.append(1, batch);
  batch.check();
  CHECK(batch.targets == std::vector<std::int32_t>{-1, -1, 'x', 'y', 'z', -1, -1, -1, -1, -1, -1, -1});
  CHECK(batch.label_tokens() == 3);
  CHECK(batch.positions[7] == 1);
  const InstructionData whole(records, PromptTemplate("plain"), bytes, 100, 999);
  CHECK(whole.at(0).ids.back() == 999);
  CHECK(whole.label_tokens(0) == 5);
  CHECK_THROWS_AS(InstructionData(records, PromptTemplate("plain"), bytes, 1), ConfigError);
}
