/// peft classify: says the class of one text. And peft eval --task classify.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "cli/classification_report.hpp"
#include "cli/classifier.hpp"
#include "cli/classify_eval.hpp"
#include "cli/command.hpp"
#include "cli/process.hpp"
#include "cli/progress.hpp"
#include "peft/core/rounded.hpp"
#include "peft/io/atomic_file.hpp"

namespace peft_examples {
namespace {

constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;

struct ClassifyOptions {
  ModelOptions model;
  std::string text;
  std::vector<std::string> labels;
  Index max_length = 256;
  bool json = false;
};

nlohmann::ordered_json shares_json(const std::vector<double>& shares, const peft::LabelSet& labels) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (std::size_t c = 0; c < shares.size(); ++c) json[labels.name(static_cast<Index>(c))] = shares[c];
  return json;
}

int run_classify(const ClassifyOptions& options) {
  Progress progress;
  Classifier classifier(options.model, options.labels);
  const peft::LabelSet& labels = classifier.labels();
  const std::vector<peft::LabelledRecord> records{{options.text, labels.name(0), 1}};  // any class: it is not looked at
  const peft::ClassificationData data = classifier.tokenize("--text", records, options.max_length, progress);
  std::vector<double> shares;
  (void)classifier.run(data, nullptr, [&](Index, VectorView<const float> logits) { shares = probabilities_of(logits); });
  std::vector<Index> order(shares.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto share = [&](Index c) { return shares[static_cast<std::size_t>(c)]; };
  std::stable_sort(order.begin(), order.end(), [&](Index x, Index y) { return share(x) > share(y); });
  if (options.json) {
    const nlohmann::ordered_json json = {{"label", labels.name(order.front())},
                                         {"probabilities", shares_json(shares, labels)},
                                         {"tokens", data.tokens(0)},
                                         {"peak_rss_mib", peak_rss_mib()}};
    std::printf("%s\n", json.dump(-1, ' ', false, kReplace).c_str());
  } else {
    for (const Index c : order) fmt::print("{:6.2f} %  {}\n", 100.0 * share(c), labels.name(c));
  }
  return 0;
}

}  // namespace

int eval_classifier(const ClassifyEvalOptions& options) {
  Progress progress;
  const std::vector<peft::LabelledRecord> records = peft::read_labelled_jsonl(options.data, options.max_records);
  Classifier classifier(options.model, options.labels);
  const peft::LabelSet& labels = classifier.labels();
  const peft::ClassificationData data = classifier.tokenize(options.data, records, options.max_length, progress);
  peft::ConfusionMatrix said(labels.size());
  double loss = 0.0;
  std::string lines;
  StopSignal stop;
  const auto on_logits = [&](Index i, VectorView<const float> logits) {
    const Index truth = data.at(i).label, predicted = peft::predicted_class(logits);
    const std::vector<double> shares = probabilities_of(logits);
    said.add(truth, predicted);
    loss = peft::rounded(loss - std::log(shares[static_cast<std::size_t>(truth)]));
    if (options.predictions.empty()) return;
    const peft::LabelledRecord& record = records[static_cast<std::size_t>(i)];
    const nlohmann::ordered_json json = {{"line", record.line},
                                         {"text", record.text},
                                         {"label", record.label},
                                         {"predicted", labels.name(predicted)},
                                         {"probabilities", shares_json(shares, labels)}};
    lines += json.dump(-1, ' ', false, kReplace) + "\n";
  };
  const bool complete = classifier.run(data, stop.get(), on_logits, [&](Index done) {
    progress.update(static_cast<double>(done) / static_cast<double>(data.records()),
                    fmt::format("{} of {} records", done, data.records()));
  });
  progress.finish();
  if (!complete) return kInterruptedStatus;
  if (!options.predictions.empty()) {
    peft::AtomicFile file(options.predictions);
    file.write(lines);
    file.commit();
    progress.line(fmt::format("predictions are in {}", options.predictions));
  }
  const double mean = peft::quotient(loss, static_cast<double>(data.records()));
  if (options.json) {
    nlohmann::ordered_json json = {{"loss", mean}};
    json.update(classification_json(said, labels.names()));
    json["peak_rss_mib"] = peak_rss_mib();
    std::printf("%s\n", json.dump(-1, ' ', false, kReplace).c_str());
  } else {
    fmt::print("loss {:.4f}\n{}", mean, peft::classification_report(said, labels.names()));
  }
  return 0;
}

void add_classify_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<ClassifyOptions>();
  ClassifyOptions& o = *options;
  CLI::App& command = *app.add_subcommand("classify", "say the class of a text");
  o.model.add_to(command, true);
  command.add_option("--text", o.text, "the text")->required();
  add_labels_option(command, o.labels);
  command.add_option("--max-length", o.max_length, "tokens of the text; a longer one is cut on the right")->capture_default_str();
  command.add_flag("--json", o.json, "the class and the classes' probabilities as one line of JSON");
  command.callback([options, &run] {
    run = [options] {
      const Threads threads(options->model.threads);
      return run_classify(*options);
    };
  });
}

}  // namespace peft_examples
