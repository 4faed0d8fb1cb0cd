// GgufLinear against products in double over the decoded weight, for all shapes modulo tiles and blocks.
//
// Tolerance: a sum of n products rounded in any order differs from the exact one by at most n·2^-24·Σ|terms|, and from
// its rounding to T by half a unit of T, or of T's least number.
#include "peft/gguf_linear.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "random_blocks.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::message_of;

static_assert(LinearLike<GgufLinear> && ExecutorForward<GgufLinear> && PanelSource<GgufLinear> && BackwardLinear<GgufLinear> &&
              ExecutorBackward<GgufLinear> && FusedLowRank<GgufLinear> && TrainableBase<GgufLinear>);
static_assert(LinearLike<GgufLinear, bf16> && BackwardLinear<GgufLinear, f16> && !LinearLike<GgufLinear, double>);
static_assert(!MergeableLinear<GgufLinear> && !WeightGrad<GgufLinear>);

namespace {

template <class T>
Matrix<T> random_matrix(Philox& rng, Index rows, Index cols) {
  Matrix<T> result(rows, cols);
  for (T& value : result.flat()) value = static_cast<T>(rng.normal());
  return result;
}

template <class T>
constexpr double kUnit = std::same_as<T, float> ? 0x1p-24 : std::same_as<T, bf16> ? 0x1p-8 : 0x1p-11;

template <class T>
constexpr double kLeast = std::same_as<T, f16> ? 0x1p-25 : 1e-30;

struct Case {
  BlockFormat format;
  Index rows, in, out;
  bool bias;
  Index rank;
};

template <class T>
void check(const Case& c, std::uint64_t seed) {
  CAPTURE(name_of(c.format), c.rows, c.in, c.out, c.bias, c.rank, seed, name_of(dtype_of<T>()));
  Philox rng(seed);
  const GgufTensor tensor = gguf_test::random_blocks(c.format, c.out, c.in, rng);
  Matrix<float> stored(c.out, c.in);
  tensor.dequantize(stored.view());
  Buffer<float> bias(c.bias ? c.out : 0);
  for (float& b : bias) b = rng.normal();
  const Buffer<float> bias_copy = bias.clone();
  const GgufLinear layer(tensor, std::move(bias));
  const Matrix<T> x = random_matrix<T>(rng, c.rows, c.in), dy = random_matrix<T>(rng, c.rows, c.out);
  const Matrix<float> s = random_matrix<float>(rng, c.rows, c.rank), b = random_matrix<float>(rng, c.out, c.rank);
  const LowRankTerm term{0, c.rows, s.view(), b.view(), 0.5f};
  const std::span<const LowRankTerm> terms(&term, c.rank > 0 ? 1 : 0);

  Matrix<T> y(c.rows, c.out), dx(c.rows, c.in);
  for (const int threads : peft_test::kThreadCounts) {
    ThreadPool pool(threads);
    Matrix<T> got(c.rows, c.out), got_dx(c.rows, c.in);
    layer.template forward_low_rank<T>(x.view(), terms, got.view(), pool);
    layer.template backward_input<T>(dy.view(), got_dx.view(), Accumulate::kOverwrite, pool);
    if (threads > 1) {
      REQUIRE(std::memcmp(got.data(), y.data(), static_cast<std::size_t>(y.size()) * sizeof(T)) == 0);
      REQUIRE(std::memcmp(got_dx.data(), dx.data(), static_cast<std::size_t>(dx.size()) * sizeof(T)) == 0);
    }
    y = std::move(got), dx = std::move(got_dx);
  }

  double worst = 0;
  const auto compare = [&](T got, double sum, double size, Index count) {
    const double limit = static_cast<double>(count + 2) * 0x1p-24 * size + kUnit<T> * std::abs(sum) + kLeast<T>;
    worst = std::max(worst, std::abs(static_cast<double>(static_cast<float>(got)) - sum) / limit);
  };
  for (Index i = 0; i < c.rows; ++i) {
    for (Index j = 0; j < c.out; ++j) {
      double sum = c.bias ? static_cast<double>(bias_copy[j]) : 0.0, size = std::abs(sum);
      const auto add = [&](float p, float q) {
        const double product = static_cast<double>(p) * static_cast<double>(q);
        sum += product, size += std::abs(product);
      };
      for (Index k = 0; k < c.in; ++k) add(static_cast<float>(x(i, k)), stored(j, k));
      for (Index q = 0; q < c.rank; ++q) add(0.5f * s(i, q), b(j, q));
      compare(y(i, j), sum, size, c.in + c.rank + 1);
    }
    for (Index k = 0; k < c.in; ++k) {
      double sum = 0, size = 0;
      for (Index j = 0; j < c.out; ++j) {
        const double product = static_cast<double>(static_cast<float>(dy(i, j))) * static_cast<double>(stored(j, k));
        sum += product, size += std::abs(product);
      }
      compare(dx(i, k), sum, size, c.out);
    }
  }
  REQUIRE(worst <= 1.0);
}

}  // namespace

