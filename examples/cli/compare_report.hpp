#pragma once
/// What a comparison of methods found: as a table in Markdown, as JSON, as a picture.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "peft/core/scalar.hpp"

namespace peft_examples {

using peft::Index;

/// One method; what was not measured is empty. The base model is the method "none".
struct ComparedMethod {
  std::string method;
  std::optional<Index> trainable{}, total{}, bytes{}, steps{};
  std::optional<double> learning_rate{}, tok_s{}, peak_rss_mib{};
  std::optional<double> val_loss{}, rouge_l{}, test_loss{}, general_loss{}, forgetting{};
  std::string error{};  ///< what failed, where something did

  std::optional<double> percent() const {
    if (!trainable || !total || *total == 0) return {};
    return 100.0 * static_cast<double>(*trainable) / static_cast<double>(*total);
  }
};

/// "1,234,567".
inline std::string grouped(Index value) {
  std::string digits = fmt::format("{}", value);
  for (std::ptrdiff_t i = static_cast<std::ptrdiff_t>(digits.size()) - 3; i > 0; i -= 3) {
    digits.insert(static_cast<std::size_t>(i), 1, ',');
  }
  return digits;
}

inline nlohmann::ordered_json compare_json(const std::vector<ComparedMethod>& methods) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ComparedMethod& one : methods) {
    const auto value = [](const auto& number) { return number ? nlohmann::ordered_json(*number) : nlohmann::ordered_json(); };
    nlohmann::ordered_json json = {{"method", one.method},
                                   {"trainable", value(one.trainable)},
                                   {"trainable_percent", value(one.percent())},
                                   {"bytes", value(one.bytes)},
                                   {"learning_rate", value(one.learning_rate)},
                                   {"steps", value(one.steps)},
                                   {"tok_s", value(one.tok_s)},
                                   {"peak_rss_mib", value(one.peak_rss_mib)},
                                   {"val_loss", value(one.val_loss)},
                                   {"test_loss", value(one.test_loss)},
                                   {"rougeL", value(one.rouge_l)},
                                   {"general_loss", value(one.general_loss)},
                                   {"forgetting", value(one.forgetting)}};
    if (!one.error.empty()) json["error"] = one.error;
    list.push_back(std::move(json));
  }
  return list;
}

/// A line per method; under the table what failed.
inline std::string compare_markdown(const std::vector<ComparedMethod>& methods) {
  std::string text =
      "| method | lr | trainable | % | on disk | tokens/s | peak MiB | validation loss | ROUGE-L | general loss (change) |\n"
      "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  const auto number = [](const std::optional<double>& value, int digits) {
    return value ? fmt::format("{:.{}f}", *value, digits) : std::string("–");
  };
  for (const ComparedMethod& one : methods) {
    if (!one.error.empty()) {
      text += fmt::format("| {} | failed | | | | | | | | |\n", one.method);
      continue;
    }
    const std::string bytes = one.bytes ? fmt::format("{:.2f} MB", static_cast<double>(*one.bytes) / 1e6) : "–";
    const std::string change = one.forgetting ? fmt::format(" ({:+.4f})", *one.forgetting) : "";
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {}{} |\n", one.method,
                        one.learning_rate ? fmt::format("{:g}", *one.learning_rate) : "–",
                        one.trainable ? grouped(*one.trainable) : "–", number(one.percent(), 4), bytes, number(one.tok_s, 0),
                        number(one.peak_rss_mib, 0), number(one.val_loss, 4), number(one.rouge_l, 4),
                        number(one.general_loss, 4), change);
  }
  for (const ComparedMethod& one : methods) {
    if (!one.error.empty()) text += fmt::format("\n{}: {}\n", one.method, one.error);
  }
  return text;
}

}  // namespace peft_examples
