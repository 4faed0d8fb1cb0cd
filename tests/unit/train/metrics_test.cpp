// The course of a training as JSON lines and as a picture.

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/train/loss_svg.hpp"
#include "peft/train/metrics_log.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

MetricsRecord step_record(Index step, double loss) {
  return {MetricsRecord::Kind::kStep, step, static_cast<double>(step) / 3.0, loss, 120, 3e-4, 0.71, 512, 431.25, false};
}
MetricsRecord evaluation_record(Index step, double loss) {
  return {.kind = MetricsRecord::Kind::kEvaluation, .step = step, .epoch = static_cast<double>(step) / 3.0, .loss = loss,
          .label_tokens = 99};
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// Every element is closed, in order: enough of XML to see that a picture is whole.
bool is_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" \n/", 1));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    if (count(tag, "\"") % 2 != 0) return false;
  }
  return open.empty();
}

}  // namespace

TEST_CASE("A record is one line of JSON that brings back the same bits") {
  const MetricsRecord record = step_record(7, 0.1 + 0.2);
  const std::string line = to_json(record);
  CHECK(line.find('\n') == std::string::npos);
  const auto json = nlohmann::json::parse(line);
  CHECK(json["step"] == 7);
  CHECK(json["epoch"].get<double>() == 7.0 / 3.0);
  CHECK(json["loss"].get<double>() == 0.1 + 0.2);
  CHECK(json["learning_rate"].get<double>() == 3e-4);
  CHECK(json["grad_norm"].get<double>() == 0.71);
  CHECK(json["tokens"] == 512);
  CHECK(json["label_tokens"] == 120);
  CHECK(json["tok_s"].get<double>() == 431.25);
  CHECK_FALSE(json.contains("skipped"));
  CHECK_FALSE(json.contains("eval_loss"));

  const auto evaluation = nlohmann::json::parse(to_json(evaluation_record(8, 1.5)));
  CHECK(evaluation["eval_loss"].get<double>() == 1.5);
  CHECK(evaluation["eval_label_tokens"] == 99);
  CHECK_FALSE(evaluation.contains("loss"));

  MetricsRecord skipped = record;
  skipped.skipped = true;
  skipped.grad_norm = std::numeric_limits<double>::infinity();
  const auto other = nlohmann::json::parse(to_json(skipped));
  CHECK(other["skipped"] == true);
  CHECK(other["grad_norm"].is_null());
}

TEST_CASE("A log forgets what a resumed run will do again") {
  MetricsLog log;
  log.add(evaluation_record(0, 3));
  for (Index step = 1; step <= 4; ++step) {
    log.add(step_record(step, 2));
    if (step % 2 == 0) log.add(evaluation_record(step, 2.5));
  }
  MetricsLog same = log;
  same.truncate(4, 4);
  CHECK(same.records().size() == 7);
  same.truncate(4, 2);  // step 4 done, its evaluation not
  CHECK(same.records().size() == 6);
  log.truncate(2, 2);
  REQUIRE(log.records().size() == 4);
  CHECK(log.records().back() == evaluation_record(2, 2.5));
}

TEST_CASE("The picture shows both curves, escapes its title and stays small") {
  MetricsLog log;
  Philox random(1);
  log.add(evaluation_record(0, 2.81));
  for (Index step = 1; step <= 20000; ++step) {
    log.add(step_record(step, 2.0 / static_cast<double>(step) + 0.1f * random.normal()));
    if (step % 4000 == 0) log.add(evaluation_record(step, 1.25));
  }
  log.add(step_record(20001, std::numeric_limits<double>::quiet_NaN()));
  const std::string svg = loss_svg(log.records(), "r=8 <\"A&B\">");
  CHECK(is_well_formed(svg));
  CHECK(svg.rfind("<svg xmlns=\"http://www.w3.org/2000/svg\"", 0) == 0);
  CHECK(count(svg, "r=8 &lt;&quot;A&amp;B&quot;&gt;") == 2);
  CHECK(count(svg, "<path d=\"M") == 3 + 3);  // two training lines and validation; as many in the legend
  CHECK(count(svg, "class=\"dot\"") == 6);
  CHECK(count(svg, ">2.810<") == 1);
  CHECK(count(svg, ">1.250<") == 1);
  CHECK(count(svg, "prefers-color-scheme:dark") == 1);
  CHECK(count(svg, "nan") == 0);
  CHECK(count(svg, "inf") == 0);
  CHECK(svg.size() < 80000);
}

TEST_CASE("The picture of few, equal or no numbers") {
  CHECK(is_well_formed(loss_svg({}, "nothing")));
  CHECK(count(loss_svg({}, "nothing"), "no steps yet") == 1);
  for (const double loss : {0.0, 2.5, 1e-30, 1e30}) {
    const std::vector<MetricsRecord> one{step_record(1, loss)};
    const std::vector<MetricsRecord> equal{step_record(1, loss), step_record(2, loss), evaluation_record(2, loss)};
    for (const auto& records : {one, equal}) {
      const std::string svg = loss_svg(records, "t");
      CAPTURE(loss, records.size());
      CHECK(is_well_formed(svg));
      CHECK(count(svg, "nan") == 0);
      CHECK(count(svg, "class=\"grid\"") >= 3);
      CHECK(count(svg, "class=\"grid\"") <= 40);
      CHECK(svg.size() < 12000);
    }
  }
}

TEST_CASE("Axes have round ticks") {
  const detail::Axis axis = detail::make_axis(0.37, 2.9, 6, false);
  CHECK(axis.tick == 0.5);
  CHECK(axis.digits == 1);
  CHECK(detail::make_axis(0.0, 3.0, 8, true).tick == 1.0);
  CHECK(detail::make_axis(0.0, 92.0, 8, true).tick == 20.0);
  CHECK(detail::make_axis(1.01, 1.02, 6, false).digits == 3);
}
