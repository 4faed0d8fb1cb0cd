#include <cstring>

#include "peft/core/thread_pool.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/cross_entropy.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/ops/rms_norm.hpp"
#include "peft/ops/rope.hpp"
#include "peft/ops/swiglu.hpp"
#include "unit/ops/support.hpp"

using namespace ops_test;

namespace {

const float kEps = 1e-5f;

std::vector<std::int32_t> ascending(Index n, int first) {
  std::vector<std::int32_t> p;
  for (Index i = 0; i < n; ++i) p.push_back(first + static_cast<int>(i));
  return p;
}
VectorView<const std::int32_t> view(const std::vector<std::int32_t>& v) { return {v.data(), static_cast<Index>(v.size())}; }

}  // namespace

TEST_CASE("gradients of the row operations by central differences in double") {
  Philox rng(1);
  const Index rows = 3, n = 10;
  auto x = random<double>(rng, rows, n), w = random<double>(rng, 1, n), c = random<double>(rng, rows, n);
  SECTION("rms_norm") {
    Matrix<double> y(rows, n), dx(rows, n), dw = Matrix<double>::zeros(1, n);
    const auto loss = [&] {
      ops::rms_norm_forward<double>(x, w.flat(), kEps, y);
      return inner(y, c);
    };
    ops::rms_norm_backward<double>(c, x, w.flat(), kEps, Accumulate::kOverwrite, dx, dw.flat());
    check_gradient(x, dx, loss);
    check_gradient(w, dw, loss);
    auto sum = dx.clone();
    ops::rms_norm_backward<double>(c, x, w.flat(), kEps, Accumulate::kAdd, sum, {});
    for (Index i = 0; i < sum.size(); ++i) CHECK(sum.flat()[i] == 2 * dx.flat()[i]);
  }
  SECTION("rope") {
    const ops::RopeTable<double> rope(20, n, 100.0);
    const auto positions = ascending(rows, 5);
    auto dx = c.clone();
    ops::rope_backward<double>(dx, view(positions), n, rope);
    check_gradient(x, dx, [&] {
      auto y = x.clone();
      ops::rope_forward<double>(y, view(positions), n, rope);
      return inner(y, c);
    });
  }
  SECTION("rope with frequencies and an attention factor of its own") {
    const Buffer<double> frequencies = ops::rope_frequencies<double>(n, 50.0);
    const ops::RopeTable<double> rope(20, frequencies.view(), 1.25);
    const auto positions = ascending(rows, 5);
    auto dx = c.clone(), y = x.clone();
    ops::rope_backward<double>(dx, view(positions), n, rope);
    const auto forward = [&] {
      auto rotated = x.clone();
      ops::rope_forward<double>(rotated, view(positions), n, rope);
      return inner(rotated, c);
    };
    check_gradient(x, dx, forward);
    // Five steps of a turn by the j-th frequency, 1.25 times as long.
    ops::rope_forward<double>(y, view(positions), n, rope);
    for (Index j = 0; j < n / 2; ++j) {
      const double angle = 5 * std::pow(50.0, -2.0 * static_cast<double>(j) / static_cast<double>(n));
      CHECK(frequencies[j] * 5 == Approx(angle).epsilon(1e-14));
      CHECK(y(0, j) == Approx(1.25 * (x(0, j) * std::cos(angle) - x(0, j + n / 2) * std::sin(angle))).margin(1e-14));
    }
  }
  SECTION("swiglu") {
    auto up = random<double>(rng, rows, n);
    Matrix<double> y(rows, n), dg(rows, n), du(rows, n);
    const auto loss = [&] {
      ops::swiglu_forward<double>(x, up, y);
      return inner(y, c);
    };
    ops::swiglu_backward<double>(c, x, up, dg, du);
    check_gradient(x, dg, loss);
    check_gradient(up, du, loss);
  }
  SECTION("embedding") {
    const std::vector<std::int32_t> ids{2, 0, 2};
    auto table = random<double>(rng, 4, n);
    Matrix<double> y(rows, n), dt = Matrix<double>::zeros(4, n);
    ops::embedding_backward<double>(view(ids), c, dt);
    check_gradient(table, dt, [&] {
      ops::embedding_forward<double, double>(view(ids), table, y);
      return inner(y, c);
    });
  }
  SECTION("cross-entropy") {
    const std::vector<std::int32_t> targets{3, -1, 0};
    std::vector<double> losses(3);
    const auto loss = [&] {
      auto z = x.clone();
      ops::cross_entropy<double>(z, view(targets), 1.0, false, {losses.data(), 3}, {});
      return 0.7 * (losses[0] + losses[1] + losses[2]);
    };
    auto dz = x.clone();
    ops::cross_entropy<double>(dz, view(targets), 0.7, true, {losses.data(), 3}, {});
    CHECK(losses[1] == 0.0);
    check_gradient(x, dz, loss);
  }
}

