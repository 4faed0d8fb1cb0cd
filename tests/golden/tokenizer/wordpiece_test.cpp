#include "hosts/word_piece_tokenizer.hpp"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/bpe_tokenizer.hpp"
#include "hosts/open_tokenizer.hpp"
#include "hosts/tokenizer_json_writer.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft_examples;
using peft::Json;
using Ids = std::vector<std::int32_t>;

namespace {

Json golden(const std::string& name) {
  std::ifstream file(std::string(PEFT_GOLDEN_DIR) + "/tokenizer/" + name + ".json");
  REQUIRE(file.good());
  return Json::parse(file);
}

void check(const WordPieceTokenizer& tokenizer, const Json& texts, const Json& cases, const Json& base) {
  REQUIRE(texts.size() >= 120);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    INFO(i << ": " << text);
    const auto expected = (cases["ids"][i].is_null() ? base["ids"][i] : cases["ids"][i]).get<Ids>();
    CHECK(tokenizer.encode(text) == expected);
    CHECK(tokenizer.decode(expected, true) ==
          (cases["decoded"][i].is_null() ? base["decoded"][i] : cases["decoded"][i]).get<std::string>());
  }
}

Json changed(Json file, const Json& change) {
  for (const auto& [key, value] : change.items()) {
    if (key == "model") {
      file[key].update(value);
    } else {
      file[key] = value;
    }
  }
  return file;
}

}  // namespace

TEST_CASE("WordPiece's ids and decoding equal Hugging Face's in every setting of its normalizer") {
  const Json json = golden("wordpiece");
  const WordPieceTokenizer tokenizer(read_tokenizer_json(json["tokenizer"], "wordpiece"));
  check(tokenizer, json["texts"], json["cases"], json["cases"]);
  CHECK(tokenizer.encode_whole("lung") == json["whole"].get<Ids>());
  CHECK(tokenizer.id_of("[MASK]") == 4);
  CHECK(tokenizer.id_of("no such token") == -1);
  CHECK(tokenizer.is_special(4));
  CHECK_FALSE(tokenizer.is_special(5));
  CHECK(json["variants"].size() >= 10);
  for (const Json& variant : json["variants"]) {
    INFO(variant["change"].dump());
    const WordPieceTokenizer other(read_tokenizer_json(changed(json["tokenizer"], variant["change"]), "wordpiece"));
    check(other, json["texts"], variant["cases"], json["cases"]);
    CHECK(other.encode_whole("lung") == json["whole"].get<Ids>());
  }
  // What is written is what was read.
  const auto no_token_unused = [](std::size_t) { return false; };
  CHECK(read_tokenizer_json(tokenizer_json(tokenizer.spec(), no_token_unused), "written") == tokenizer.spec());
}

TEST_CASE("WordPiece cuts a text between what stands around it; special tokens can be text; bytes that are no UTF-8") {
  const Json json = golden("wordpiece");
  const WordPieceTokenizer tokenizer(read_tokenizer_json(json["tokenizer"], "wordpiece"));
  const std::string text = "the quick brown fox jumps over the lazy dog";
  const Ids whole = tokenizer.encode_whole(text), inner = tokenizer.encode(text);
  REQUIRE(whole.size() == inner.size() + 2);
  const Ids cut = tokenizer.encode_whole(text, 5);
  CHECK(cut == Ids{2, inner[0], inner[1], inner[2], 3});
  CHECK(tokenizer.encode_whole(text, static_cast<peft::Index>(whole.size())) == whole);
  CHECK(tokenizer.encode_whole(text, 1000) == whole);
  CHECK(tokenizer.encode_whole("") == Ids{2, 3});
  CHECK_THROWS_WITH(tokenizer.encode_whole(text, 2), Catch::Contains("at least 3"));
  CHECK(tokenizer.encode("a [MASK] b").size() == 3);
  CHECK(tokenizer.encode("a [MASK] b", false).size() > 3);
  CHECK(tokenizer.encode("a\xFF\xC3 b") == tokenizer.encode("a b"));  // cleaned away
  Json raw = json["tokenizer"];
  raw["normalizer"]["clean_text"] = false;
  const WordPieceTokenizer unclean(read_tokenizer_json(raw, "FILE"));
  CHECK(unclean.encode("a \xFF b") == Ids{tokenizer.id_of("a"), 1, tokenizer.id_of("b")});
  CHECK_THROWS_AS(tokenizer.decode(Ids{100000}), peft::ConfigError);
}

