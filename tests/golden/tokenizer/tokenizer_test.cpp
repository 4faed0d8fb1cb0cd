#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/gguf_vocabulary.hpp"
#include "support/catch.hpp"

using peft_examples::BpeTokenizer;
using peft_examples::BpeVocabulary;

namespace {

nlohmann::json golden(const std::string& name) {
  nlohmann::json json;
  std::ifstream file(std::string(PEFT_GOLDEN_DIR) + "/tokenizer/" + name + ".json");
  REQUIRE(file.good());
  file >> json;
  return json;
}

void check(const BpeTokenizer& tokenizer, const nlohmann::json& cases) {
  CHECK(cases.size() >= 60);
  for (const auto& one : cases) {
    const auto text = one["text"].get<std::string>();
    INFO(one["text"]);
    const auto ids = tokenizer.encode(text);
    CHECK(ids == one["ids"].get<std::vector<std::int32_t>>());
    CHECK(tokenizer.decode(ids) == text);
  }
}

}  // namespace

TEST_CASE("ids equal Hugging Face's for every pre-tokenizer, on small vocabularies") {
  for (const std::string name : {"gpt-2", "smollm", "llama-3", "qwen2"}) {
    INFO(name);
    const auto json = golden(name);
    BpeVocabulary v;
    v.tokens = json["tokens"].get<std::vector<std::string>>();
    v.merges = json["merges"].get<std::vector<std::string>>();
    v.token_types.assign(v.tokens.size(), 1);
    v.token_types[0] = v.token_types[1] = 3;  // <|im_start|>, <|im_end|>
    v.pre_tokenizer = name;
    const BpeTokenizer tokenizer(v);
    check(tokenizer, json["cases"]);
    // Not UTF-8: the bytes come back.
    for (const std::string broken : {"\xFF", "a\xC3", "\xE2\x82x", "\xED\xA0\x80", "ok \xF0\x9F\x92 no"}) {
      CHECK(tokenizer.decode(tokenizer.encode(broken)) == broken);
    }
    const auto special = tokenizer.encode("<|im_end|>");
    CHECK(special == std::vector<std::int32_t>{1});
    CHECK(tokenizer.encode("<|im_end|>", false).size() > 1);
    CHECK(tokenizer.decode(special, true).empty());
    CHECK(tokenizer.id_of("<|im_start|>") == 0);
    CHECK(tokenizer.id_of("no such token") == -1);
    CHECK_THROWS_AS(tokenizer.bytes_of(100000), peft::ConfigError);
  }
}

TEST_CASE("vocabularies that do not work are refused by name") {
  BpeVocabulary v;
  v.pre_tokenizer = "falcon";
  CHECK_THROWS_WITH(BpeTokenizer(v), Catch::Contains("falcon") && Catch::Contains("qwen2"));
  v.pre_tokenizer = "gpt-2";
  v.tokens = {"a", "b"};
  v.merges = {"a c"};
  CHECK_THROWS_WITH(BpeTokenizer(v), Catch::Contains("a c"));
  v.merges = {};
  CHECK_THROWS_WITH(BpeTokenizer(v).encode("z"), Catch::Contains("0x7a"));
}

TEST_CASE("SmolLM2's ids equal Hugging Face's") {
  const char* path = std::getenv("PEFT_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    WARN("skipped: PEFT_TEST_MODEL does not name the GGUF of SmolLM2-135M-Instruct");
    return;
  }
  const BpeTokenizer tokenizer(peft_examples::read_bpe_vocabulary(peft::GgufFile::open(path)));
  check(tokenizer, golden("smollm2"));
  CHECK(tokenizer.id_of("<|im_end|>") == 2);
}
