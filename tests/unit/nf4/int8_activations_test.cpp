// Activations in 8 bits over four-bit weights: every instruction set's kernels bit for bit, the layer against the sums of its own
// quantised numbers in double, and what the quantisation costs beside NF4's own error.
//
// Tolerance: sums of eight neighbours are exact; products of them with two scales and what is added after round at most k/8 + 8
// times.
#include "peft/kernels/int8_activations.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/nf4_linear.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"

using namespace peft;

static_assert(TakesInt8Activations<Nf4Tensor> && TakesInt8Activations<Fp4Tensor>);

namespace {

template <class T>
Matrix<T> normal_matrix(Philox& rng, Index rows, Index cols) {
  Matrix<T> result(rows, cols);
  for (T& value : result.flat()) value = static_cast<T>(rng.normal());
  return result;
}

/// What a kernel table makes of rows of x over codes: scales and offsets of x, then y. scales [runs][n].
std::vector<float> run_kernels(const kernels::KernelTable& t, const Matrix<float>& x, const std::vector<std::uint8_t>& codes,
                               Index run, const Matrix<float>& scales, bool lanes) {
  const Index m = x.rows(), k = x.cols(), runs = k / run, n = scales.cols(), width = (n + 15) / 16 * 16;
  const Index numbers = lanes ? (k + 127) / 128 * 128 : k, parts = lanes ? numbers / 8 : runs;
  std::vector<std::uint8_t> q(static_cast<std::size_t>(m * numbers * t.int8_bytes));
  std::vector<float> x_scales(static_cast<std::size_t>(m * parts)), y(static_cast<std::size_t>(m * width));
  std::vector<std::int32_t> offsets(x_scales.size());
  for (Index i = 0; i < m; ++i) {
    t.quantize_int8({k, run, lanes, 15000.0f, x.row(i), q.data() + i * numbers * t.int8_bytes, x_scales.data() + i * parts,
                     offsets.data() + i * parts});
  }
  const Index stride = lanes ? runs + 4 : width;
  std::vector<float> own(static_cast<std::size_t>(lanes ? n * stride : runs * stride), 0.0f);
  for (Index u = 0; u < runs; ++u) {
    for (Index j = 0; j < n; ++j) own[static_cast<std::size_t>(lanes ? j * stride + u : u * stride + j)] = scales(u, j);
  }
  t.four_bit_int8({m, n, k, run, lanes, q.data(), x_scales.data(), offsets.data(), codes.data(),
                   &kernels::bytes_of(FourBitCode::kNf4), own.data(), stride, y.data(), width});
  std::vector<float> result = x_scales;
  for (const std::int32_t offset : offsets) result.push_back(static_cast<float>(offset));
  for (Index i = 0; i < m; ++i) result.insert(result.end(), y.begin() + i * width, y.begin() + i * width + n);
  return result;
}

/// The layer's rule in plain words: x̂ and ŵ are what is multiplied.
double quantised(float x, float most) {
  if (most < 0x1p-100f) return 0;
  const float factor = quotient(127.0f, most);
  return std::nearbyint(static_cast<double>(rounded(x * factor)));
}

template <FourBitCode kCode, class T>
void check(Index rows, Index in, Index out, Index block, bool nested, bool bias, Index rank, std::uint64_t seed) {
  CAPTURE(rows, in, out, block, nested, bias, rank, seed, name_of(dtype_of<T>()));
  Philox rng(seed);
  const Matrix<float> w = normal_matrix<float>(rng, out, in);
  const auto tensor = FourBitTensor<kCode>::quantize(w.view(), {.block_size = block, .double_quant = nested});
  Buffer<float> added(bias ? out : 0);
  for (float& b : added) b = rng.normal();
  const Buffer<float> added_copy = added.clone();
  FourBitLinear<kCode> layer(tensor, std::move(added));
  layer.use_int8_activations();
  const Matrix<T> x = normal_matrix<T>(rng, rows, in);
  const Matrix<float> s = normal_matrix<float>(rng, rows, rank), l = normal_matrix<float>(rng, out, rank);
  const LowRankTerm term{0, rows, s.view(), l.view(), 0.5f};
  Matrix<T> y(rows, out);
  for (const int threads : peft_test::kThreadCounts) {
    ThreadPool pool(threads);
    Matrix<T> got(rows, out);
    layer.template forward_low_rank<T>(x.view(), std::span<const LowRankTerm>(&term, rank > 0 ? 1 : 0), got.view(), pool);
    if (threads > 1) REQUIRE(std::memcmp(got.data(), y.data(), static_cast<std::size_t>(y.size()) * sizeof(T)) == 0);
    y = std::move(got);
  }
  const Index run = kernels::int8_run(block);
  const kernels::ByteValues& values = kernels::bytes_of(kCode);
  const double unit = std::same_as<T, float> ? 0x1p-24 : 0x1p-8;
  double worst = 0;
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < out; ++j) {
      double sum = 0, size = 0;
      const auto add = [&](double part) { sum += part, size += std::abs(part); };
      for (Index u = 0; u < in / run; ++u) {
        float most = 0;
        for (Index k = u * run; k < (u + 1) * run; ++k) most = std::max(most, std::abs(static_cast<float>(x(i, k))));
        double dots = 0, sizes = 0;
        for (Index k = u * run; k < (u + 1) * run; ++k) {
          const std::uint8_t byte = tensor.storage().codes[(j * in + k) / 2];
          const double product = quantised(static_cast<float>(x(i, k)), most) * values.of[k % 2 == 0 ? byte >> 4 : byte & 15];
          dots += product, sizes += std::abs(product);
        }
        const double factor = static_cast<double>(most) / static_cast<double>(values.divisor) *
                              static_cast<double>(tensor.absmax((j * in + u * run) / block));
        sum += dots * factor, size += sizes * factor;
      }
      for (Index q = 0; q < rank; ++q) add(0.5 * static_cast<double>(s(i, q)) * static_cast<double>(l(j, q)));
      if (bias) add(static_cast<double>(added_copy[j]));
      // 16-bit sums of more than eight rows are rounded before their terms are added, too.
      const double limit = static_cast<double>(in / 8 + rank + 8) * 0x1p-24 * size + 2 * unit * size + 1e-30;
      worst = std::max(worst, std::abs(static_cast<double>(static_cast<float>(y(i, j))) - sum) / limit);
    }
  }
  REQUIRE(worst <= 1.0);
}

}  // namespace

