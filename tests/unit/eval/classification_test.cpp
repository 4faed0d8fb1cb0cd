#include "peft/eval/classification.hpp"

#include "support/catch.hpp"

using namespace peft;

TEST_CASE("scores of a confusion matrix by hand") {
  ConfusionMatrix m(3);
  const Index truth[] = {0, 0, 0, 1, 1, 2}, predicted[] = {0, 0, 1, 1, 2, 2};
  for (int i = 0; i < 6; ++i) m.add(truth[i], predicted[i]);
  CHECK(m.count(0, 1) == 1);
  CHECK(m.count(1, 0) == 0);
  CHECK(m.total() == 6);
  CHECK(m.correct() == 4);
  CHECK(m.accuracy() == 4.0 / 6.0);
  const double precision[] = {1.0, 0.5, 0.5}, recall[] = {2.0 / 3.0, 0.5, 1.0}, f1[] = {4.0 / 5.0, 0.5, 2.0 / 3.0};
  for (Index c = 0; c < 3; ++c) {
    CHECK(m.scores(c).precision == precision[c]);
    CHECK(m.scores(c).recall == recall[c]);
    CHECK(m.scores(c).f1 == f1[c]);
    CHECK(m.scores(c).support == 3 - c);
  }
  CHECK(m.macro_f1() == (4.0 / 5.0 + 0.5 + 2.0 / 3.0) / 3.0);
  const std::string names[] = {"lung", "heart", "rare disease"};
  const std::string text = classification_report(m, names);
  CHECK(text.find("accuracy 0.6667 (4 of 6), macro-F1 0.6556") != std::string::npos);
  CHECK(text.find("rare disease      0.500   1.000   0.667        1\n") != std::string::npos);
  CHECK(text.find("heart             0      1      1\n") != std::string::npos);
  ConfusionMatrix twice = m;
  twice += m;
  CHECK(twice.total() == 12);
  CHECK(twice.macro_f1() == m.macro_f1());
}

TEST_CASE("classes that are never met or never called have scores of 0; those that do neither do not count") {
  ConfusionMatrix m(4);
  m.add(0, 0);
  m.add(1, 0);  // class 1 is never called; 2 is called and never true; 3 does not occur
  m.add(0, 2);
  CHECK(m.scores(1).precision == 0.0);
  CHECK(m.scores(1).recall == 0.0);
  CHECK(m.scores(2).recall == 0.0);
  CHECK(m.scores(3).f1 == 0.0);
  CHECK(m.scores(0).f1 == 0.5);
  CHECK(m.macro_f1() == 0.5 / 3.0);
  CHECK(ConfusionMatrix(2).accuracy() == 0.0);
  CHECK(ConfusionMatrix(2).macro_f1() == 0.0);
  CHECK_THROWS_AS(m.add(4, 0), ConfigError);
  CHECK_THROWS_AS(m.add(0, -1), ConfigError);
  CHECK_THROWS_AS(ConfusionMatrix(0), ConfigError);
  CHECK_THROWS_AS(m += ConfusionMatrix(3), ConfigError);
  CHECK_THROWS_AS(classification_report(m, {}), ConfigError);
}

TEST_CASE("the predicted class is the first of the largest logits") {
  const float logits[] = {-1.0f, 3.0f, 3.0f, 2.0f};
  CHECK(predicted_class(VectorView<const float>(logits, 4)) == 1);
  CHECK(predicted_class(VectorView<const float>(logits, 1)) == 0);
}
