#include "peft/ops/activation.hpp"

#include <cstring>
#include <limits>

#include "peft/core/thread_pool.hpp"
#include "unit/ops/support.hpp"

using namespace ops_test;

namespace {

constexpr Activation kAll[] = {Activation::kRelu, Activation::kGelu, Activation::kGeluTanh,
                               Activation::kSilu, Activation::kTanh, Activation::kLeakyRelu};

/// 2u of gelu_tanh: the argument of its σ, whose rounding e^… multiplies by its size.
double gate_argument(double x) { return 1.5957691216057308 * std::fabs(x) * (1 + 0.044715 * x * x); }

/// How many roundings of the result's size f(x) may be away: those of the formulas in isa/body.inc, with 2 for an
/// exponential and the argument's rounding times its size.
double value_roundings(Activation kind, double x) {
  switch (kind) {
    case Activation::kGelu:
      return 10 + x * x;
    case Activation::kGeluTanh:
      return 8 + 5 * gate_argument(x);
    case Activation::kSilu:
      return 6;
    case Activation::kTanh:
      return 4;
    case Activation::kLeakyRelu:
      return 2;  // 0.01 is not a float
    default:
      return 1;
  }
}

}  // namespace

TEST_CASE("activations have the names of ACT2FN") {
  for (Activation kind : kAll) CHECK(activation_named(name_of(kind)) == kind);
  CHECK(activation_named("swish") == Activation::kSilu);
  CHECK(activation_named("leakyrelu") == Activation::kLeakyRelu);
  CHECK(activation_named("gelu_pytorch_tanh") == Activation::kGeluTanh);
  CHECK(activation_named("gelu_10") == std::nullopt);
  CHECK(activation_named("") == std::nullopt);
}

TEST_CASE("activations and their slopes against double, from -60 to 60 and down to 1e-30") {
  std::vector<float> points;
  for (int i = -60000; i <= 60000; ++i) points.push_back(static_cast<float>(i) * 0.001f);
  for (int e = -30; e < 1; ++e) {
    for (double mantissa : {1.0, -1.7, 3.3, -9.1}) points.push_back(static_cast<float>(mantissa * std::pow(10.0, e)));
  }
  const auto n = static_cast<Index>(points.size());
  Matrix<float> x(1, n), y(1, n), one(1, n), slope(1, n);
  std::copy(points.begin(), points.end(), x.data());
  std::fill_n(one.data(), n, 1.0f);
  for (Activation kind : kAll) {
    ops::activation_forward<float>(kind, x, y);
    ops::activation_backward<float>(kind, one, x, slope);
    double worst_value = 0, worst_slope = 0;
    for (Index j = 0; j < n; ++j) {
      const double point = static_cast<double>(x(0, j)), exact = ops::activation_value(kind, point);
      // Below 2^-126 numbers have fewer digits, and σ ends at 2^-128.
      const double unit_here = 0x1p-24 * std::fabs(exact) + 0x1p-126 * (1 + std::fabs(point));
      worst_value = std::max(worst_value, std::fabs(static_cast<double>(y(0, j)) - exact) / unit_here /
                                              value_roundings(kind, point));
      // All terms of the slopes, times the size of the exponentials' arguments, stay below 4.
      worst_slope = std::max(worst_slope,
                             std::fabs(static_cast<double>(slope(0, j)) - ops::activation_slope(kind, point)) / 0x1p-24);
    }
    INFO(name_of(kind) << ": " << worst_value << " of the allowed roundings; slope " << worst_slope << " * 2^-24");
    CHECK(worst_value <= 1.0);
    CHECK(worst_slope <= 16.0);
  }
}

