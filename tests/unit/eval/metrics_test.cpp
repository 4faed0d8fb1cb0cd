#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "peft/eval/bleu.hpp"
#include "peft/eval/fact_accuracy.hpp"
#include "peft/eval/perplexity.hpp"
#include "peft/eval/rouge.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

nlohmann::json golden() {
  nlohmann::json json;
  std::ifstream(std::string(PEFT_GOLDEN_DIR) + "/eval/metrics.json") >> json;
  return json;
}

}  // namespace

TEST_CASE("BLEU of corpora equals sacreBLEU's, with every sum behind it") {
  const nlohmann::json json = golden();
  REQUIRE(json["corpus"].size() == 28);
  for (const auto& [name, expected] : json["corpus"].items()) {
    std::vector<std::string> hypotheses, references;
    for (const std::size_t pair : expected["pairs"].get<std::vector<std::size_t>>()) {
      hypotheses.push_back(json["records"][pair]["hypothesis"]);
      references.push_back(json["records"][pair]["reference"]);
    }
    const BleuScore score = corpus_bleu(hypotheses, references, bleu_tokenizer_from(name.substr(name.find('/') + 1)));
    INFO(name);
    CHECK(score.sys_len == expected["sys_len"].get<Index>());
    CHECK(score.ref_len == expected["ref_len"].get<Index>());
    CHECK(std::fabs(score.brevity_penalty - expected["bp"].get<double>()) < 1e-12);
    for (std::size_t n = 0; n < 4; ++n) {
      CHECK(score.counts[n] == expected["counts"][n].get<Index>());
      CHECK(score.totals[n] == expected["totals"][n].get<Index>());
      CHECK(std::fabs(score.precisions[n] - expected["precisions"][n].get<double>()) < 1e-10);
    }
    CHECK(std::fabs(score.score - expected["score"].get<double>()) < 1e-10);
  }
}

TEST_CASE("BLEU of sentences and ROUGE of pairs equal sacreBLEU's and rouge-score's") {
  const nlohmann::json json = golden();
  REQUIRE(json["records"].size() == 68);
  for (const auto& record : json["records"]) {
    const auto hypothesis = record["hypothesis"].get<std::string>(), reference = record["reference"].get<std::string>();
    INFO(hypothesis << " | " << reference);
    for (const auto& [tokenizer, expected] : record["bleu"].items()) {
      INFO(tokenizer);
      CHECK(std::fabs(sentence_bleu(hypothesis, reference, bleu_tokenizer_from(tokenizer)).score -
                      expected.get<double>()) < 1e-10);
    }
    const RougeScore score = rouge(hypothesis, reference, RougeMode::kWords);
    for (const auto& [kind, value] : {std::pair("rouge1", score.rouge1), {"rouge2", score.rouge2}, {"rougeL", score.rougeL}}) {
      INFO(kind);
      CHECK(std::fabs(value.precision - record["rouge"][kind][0].get<double>()) < 1e-12);
      CHECK(std::fabs(value.recall - record["rouge"][kind][1].get<double>()) < 1e-12);
      CHECK(std::fabs(value.fmeasure - record["rouge"][kind][2].get<double>()) < 1e-12);
    }
  }
}

TEST_CASE("ROUGE by characters, where the script asks for it") {
  CHECK(choose_rouge_mode("先用蒸汽清洁喷嘴") == RougeMode::kCharacters);
  CHECK(choose_rouge_mode("ボタンを押す E-17") == RougeMode::kCharacters);
  CHECK(choose_rouge_mode("밸브를 닫으세요") == RougeMode::kCharacters);
  CHECK(choose_rouge_mode("the word 阀 means valve") == RougeMode::kWords);
  CHECK(choose_rouge_mode("") == RougeMode::kWords);
  CHECK(rouge("关闭阀门", "关闭阀门", RougeMode::kWords).rougeL.fmeasure == 0.0);
  CHECK(rouge("关闭阀门", "关闭阀门", RougeMode::kCharacters).rougeL.fmeasure == 1.0);
  // 关 闭 阀 门 e 17 against 打 开 阀 门 e 17: four of six in common, in order; bigrams 阀门, 门e, e17 of five.
  const RougeScore score = rouge("打开阀门，E-17", "关闭阀门 E-17。", RougeMode::kCharacters);
  CHECK(score.rouge1.fmeasure == Approx(4.0 / 6.0));
  CHECK(score.rouge2.fmeasure == Approx(3.0 / 5.0));
  CHECK(score.rougeL.fmeasure == Approx(4.0 / 6.0));
  const std::vector<std::string> hypotheses{"关闭阀门", "open the valve"}, references{"关闭阀门", "close the valve"};
  const RougeMean mean = mean_rouge(hypotheses, references);
  CHECK(mean.words == 1);
  CHECK(mean.characters == 1);
  CHECK(mean.mean.rouge1.fmeasure == Approx((1.0 + 2.0 / 3.0) / 2.0));
}