TEST_CASE("GgufLinear multiplies over every shape of tiles, rows and blocks") {
  std::uint64_t seed = 0;
  for (const BlockFormatInfo& info : kBlockFormats) {
    for (Index blocks = 1; blocks <= 3; ++blocks) {
      for (const Index out : {1, 5, 16, 33, 70}) {
        for (const Index rows : {1, 4, 9, 15, 29}) {
          // The other choices in turn; of the large blocks fewer shapes.
          ++seed;
          if (info.elements > 32 && seed % 4 != 0) continue;
          check<float>({info.format, rows, info.elements * blocks, out, seed % 5 < 2, static_cast<Index>(seed % 4)}, seed);
        }
      }
    }
  }
}

TEST_CASE("GgufLinear multiplies a few rows in every number, decoded in registers") {
  std::uint64_t seed = 1000;
  for (const BlockFormatInfo& info : kBlockFormats) {
    for (Index rows = 1; rows <= 9; ++rows) {
      for (const Index out : {1, 2, 3, 4, 7, 67}) {
        ++seed;
        check<float>({info.format, rows, info.elements, out, seed % 3 == 0, static_cast<Index>(seed % 4)}, seed);
      }
    }
  }
}

TEST_CASE("GgufLinear multiplies in every activation type") {
  std::uint64_t seed = 2000;
  for (const BlockFormatInfo& info : kBlockFormats) {
    for (const Index rows : {2, 17}) {
      check<bf16>({info.format, rows, 2 * info.elements, 40, true, 3}, ++seed);
      check<f16>({info.format, rows, info.elements, 33, false, 0}, ++seed);
    }
  }
}

TEST_CASE("A layer in blocks is a layer like any other, and refuses what does not fit") {
  Philox rng(5);
  const GgufTensor tensor = gguf_test::random_blocks(BlockFormat::kQ4_1, 6, 64, rng);
  const Matrix<float> x = random_matrix<float>(rng, 3, 64);
  const GgufLinear layer(tensor);
  Matrix<float> direct(3, 6), erased(3, 6);
  layer.forward<float>(x.view(), direct.view());
  const AnyLinear<float> any{GgufLinear(tensor)};
  any.forward(x.view(), erased.view());
  REQUIRE(std::memcmp(direct.data(), erased.data(), 18 * sizeof(float)) == 0);
  REQUIRE_THROWS_AS(GgufLinear(tensor, Buffer<float>(5)), ShapeError);
  Matrix<float> wrong(3, 7);
  CHECK(message_of<ShapeError>([&] { layer.forward<float>(x.view(), wrong.view()); }) == "GgufLinear: y is [3, 7]; expected [3, 6]");
  REQUIRE_THROWS_AS(layer.backward_input<float>(x.view(), wrong.view()), ShapeError);
}