TEST_CASE("activations at the ends of float: NaN stays, infinities are limits") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Matrix<float> x(1, 4), y(1, 4), d(1, 4);
  x(0, 0) = std::numeric_limits<float>::quiet_NaN();
  x(0, 1) = kInfinity;
  x(0, 2) = -kInfinity;
  x(0, 3) = -0.0f;
  std::fill_n(d.data(), 4, 1.0f);
  for (Activation kind : kAll) {
    INFO(name_of(kind));
    ops::activation_forward<float>(kind, x, y);
    CHECK(std::isnan(y(0, 0)));
    CHECK(y(0, 1) == (kind == Activation::kTanh ? 1.0f : kInfinity));
    if (kind == Activation::kRelu) CHECK(y(0, 2) == 0.0f);
    if (kind == Activation::kTanh) CHECK(y(0, 2) == -1.0f);
    if (kind == Activation::kLeakyRelu) CHECK(y(0, 2) == -kInfinity);
    CHECK(y(0, 3) == 0.0f);
  }
  ops::activation_backward<float>(Activation::kRelu, d, x, y);
  CHECK(y(0, 3) == 0.0f);
  ops::activation_backward<float>(Activation::kLeakyRelu, d, x, y);
  CHECK(y(0, 3) == 0.01f);
}

TEST_CASE("gradients of the activations by central differences in double") {
  Philox rng(4);
  const Index rows = 3, n = 11;
  // Relu and leaky relu have a corner at 0: no element is within the step of it.
  auto x = random<double>(rng, rows, n, 3.0f), c = random<double>(rng, rows, n);
  for (double& value : x.flat()) {
    if (std::fabs(value) < 1e-3) value = 0.5;
  }
  for (Activation kind : kAll) {
    INFO(name_of(kind));
    Matrix<double> y(rows, n), dx(rows, n);
    ops::activation_backward<double>(kind, c, x, dx);
    check_gradient(x, dx, [&] {
      ops::activation_forward<double>(kind, x, y);
      return inner(y, c);
    });
  }
}

TEMPLATE_TEST_CASE("activations of float and 16 bits in place, for all lengths modulo a vector, any threads", "", float,
                   bf16, f16) {
  using T = TestType;
  for (Index n : {1, 7, 8, 15, 16, 17, 40}) {
    Philox rng(static_cast<std::uint64_t>(n));
    const Index rows = 19;
    const auto x = random<T>(rng, rows, n, 4.0f), dy = random<T>(rng, rows, n);
    const auto xd = in_double(x), dyd = in_double(dy);
    for (Activation kind : kAll) {
      INFO(name_of(kind) << ", " << n << " columns");
      Matrix<double> y(rows, n), dx(rows, n);
      ops::activation_forward<double>(kind, xd, y);
      ops::activation_backward<double>(kind, dyd, xd, dx);
      std::vector<Matrix<T>> first;
      for (int threads : {1, 3}) {
        ThreadPool pool(threads);
        auto own = x.clone(), over_dy = dy.clone(), over_x = x.clone();
        ops::activation_forward<T>(kind, own, own, pool);
        ops::activation_backward<T>(kind, over_dy, x, over_dy, pool);
        ops::activation_backward<T>(kind, dy, over_x, over_x, pool);
        check_near(own, y, 4.0 * (8 + 5 * gate_argument(4.0)) * 0x1p-24);
        check_near(over_dy, dx, 16 * 0x1p-24);
        const auto bytes = static_cast<std::size_t>(x.size()) * sizeof(T);
        REQUIRE(std::memcmp(over_dy.data(), over_x.data(), bytes) == 0);
        if (threads > 1) {
          REQUIRE(std::memcmp(own.data(), first[0].data(), bytes) == 0);
          REQUIRE(std::memcmp(over_dy.data(), first[1].data(), bytes) == 0);
        }
        first.clear();
        first.push_back(std::move(own));
        first.push_back(std::move(over_dy));
      }
    }
  }
}

TEST_CASE("activations name shapes that do not fit") {
  Matrix<float> x(2, 4), y(2, 5);
  CHECK_THROWS_AS(ops::activation_forward<float>(Activation::kRelu, x, y), ShapeError);
  CHECK_THROWS_AS(ops::activation_backward<float>(Activation::kRelu, x, x, y), ShapeError);
  CHECK_THROWS_AS(ops::activation_backward<float>(Activation::kRelu, x, y, x), ShapeError);
}
