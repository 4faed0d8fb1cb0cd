// Quantisation in four bits: every kernel against plain loops, the errors of the paper's types, sizes, limits.
#include "peft/nf4_tensor.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/quantization_error.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::message_of;

namespace {

std::vector<float> normal_numbers(Index count, std::uint64_t seed, float scale = 1.0f) {
  Philox rng(seed);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (float& x : result) x = scale * rng.normal();
  return result;
}

MatrixView<const float> row(const std::vector<float>& x) { return {x.data(), 1, static_cast<Index>(x.size())}; }

/// The code of a number in [-1, 1], by the definition: the nearest value, halfway the lower one; for FP4's two zeros the
/// sign decides.
int code_by_search(FourBitCode type, float x) {
  const kernels::FourBitTable& t = kernels::table_of(type);
  int best = -1;
  for (int c = 0; c < 16; ++c) {
    if (type == FourBitCode::kFp4 && t.value[c] == 0.0f && (c == 8) != (x > 0)) continue;
    if (best < 0) best = c;
    const double mine = std::abs(static_cast<double>(t.value[c]) - static_cast<double>(x));
    const double theirs = std::abs(static_cast<double>(t.value[best]) - static_cast<double>(x));
    if (mine < theirs || (mine == theirs && t.value[c] < t.value[best])) best = c;
  }
  return best;
}

int code_at(const FourBitStorage& s, Index i) {
  const std::uint8_t byte = s.codes[i / 2];
  return i % 2 == 0 ? byte >> 4 : byte & 15;
}

template <FourBitCode kCode>
void check_against_loops(Index n, Index block) {
  CAPTURE(name_of(kCode), n, block);
  const std::vector<float> w = normal_numbers(n, static_cast<std::uint64_t>(n * 5000 + block), 0.02f);
  const auto tensor = FourBitTensor<kCode>::quantize(row(w), {.block_size = block});
  const FourBitStorage& s = tensor.storage();
  std::vector<float> back(w.size(), -1.0f);
  tensor.dequantize(MatrixView<float>(back.data(), 1, n));
  bool same = true, same_values = true;
  for (Index i = 0; i < n; ++i) {
    const Index first = i / block * block, last = std::min(n, first + block);
    float most = 0;
    for (Index j = first; j < last; ++j) most = std::max(most, std::abs(w[static_cast<std::size_t>(j)]));
    const float x = w[static_cast<std::size_t>(i)];
    const volatile float inverse = 1.0f / most;
    const volatile float scaled = last - first == block ? x * inverse : x / most;
    const float limited = std::clamp(static_cast<float>(scaled), -1.0f, 1.0f);
    const volatile float value = kernels::table_of(kCode).value[code_at(s, i)] * most;
    same = same && s.absmax[i / block] == most && code_at(s, i) == code_by_search(kCode, limited);
    same_values = same_values && back[static_cast<std::size_t>(i)] == value;
  }
  REQUIRE(same);
  REQUIRE(same_values);
  if (n % 2 != 0) REQUIRE(code_at(s, n) == code_by_search(kCode, 0.0f));
}

double relative_error(const std::vector<float>& w, const std::vector<float>& back) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double d = static_cast<double>(back[i]) - static_cast<double>(w[i]);
    error += d * d;
    norm += static_cast<double>(w[i]) * static_cast<double>(w[i]);
  }
  return std::sqrt(error / norm);
}

template <FourBitCode kCode>
double relative_error(const std::vector<float>& w, const FourBitConfig& config = {}) {
  std::vector<float> back(w.size());
  FourBitTensor<kCode>::quantize(row(w), config).dequantize(MatrixView<float>(back.data(), 1, static_cast<Index>(w.size())));
  return relative_error(w, back);
}

}  // namespace

TEST_CASE("Four-bit kernels agree with plain loops, for all lengths modulo their vectors") {
  for (Index n = 1; n <= 70; ++n) {
    check_against_loops<FourBitCode::kNf4>(n, 32);
    check_against_loops<FourBitCode::kFp4>(n, 64);
  }
  for (const Index block : {32, 64, 128, 256, 512, 1024, 2048, 4096}) {
    check_against_loops<FourBitCode::kNf4>(2 * block + block / 2 + 3, block);
    check_against_loops<FourBitCode::kFp4>(block, block);
  }
}

