#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hosts/open_tokenizer.hpp"
#include "hosts/stream_decoder.hpp"
#include "hosts/tokenizer_json_writer.hpp"
#include "support/catch.hpp"
#include "unit/io/gguf_builder.hpp"

using namespace peft_examples;
using peft::Json;
using Ids = std::vector<std::int32_t>;

namespace {

Json golden(const std::string& name) {
  std::ifstream file(std::string(PEFT_GOLDEN_DIR) + "/tokenizer/" + name + ".json");
  REQUIRE(file.good());
  return Json::parse(file);
}
const std::vector<std::string>& texts() {
  static const auto all = golden("texts").get<std::vector<std::string>>();
  return all;
}

std::string streamed(const BpeTokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) {
    if (!tokenizer.is_special(id)) text += decoder.push(id);
  }
  return text + decoder.finish();
}

/// Ids, decoding and template of every text. `base`: the cases that null stands for.
void check(const BpeTokenizer& tokenizer, const Json& cases, const Json& base) {
  REQUIRE(texts().size() >= 90);
  for (std::size_t i = 0; i < texts().size(); ++i) {
    const std::string& text = texts()[i];
    INFO(i << ": " << text);
    const Json& expected = cases["ids"][i].is_null() ? base["ids"][i] : cases["ids"][i];
    const auto ids = tokenizer.encode(text);
    CHECK(ids == expected.get<Ids>());
    Ids whole = cases["prefix"].get<Ids>();
    whole.insert(whole.end(), ids.begin(), ids.end());
    CHECK(tokenizer.encode_whole(text) == whole);
    if (!cases.contains("decoded")) continue;
    Json decoded = cases["decoded"][i].is_null() ? base["decoded"][i] : cases["decoded"][i];
    if (decoded.is_null()) decoded = text;
    CHECK(tokenizer.decode(ids, true) == decoded.get<std::string>());
    CHECK(streamed(tokenizer, ids) == decoded.get<std::string>());
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

/// A GGUF with a tokenizer and nothing else, by the bytes.
std::string gguf(const std::vector<std::string>& tokens, const std::vector<std::int32_t>& types, const std::string& model,
                 const std::string& pre, const std::vector<std::pair<std::string, std::string>>& merges,
                 const std::vector<float>& scores, bool add_bos) {
  io_test::GgufBuilder file;
  file.head(0, 7);
  file.text_value("tokenizer.ggml.model", model);
  if (model == "gpt2") {
    file.text_value("tokenizer.ggml.pre", pre);
    file.array("tokenizer.ggml.merges", 8, merges.size());
    for (const auto& [left, right] : merges) file.text(left + " " + right);
  } else {
    file.value("tokenizer.ggml.unknown_token_id", 4, std::uint32_t{0});
    file.array("tokenizer.ggml.scores", 6, scores.size());
    for (const float score : scores) file.number(score);
  }
  file.array("tokenizer.ggml.tokens", 8, tokens.size());
  for (const std::string& token : tokens) file.text(token);
  file.array("tokenizer.ggml.token_type", 5, types.size());
  for (const std::int32_t type : types) file.number(type);
  file.value("tokenizer.ggml.bos_token_id", 4, std::uint32_t{model == "gpt2" ? 2u : 1u});
  file.value("tokenizer.ggml.add_bos_token", 7, std::uint8_t{add_bos});
  return file.bytes();
}

TokenizerSpec through_gguf(const std::string& bytes) {
  const io_test::ScratchFolder folder;
  io_test::write_file(folder / "tokenizer.gguf", bytes);
  return read_tokenizer(peft::GgufFile::open(folder / "tokenizer.gguf"));
}

TokenizerSpec sentencepiece_gguf() {
  const Json model = golden("sentencepiece_model");
  return through_gguf(gguf(model["pieces"].get<std::vector<std::string>>(), model["types"].get<std::vector<std::int32_t>>(),
                           "llama", "", {}, model["scores"].get<std::vector<float>>(), true));
}

}  // namespace

TEST_CASE("ids, templates and decoding from tokenizer.json equal Hugging Face's") {
  std::size_t variants = 0;
  for (const std::string name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-llm", "sentencepiece"}) {
    INFO(name);
    const Json json = golden(name);
    const Json& cases = json["cases"];
    const BpeTokenizer tokenizer(read_tokenizer_json(json["tokenizer"], name));
    check(tokenizer, cases, cases);
    for (const Json& variant : json["variants"]) {
      INFO(variant["change"].dump());
      const BpeTokenizer other(read_tokenizer_json(changed(json["tokenizer"], variant["change"]), name));
      check(other, variant["cases"], cases);
      ++variants;
    }
    // What is written is what was read.
    const auto no_token_unused = [](std::size_t) { return false; };
    CHECK(read_tokenizer_json(tokenizer_json(tokenizer.spec(), no_token_unused), "written") == tokenizer.spec());
    // The added tokens of the text are text where that is asked for; those that are not special stay tokens.
    const auto& special = tokenizer.spec().added.at(1);
    CHECK(tokenizer.encode(special.content) == Ids{special.id});
    CHECK(tokenizer.encode(special.content, false).size() > 1);
    CHECK(tokenizer.decode(Ids{special.id}, true).empty());
    CHECK(tokenizer.id_of(special.content) == special.id);
    CHECK(tokenizer.id_of("no such token") == -1);
    CHECK_THROWS_AS(tokenizer.bytes_of(100000), peft::ConfigError);
    // Not UTF-8: the bytes come back.
    for (const std::string broken : {"\xFF", "a\xC3", "\xE2\x82x", "\xED\xA0\x80", "ok \xF0\x9F\x92 no"}) {
      CHECK(tokenizer.decode(tokenizer.encode(broken)) == broken);
    }
  }
  CHECK(variants >= 24);
}

TEST_CASE("ids of a GGUF's tokenizer equal Hugging Face's: merges with a pre-tokenizer's name") {
  for (const std::string name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-llm"}) {
    INFO(name);
    const Json json = golden(name);
    const TokenizerSpec original = read_tokenizer_json(json["tokenizer"], name);
    std::vector<std::int32_t> types(original.tokens.size(), 1);
    for (const AddedToken& token : original.added) types[static_cast<std::size_t>(token.id)] = token.special ? 3 : 4;
    const BpeTokenizer tokenizer(through_gguf(gguf(original.tokens, types, "gpt2", name, original.merges, {}, name == "llama-bpe")));
    check(tokenizer, json["cases"], json["cases"]);
    CHECK(preset_name(tokenizer.spec()) == name);
    CHECK(preset_name(original) == name);
  }
}

TEST_CASE("ids of a GGUF's tokenizer equal sentencepiece's and Hugging Face's: merges by score") {
  const Json model = golden("sentencepiece_model"), json = golden("sentencepiece");
  const BpeTokenizer tokenizer(sentencepiece_gguf());
  check(tokenizer, json["cases"], json["cases"]);
  std::size_t compared = 0;
  for (std::size_t i = 0; i < texts().size(); ++i) {
    if (model["ids"][i].is_null()) continue;
    INFO(texts()[i]);
    CHECK(tokenizer.encode(texts()[i], false) == model["ids"][i].get<Ids>());
    ++compared;
  }
  CHECK(compared > 80);
  // As a tokenizer.json, with merges that stand for the scores.
  const auto no_token_unused = [](std::size_t) { return false; };
  const BpeTokenizer written(read_tokenizer_json(tokenizer_json(tokenizer.spec(), no_token_unused), "written"));
  check(written, json["cases"], json["cases"]);
}

TEST_CASE("a beginning or end of text that tokenizer_config.json asks for takes the template's place") {
  const io_test::ScratchFolder folder;
  io_test::write_file(folder / "tokenizer.json", golden("llama-bpe")["tokenizer"].dump());
  CHECK(read_tokenizer(folder.path()).prefix == Ids{2});
  CHECK(read_tokenizer(folder.path()).eos == -1);
  io_test::write_file(folder / "tokenizer_config.json",
                      R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": false, "chat_template": "{{ x }}"})");
  io_test::write_file(folder / "generation_config.json", R"({"eos_token_id": [3, 1, 99999]})");
  const TokenizerSpec spec = read_tokenizer(folder.path());
  CHECK(spec.prefix.empty());
  CHECK(spec.bos == 2);
  CHECK(spec.eos == 3);
  CHECK(spec.stops == Ids{3, 1});
  CHECK(spec.chat_template == "{{ x }}");
  io_test::write_file(folder / "tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": true, "add_bos_token": true})");
  CHECK(read_tokenizer(folder.path()).prefix == Ids{2});
  CHECK(read_tokenizer(folder.path()).suffix == Ids{3});
}

