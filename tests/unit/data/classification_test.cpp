#include "peft/data/classification_data.hpp"

#include <fstream>

#include "peft/data/instruction_jsonl.hpp"
#include "peft/train/training_data.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;

static_assert(TrainingData<ClassificationData>);

namespace {

std::vector<std::int32_t> bytes(std::string_view text) {
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

}  // namespace

TEST_CASE("a classification file is read with all that editors leave in it") {
  const io_test::ScratchFolder folder;
  const auto path = folder / "records.jsonl";
  io_test::write_file(path, "\xEF\xBB\xBF{\"text\": \"a\", \"label\": \"x\"}\r\n\n  \n{\"label\": \"\xE4\xBD\xA0\", \"more\": [1], \"text\": \"b\"}");
  const auto records = read_labelled_jsonl(path);
  REQUIRE(records.size() == 2);
  CHECK(records[0].text == "a");
  CHECK(records[0].label == "x");
  CHECK(records[1].label == "\xE4\xBD\xA0");
  CHECK(records[1].line == 4);
  CHECK(read_labelled_jsonl(path, 1).size() == 1);
  const auto refuse = [&](const std::string& text, const std::string& words) {
    io_test::write_file(path, text);
    INFO(text);
    CHECK_THROWS_WITH(read_labelled_jsonl(path), Catch::Contains(words));
  };
  const std::string good = "{\"text\": \"a\", \"label\": \"x\"}\n";
  refuse(good + "{\"text\": \"a\"}", "line 2: field \"label\" is missing");
  refuse("{\"text\": 3, \"label\": \"x\"}", "field \"text\" is a number");
  refuse("{\"text\": \"a\", \"label\": \"\"}", "field \"label\" is empty");
  refuse("{\"text\": \" \", \"label\": \"x\"}", "field \"text\" is empty");
  refuse(good + good + "{\"text\": \"a\", ", "line 3, column");
  refuse("[1]", "\"text\" and \"label\"");
  refuse("{\"text\": \"a\", \"label\": \"x\", \"text\": \"b\"}", "twice");
  refuse("{\"text\": \"a\", \"label\": \"x\", \"n\": 1e999}", "too large");
  refuse("\n \n", "no record");
  CHECK_THROWS_AS(read_labelled_jsonl(folder / "none.jsonl"), IoError);
}

TEST_CASE("labels are sorted or given, and numbered") {
  const std::vector<LabelledRecord> records{{"a", "lung", 1}, {"b", "heart", 2}, {"c", "lung", 3}};
  const LabelSet labels = LabelSet::of(records);
  CHECK(labels.names() == std::vector<std::string>{"heart", "lung"});
  CHECK(labels.find("lung") == 1);
  CHECK(labels.find("Lung") == -1);
  CHECK(labels.name(0) == "heart");
  CHECK(LabelSet({"b", "a"}).find("b") == 0);
  CHECK_THROWS_AS(LabelSet({"a"}), ConfigError);
  CHECK_THROWS_AS(LabelSet({"a", "b", "a"}), ConfigError);
  CHECK_THROWS_AS(LabelSet({"a", ""}), ConfigError);
}

TEST_CASE("a classification record has its class at its first position, and is cut between what stands around it") {
  const std::vector<LabelledRecord> records{{"ab", "x", 1}, {"abcdef", "y", 2}};
  const LabelSet labels({"x", "y"});
  const std::int32_t prefix[] = {1}, suffix[] = {2};
  const ClassificationData data(records, labels, bytes, 5, prefix, suffix);
  CHECK(data.records() == 2);
  CHECK(data.cut_records() == 1);
  PackedBatch batch;
  data.append(0, batch);
  data.append(1, batch);
  batch.check();
  CHECK(batch.ids == std::vector<std::int32_t>{1, 'a', 'b', 2, 1, 'a', 'b', 'c', 2});
  CHECK(batch.positions == std::vector<std::int32_t>{0, 1, 2, 3, 0, 1, 2, 3, 4});
  CHECK(batch.targets == std::vector<std::int32_t>{0, -1, -1, -1, 1, -1, -1, -1, -1});
  CHECK(batch.offsets == std::vector<Index>{0, 4, 9});
  CHECK(batch.label_tokens() == data.label_tokens(0) + data.label_tokens(1));
  // Sub-batches number their sequences through.
  const std::vector<Index> order{1, 0, 1};
  SubBatches<ClassificationData> cut(data, order, 9);
  REQUIRE(cut.next(batch));
  CHECK(batch.first_sequence == 0);
  CHECK(batch.sequences() == 2);
  REQUIRE(cut.next(batch));
  CHECK(batch.first_sequence == 2);
  CHECK(batch.first_row == 9);
  const std::vector<LabelledRecord> unknown{{"ab", "z", 7}};
  CHECK_THROWS_WITH(ClassificationData(unknown, labels, bytes, 5), Catch::Contains("line 7") && Catch::Contains("\"z\"") && Catch::Contains("x, y"));
  CHECK_THROWS_WITH(ClassificationData(records, labels, bytes, 2, prefix, suffix), Catch::Contains("at least 3"));
}
