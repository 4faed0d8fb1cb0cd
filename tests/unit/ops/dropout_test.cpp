#include "peft/ops/dropout.hpp"

#include <cstring>

#include "peft/core/thread_pool.hpp"
#include "unit/ops/support.hpp"

using namespace ops_test;

TEMPLATE_TEST_CASE("dropout has the bits of its key, rounds once, and does not depend on the cut or the threads", "", float,
                   bf16, f16, double) {
  using T = TestType;
  for (Index n : {1, 7, 16, 37, 130}) {
    Philox rng(static_cast<std::uint64_t>(n));
    const Index rows = 21;
    const auto x = random<T>(rng, rows, n);
    const DropoutKey key{1, 2, 3, 50};
    ThreadPool one(1), three(3);
    auto y = x.clone(), other = x.clone(), kept = x.clone();
    ops::dropout<T>(y, 0.25f, key, one);
    ops::dropout<T>(other, 0.25f, key, three);
    REQUIRE(std::memcmp(y.data(), other.data(), static_cast<std::size_t>(y.size()) * sizeof(T)) == 0);
    std::vector<std::uint8_t> bits(static_cast<std::size_t>((n + 7) / 8));
    for (Index i = 0; i < rows; ++i) {
      dropout_mask_row(key, i, n, 0.25f, bits.data());
      for (Index j = 0; j < n; ++j) {
        const bool keep = (bits[static_cast<std::size_t>(j / 8)] >> (j % 8) & 1) != 0;
        const auto wide = static_cast<Accumulator<T>>(x(i, j));
        const auto factor = static_cast<Accumulator<T>>(static_cast<float>(1 / 0.75));
        REQUIRE(static_cast<Accumulator<T>>(y(i, j)) == static_cast<Accumulator<T>>(static_cast<T>(keep ? wide * factor : 0)));
      }
    }
    // Rows 5 and on as a sub-batch of their own.
    auto part = x.clone();
    ops::dropout<T>(part.view().row_range(5, rows - 5), 0.25f, {1, 2, 3, 55}, one);
    REQUIRE(std::memcmp(part.row(5), y.row(5), static_cast<std::size_t>((rows - 5) * n) * sizeof(T)) == 0);
    ops::dropout<T>(kept, 0.0f, key, one);
    REQUIRE(std::memcmp(kept.data(), x.data(), static_cast<std::size_t>(x.size()) * sizeof(T)) == 0);
  }
  Matrix<T> x(1, 1);
  CHECK_THROWS_AS(ops::dropout<T>(x, 1.0f, {}), ShapeError);
  CHECK_THROWS_AS(ops::dropout<T>(x, -0.1f, {}), ShapeError);
}