TEST_CASE("tokenizers that do not work are refused by name") {
  const Json base = golden("gpt-2")["tokenizer"];
  const auto refuse = [&](const char* path, const Json& value, const std::string& words) {
    Json file = base;
    file[Json::json_pointer(path)] = value;
    INFO(path << " = " << value.dump());
    CHECK_THROWS_WITH(BpeTokenizer(read_tokenizer_json(file, "FILE")), Catch::Contains(words));
  };
  refuse("/normalizer", {{"type", "Nmt"}}, "Nmt");
  refuse("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a+"}}}, {"content", "b"}}, "plain text");
  refuse("/pre_tokenizer", {{"type", "Whitespace"}}, "Whitespace");
  refuse("/pre_tokenizer", nullptr, "ByteLevel");
  refuse("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({{{"type", "ByteLevel"}}, {{"type", "Digits"}}})}}, "behind ByteLevel");
  refuse("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({{{"type", "Digits"}}, {{"type", "ByteLevel"}}})}}, "in front");
  refuse("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "a("}}}, {"behavior", "Isolated"}}, "decoder");
  refuse("/decoder", {{"type", "WordPiece"}}, "WordPiece");
  refuse("/post_processor", {{"type", "RobertaProcessing"}}, "RobertaProcessing");
  refuse("/post_processor", {{"type", "BertProcessing"}, {"sep", Json::array({"x", 1})}, {"cls", "y"}}, "cls");
  refuse("/model/type", "Unigram", "Unigram");
  refuse("/model/dropout", 0.1, "dropout");
  refuse("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  refuse("/model/unk_token", "<nothing>", "unk_token");
  refuse("/model/merges", Json::array({"a b c"}), "merge 0");
  refuse("/model/merges", Json::array({{"a", "€€"}}), "€€");
  refuse("/model/vocab/again", 7, "the id 7 belongs to");
  refuse("/model/vocab/negative", -1, "-1");
  refuse("/added_tokens/0/single_word", true, "single_word");
  refuse("/added_tokens/0/id", 9, "the id 9 belongs to");
  Json split = base;
  split["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array({{{"type", "Split"}, {"pattern", {{"Regex", "a("}}}, {"behavior", "Isolated"}}, {{"type", "ByteLevel"}, {"add_prefix_space", false}}})}};
  CHECK_THROWS_WITH(BpeTokenizer(read_tokenizer_json(split, "FILE")), Catch::Contains("a("));

  TokenizerSpec spec;
  spec.tokens = {"a", "b"};
  CHECK_THROWS_WITH(BpeTokenizer(spec).encode("z"), Catch::Contains("\"z\""));
  spec.merges = {{"a", "c"}};
  CHECK_THROWS_WITH(BpeTokenizer(spec), Catch::Contains("\"ac\""));
  spec.merges.clear();
  spec.added = {{5, "<x>"}};
  CHECK_THROWS_WITH(BpeTokenizer(spec), Catch::Contains("<x>"));

  CHECK_THROWS_WITH(through_gguf(gguf({"a", "b", "c"}, {1, 1, 1}, "gpt2", "falcon", {}, {}, false)), Catch::Contains("falcon") && Catch::Contains("qwen2"));
  CHECK_THROWS_WITH(through_gguf(gguf({"a"}, {1}, "bert", "", {}, {}, false)), Catch::Contains("bert"));
  CHECK_THROWS_WITH(through_gguf(gguf({"a", "b"}, {1, 1}, "llama", "", {}, {0.f}, false)), Catch::Contains("1 scores"));
  CHECK_THROWS_WITH(through_gguf(gguf({"a", "b", "c"}, {1}, "gpt2", "gpt-2", {}, {}, false)), Catch::Contains("1 token types"));
  CHECK_THROWS_WITH(through_gguf(gguf({"a", "b"}, {1, 1}, "gpt2", "gpt-2", {}, {}, false)), Catch::Contains("bos_token_id is 2"));
}

TEST_CASE("SmolLM2's ids equal Hugging Face's") {
  const char* path = std::getenv("PEFT_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    WARN("skipped: PEFT_TEST_MODEL does not name the GGUF of SmolLM2-135M-Instruct");
    return;
  }
  const BpeTokenizer tokenizer(open_tokenizer(path));
  const Json ids = golden("smollm2");
  for (std::size_t i = 0; i < texts().size(); ++i) {
    INFO(texts()[i]);
    CHECK(tokenizer.encode(texts()[i]) == ids[i].get<Ids>());
    CHECK(tokenizer.decode(ids[i].get<Ids>()) == texts()[i]);
  }
  CHECK(tokenizer.id_of("<|im_end|>") == 2);
  CHECK(tokenizer.spec().prefix.empty());
}
