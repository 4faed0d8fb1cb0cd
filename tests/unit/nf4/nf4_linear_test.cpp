// Nf4Linear and Int8Linear against products in double over the dequantised weight, for all shapes modulo tiles and blocks; an
// update merged into a packed weight, and out again.
//
// Tolerance: a sum of n products rounded in any order differs from the exact one by at most n·2^-24·Σ|terms|, and from
// its rounding to T by half a unit of T.
#include "peft/nf4_linear.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/int8_linear.hpp"
#include "peft/row_table.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"

using namespace peft;

static_assert(LinearLike<Nf4Linear> && ExecutorForward<Nf4Linear> && PanelSource<Nf4Linear> && BackwardLinear<Nf4Linear> &&
              ExecutorBackward<Nf4Linear> && FusedLowRank<Nf4Linear> && TrainableBase<Nf4Linear>);
static_assert(LinearLike<Fp4Linear, bf16> && BackwardLinear<Fp4Linear, f16> && !LinearLike<Nf4Linear, double>);
static_assert(MergeableLinear<Nf4Linear> && RewritableLinear<Fp4Linear, bf16> && !WeightGrad<Nf4Linear>);
static_assert(PanelSource<Int8Linear> && FusedLowRank<Int8Linear, f16> && RewritableLinear<Int8Linear> &&
              !LinearLike<Int8Linear, double>);

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

template <class Tensor>
Tensor quantized(MatrixView<const float> weight, Index block, bool nested) {
  if constexpr (std::same_as<Tensor, Int8Tensor>) {
    return Int8Tensor::quantize(weight);
  } else {
    return Tensor::quantize(weight, {.block_size = block, .double_quant = nested});
  }
}

template <class Tensor>
Matrix<float> values_of(const Tensor& tensor) {
  Matrix<float> values(tensor.rows(), tensor.cols());
  tensor.template dequantize<float>(values.view());
  return values;
}

template <class Tensor, class T>
void check(const Case& c, std::uint64_t seed) {
  CAPTURE(c.rows, c.in, c.out, c.block, c.nested, c.bias, c.rank, seed, Tensor::kLayer, name_of(dtype_of<T>()));
  Philox rng(seed);
  const Matrix<float> w = random_matrix<float>(rng, c.out, c.in);
  const Tensor tensor = quantized<Tensor>(w.view(), c.block, c.nested);
  Matrix<float> stored(c.out, c.in);
  tensor.dequantize(stored.view());
  Buffer<float> bias(c.bias ? c.out : 0);
  for (float& b : bias) b = rng.normal();
  const Buffer<float> bias_copy = bias.clone();
  const PackedLinear<Tensor> layer(tensor, std::move(bias));
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
        check<Nf4Tensor, float>({rows, in, out, block, seed % 2 != 0, seed % 5 < 2, static_cast<Index>(seed % 4)}, seed);
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
        check<Nf4Tensor, float>({rows, block * blocks, out, block, seed % 2 == 0, seed % 3 == 0, static_cast<Index>(seed % 4)}, seed);
      }
    }
  }
}

