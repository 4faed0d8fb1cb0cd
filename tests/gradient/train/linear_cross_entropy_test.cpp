// The loss of a linear head: against torch, central differences in double, lower precisions against double.

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/dense_linear.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"
#include "unit/train/golden.hpp"

using namespace peft;
using train_test::golden;
using train_test::numbers;

namespace {

template <class T>
Matrix<T> random_matrix(Index rows, Index cols, std::uint64_t seed, float size) {
  Matrix<T> result(rows, cols);
  Philox random(seed);
  for (T& value : result.flat()) value = T(size * random.normal());
  return result;
}

template <class To, class From>
Matrix<To> converted(const Matrix<From>& from) {
  Matrix<To> result(from.rows(), from.cols());
  for (Index i = 0; i < from.size(); ++i) {
    result.data()[i] = static_cast<To>(static_cast<Accumulator<To>>(static_cast<Accumulator<From>>(from.data()[i])));
  }
  return result;
}

std::vector<std::int32_t> random_targets(Index rows, Index vocabulary, std::uint64_t seed) {
  Philox random(seed);
  std::vector<std::int32_t> result;
  for (Index i = 0; i < rows; ++i) {
    const bool none = random.below(3) == 0;
    result.push_back(none ? -1 : static_cast<std::int32_t>(random.below(static_cast<std::uint32_t>(vocabulary))));
  }
  return result;
}

VectorView<const std::int32_t> view_of(const std::vector<std::int32_t>& values) {
  return {values.data(), static_cast<Index>(values.size())};
}

/// A head of a host that takes bf16 alone and knows nothing but forward and backward_input.
class NarrowHead {
 public:
  using value_type = bf16;
  explicit NarrowHead(Matrix<float> weight) : weight_(std::move(weight)) {}
  Index in_features() const { return weight_.cols(); }
  Index out_features() const { return weight_.rows(); }
  void forward(MatrixView<const bf16> x, MatrixView<bf16> y) const {
    for (Index i = 0; i < y.rows; ++i) {
      for (Index j = 0; j < y.cols; ++j) {
        float sum = 0.0f;
        for (Index k = 0; k < x.cols; ++k) sum += static_cast<float>(x(i, k)) * weight_(j, k);
        y(i, j) = bf16(sum);
      }
    }
  }
  void backward_input(MatrixView<const bf16> dy, MatrixView<bf16> dx) const {
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index k = 0; k < dx.cols; ++k) {
        float sum = 0.0f;
        for (Index j = 0; j < dy.cols; ++j) sum += static_cast<float>(dy(i, j)) * weight_(j, k);
        dx(i, k) = bf16(sum);
      }
    }
  }

 private:
  Matrix<float> weight_;
};
static_assert(LinearLike<NarrowHead> && !LinearLike<NarrowHead, float>);

struct Outcome {
  LossSum sum;
  Matrix<double> d_hidden;
};

/// In double, on the numbers that `hidden` and `weight` hold.
template <class T, class W>
Outcome reference(const Matrix<T>& hidden, const Matrix<W>& weight, const std::vector<std::int32_t>& targets,
                  double scale) {
  const DenseLinear<double> head(converted<double>(weight));
  const Matrix<double> h = converted<double>(hidden);
  Outcome result{{}, Matrix<double>(hidden.rows(), hidden.cols())};
  LinearCrossEntropy<double> loss;
  loss.forward_backward(head, h.view(), view_of(targets), scale, result.d_hidden.view(), result.sum);
  return result;
}

