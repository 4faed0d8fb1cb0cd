// The promises of examples/data/README.md.
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

struct Record {
  std::string question, output;
  std::vector<std::string> facts;
};

std::vector<Record> read(const std::string& name) {
  std::ifstream file(std::string(PEFT_SOURCE_DIR) + "/examples/data/" + name);
  REQUIRE(file.good());
  std::vector<Record> records;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);  // throws for invalid JSON or UTF-8
    records.push_back({json.at("instruction").get<std::string>() + " " + json.at("input").get<std::string>(),
                       json.at("output").get<std::string>(), json.value("facts", std::vector<std::string>{})});
  }
  return records;
}

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

// Runs of ASCII letters and digits; bytes of other scripts stand alone, three to a character.
std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> result;
  bool open = false;
  for (const char c : lower(text)) {
    const bool word = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (word && open) {
      result.back() += c;
    } else if (word || static_cast<unsigned char>(c) >= 0x80) {
      result.emplace_back(1, c);
    }
    open = word;
  }
  return result;
}

std::set<std::vector<std::string>> grams(const std::string& text) {
  const auto w = words(text);
  const std::size_t n = std::min<std::size_t>(4, w.size());
  std::set<std::vector<std::string>> result;
  for (std::size_t i = 0; n > 0 && i + n <= w.size(); ++i) {
    result.emplace(w.begin() + static_cast<std::ptrdiff_t>(i), w.begin() + static_cast<std::ptrdiff_t>(i + n));
  }
  return result;
}

double rouge_l(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<int> row(b.size() + 1, 0);
  for (const auto& x : a) {
    int diagonal = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const int above = row[j + 1];
      row[j + 1] = x == b[j] ? diagonal + 1 : std::max(row[j + 1], row[j]);
      diagonal = above;
    }
  }
  return 2.0 * row.back() / static_cast<double>(a.size() + b.size());
}

}  // namespace

TEST_CASE("the example data keep their promises") {
  const auto train = read("support-train.jsonl"), val = read("support-val.jsonl"), test = read("support-test.jsonl");
  CHECK(train.size() >= 350);
  CHECK(val.size() >= 30);
  CHECK(test.size() == 60);
  std::set<std::string> questions;
  std::size_t total = 0;
  for (const auto* part : {&train, &val, &test}) {
    for (const Record& r : *part) {
      questions.insert(lower(r.question));
      ++total;
      CHECK_FALSE(r.output.empty());
    }
  }
  CHECK(questions.size() == total);

  std::vector<std::set<std::vector<std::string>>> seen;
  for (const Record& r : train) seen.push_back(grams(r.question));
  std::size_t chinese = 0;
  for (const auto* part : {&val, &test}) {
    for (const Record& r : *part) {
      INFO(r.question);
      const auto own = grams(r.question);
      for (const auto& other : seen) {
        const auto shared = std::count_if(own.begin(), own.end(), [&](const auto& g) { return other.count(g) > 0; });
        REQUIRE(static_cast<double>(shared) <= 0.5 * static_cast<double>(own.size()));
      }
      REQUIRE_FALSE(r.facts.empty());
      for (const std::string& fact : r.facts) {
        CHECK(lower(r.output).find(lower(fact)) != std::string::npos);
        CHECK(lower(r.question).find(lower(fact)) == std::string::npos);
      }
      CHECK(std::any_of(train.begin(), train.end(), [&](const Record& t) { return t.output == r.output; }));
      if (static_cast<unsigned char>(r.question[0]) >= 0x80) {
        ++chinese;
        CHECK(r.output.find("**") != std::string::npos);
        const bool emoji = r.output.find("\xF0\x9F") != std::string::npos || r.output.find("\xE2\x9A") != std::string::npos;
        CHECK(emoji);
      }
    }
  }
  CHECK(chinese >= 4);

  std::set<std::string> answers;
  for (const Record& r : train) answers.insert(r.output);
  double sum = 0;
  std::size_t pairs = 0;
  for (auto a = answers.begin(); a != answers.end(); ++a) {
    for (auto b = std::next(a); b != answers.end(); ++b, ++pairs) sum += rouge_l(words(*a), words(*b));
  }
  CHECK(answers.size() >= 40);
  CHECK(sum / static_cast<double>(pairs) <= 0.4);
}