TEST_CASE("Quantising and dequantising do not depend on the threads, nor on where a range begins") {
  const Index n = 200'001;
  const std::vector<float> w = normal_numbers(n, 1);
  const FourBitConfig config{.block_size = 64, .double_quant = true};
  const Nf4Tensor first = Nf4Tensor::quantize(row(w), config, ExecutorRef());
  std::vector<float> values(w.size());
  first.dequantize(MatrixView<float>(values.data(), 1, n), ExecutorRef());
  for (const int threads : {2, 3, 7}) {
    ThreadPool pool(threads);
    const Nf4Tensor again = Nf4Tensor::quantize(row(w), config, pool);
    const FourBitStorage &a = first.storage(), &b = again.storage();
    REQUIRE(std::equal(a.codes.begin(), a.codes.end(), b.codes.begin(), b.codes.end()));
    REQUIRE(std::equal(a.nested_codes.begin(), a.nested_codes.end(), b.nested_codes.begin(), b.nested_codes.end()));
    std::vector<float> back(w.size());
    again.dequantize(MatrixView<float>(back.data(), 1, n), pool);
    REQUIRE(back == values);
  }
  for (Index at = 0; at < 200; at += 7) {
    for (Index count = 0; count < 150; count += 13) {
      std::vector<float> part(static_cast<std::size_t>(count) + 1, 7.0f);
      first.dequantize_range(at, count, part.data());
      REQUIRE(std::equal(part.begin(), part.end() - 1, values.begin() + at));
      REQUIRE(part.back() == 7.0f);
    }
  }
}

TEST_CASE("The errors of the four-bit types on normal weights are those of the paper's table") {
  // Relative RMS error with blocks of 64, of 2^20 normal numbers: its own deviation is below 1e-4.
  const std::vector<float> w = normal_numbers(1 << 20, 2);
  std::vector<float> int4(w.size());
  for (std::size_t first = 0; first < w.size(); first += 64) {
    float most = 0;
    for (std::size_t i = first; i < first + 64; ++i) most = std::max(most, std::abs(w[i]));
    for (std::size_t i = first; i < first + 64; ++i) int4[i] = std::nearbyint(w[i] / most * 7.0f) / 7.0f * most;
  }
  REQUIRE(relative_error<FourBitCode::kFp4>(w) == Approx(0.122).margin(0.001));
  REQUIRE(relative_error(w, int4) == Approx(0.108).margin(0.001));
  const double nf4 = relative_error<FourBitCode::kNf4>(w);
  REQUIRE(nf4 == Approx(0.092).margin(0.001));
  const double twice = relative_error<FourBitCode::kNf4>(w, {.double_quant = true});
  REQUIRE(twice > nf4);
  REQUIRE(twice < nf4 + 0.001);
}

TEST_CASE("Double quantisation saves 0.373 bits per weight and takes the nearest codes") {
  const Index n = 1 << 20;
  const std::vector<float> w = normal_numbers(n, 3);
  const Nf4Tensor once = Nf4Tensor::quantize(row(w)), twice = Nf4Tensor::quantize(row(w), {.double_quant = true});
  const auto saved = static_cast<double>(once.byte_size() - (twice.byte_size() - 1024)) * 8 / static_cast<double>(n);
  REQUIRE(saved == Approx(32.0 / 64 - (8.0 / 64 + 32.0 / (64 * 256))).margin(1e-9));
  REQUIRE(saved == Approx(0.373).margin(5e-4));
  const FourBitStorage& s = twice.storage();
  REQUIRE(s.nested_map.size == 256);
  REQUIRE(std::is_sorted(s.nested_map.begin(), s.nested_map.end()));
  bool nearest = true;
  for (Index b = 0; b < twice.block_count(); ++b) {
    const double got = static_cast<double>(twice.absmax(b)), want = static_cast<double>(once.absmax(b));
    for (const float value : s.nested_map) {
      const double other = static_cast<double>(value) * static_cast<double>(s.nested_absmax[b / 256]) +
                           static_cast<double>(s.nested_offset);
      // Halfway between two codes rounding decides.
      nearest = nearest && std::abs(got - want) <= std::abs(other - want) + 1e-6;
    }
  }
  REQUIRE(nearest);
}

TEST_CASE("Zeros, tails of zeros and nothing at all") {
  std::vector<float> w(64 + 5, 0.0f);
  for (const bool nested : {false, true}) {
    const Nf4Tensor tensor = Nf4Tensor::quantize(row(w), {.double_quant = nested});
    std::vector<float> back(w.size(), 1.0f);
    tensor.dequantize(MatrixView<float>(back.data(), 1, 69));
    REQUIRE(std::all_of(back.begin(), back.end(), [](float x) { return x == 0.0f; }));
    if (nested) continue;
    REQUIRE(tensor.absmax(0) == 0.0f);
    REQUIRE(tensor.absmax(1) == 1e-38f);
  }
  const Nf4Tensor empty = Nf4Tensor::quantize(MatrixView<const float>(nullptr, 0, 8), {.double_quant = true});
  REQUIRE(empty.size() == 0);
  REQUIRE(empty.block_count() == 0);
  Matrix<float> nothing(0, 8);
  empty.dequantize(nothing.view());
  REQUIRE(Nf4Tensor().size() == 0);
}