/// Runs T and compares with double. `logit_eps`: relative rounding of what the logits pass through.
template <class T, class Head, class W>
void check_precision(const Head& head, const Matrix<W>& weight, Index rows, double scale, double logit_eps) {
  const Index width = weight.cols(), vocabulary = weight.rows();
  const Matrix<T> hidden = random_matrix<T>(rows, width, 3, 1.0f);
  const std::vector<std::int32_t> targets = random_targets(rows, vocabulary, 4);
  const Outcome want = reference(hidden, weight, targets, scale);
  Matrix<T> d_hidden(rows, width);
  LossSum sum;
  LinearCrossEntropy<T> loss;
  loss.forward_backward(head, hidden.view(), view_of(targets), scale, d_hidden.view(), sum);
  CHECK(sum.tokens == want.sum.tokens);

  // A logit is a sum of `width` products below |h|·|w|: its error is at most eps·width·|h|·|w| =: e, and the loss and
  // the logarithm of each probability change by no more than 2e. A row of d_hidden is a probability-weighted sum of rows
  // of W, in all at most 2·max|w| per number: relative 2e from the probabilities, vocabulary·eps(float) at the very
  // worst from the sum (in practice its root), and eps(T) from storing.
  double h_norm = 0.0, w_norm = 0.0, w_most = 0.0;
  for (Index i = 0; i < rows; ++i) {
    double square = 0.0;
    for (Index k = 0; k < width; ++k) square += std::pow(static_cast<double>(static_cast<Accumulator<T>>(hidden(i, k))), 2);
    h_norm = std::max(h_norm, std::sqrt(square));
  }
  for (Index j = 0; j < vocabulary; ++j) {
    double square = 0.0;
    for (Index k = 0; k < width; ++k) {
      const double w = static_cast<double>(static_cast<Accumulator<W>>(weight(j, k)));
      square += w * w;
      w_most = std::max(w_most, std::abs(w));
    }
    w_norm = std::max(w_norm, std::sqrt(square));
  }
  const double e = logit_eps * std::sqrt(static_cast<double>(width)) * h_norm * w_norm;
  const double float_eps = std::numeric_limits<float>::epsilon();
  const double store_eps = std::is_same_v<T, float> ? 0x1p-24 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-8;
  CHECK(std::abs(sum.loss - want.sum.loss) <=
        static_cast<double>(want.sum.tokens) * (2.0 * e + 4.0 * float_eps * want.sum.mean()));
  const double relative = 2.0 * e + std::sqrt(static_cast<double>(vocabulary)) * float_eps + 2.0 * store_eps;
  for (Index i = 0; i < rows; ++i) {
    for (Index k = 0; k < width; ++k) {
      const double got = static_cast<double>(static_cast<Accumulator<T>>(d_hidden(i, k)));
      CAPTURE(i, k, got, want.d_hidden(i, k));
      REQUIRE(std::abs(got - want.d_hidden(i, k)) <= scale * 2.0 * w_most * relative);
      if (targets[static_cast<std::size_t>(i)] < 0) REQUIRE(got == 0.0);
    }
  }
}

}  // namespace

TEST_CASE("Loss and gradient of a linear head equal torch's") {
  const auto want = golden("linear_cross_entropy.json");
  const Index rows = want["rows"], width = want["hidden"], vocabulary = want["vocabulary"];
  const auto h = numbers<double>(want["h"]), w = numbers<double>(want["w"]), d_h = numbers<double>(want["d_h"]);
  Matrix<double> weight(vocabulary, width);
  std::copy(w.begin(), w.end(), weight.data());
  const DenseLinear<double> head(std::move(weight));
  std::vector<std::int32_t> targets;
  for (const auto& target : want["targets"]) targets.push_back(target.get<std::int32_t>());
  Matrix<double> d_hidden(rows, width);
  LossSum sum;
  LinearCrossEntropy<double> loss;
  loss.forward_backward(head, {h.data(), rows, width}, view_of(targets), want["scale"], d_hidden.view(), sum);
  CHECK(sum.loss == Approx(want["loss"].get<double>()).epsilon(1e-14));
  CHECK(sum.correct == want["correct"].get<Index>());
  CHECK(sum.tokens == 6);
  for (Index i = 0; i < d_hidden.size(); ++i) {
    CHECK(std::abs(d_hidden.data()[i] - d_h[static_cast<std::size_t>(i)]) <= 1e-14);
  }
}

