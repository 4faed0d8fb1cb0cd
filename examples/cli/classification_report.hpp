#pragma once
/// A classifier's scores as JSON.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "peft/eval/classification.hpp"

namespace peft_examples {

/// accuracy, macro_f1, records; per class its scores; the confusion matrix, a row per true class.
inline nlohmann::ordered_json classification_json(const peft::ConfusionMatrix& matrix, const std::vector<std::string>& labels) {
  nlohmann::ordered_json classes = nlohmann::ordered_json::array(), rows = nlohmann::ordered_json::array();
  for (peft::Index c = 0; c < matrix.classes(); ++c) {
    const peft::ClassScores s = matrix.scores(c);
    classes.push_back({{"label", labels[static_cast<std::size_t>(c)]},
                       {"precision", s.precision},
                       {"recall", s.recall},
                       {"f1", s.f1},
                       {"records", s.support}});
    nlohmann::ordered_json row = nlohmann::ordered_json::array();
    for (peft::Index p = 0; p < matrix.classes(); ++p) row.push_back(matrix.count(c, p));
    rows.push_back(std::move(row));
  }
  return {{"accuracy", matrix.accuracy()},
          {"macro_f1", matrix.macro_f1()},
          {"records", matrix.total()},
          {"classes", std::move(classes)},
          {"confusion", std::move(rows)}};
}

}  // namespace peft_examples