TEST_CASE("A number that is not finite is refused with its place") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    Matrix<float> w = Matrix<float>::zeros(700, 130);
    w(650, 7) = bad;
    w(311, 129) = bad;  // the first one is named, whichever thread comes first
    const std::string text = message_of<NumericError>([&] { (void)Nf4Tensor::quantize(w.view()); });
    REQUIRE(text.find("row 311, column 129 of [700, 130]") != std::string::npos);
  }
}

TEST_CASE("Block sizes and sizes that do not fit are refused") {
  const std::vector<float> w = normal_numbers(100, 4);
  for (const Index block : {0, -64, 1, 16, 48, 65, 8192}) {
    const std::string text = message_of<ConfigError>([&] { (void)Nf4Tensor::quantize(row(w), {.block_size = block}); });
    REQUIRE(text.find("expected a power of two from 32 to 4096") != std::string::npos);
  }
  REQUIRE_THROWS_AS(Nf4Tensor::quantize(row(w), {.double_quant = true, .nested_offset = INFINITY}), ConfigError);
  const Nf4Tensor tensor = Nf4Tensor::quantize(row(w));
  const auto refused = [&](auto&& change, std::string_view part) {
    FourBitStorage storage = tensor.storage();
    change(storage);
    const std::string text = message_of<ShapeError>([&] { Nf4Tensor(std::move(storage), "here"); });
    INFO(text);
    REQUIRE(text.starts_with("here: "));
    REQUIRE(text.find(part) != std::string::npos);
  };
  refused([](FourBitStorage& s) { s.codes.size -= 1; }, "49 codes; expected 50 for 100 elements in blocks of 64");
  refused([](FourBitStorage& s) { s.absmax.size = 1; }, "1 absmax; expected 2");
  refused([](FourBitStorage& s) { s.shape = {1, 102}; }, "50 codes; expected 51");
  refused([](FourBitStorage& s) { s.shape = {Index{1} << 40, Index{1} << 40}; }, "cannot be addressed");
  refused([](FourBitStorage& s) { s.nested_absmax = s.absmax; }, "2 nested absmax; expected 0");
  std::vector<float> out(100);
  REQUIRE_THROWS_AS(tensor.dequantize_range(1, 100, out.data()), ShapeError);
  REQUIRE_THROWS_AS(tensor.dequantize(MatrixView<float>(out.data(), 2, 50)), ShapeError);
}

TEST_CASE("What quantising lost: sums over all elements, the largest, signs that changed") {
  // In a block whose maximum is 1 the smallest values of NF4 are 0 and ±0.08, ±0.09.
  std::vector<float> numbers(64, 0.0f);
  numbers[0] = 1.0f;
  numbers[1] = 0.03f;   // becomes 0: no sign any more, and none that changed
  numbers[2] = -0.5f;   // becomes -0.525…
  const auto tensor = Nf4Tensor::quantize(row(numbers));
  const QuantizationError error = quantization_error(row(numbers), tensor);
  const double third = 0.5250730514526367 - 0.5, small = static_cast<double>(0.03f);
  CHECK(error.elements == 64);
  CHECK(error.signal == Approx(1.25 + small * small));
  CHECK(error.noise == Approx(small * small + third * third));
  CHECK(error.largest == Approx(small));
  CHECK(error.sign_flips == 0);
  CHECK(error.snr() == Approx(10 * std::log10(error.signal / error.noise)));

  // The error of another's values: every sign is the other one.
  std::vector<float> turned(64);
  for (std::size_t i = 0; i < 64; ++i) turned[i] = -numbers[i];
  CHECK(quantization_error(row(turned), tensor).sign_flips == 2);

  const std::vector<float> normal = normal_numbers(96 * 200, 7);
  const MatrixView<const float> weight(normal.data(), 96, 200);
  const auto packed = Nf4Tensor::quantize(weight, {.double_quant = true});
  ThreadPool one(1), three(3);
  const QuantizationError a = quantization_error(weight, packed, one), b = quantization_error(weight, packed, three);
  CHECK(a.noise == b.noise);
  CHECK(a.relative_rms() == Approx(0.092).margin(0.001));
  QuantizationError twice = a;
  twice += b;
  CHECK(twice.elements == 2 * a.elements);
  CHECK(twice.snr() == Approx(a.snr()));
  CHECK(QuantizationError().relative_rms() == 0.0);
  CHECK_THROWS_AS(quantization_error(row(normal), packed), ShapeError);
}