TEST_CASE("Gradient of a linear head's loss by central differences in double") {
  const Index rows = 8, width = 5, vocabulary = 17;
  const DenseLinear<double> head(random_matrix<double>(vocabulary, width, 1, 0.7f));
  Matrix<double> hidden = random_matrix<double>(rows, width, 2, 1.0f);
  const std::vector<std::int32_t> targets = random_targets(rows, vocabulary, 5);
  Matrix<double> d_hidden(rows, width);
  LinearCrossEntropy<double> loss;
  LossSum sum;
  const double scale = 0.3;
  loss.forward_backward(head, std::as_const(hidden).view(), view_of(targets), scale, d_hidden.view(), sum);
  const auto value = [&] {
    LossSum other;
    loss.forward(head, std::as_const(hidden).view(), view_of(targets), other);
    return scale * other.loss;
  };
  // Truncation: step²/6 · |third derivative| ≤ 1e-10/6 · scale·(2·max|w|)³; rounding: 2^-50·|L| / step.
  constexpr double kStep = 1e-5;
  const double tolerance = 1e-10 / 6.0 * scale * std::pow(2.0 * 3.0, 3) + 0x1p-50 * scale * sum.loss / kStep;
  for (Index i = 0; i < hidden.size(); ++i) {
    const double kept = hidden.data()[i];
    hidden.data()[i] = kept + kStep;
    const double above = value();
    hidden.data()[i] = kept - kStep;
    const double below = value();
    hidden.data()[i] = kept;
    CAPTURE(i);
    CHECK(std::abs((above - below) / (2 * kStep) - d_hidden.data()[i]) <= tolerance);
  }
}

TEST_CASE("A linear head's loss in float, bf16 and f16 is that in double within norm × eps") {
  const Matrix<float> weight = random_matrix<float>(301, 24, 6, 0.3f);
  const DenseLinear<float> head(weight.clone());
  const DenseLinear<bf16> half(converted<bf16>(weight));
  const double eps = std::numeric_limits<float>::epsilon();
  check_precision<float>(head, weight, 50, 0.02, eps);
  check_precision<bf16>(head, weight, 50, 0.02, eps);
  check_precision<f16>(head, weight, 50, 64.0, eps);
  check_precision<float>(half, converted<bf16>(weight), 50, 0.02, eps);
  check_precision<bf16>(half, converted<bf16>(weight), 50, 0.02, eps);
}

TEST_CASE("A head that takes 16-bit activations alone gets them") {
  const Matrix<float> weight = random_matrix<float>(61, 24, 6, 0.3f);
  const NarrowHead head(weight.clone());
  check_precision<bf16>(head, weight, 30, 0.02, 0x1p-8);
}

TEST_CASE("Chunks of rows are even, bounded, and change nothing") {
  using Loss = LinearCrossEntropy<float>;
  CHECK(Loss::chunk_rows(10, 49152) == 10);
  CHECK(Loss::chunk_rows(170, 49152) == 170);
  CHECK(Loss::chunk_rows(256, 49152) == 256);
  CHECK(Loss::chunk_rows(257, 49152) == 140);  // 129, in whole tiles of 14 rows
  CHECK(Loss::chunk_rows(512, 49152) == 256);
  CHECK(Loss::chunk_rows(0, 49152) == 1);
  CHECK(Loss::chunk_rows(1000, 1 << 24) == 16);  // not below 16 rows: a product with fewer wastes the weight's read
  for (Index rows = 1; rows < 700; rows += 13) {
    for (const Index vocabulary : {32000, 49152, 151936}) {
      const Index chunk = Loss::chunk_rows(rows, vocabulary);
      CHECK((chunk <= 16 || chunk * vocabulary * 4 <= Loss::kLogitBytes));
      CHECK(chunk >= 1);
    }
  }
  // Two chunks of about 150 rows; the double reference has four. Under a sanitizer, where they take half a minute, one.
  const Matrix<float> weight = random_matrix<float>(60000, 4, 6, 0.5f);
  const DenseLinear<float> head(weight.clone());
  check_precision<float>(head, weight, peft_test::kSanitized ? 30 : 300, 0.01, std::numeric_limits<float>::epsilon());

  // As few at once as a budget of memory leaves.
  CHECK(Loss::chunk_rows(512, 49152, Index{6} << 20) == 32);
  CHECK_THROWS_AS(Loss().set_logit_bytes(0), ConfigError);
  constexpr Index kRows = peft_test::kSanitized ? 48 : 300;
  const Matrix<float> hidden = random_matrix<float>(kRows, 4, 7, 1.0f);
  const std::vector<std::int32_t> targets(kRows, 5);
  const auto pass = [&](Index bytes) {
    Loss loss;
    loss.set_logit_bytes(bytes);
    LossSum sum;
    Matrix<float> d(kRows, 4);
    loss.forward_backward(head, hidden.view(), {targets.data(), kRows}, 1.0, d.view(), sum);
    CHECK(sum.tokens == kRows);
    return std::pair(sum.loss, std::move(d));
  };
  const auto [all, d_all] = pass(Loss::kLogitBytes);
  const auto [few, d_few] = pass(Index{4} << 20);
  CHECK(few == Approx(all).epsilon(1e-6));
  double difference = 0, norm = 0;
  for (Index i = 0; i < d_all.size(); ++i) {
    difference += std::pow(d_all.data()[i] - d_few.data()[i], 2);
    norm += std::pow(d_all.data()[i], 2);
  }
  CHECK(std::sqrt(difference) < 64 * std::numeric_limits<float>::epsilon() * std::sqrt(norm));
}