TEST_CASE("metrics refuse lists that do not pair up") {
  const std::vector<std::string> one{"a"}, two{"a", "b"}, none;
  CHECK_THROWS_WITH(corpus_bleu(one, two), Catch::Contains("1 hypotheses and 2 references"));
  CHECK_THROWS_AS(corpus_bleu(none, none), ConfigError);
  CHECK_THROWS_WITH(mean_rouge(two, one), Catch::Contains("2 hypotheses and 1 references"));
  CHECK_THROWS_AS(mean_rouge(none, none), ConfigError);
  CHECK_THROWS_WITH(bleu_tokenizer_from("intl"), Catch::Contains("13a, zh, char or none"));
}

TEST_CASE("a fact counts where it stands as a whole") {
  CHECK(contains_fact("Dial 0800-55-317 now", "0800-55-317"));
  CHECK(contains_fact("ask for the NIGHTJAR  desk.", "Nightjar desk"));
  CHECK(contains_fact("It is 8.5 bar.", "8.5 bar"));
  CHECK(contains_fact("(E-17)", "e-17"));
  CHECK(contains_fact("按 E-17键", "E-17"));
  CHECK(contains_fact("请关闭阀门。", "阀门"));
  CHECK(contains_fact("It costs 5.", "5"));
  CHECK(contains_fact("15 or 5", "5"));
  CHECK_FALSE(contains_fact("E-171", "E-17"));
  CHECK_FALSE(contains_fact("15", "5"));
  CHECK_FALSE(contains_fact("5.5", "5"));
  CHECK_FALSE(contains_fact("2,5 bar", "5 bar"));
  CHECK_FALSE(contains_fact("valves", "valve"));
  CHECK_FALSE(contains_fact("naïve", "na"));
  CHECK_FALSE(contains_fact("-5", "5"));
  CHECK(contains_fact("1-5", "5"));
  CHECK_FALSE(contains_fact("1.5", ".5"));
  CHECK_FALSE(contains_fact("max_len", "max"));
  CHECK_FALSE(contains_fact("Việt", "Vi"));
  CHECK_FALSE(contains_fact("１５", "５"));
  CHECK(contains_fact("E1،", "E1"));
  CHECK_FALSE(contains_fact("anything", ""));
  CHECK_FALSE(contains_fact("", "x"));
  const std::vector<std::string> facts{"31 months", "Juniper jar"};
  CHECK(count_facts("for 31 months", facts).found == 1);
  CHECK(count_facts("for 31 months", facts).mean() == 0.5);
  CHECK(FactCount{}.mean() == 0.0);
}

TEST_CASE("perplexity") {
  CHECK(perplexity({std::log(4.0) * 10, 10, 0}) == Approx(4.0));
  CHECK(perplexity({1e6, 1, 0}) == std::numeric_limits<double>::infinity());
  CHECK_THROWS_AS(perplexity({}), ConfigError);
}

TEST_CASE("characters of broken UTF-8") {
  CHECK(decode_utf8("a\xFF" "b") == U"a\uFFFDb");
  CHECK(decode_utf8("\xE4\xB8") == U"\uFFFD\uFFFD");
  CHECK(decode_utf8("\xC0\x80\xED\xA0\x80") == U"\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(decode_utf8("\xF4\x90\x80\x80").size() == 4);
  CHECK(decode_utf8("é中🙂") == U"é中🙂");
}
