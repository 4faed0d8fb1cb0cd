// Nf4Linear against products in double over the dequantised weight, for all shapes modulo tiles and blocks.
//
// Tolerance: a sum of n products rounded in any order differs from the exact one by at most n·2^-24·Σ|terms|, and from
// its rounding to T by half a unit of T.
#include "peft/nf4_linear.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "support/catch.hpp"

using namespace peft;

static_assert(LinearLike<Nf4Linear> && ExecutorForward<Nf4Linear> && PanelSource<Nf4Linear> && BackwardLinear<Nf4Linear> &&
              ExecutorBackward<Nf4Linear> && FusedLowRank<Nf4Linear> && TrainableBase<Nf4Linear>);
static_assert(LinearLike<Fp4Linear, bf16> && BackwardLinear<Fp4Linear, f16> && !LinearLike<Nf4Linear, double>);
static_assert(!MergeableLinear<Nf4Linear> && !WeightGrad<Nf4Linear>);

namespace {

template <class T>
Matrix<T> random_matrix(Philox& rng, Index rows, Index cols) {
  Matrix<T> result(rows, cols);
  for (T& value : result.flat()) value = static_cast<T>(rng.normal());
  return result;
}

template <class T>
constexpr double kUnit = std::same_as<T, float> ? 0x1p-24 : std::same_as<T, bf16> ? 0x1p-8 : 0x1p-11;

struct Case {
  Index rows, in, out, block;
  bool nested, bias;
  Index rank;
};

template <FourBitCode kCode, class T>
void check(const Case& c, std::uint64_t seed) {
  CAPTURE(c.rows, c.in, c.out, c.block, c.nested, c.bias, c.rank, seed, name_of(kCode), name_of(dtype_of<T>()));
  Philox rng(seed);
  const Matrix<float> w = random_matrix<float>(rng, c.out, c.in);
  const auto tensor = FourBitTensor<kCode>::quantize(w.view(), {.block_size = c.block, .double_quant = c.nested});
  Matrix<float> stored(c.out, c.in);
  tensor.dequantize(stored.view());
  Buffer<float> bias(c.bias ? c.out : 0);
  for (float& b : bias) b = rng.normal();
  const Buffer<float> bias_copy = bias.clone();
  const FourBitLinear<kCode> layer(tensor, std::move(bias));
  const Matrix<T> x = random_matrix<T>(rng, c.rows, c.in), dy = random_matrix<T>(rng, c.rows, c.out);
  const Matrix<float> s = random_matrix<float>(rng, c.rows, c.rank), b = random_matrix<float>(rng, c.out, c.rank);
  const LowRankTerm term{0, c.rows, s.view(), b.view(), 0.5f};
  const std::span<const LowRankTerm> terms(&term, c.rank > 0 ? 1 : 0);

  Matrix<T> y(c.rows, c.out), dx(c.rows, c.in);
  for (const int threads : {1, 2, 3, 7}) {
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
    const double limit = static_cast<double>(count + 2) * 0x1p-24 * size + kUnit<T> * std::abs(sum) + 1e-30;
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

TEST_CASE("Nf4Linear multiplies over every shape of tiles, rows and blocks") {
  std::uint64_t seed = 0;
  for (const Index in : {1, 7, 31, 64, 65, 96, 128, 300}) {
    for (const Index out : {1, 5, 16, 33, 70}) {
      for (const Index rows : {1, 4, 9, 15, 29}) {
        // The other choices in turn.
        ++seed;
        const Index block = Index{32} << (seed % 3);
        check<FourBitCode::kNf4, float>({rows, in, out, block, seed % 2 != 0, seed % 5 < 2, static_cast<Index>(seed % 4)}, seed);
      }
    }
  }
}

TEST_CASE("Nf4Linear multiplies a few rows out of its codes, over every part of a vector's words") {
  std::uint64_t seed = 500;
  for (const Index block : {32, 64, 128}) {
    for (Index blocks = 1; blocks <= 5; ++blocks) {
      for (const Index out : {1, 3, 4, 7, 67}) {
        ++seed;
        const Index rows = 1 + static_cast<Index>(seed % 9);
        check<FourBitCode::kNf4, float>({rows, block * blocks, out, block, seed % 2 == 0, seed % 3 == 0, static_cast<Index>(seed % 4)}, seed);
      }
    }
  }
}

TEST_CASE("Nf4Linear multiplies in every activation type, and Fp4Linear over FP4's values") {
  const Case cases[] = {{1, 128, 40, 64, false, true, 2}, {20, 96, 33, 64, true, false, 0}, {17, 77, 50, 32, true, true, 3}};
  std::uint64_t seed = 1000;
  for (const Case& c : cases) {
    check<FourBitCode::kNf4, bf16>(c, ++seed);
    check<FourBitCode::kNf4, f16>(c, ++seed);
    check<FourBitCode::kFp4, float>(c, ++seed);
    check<FourBitCode::kFp4, bf16>(c, ++seed);
  }
}

TEST_CASE("A layer in four bits is a layer like any other, and refuses what does not fit") {
  Philox rng(5);
  const Matrix<float> w = random_matrix<float>(rng, 6, 64), x = random_matrix<float>(rng, 3, 64);
  const Nf4Tensor tensor = Nf4Tensor::quantize(w.view());
  const Nf4Linear layer(tensor);
  Matrix<float> direct(3, 6), erased(3, 6);
  layer.forward<float>(x.view(), direct.view());
  const AnyLinear<float> any{Nf4Linear(tensor)};
  any.forward(x.view(), erased.view());
  REQUIRE(std::memcmp(direct.data(), erased.data(), 18 * sizeof(float)) == 0);
  Matrix<float> dx(3, 64), added(3, 64);
  layer.backward_input<float>(direct.view(), dx.view());
  added.fill_zero();
  layer.backward_input<float>(direct.view(), added.view(), Accumulate::kAdd);
  layer.backward_input<float>(direct.view(), added.view(), Accumulate::kAdd);
  for (Index i = 0; i < dx.size(); ++i) REQUIRE(added.data()[i] == Approx(2 * dx.data()[i]).margin(1e-5));
  REQUIRE_THROWS_AS(Nf4Linear(tensor, Buffer<float>(5)), ShapeError);
  REQUIRE_THROWS_AS(Nf4Linear(Nf4Tensor()), ShapeError);
  REQUIRE_THROWS_AS(layer.forward<float>(x.view(), dx.view()), ShapeError);
  REQUIRE_THROWS_AS(layer.backward_input<float>(x.view(), dx.view()), ShapeError);
}
