#pragma once
/// Scores of a classifier from its confusion matrix M [true class, predicted class], as scikit-learn defines them:
///   accuracy = Σ_c M_cc / Σ M,  precision_c = M_cc / Σ_t M_tc,  recall_c = M_cc / Σ_p M_cp,
///   F1_c = 2·M_cc / (Σ_t M_tc + Σ_p M_cp),  macro-F1 = mean of F1_c over the classes that occur
/// A quotient with nothing below the line is 0.

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/core/view.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// Scores of one class.
struct ClassScores {
  double precision = 0.0;
  double recall = 0.0;
  double f1 = 0.0;
  Index support = 0;  ///< records that are of the class
};

class ConfusionMatrix {
 public:
  /// Throws ConfigError for fewer than one class.
  explicit ConfusionMatrix(Index classes) : classes_(classes) {
    if (classes < 1) fail<ConfigError>("ConfusionMatrix: {} classes; expected at least 1", classes);
    counts_.assign(static_cast<std::size_t>(classes * classes), 0);
  }

  Index classes() const noexcept { return classes_; }
  /// Counts one record. Throws ConfigError for a class outside of [0, classes).
  void add(Index truth, Index predicted) {
    if (truth < 0 || truth >= classes_ || predicted < 0 || predicted >= classes_) {
      fail<ConfigError>("ConfusionMatrix: true class {}, predicted {}; expected both in [0, {})", truth, predicted, classes_);
    }
    ++counts_[static_cast<std::size_t>(truth * classes_ + predicted)];
  }
  /// Records of class `truth` that were called `predicted`.
  Index count(Index truth, Index predicted) const { return counts_.at(static_cast<std::size_t>(truth * classes_ + predicted)); }
  Index total() const noexcept {
    Index sum = 0;
    for (const Index n : counts_) sum += n;
    return sum;
  }
  Index correct() const noexcept {
    Index sum = 0;
    for (Index c = 0; c < classes_; ++c) sum += count(c, c);
    return sum;
  }

  double accuracy() const noexcept { return share(correct(), total()); }
  ClassScores scores(Index c) const {
    const Index hits = count(c, c), truths = true_count(c), calls = predicted_count(c);
    return {share(hits, calls), share(hits, truths), share(2 * hits, calls + truths), truths};
  }
  /// The mean over the classes that records are of or were called; 0 where there are none.
  double macro_f1() const {
    double sum = 0.0;
    Index seen = 0;
    for (Index c = 0; c < classes_; ++c) {
      if (true_count(c) + predicted_count(c) == 0) continue;
      sum = rounded(sum + scores(c).f1);
      ++seen;
    }
    return seen > 0 ? quotient(sum, static_cast<double>(seen)) : 0.0;
  }

  ConfusionMatrix& operator+=(const ConfusionMatrix& other) {
    if (other.classes_ != classes_) {
      fail<ConfigError>("ConfusionMatrix: adding one of {} classes to one of {}", other.classes_, classes_);
    }
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    return *this;
  }

 private:
  static double share(Index part, Index whole) noexcept {
    return whole > 0 ? quotient(static_cast<double>(part), static_cast<double>(whole)) : 0.0;
  }
  Index true_count(Index c) const {
    Index sum = 0;
    for (Index p = 0; p < classes_; ++p) sum += count(c, p);
    return sum;
  }
  Index predicted_count(Index c) const {
    Index sum = 0;
    for (Index t = 0; t < classes_; ++t) sum += count(t, c);
    return sum;
  }

  Index classes_;
  std::vector<Index> counts_;  // [true, predicted]
};

/// The class with the largest logit, the first of equals. `logits` has at least one element.
template <class A>
Index predicted_class(VectorView<const A> logits) noexcept {
  Index best = 0;
  for (Index i = 1; i < logits.size; ++i) best = logits[i] > logits[best] ? i : best;
  return best;
}

/// Two tables as text: per class precision, recall, F1 and support, with accuracy and macro-F1; and the confusion matrix,
/// a row per true class. `names` by class. Throws ConfigError where there are not as many.
inline std::string classification_report(const ConfusionMatrix& matrix, std::span<const std::string> names) {
  if (static_cast<Index>(names.size()) != matrix.classes()) {
    fail<ConfigError>("classification_report: {} names for {} classes", names.size(), matrix.classes());
  }
  std::size_t width = 8;
  for (const std::string& name : names) width = std::max(width, name.size());
  std::string text = fmt::format("{:<{}}  precision  recall      f1  records\n", "", width);
  for (Index c = 0; c < matrix.classes(); ++c) {
    const ClassScores s = matrix.scores(c);
    text += fmt::format("{:<{}}  {:>9.3f}  {:>6.3f}  {:>6.3f}  {:>7}\n", names[static_cast<std::size_t>(c)], width, s.precision,
                        s.recall, s.f1, s.support);
  }
  text += fmt::format("accuracy {:.4f} ({} of {}), macro-F1 {:.4f}\n", matrix.accuracy(), matrix.correct(), matrix.total(),
                      matrix.macro_f1());
  text += "\ntrue \\ predicted\n";
  for (Index t = 0; t < matrix.classes(); ++t) {
    text += fmt::format("{:<{}}", names[static_cast<std::size_t>(t)], width);
    for (Index p = 0; p < matrix.classes(); ++p) text += fmt::format("  {:>5}", matrix.count(t, p));
    text += '\n';
  }
  return text;
}

PEFT_END_NAMESPACE