TEMPLATE_TEST_CASE("row operations in float and 16 bits against double, for all lengths modulo a vector", "", float, bf16, f16) {
  using T = TestType;
  for (Index n : {2, 6, 14, 16, 18, 30, 34, 64}) {
    Philox rng(static_cast<std::uint64_t>(n));
    const Index rows = 19;
    const auto x = random<T>(rng, rows, n), up = random<T>(rng, rows, n), dy = random<T>(rng, rows, n);
    const auto w = random<float>(rng, 1, n);
    const auto xd = in_double(x), upd = in_double(up), dyd = in_double(dy), wd = in_double(w);
    std::vector<Matrix<T>> first;
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<Matrix<T>> out;
      for (int i = 0; i < 8; ++i) out.emplace_back(rows, n);
      ops::rms_norm_forward<T>(x, w.flat(), kEps, out[0], pool);
      ops::rms_norm_backward<T>(dy, x, w.flat(), kEps, Accumulate::kOverwrite, out[1], {}, pool);
      out[2] = up.clone();
      ops::rms_norm_backward<T>(dy, x, w.flat(), kEps, Accumulate::kAdd, out[2], {}, pool);
      ops::swiglu_forward<T>(x, up, out[3], pool);
      ops::swiglu_backward<T>(dy, x, up, out[4], out[5], pool);
      const ops::RopeTable<float> rope(40, n, 10000.0);
      out[6] = x.clone();
      const auto positions = ascending(rows, 3);
      ops::rope_forward<T>(out[6], view(positions), n, rope, pool);
      out[7] = up.clone();
      ops::add<T>(x, out[7], pool);
      if (threads > 1) {
        for (std::size_t i = 0; i < out.size(); ++i) {
          REQUIRE(std::memcmp(out[i].data(), first[i].data(), static_cast<std::size_t>(out[i].size()) * sizeof(T)) == 0);
        }
        continue;
      }
      Matrix<double> y(rows, n), dx(rows, n), du(rows, n);
      // Root and sums of n products: (n + 8) roundings; results are of size 1/rms(x), at most 1/√eps where x ≈ 0.
      ops::rms_norm_forward<double>(xd, wd.flat(), kEps, y);
      check_near(out[0], y, static_cast<double>(n + 8) * 0x1p-24 * 10);
      ops::rms_norm_backward<double>(dyd, xd, wd.flat(), kEps, Accumulate::kOverwrite, dx, {});
      check_near(out[1], dx, static_cast<double>(n + 8) * 0x1p-24 * 100);
      for (Index i = 0; i < dx.size(); ++i) dx.flat()[i] += upd.flat()[i];
      check_near(out[2], dx, static_cast<double>(n + 8) * 0x1p-24 * 100);
      ops::swiglu_forward<double>(xd, upd, y);
      check_near(out[3], y, 16 * 0x1p-24);
      ops::swiglu_backward<double>(dyd, xd, upd, dx, du);
      check_near(out[4], dx, 16 * 0x1p-24);
      check_near(out[5], du, 16 * 0x1p-24);
      const ops::RopeTable<double> exact(40, n, 10000.0);
      y = xd.clone();
      ops::rope_forward<double>(y, view(positions), n, exact);
      check_near(out[6], y, 22 * 4 * 0x1p-24);  // an angle up to 22 rounded in float, as transformers does
      y = upd.clone();
      ops::add<double>(xd, y);
      check_near(out[7], y, 0.0);
      first = std::move(out);
    }
  }
}

TEST_CASE("embedding looks rows up in any storage") {
  Philox rng(9);
  const auto table = random<bf16>(rng, 5, 7);
  const std::vector<std::int32_t> ids{4, 0, 4};
  Matrix<float> x(3, 7);
  ops::embedding_forward<bf16, float>(view(ids), table, x);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 7; ++j) CHECK(x(i, j) == static_cast<float>(table(ids[static_cast<std::size_t>(i)], j)));
  const std::vector<std::int32_t> wrong{5, 0, 0};
  CHECK_THROWS_AS((ops::embedding_forward<bf16, float>(view(wrong), table, x)), ShapeError);
}

TEST_CASE("shapes that do not fit are named") {
  Matrix<float> x(2, 4), y(2, 5), z(2, 4);
  Buffer<float> w(4);
  CHECK_THROWS_AS(ops::rms_norm_forward<float>(x, w.view(), kEps, y), ShapeError);
  CHECK_THROWS_AS(ops::swiglu_forward<float>(x, y, z), ShapeError);
  CHECK_THROWS_AS(ops::add<float>(x, y), ShapeError);
  const ops::RopeTable<float> rope(4, 4, 10.0);
  const std::vector<std::int32_t> outside{0, 4};
  CHECK_THROWS_AS(ops::rope_forward<float>(x, view(outside), 4, rope), ShapeError);
  CHECK_THROWS_AS(ops::RopeTable<float>(4, 5, 10.0), ShapeError);
  const std::vector<std::int32_t> targets{0, 4};
  std::vector<double> losses(2);
  CHECK_THROWS_AS(ops::cross_entropy<float>(x, view(targets), 1.0f, false, {losses.data(), 2}, {}), ShapeError);
}
