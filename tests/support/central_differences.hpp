#pragma once
/// A gradient against central differences of its loss, in double.

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include "peft/core/view.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"

namespace peft_test {

/// (L(h) − L(−h))/2h: wrong by h²/6 of the third derivative and 2^-53·L/h of rounding.
template <class Loss>
double second_order_difference(double& value, double step, Loss&& loss) {
  const double kept = std::exchange(value, value + step);
  const double above = loss();
  value = kept - step;
  const double below = loss();
  value = kept;
  return (above - below) / (2 * step);
}

/// (8(L(h) − L(−h)) − (L(2h) − L(−2h)))/12h: wrong by h⁴/30 of the fifth derivative and 2^-53·L/h of rounding.
template <class Loss>
double fourth_order_difference(double& value, double step, Loss&& loss) {
  const double near = second_order_difference(value, step, loss), far = second_order_difference(value, 2 * step, loss);
  return (4 * near - far) / 3;
}

/// Compares gradient[i] with difference(values[i]), within tolerance(the difference).
template <class Difference, class Tolerance>
void check_differences(peft::VectorView<double> values, std::span<const double> gradient, Difference&& difference,
                       Tolerance&& tolerance) {
  REQUIRE(values.size == static_cast<peft::Index>(gradient.size()));
  for (peft::Index i = 0; i < values.size; i += kEvery) {
    const double numeric = difference(values[i]), own = gradient[static_cast<std::size_t>(i)];
    if (!(std::abs(numeric - own) <= tolerance(numeric))) {
      CAPTURE(i, numeric, own);
      FAIL("gradient differs from the central difference");
    }
  }
}

/// The same with fourth-order differences, within `tolerance`·(1 + the difference).
template <class Loss>
void check_fourth_order(peft::VectorView<double> values, std::span<const double> gradient, double step, double tolerance,
                        Loss&& loss) {
  check_differences(
      values, gradient, [&](double& value) { return fourth_order_difference(value, step, loss); },
      [&](double numeric) { return tolerance * (1 + std::abs(numeric)); });
}

}  // namespace peft_test
