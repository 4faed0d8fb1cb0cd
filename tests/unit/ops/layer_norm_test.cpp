#include "peft/ops/layer_norm.hpp"

#include <cstring>

#include "peft/core/thread_pool.hpp"
#include "unit/ops/support.hpp"

using namespace ops_test;

namespace {

const float kEps = 1e-5f;

}  // namespace

TEST_CASE("layer norm by hand") {
  // Mean 2, variance 2/3 + 1/3 = 1 with eps = 1/3.
  Matrix<double> x(1, 3), w(1, 3), b(1, 3), y(1, 3);
  x(0, 0) = 1, x(0, 1) = 2, x(0, 2) = 3;
  w(0, 0) = 2, w(0, 1) = 3, w(0, 2) = 5;
  b(0, 0) = 0.25, b(0, 1) = 0.5, b(0, 2) = -1;
  ops::layer_norm_forward<double>(x, w.flat(), b.flat(), 1.0f / 3, y);
  CHECK(y(0, 0) == Approx(-1.75).epsilon(1e-7));
  CHECK(y(0, 1) == Approx(0.5).epsilon(1e-7));
  CHECK(y(0, 2) == Approx(4.0).epsilon(1e-7));
  ops::layer_norm_forward<double>(x, w.flat(), {}, 1.0f / 3, y);
  CHECK(y(0, 2) == Approx(5.0).epsilon(1e-7));
}

TEST_CASE("gradients of layer norm by central differences in double") {
  Philox rng(11);
  const Index rows = 3, n = 10;
  auto x = random<double>(rng, rows, n), w = random<double>(rng, 1, n), b = random<double>(rng, 1, n);
  const auto c = random<double>(rng, rows, n);
  Matrix<double> y(rows, n), dx(rows, n), dw = Matrix<double>::zeros(1, n), db = Matrix<double>::zeros(1, n);
  const auto loss = [&] {
    ops::layer_norm_forward<double>(x, w.flat(), b.flat(), kEps, y);
    return inner(y, c);
  };
  ops::layer_norm_backward<double>(c, x, w.flat(), kEps, Accumulate::kOverwrite, dx, dw.flat(), db.flat());
  check_gradient(x, dx, loss);
  check_gradient(w, dw, loss);
  check_gradient(b, db, loss);
  // Added to: everything twice; without dx, the parameters' alone.
  auto sum = dx.clone();
  ops::layer_norm_backward<double>(c, x, w.flat(), kEps, Accumulate::kAdd, sum, {}, db.flat());
  auto again = dw.clone();
  ops::layer_norm_backward<double>(c, x, w.flat(), kEps, Accumulate::kOverwrite, {}, again.flat(), {});
  for (Index i = 0; i < sum.size(); ++i) CHECK(sum.flat()[i] == 2 * dx.flat()[i]);
  for (Index j = 0; j < n; ++j) {
    CHECK(again(0, j) == Approx(2 * dw(0, j)).epsilon(1e-14));
    double column = 0;
    for (Index i = 0; i < rows; ++i) column += 2 * c(i, j);
    CHECK(db(0, j) == Approx(column).epsilon(1e-14));
  }
}