TEST_CASE("Panels of four bits are the dequantised values, bit for bit, and nothing beside them is written") {
  Philox rng(600);
  for (const Index block : {32, 64, 256}) {
    for (const Index in : {2 * block, 5 * block, Index{75}}) {
      const Index out = 301;
      const Nf4Tensor tensor = quantized<Nf4Tensor>(random_matrix<float>(rng, out, in).view(), block, in != 2 * block);
      const Matrix<float> stored = values_of(tensor);
      const Nf4Linear layer(tensor);
      const auto compare = [&](Index n0, Index nc, Index k0, Index kc, Order order) {
        CAPTURE(block, in, n0, nc, k0, kc, order == Order::kForward);
        const Index ld = nc + 3;
        Matrix<float> panel(kc, ld);
        for (float& value : panel.flat()) value = 77.0f;
        layer.fill_panel(n0, nc, k0, kc, panel.data(), ld, order);
        bool right = true;
        for (Index i = 0; i < kc; ++i) {
          for (Index j = 0; j < ld; ++j) {
            const float expected = j >= nc ? 77.0f : order == Order::kForward ? stored(n0 + j, k0 + i) : stored(k0 + i, n0 + j);
            right = right && std::memcmp(&panel(i, j), &expected, sizeof(float)) == 0;
          }
        }
        REQUIRE(right);
      };
      for (const Index nc : {1, 4, 12, 16, 31, 32, 40}) {
        for (const Index first : {Index{0}, Index{8}, in - in % 8 - 8}) {
          compare(5, nc, first, std::min<Index>(in - first, 3 + 8 * nc), Order::kForward);
        }
        for (const Index first : {Index{0}, Index{12}, Index{17}}) {
          compare(first, std::min(nc, in - first), 3, 1 + 7 * nc, Order::kBackward);
        }
      }
      compare(9, 32, 0, in, Order::kForward);
      compare(0, in, 0, out, Order::kBackward);
    }
  }
}

TEST_CASE("A scale that is no number stays in its row of a product of one row") {
  Philox rng(601);
  const Matrix<float> w = random_matrix<float>(rng, 6, 64), x = random_matrix<float>(rng, 1, 64);
  for (const Index block : {32, 64}) {
    const Nf4Tensor tensor = quantized<Nf4Tensor>(w.view(), block, false);
    FourBitStorage storage = tensor.storage();
    Buffer<float> scales(storage.absmax.size);
    std::copy(storage.absmax.begin(), storage.absmax.end(), scales.begin());
    for (Index i = 3 * (64 / block); i < 4 * (64 / block); ++i) scales[i] = std::numeric_limits<float>::infinity();
    storage.absmax = std::as_const(scales).view();
    Matrix<float> y(1, 6), expected(1, 6);
    Nf4Linear(Nf4Tensor(storage)).forward<float>(x.view(), y.view());
    Nf4Linear(tensor).forward<float>(x.view(), expected.view());
    for (Index j = 0; j < 6; ++j) CHECK((j == 3 ? !is_finite(y(0, j)) : y(0, j) == expected(0, j)));
  }
}

TEST_CASE("Nf4Linear multiplies in every activation type, and Fp4Linear over FP4's values") {
  const Case cases[] = {{1, 128, 40, 64, false, true, 2}, {20, 96, 33, 64, true, false, 0}, {17, 77, 50, 32, true, true, 3}};
  std::uint64_t seed = 1000;
  for (const Case& c : cases) {
    check<Nf4Tensor, bf16>(c, ++seed);
    check<Nf4Tensor, f16>(c, ++seed);
    check<Fp4Tensor, float>(c, ++seed);
    check<Fp4Tensor, bf16>(c, ++seed);
  }
}

TEST_CASE("Int8Linear multiplies over every shape of tiles and rows, in every activation type") {
  std::uint64_t seed = 2000;
  for (const Index in : {1, 7, 33, 64, 300}) {
    for (const Index out : {1, 5, 33, 70}) {
      for (const Index rows : {1, 4, 15, 29}) {
        ++seed;
        check<Int8Tensor, float>({rows, in, out, 0, false, seed % 5 < 2, static_cast<Index>(seed % 4)}, seed);
      }
    }
  }
  check<Int8Tensor, bf16>({17, 77, 50, 0, false, true, 3}, ++seed);
  check<Int8Tensor, f16>({3, 128, 33, 0, false, false, 2}, ++seed);
}

