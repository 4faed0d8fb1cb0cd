#pragma once
/// Random matrices and comparisons for the tests of ops.

#include <cmath>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/rng.hpp"
#include "support/catch.hpp"
#include "support/central_differences.hpp"

namespace ops_test {

using namespace peft;

template <class T>
Matrix<T> random(Philox& rng, Index rows, Index cols, float size = 1.0f) {
  Matrix<T> x(rows, cols);
  for (T& value : x.flat()) value = static_cast<T>(rng.uniform(-size, size));
  return x;
}

template <class T>
Matrix<double> in_double(const Matrix<T>& x) {
  Matrix<double> y(x.rows(), x.cols());
  for (Index i = 0; i < x.size(); ++i) y.flat()[i] = static_cast<double>(static_cast<Accumulator<T>>(x.flat()[i]));
  return y;
}

template <class T>
constexpr double unit() {
  return std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-24;
}

/// Every element within `bound` of the expected one, plus one rounding to T.
template <class T>
void check_near(const Matrix<T>& got, const Matrix<double>& expected, double bound) {
  REQUIRE(got.rows() == expected.rows());
  REQUIRE(got.cols() == expected.cols());
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const double value = static_cast<double>(static_cast<Accumulator<T>>(got.flat()[i]));
    const double allowed = bound + (std::is_same_v<T, double> ? 0 : unit<T>() * std::fabs(expected.flat()[i]));
    // !(a ≤ b) also catches NaN
    if (!(std::fabs(value - expected.flat()[i]) <= allowed)) worst = std::max(worst, 1e-30 + std::fabs(value - expected.flat()[i]));
  }
  INFO("largest excess " << worst << ", bound " << bound);
  REQUIRE(worst == 0.0);
}

/// Central differences of loss() in every element of x against `gradient`: error h²·f''' + eps/h with h = 1e-5.
template <class Loss>
void check_gradient(Matrix<double>& x, const Matrix<double>& gradient, Loss&& loss) {
  peft_test::check_differences(
      x.flat(), gradient.flat(), [&](double& value) { return peft_test::second_order_difference(value, 1e-5, loss); },
      [](double numeric) { return 1e-8 + 1e-7 * std::fabs(numeric); });
}

inline double inner(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += a.flat()[i] * b.flat()[i];
  return sum;
}

}  // namespace ops_test