TEST_CASE("activations in 8 bits: the kernels of every instruction set give the same bits") {
  std::uint64_t seed = 0;
  Index sets = 0;
  for (const Index run : {32, 64}) {
    for (const Index runs : {1, 2, 3, 4, 5, 9, 17, 35}) {
      for (const Index n : {1, 3, 4, 7, 8, 15, 16, 17, 33, 64}) {
        for (const Index m : {1, 3, 4, 6}) {
          Philox rng(++seed);
          Matrix<float> x = normal_matrix<float>(rng, m, run * runs);
          if (seed % 3 == 0) x(0, 1) = 1e4f;
          if (seed % 4 == 0) std::fill_n(x.row(m - 1), run, seed % 8 == 0 ? 0.0f : 1e-38f);
          std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * x.cols() / 2));
          for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(rng.below(256));
          Matrix<float> scales(runs, n);
          for (float& scale : scales.flat()) scale = rng.uniform(0.1f, 3.0f);
          for (const bool lanes : {false, true}) {
            const auto expected = run_kernels(kernels::table_of(kernels::Isa::kScalar), x, codes, run, scales, lanes);
            sets = 0;
            for (const kernels::Isa isa : kernels::kIsas) {
              if (!kernels::has_isa(isa)) continue;
              ++sets;
              CAPTURE(kernels::name_of(isa), run, runs, n, m, lanes);
              const auto got = run_kernels(kernels::table_of(isa), x, codes, run, scales, lanes);
              REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
            }
          }
        }
      }
    }
  }
  INFO("instruction sets compared: " << sets);
  CHECK(sets >= 1);
}

TEST_CASE("Nf4Linear with activations in 8 bits multiplies its quantised numbers, over every shape of tiles, rows and blocks") {
  std::uint64_t seed = 100;
  for (const Index block : {32, 64, 128}) {
    for (const Index blocks : {1, 2, 5, 17}) {
      for (const Index out : {1, 5, 16, 31, 70}) {
        ++seed;
        const Index rows = Index{1} << (seed % 5);
        check<FourBitCode::kNf4, float>(rows + static_cast<Index>(seed % 2), block * blocks, out, block, seed % 2 == 0, seed % 3 == 0,
                                        static_cast<Index>(seed % 4), seed);
      }
    }
  }
  check<FourBitCode::kNf4, float>(300, 128, 40, 64, true, true, 3, 1);  // more rows than one block
  check<FourBitCode::kNf4, bf16>(3, 256, 40, 64, true, true, 3, 2);
  check<FourBitCode::kFp4, bf16>(20, 256, 40, 64, false, true, 3, 3);
  check<FourBitCode::kFp4, float>(5, 256, 40, 256, false, false, 0, 4);
}