namespace {

bool same(const Matrix<float>& a, const Matrix<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

/// Merging: W' is what quantising W + 0.5·B·A in the same form gives, its error is told, and W comes back. [out, in], rank 3.
template <class Tensor>
void check_merge(Index out, Index in, bool nested, std::uint64_t seed) {
  CAPTURE(Tensor::kLayer, out, in, nested);
  Philox rng(seed);
  const Matrix<float> w = random_matrix<float>(rng, out, in), a = random_matrix<float>(rng, 3, in), b = random_matrix<float>(rng, out, 3);
  const Tensor tensor = quantized<Tensor>(w.view(), 32, nested);
  const Matrix<float> before = values_of(tensor);
  Buffer<float> bias(out);
  for (float& x : bias) x = rng.normal();
  const Buffer<float> old_bias = bias.clone();
  PackedLinear<Tensor> layer(tensor, std::move(bias));
  const MergeTerm term{a.view(), b.view(), 0.5f};
  // The copy in float that merging on a higher precision gives, and the same quantised.
  const Matrix<float> sum = merged_weight(layer, {&term, 1}, default_executor());
  const Tensor expected = quantized<Tensor>(sum.view(), 32, nested);
  for (Index i = 0; i < out; ++i) {
    for (Index k = 0; k < in; ++k) {
      double exact = static_cast<double>(before(i, k)), size = std::abs(exact);
      for (Index q = 0; q < 3; ++q) {
        const double product = 0.5 * static_cast<double>(b(i, q)) * static_cast<double>(a(q, k));
        exact += product, size += std::abs(product);
      }
      REQUIRE(std::abs(static_cast<double>(sum(i, k)) - exact) <= 5 * 0x1p-24 * size);
    }
  }
  const Matrix<float> x = random_matrix<float>(rng, 2, in);
  Matrix<float> y(2, out), y_expected(2, out), y_before(2, out);
  layer.template forward<float>(x.view(), y_before.view());
  auto undo = layer.merge({&term, 1});
  CHECK(same(values_of(layer.weight()), values_of(expected)));
  const QuantizationError error = quantization_error(sum.view(), expected);
  CHECK(undo.error.noise == error.noise);
  CHECK(undo.error.elements == out * in);
  CHECK(undo.error.relative_rms() < (std::same_as<Tensor, Int8Tensor> ? 0.02 : 0.2));
  // Products are those of the merged weight.
  layer.template forward<float>(x.view(), y.view());
  PackedLinear<Tensor>(expected, old_bias.clone()).template forward<float>(x.view(), y_expected.view());
  CHECK(same(y, y_expected));
  layer.restore(std::move(undo));
  CHECK(same(values_of(layer.weight()), before));
  layer.template forward<float>(x.view(), y.view());
  CHECK(same(y, y_before));

  // Behind AnyLinear: gains, a bias, a whole weight; the error is told there, too.
  AnyLinear<float> any = AnyLinear<float>::borrow(layer);
  REQUIRE(any.can_merge());
  REQUIRE(any.requantizes());
  Buffer<float> gains(out), new_bias(out);
  for (float& gain : gains) gain = 2.0f;
  for (float& one : new_bias) one = 3.0f;
  LayerChange change;
  change.weight = w.view();
  change.row_gain = std::as_const(gains).view();
  change.bias = std::as_const(new_bias).view();
  AnyMergeUndo all = any.rewrite(change);
  REQUIRE(all.error());
  CHECK(all.error()->relative_rms() < (std::same_as<Tensor, Int8Tensor> ? 0.02 : 0.2));
  CHECK(layer.bias()[out - 1] == 3.0f);
  const Matrix<float> doubled = values_of(layer.weight());
  if (!nested) {  // twice the maxima, the same codes; quantised twice, the offset moves too
    for (Index i = 0; i < before.size(); ++i) REQUIRE(doubled.data()[i] == 2.0f * before.data()[i]);
  }
  any.restore(std::move(all));
  CHECK(same(values_of(layer.weight()), before));
  CHECK(layer.bias()[out - 1] == old_bias[out - 1]);

  // What is not finite is refused by its place, and nothing changed.
  Matrix<float> broken = b.clone();
  broken(out - 1, 1) = std::numeric_limits<float>::infinity();
  const MergeTerm bad{a.view(), std::as_const(broken).view(), 0.5f};
  REQUIRE_THROWS_AS(layer.merge({&bad, 1}), NumericError);
  try {
    (void)any.merge({&bad, 1});
  } catch (const NumericError& failure) {
    CHECK(std::string(failure.what()).find(fmt::format("element [{}, 0] of the merged weight", out - 1)) != std::string::npos);
  }
  CHECK(same(values_of(layer.weight()), before));
}

}  // namespace

TEST_CASE("A packed weight takes an update: decoded, added, quantised again, with its error; and comes back bit for bit") {
  for (const bool nested : {false, true}) {
    check_merge<Nf4Tensor>(33, 77, nested, 71);
    check_merge<Nf4Tensor>(40, 64, nested, 72);
    check_merge<Fp4Tensor>(9, 50, nested, 73);
  }
  check_merge<Int8Tensor>(33, 77, false, 74);
  // The type that files name stays.
  const Matrix<bf16> half = [] {
    Philox rng(8);
    return random_matrix<bf16>(rng, 4, 64);
  }();
  const Nf4Tensor tensor = Nf4Tensor::quantize(half.view());
  CHECK(tensor.requantized(values_of(tensor).view()).storage().dtype == DType::kBF16);
}

TEST_CASE("Int8Tensor: rows of zeros and of tiny numbers, halves to even, numbers that are not finite, sizes that do not fit") {
  Matrix<float> w = Matrix<float>::zeros(4, 5);
  const float row[5] = {127.0f, 2.5f, 3.5f, -2.5f, -126.5f};  // of a maximum of 127: halves
  std::copy_n(row, 5, w.row(1));
  w(2, 3) = -1e-38f;
  w(3, 0) = 3e38f, w(3, 4) = -3e38f;
  const Int8Tensor tensor = Int8Tensor::quantize(w.view());
  const int expected[4][5] = {{0, 0, 0, 0, 0}, {127, 2, 4, -2, -126}, {0, 0, 0, -3, 0}, {127, 0, 0, 0, -127}};
  for (Index i = 0; i < 4; ++i) {
    for (Index j = 0; j < 5; ++j) {
      CAPTURE(i, j);
      CHECK(int{tensor.codes()[5 * i + j]} == expected[i][j]);
    }
  }
  CHECK(tensor.absmax()[0] == 0.0f);
  CHECK(tensor.byte_size() == 20 + 16);
  w(2, 1) = std::numeric_limits<float>::quiet_NaN();
  REQUIRE_THROWS_WITH(Int8Tensor::quantize(w.view()), Catch::Contains("row 2, column 1 of [4, 5] is nan"));
  const std::int8_t codes[6]{};
  const float maxima[3]{1, 1, -1};
  REQUIRE_THROWS_AS(Int8Tensor(3, 2, {codes, 5}, {maxima, 3}, nullptr), ShapeError);
  REQUIRE_THROWS_AS(Int8Tensor(2, 3, {codes, 6}, {maxima, 3}, nullptr), ShapeError);
  REQUIRE_THROWS_AS(Int8Tensor(3, 2, {codes, 6}, {maxima, 3}, nullptr), NumericError);
  REQUIRE_THROWS_AS(Int8Linear(tensor, Buffer<float>(3)), ShapeError);
  Matrix<float> small(3, 5);
  REQUIRE_THROWS_AS(tensor.dequantize(small.view()), ShapeError);
  // Rows are read one at a time, as an embedding's.
  const RowTable<float> table(tensor);
  float read[5];
  table.read_row(1, read);
  CHECK(table.rows() == 4);
  CHECK_FALSE(table.is_in_memory());
  CHECK(read[0] == Approx(127.0f));
  CHECK(read[2] == Approx(4.0f));
  // The error of normal weights in rows of 256.
  Philox rng(3);
  const Matrix<float> normal = random_matrix<float>(rng, 64, 256);
  CHECK(quantization_error(normal.view(), Int8Tensor::quantize(normal.view())).relative_rms() == Approx(0.0064).margin(0.001));
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
