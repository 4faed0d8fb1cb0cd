#include "peft/core/rng.hpp"

#include <vector>

#include "support/catch.hpp"

using namespace peft;

TEST_CASE("Philox-4x32-10 gives the known answers of its authors' Random123") {
  CHECK(philox4x32({0, 0, 0, 0}, 0, 0) == PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff) ==
        PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
        PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform and normal numbers have their moments") {
  Philox rng(7);
  const int n = 200000;
  double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = static_cast<double>(rng.uniform());
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    sum += u;
    squares += u * u;
    const double z = static_cast<double>(rng.normal());
    normal_sum += z;
    normal_squares += z * z;
  }
  // Five standard errors: mean of U(0,1) has sd 0.2887/sqrt(n), its square 0.2981/sqrt(n); N(0,1): 1 and sqrt(2).
  const double root = std::sqrt(static_cast<double>(n));
  CHECK(std::fabs(sum / n - 0.5) < 5 * 0.2887 / root);
  CHECK(std::fabs(squares / n - 1.0 / 3) < 5 * 0.2981 / root);
  CHECK(std::fabs(normal_sum / n) < 5 / root);
  CHECK(std::fabs(normal_squares / n - 1) < 5 * 1.4143 / root);
}

TEST_CASE("below() is unbiased and in range") {
  Philox rng(3);
  std::vector<int> seen(7);
  for (int i = 0; i < 70000; ++i) ++seen[rng.below(7)];
  for (int count : seen) CHECK(std::abs(count - 10000) < 5 * 93);  // sd = sqrt(70000·(1/7)(6/7)) = 92.6
}

TEST_CASE("a dropout mask is a pure function of its key, drops its share and leaves the tail clear") {
  const DropoutKey key{.seed = 99, .step = 4, .module = 2, .first_row = 0};
  const Index columns = 1003;
  std::vector<std::uint8_t> row(126), again(126), shifted(126);
  Index kept = 0;
  for (Index r = 0; r < 100; ++r) {
    dropout_mask_row(key, r, columns, 0.1f, row.data());
    dropout_mask_row(key, r, columns, 0.1f, again.data());
    CHECK(row == again);
    for (Index c = 0; c < 126 * 8; ++c) {
      const bool bit = (row[static_cast<std::size_t>(c / 8)] >> (c % 8)) & 1u;
      if (c >= columns) REQUIRE_FALSE(bit);
      kept += bit;
    }
    DropoutKey moved = key;
    moved.first_row = r;
    dropout_mask_row(moved, 0, columns, 0.1f, shifted.data());
    CHECK(row == shifted);  // sub-batches see the same mask
  }
  const double n = 100.0 * 1003;
  CHECK(std::fabs(static_cast<double>(kept) - 0.9 * n) < 5 * std::sqrt(n * 0.09));
  DropoutKey other = key;
  other.module = 3;
  dropout_mask_row(key, 0, columns, 0.5f, row.data());
  dropout_mask_row(other, 0, columns, 0.5f, again.data());
  CHECK(row != again);
}
