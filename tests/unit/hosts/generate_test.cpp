#include "hosts/generate.hpp"

#include <cmath>
#include <map>

#include "hosts/open_tokenizer.hpp"
#include "hosts/llama_gguf.hpp"
#include "hosts/llama_loader.hpp"
#include "hosts/stream_decoder.hpp"
#include "support/catch.hpp"
#include "support/tiny_gguf.hpp"

using namespace peft;
using namespace peft_examples;

namespace {

struct Tiny {
  io_test::ScratchFolder folder;
  GgufFile file = [this] {
    io_test::write_file(folder / "tiny.gguf", peft_test::TinyGguf{}.bytes());
    return GgufFile::open(folder / "tiny.gguf");
  }();
  Llama<double> model = load_llama<double>(open_gguf_model(file));
};

/// Greedy continuation without a cache: the whole text goes through the training forward for every token.
std::vector<std::int32_t> continue_slowly(Llama<double>& model, std::vector<std::int32_t> ids, Index tokens) {
  const std::size_t prompt = ids.size();
  for (Index i = 0; i < tokens; ++i) {
    PackedBatch batch;
    batch.ids = ids;
    for (Index j = 0; j < batch.tokens(); ++j) batch.positions.push_back(static_cast<std::int32_t>(j));
    batch.targets.assign(ids.size(), -1);
    batch.offsets.push_back(batch.tokens());
    Matrix<double> logits(batch.tokens(), model.config().vocab_size);
    model.logits(batch, logits);
    const double* last = logits.row(batch.tokens() - 1);
    ids.push_back(static_cast<std::int32_t>(std::max_element(last, last + logits.cols()) - last));
  }
  return {ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end()};
}

const std::vector<std::vector<std::int32_t>> kPrompts{{72, 101, 108}, {40}, {90, 91, 92, 93, 94, 95, 96}, {7, 7}, {200, 3, 1, 4}};

}  // namespace

TEST_CASE("generation over the cache, in batches of any size, equals the whole forward for every token") {
  Tiny tiny;
  GenerateOptions options;
  options.max_tokens = 9;
  for (const Index batch : {1, 2, 5, 8}) {
    const auto answers = generate<double>(tiny.model, kPrompts, options, batch);
    for (std::size_t i = 0; i < kPrompts.size(); ++i) CHECK(answers[i] == continue_slowly(tiny.model, kPrompts[i], 9));
  }
}

TEST_CASE("a text ends before a stop token, at max_tokens, at the end of the context, or when it is told to") {
  Tiny tiny;
  GenerateOptions options;
  options.max_tokens = 9;
  const auto whole = generate<double>(tiny.model, kPrompts, options);
  options.stop_ids = {whole[2][4]};
  const auto stopped = generate<double>(tiny.model, kPrompts, options);
  for (std::size_t i = 0; i < kPrompts.size(); ++i) {
    const auto stop = std::find(whole[i].begin(), whole[i].end(), options.stop_ids[0]);
    CHECK(stopped[i] == std::vector<std::int32_t>(whole[i].begin(), stop));
  }
  options.stop_ids.clear();
  options.max_tokens = 1000;
  const std::vector<std::vector<std::int32_t>> long_prompt{std::vector<std::int32_t>(250, 65)};
  // 256 positions: six more are read, and what the last one says is still an answer.
  CHECK(generate<double>(tiny.model, long_prompt, options)[0].size() == 7);
  std::size_t heard = 0;
  const auto told = generate<double>(tiny.model, long_prompt, options, 1,
                                     [&](std::size_t, std::int32_t) { return ++heard < 3; });
  CHECK(told[0].size() == 3);
}

TEST_CASE("what cannot be generated is refused with what is expected") {
  Tiny tiny;
  GenerateOptions options;
  const auto refuse = [&](const std::vector<std::vector<std::int32_t>>& prompts, const std::string& words) {
    CHECK_THROWS_WITH(generate<double>(tiny.model, prompts, options), Catch::Contains(words));
  };
  refuse({{}}, "prompt 0 has 0 tokens");
  refuse({{1}, std::vector<std::int32_t>(257, 1)}, "expected 1 to 256");
  refuse({{4000}}, "4000");
  options.top_p = 0;
  refuse({{1}}, "top_p is 0");
  options.top_p = 1;
  options.temperature = -1;
  refuse({{1}}, "temperature is -1");
  options.temperature = 0;
  options.max_tokens = 0;
  refuse({{1}}, "max_tokens is 0");
}

TEST_CASE("tokens are drawn with the probabilities of temperature and top_p") {
  const std::vector<double> logits{std::log(0.5), std::log(0.3), std::log(0.15), std::log(0.05)};
  GenerateOptions options;
  const auto shares = [&] {
    std::map<std::int32_t, double> result;
    Philox random(3);
    constexpr int kDraws = 40000;
    for (int i = 0; i < kDraws; ++i) result[choose_token<double>(logits, options, random)] += 1.0 / kDraws;
    return result;
  };
  // Five standard deviations of a share of 40,000 draws: 5·√(0.25/40000) = 0.0125.
  options.temperature = 1;
  auto drawn = shares();
  CHECK(std::fabs(drawn[0] - 0.5) < 0.0125);
  CHECK(std::fabs(drawn[2] - 0.15) < 0.0125);
  options.top_p = 0.79;  // the first two reach it, the first alone does not
  drawn = shares();
  CHECK(std::fabs(drawn[0] - 0.625) < 0.0125);
  CHECK(drawn.count(2) + drawn.count(3) == 0);
  options.top_p = 1;
  options.temperature = 0.5;  // squares
  CHECK(std::fabs(shares()[0] - 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025)) < 0.0125);
  options.temperature = 0;
  CHECK(shares().size() == 1);
}

TEST_CASE("a stream of tokens becomes text character by character, and nothing of it is lost") {
  Tiny tiny;
  const BpeTokenizer tokenizer(read_tokenizer(tiny.file));
  const std::string text = "a é 中 🙂 the end";
  StreamDecoder decoder(tokenizer);
  std::string joined;
  for (const std::int32_t id : tokenizer.encode(text)) {
    const std::string piece = decoder.push(id);
    if (!piece.empty()) CHECK((static_cast<unsigned char>(piece.front()) & 0xC0) != 0x80);
    joined += piece;
  }
  CHECK(joined == text);
  CHECK(decoder.finish().empty());
  // Broken UTF-8 comes through unchanged as well.
  for (const std::string& bytes : {std::string("\x80\x80"), std::string("\xE4\xB8"), std::string("\xF0\x9F\x41"), std::string("\xFF\xC3")}) {
    std::string out;
    for (const char c : bytes) out += decoder.push(tokenizer.id_of(peft_test::TinyGguf::printable(static_cast<unsigned char>(c))));
    CHECK(out + decoder.finish() == bytes);
  }
}