TEMPLATE_TEST_CASE("layer norm in float and 16 bits against double, for all lengths modulo a vector, any threads", "",
                   float, bf16, f16) {
  using T = TestType;
  for (Index n : {2, 7, 14, 16, 17, 30, 33, 64, 131}) {
    Philox rng(static_cast<std::uint64_t>(n));
    const Index rows = 19;
    auto x = random<T>(rng, rows, n);
    // A mean of several deviations: what is left of the digits after it is taken away counts.
    for (T& value : x.flat()) value = static_cast<T>(static_cast<float>(value) + 4.0f);
    const auto dy = random<T>(rng, rows, n), old = random<T>(rng, rows, n);
    const auto w = random<float>(rng, 1, n), b = random<float>(rng, 1, n), old_dw = random<float>(rng, 1, n);
    Matrix<double> y(rows, n), dx(rows, n), added = in_double(old), dw = in_double(old_dw),
        db = Matrix<double>::zeros(1, n);
    const auto xd = in_double(x), dyd = in_double(dy), wd = in_double(w), bd = in_double(b);
    ops::layer_norm_forward<double>(xd, wd.flat(), bd.flat(), kEps, y);
    ops::layer_norm_backward<double>(dyd, xd, wd.flat(), kEps, Accumulate::kOverwrite, dx, dw.flat(), db.flat());
    ops::layer_norm_backward<double>(dyd, xd, wd.flat(), kEps, Accumulate::kAdd, added, {}, {});
    // Mean and sums of n numbers up to 5 round (n + 8) times; a row's deviation is at least 1/200 (rows of two numbers),
    // by which distances from the mean are divided, twice more in dx.
    double smallest = 1;
    for (Index i = 0; i < rows; ++i) {
      smallest = std::min(smallest, 1.0 / ops::detail::row_moments(xd.row(i), n, static_cast<double>(kEps)).root);
    }
    const double error = static_cast<double>(n + 8) * 0x1p-24 * 5 / smallest;
    std::vector<Matrix<T>> first;
    std::vector<Matrix<float>> first_gradients;
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<Matrix<T>> out;
      std::vector<Matrix<float>> gradients;
      out.push_back(x.clone());  // in place
      ops::layer_norm_forward<T>(out[0], w.flat(), b.flat(), kEps, out[0], pool);
      out.push_back(dy.clone());  // in place
      gradients.push_back(old_dw.clone());
      gradients.push_back(Matrix<float>::zeros(1, n));
      ops::layer_norm_backward<T>(out[1], x, w.flat(), kEps, Accumulate::kOverwrite, out[1], gradients[0].flat(),
                                  gradients[1].flat(), pool);
      out.push_back(old.clone());
      ops::layer_norm_backward<T>(dy, x, w.flat(), kEps, Accumulate::kAdd, out[2], {}, {}, pool);
      gradients.push_back(Matrix<float>::zeros(1, n));
      ops::layer_norm_backward<T>(dy, x, w.flat(), kEps, Accumulate::kOverwrite, {}, {}, gradients[2].flat(), pool);
      INFO("n = " << n << ", " << threads << " threads");
      check_near(out[0], y, 2 * error);
      check_near(out[1], dx, 8 * error / smallest);
      check_near(out[2], added, 8 * error / smallest);
      check_near(gradients[0], dw, static_cast<double>(rows) * (2 * error + 0x1p-24));
      check_near(gradients[1], db, static_cast<double>(rows * rows) * 0x1p-24);
      if (threads > 1) {
        for (std::size_t i = 0; i < out.size(); ++i) {
          REQUIRE(std::memcmp(out[i].data(), first[i].data(), static_cast<std::size_t>(out[i].size()) * sizeof(T)) == 0);
        }
        for (std::size_t i = 0; i < gradients.size(); ++i) {
          REQUIRE(std::memcmp(gradients[i].data(), first_gradients[i].data(), static_cast<std::size_t>(n) * 4) == 0);
        }
      }
      REQUIRE(std::memcmp(gradients[1].data(), gradients[2].data(), static_cast<std::size_t>(n) * 4) == 0);
      first = std::move(out);
      first_gradients = std::move(gradients);
    }
  }
}

TEST_CASE("layer norm names shapes that do not fit") {
  Matrix<float> x(2, 4), y(2, 5);
  Buffer<float> w(4), wrong(3);
  CHECK_THROWS_AS(ops::layer_norm_forward<float>(x, w.view(), {}, kEps, y), ShapeError);
  CHECK_THROWS_AS(ops::layer_norm_forward<float>(x, wrong.view(), {}, kEps, x), ShapeError);
  CHECK_THROWS_AS(ops::layer_norm_forward<float>(x, w.view(), wrong.view(), kEps, x), ShapeError);
  CHECK_THROWS_AS(ops::layer_norm_backward<float>(y, x, w.view(), kEps, Accumulate::kAdd, x, {}, {}), ShapeError);
  CHECK_THROWS_AS(ops::layer_norm_backward<float>(x, x, w.view(), kEps, Accumulate::kAdd, {}, wrong.view(), {}), ShapeError);
}