TEST_CASE("Forward alone, the gradient in place, and any number of threads give the same bits") {
  // Two chunks; under a sanitizer, where they take a minute, one.
  const Index rows = peft_test::kSanitized ? 30 : 300, width = 4;
  const DenseLinear<float> head(random_matrix<float>(60000, width, 6, 0.5f));
  const Matrix<float> hidden = random_matrix<float>(rows, width, 3, 1.0f);
  const std::vector<std::int32_t> targets = random_targets(rows, 60000, 4);
  LinearCrossEntropy<float> loss;
  SerialExecutor serial;
  ThreadPool pool(4);
  LossSum alone, first, second, third;
  loss.forward(head, hidden.view(), view_of(targets), alone, pool);
  Matrix<float> one(rows, width), four(rows, width), in_place = hidden.clone();
  loss.forward_backward(head, hidden.view(), view_of(targets), 0.1, one.view(), first, serial);
  loss.forward_backward(head, hidden.view(), view_of(targets), 0.1, four.view(), second, pool);
  loss.forward_backward(head, std::as_const(in_place).view(), view_of(targets), 0.1, in_place.view(), third, pool);
  for (const LossSum* sum : {&first, &second, &third}) {
    CHECK(sum->loss == alone.loss);
    CHECK(sum->tokens == alone.tokens);
    CHECK(sum->correct == alone.correct);
  }
  const auto bytes = static_cast<std::size_t>(one.size()) * sizeof(float);
  CHECK(std::memcmp(one.data(), four.data(), bytes) == 0);
  CHECK(std::memcmp(one.data(), in_place.data(), bytes) == 0);
}

TEST_CASE("A linear head's loss without targets is nothing; wrong shapes are refused") {
  const DenseLinear<float> head(random_matrix<float>(7, 3, 1, 1.0f));
  const Matrix<float> hidden = random_matrix<float>(2, 3, 2, 1.0f);
  LinearCrossEntropy<float> loss;
  LossSum sum;
  Matrix<float> d_hidden = hidden.clone();
  const std::vector<std::int32_t> none{-1, -1};
  loss.forward_backward(head, hidden.view(), view_of(none), 1.0, d_hidden.view(), sum);
  CHECK(sum.tokens == 0);
  CHECK(sum.loss == 0.0);
  for (const float value : d_hidden.flat()) CHECK(value == 0.0f);

  const std::vector<std::int32_t> three{1, 2, 3}, beyond{0, 7};
  CHECK_THROWS_AS(loss.forward(head, hidden.view(), view_of(three), sum), ShapeError);
  CHECK_THROWS_WITH(loss.forward(head, hidden.view(), view_of(beyond), sum), Catch::Contains("row 1 is 7"));
  const Matrix<float> wide(2, 4);
  CHECK_THROWS_AS(loss.forward(head, wide.view(), view_of(none), sum), ShapeError);
  CHECK_THROWS_AS(loss.forward_backward(head, hidden.view(), view_of(none), 1.0, Matrix<float>(2, 4).view(), sum),
                  ShapeError);
}