TEST_CASE("activations in 8 bits add at most 0.4 % to NF4's own error") {
  Philox rng(7);
  const Index in = 1024, out = 256, rows = 16;
  const Matrix<float> w = normal_matrix<float>(rng, out, in), x = normal_matrix<float>(rng, rows, in);
  const Nf4Tensor tensor = Nf4Tensor::quantize(w.view());
  const Nf4Linear full(tensor);
  Nf4Linear fast(tensor);
  fast.use_int8_activations();
  Matrix<float> y(rows, out), z(rows, out);
  full.forward<float>(x.view(), y.view());
  fast.forward<float>(x.view(), z.view());
  double nf4 = 0, int8 = 0, between = 0, size = 0;
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < out; ++j) {
      double exact = 0;
      for (Index k = 0; k < in; ++k) exact += static_cast<double>(x(i, k)) * static_cast<double>(w(j, k));
      nf4 += std::pow(static_cast<double>(y(i, j)) - exact, 2);
      int8 += std::pow(static_cast<double>(z(i, j)) - exact, 2);
      between += std::pow(static_cast<double>(z(i, j)) - static_cast<double>(y(i, j)), 2);
      size += exact * exact;
    }
  }
  INFO("NF4 " << std::sqrt(nf4 / size) << ", with 8 bits " << std::sqrt(int8 / size) << ", between them " << std::sqrt(between / size));
  CHECK(fast.has_int8_activations());
  // Independent errors add as squares: √(0.092² + e²) is 0.4 % above 0.092 at e = 0.0082.
  CHECK(std::sqrt(between / size) <= 0.0082);
  CHECK(std::sqrt(between / size) >= 0.002);  // it was another computation
  CHECK(std::sqrt(int8 / nf4) <= 1.01);       // the cross term of so many sums included
}

TEST_CASE("activations in 8 bits keep a row's NaN in its row, and are refused where they cannot be") {
  Philox rng(9);
  const Matrix<float> w = normal_matrix<float>(rng, 20, 96), odd = normal_matrix<float>(rng, 20, 70);
  Matrix<float> x = normal_matrix<float>(rng, 3, 96), y(3, 20);
  Nf4Linear layer(Nf4Tensor::quantize(w.view(), {.block_size = 32}));
  layer.use_int8_activations();
  x(1, 40) = std::numeric_limits<float>::infinity();
  layer.forward<float>(x.view(), y.view());
  for (Index j = 0; j < 20; ++j) {
    CHECK(std::isfinite(y(0, j)));
    CHECK(std::isnan(y(1, j)));
    CHECK(std::isfinite(y(2, j)));
  }
  CHECK_THROWS_WITH(layer.backward_input<float>(y.view(), x.view()), Catch::Contains("for inference"));
  const AnyLinear<float> any{std::move(layer)};
  CHECK_THROWS_AS(any.backward_input(y.view(), x.view()), ConfigError);
  Nf4Linear other(Nf4Tensor::quantize(odd.view()));
  CHECK_THROWS_WITH(other.use_int8_activations(), Catch::Contains("rows of 70 in blocks of 64"));
  other.backward_input<float>(y.view(), Matrix<float>(3, 70).view());
}

TEST_CASE("activations stay in 8 bits when the weight takes an update and gives it back") {
  Philox rng(10);
  const Matrix<float> w = normal_matrix<float>(rng, 24, 128), x = normal_matrix<float>(rng, 2, 128), a = normal_matrix<float>(rng, 3, 128),
                      b = normal_matrix<float>(rng, 24, 3);
  Nf4Linear layer(Nf4Tensor::quantize(w.view()));
  layer.use_int8_activations();
  const auto forward = [&](const Nf4Linear& of) {
    Matrix<float> y(2, 24);
    of.forward<float>(x.view(), y.view());
    return std::vector<float>(y.flat().begin(), y.flat().end());
  };
  const std::vector<float> before = forward(layer);
  const MergeTerm term{a.view(), b.view(), 0.1f};
  auto undo = layer.merge({&term, 1});
  Nf4Linear fresh(layer.weight());
  CHECK(forward(fresh) != forward(layer));  // in float
  fresh.use_int8_activations();
  CHECK(forward(fresh) == forward(layer));
  CHECK(forward(layer) != before);
  layer.restore(std::move(undo));
  CHECK(forward(layer) == before);
}