TEST_CASE("vocab.txt is the same tokenizer") {
  const Json json = golden("wordpiece");
  const TokenizerSpec spec = read_tokenizer_json(json["tokenizer"], "wordpiece");
  const io_test::ScratchFolder folder;
  std::string vocab;
  for (const std::string& token : spec.tokens) vocab += token + "\n";
  io_test::write_file(folder / "vocab.txt", vocab);
  check(WordPieceTokenizer(open_tokenizer(folder.path())), json["texts"], json["cases"], json["cases"]);
  // Windows' line ends, no end of the last line, and settings of tokenizer_config.json.
  std::string other;
  for (const std::string& token : spec.tokens) other += token + "\r\n";
  other.resize(other.size() - 2);
  io_test::write_file(folder / "vocab.txt", other);
  io_test::write_file(folder / "tokenizer_config.json",
                      R"({"do_lower_case": false, "strip_accents": null, "tokenize_chinese_chars": true, "cls_token": {"content": "[CLS]"}})");
  const Json& cased = json["variants"][0];
  REQUIRE(cased["change"]["normalizer"]["lowercase"] == false);
  check(WordPieceTokenizer(open_tokenizer(folder.path())), json["texts"], cased["cases"], json["cases"]);
  const auto refuse = [&](const std::string& text, const std::string& words) {
    io_test::write_file(folder / "vocab.txt", text);
    CHECK_THROWS_WITH(open_tokenizer(folder.path()), Catch::Contains(words));
  };
  refuse("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "[MASK]");
  refuse("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "line 7");
  refuse("", "[PAD]");
}

TEST_CASE("WordPiece tokenizers that do not work are refused by name") {
  const Json base = golden("wordpiece")["tokenizer"];
  const auto refuse = [&](const char* path, const Json& value, const std::string& words) {
    Json file = base;
    file[Json::json_pointer(path)] = value;
    INFO(path << " = " << value.dump());
    CHECK_THROWS_WITH(WordPieceTokenizer(read_tokenizer_json(file, "FILE")), Catch::Contains(words));
  };
  refuse("/model/unk_token", "[NONE]", "unk_token");
  refuse("/model/unk_token", nullptr, "unk_token");
  refuse("/model/max_input_chars_per_word", 0, "max_input_chars_per_word");
  refuse("/model/type", "Unigram", "Unigram");
  refuse("/decoder", {{"type", "WordPiece"}, {"prefix", "@@"}}, "prefix");
  refuse("/decoder", {{"type", "ByteLevel"}}, "ByteLevel");
  refuse("/post_processor", {{"type", "BertProcessing"}, {"sep", Json::array({"[SEP]", 99999})}, {"cls", Json::array({"[CLS]", 2})}}, "99999");
  refuse("/normalizer", {{"type", "Lowercase"}}, "Lowercase");
  CHECK_THROWS_WITH(BpeTokenizer(read_tokenizer_json(base, "FILE")), Catch::Contains("WordPiece"));
  CHECK_THROWS_WITH(WordPieceTokenizer(read_tokenizer_json(golden("gpt-2")["tokenizer"], "FILE")), Catch::Contains("byte pairs"));
}

TEST_CASE("MiniLM's ids equal Hugging Face's") {
  const char* path = std::getenv("PEFT_TEST_ENCODER");
  if (path == nullptr || *path == '\0') {
    WARN("skipped: PEFT_TEST_ENCODER does not name the folder of all-MiniLM-L6-v2");
    return;
  }
  const Json texts = golden("wordpiece")["texts"], ids = golden("wordpiece_minilm");
  const WordPieceTokenizer tokenizer(open_tokenizer(path));
  const io_test::ScratchFolder folder;
  io_test::write_file(folder / "vocab.txt", io_test::read_file(std::filesystem::path(path) / "vocab.txt"));
  const WordPieceTokenizer from_vocab(open_tokenizer(folder.path()));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    INFO(texts[i]);
    CHECK(tokenizer.encode(texts[i].get<std::string>()) == ids[i].get<Ids>());
    CHECK(from_vocab.encode(texts[i].get<std::string>()) == ids[i].get<Ids>());
  }
  CHECK(tokenizer.encode_whole("lung") == Ids{101, 11192, 102});
}
