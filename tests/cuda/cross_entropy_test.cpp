// Cross-entropy of chunks of logits on the device against double.

#include "peft/cuda/kernels/cross_entropy.cuh"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "support/catch.hpp"

namespace {

namespace device = peft::cuda::kernels;
using peft::bf16;
using peft::f16;
using peft::Index;
using peft_emulator::Buffer;

template <class T>
double widened(T value) {
  return static_cast<double>(static_cast<float>(value));
}
/// Relative error of one rounding.
template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? 0x1p-24 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-8;
}

struct Result {
  double loss = 0;
  bool correct = false;
  std::vector<double> gradient;
};

template <class T>
Result reference(const T* z, int count, int label, double scale) {
  Result result;
  result.gradient.assign(static_cast<std::size_t>(count), 0.0);
  if (label < 0) return result;
  int best = 0;
  for (int j = 1; j < count; ++j) best = widened(z[j]) > widened(z[best]) ? j : best;
  const double largest = widened(z[best]);
  double sum = 0;
  for (int j = 0; j < count; ++j) sum += std::exp(widened(z[j]) - largest);
  result.loss = largest + std::log(sum) - widened(z[label]);
  result.correct = best == label;
  for (int j = 0; j < count; ++j) {
    result.gradient[static_cast<std::size_t>(j)] = scale * (std::exp(widened(z[j]) - largest) / sum - (j == label ? 1.0 : 0.0));
  }
  return result;
}

/// Rows of a chunk, whose stride is wider than the vocabulary; their logits begin `shift` elements off a boundary of 16 bytes.
template <class T>
struct Chunk {
  Index rows, vocabulary, ld, shift;
  Buffer<T> memory;
  Buffer<std::int32_t> labels;
  Buffer<float> losses;
  Buffer<std::uint8_t> correct;

  Chunk(Index rows_, Index vocabulary_, Index ld_, Index shift_, unsigned seed)
      : rows(rows_), vocabulary(vocabulary_), ld(ld_), shift(shift_), memory(rows_ * ld_ + shift_, "logits"),
        labels(rows_, "labels"), losses(rows_, "losses"), correct(rows_, "correct") {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw(0.0f, 3.0f);
    for (T& value : memory) value = static_cast<T>(draw(random));
    for (Index i = 0; i < rows; ++i) {
      labels[i] = i % 4 == 3 ? -100 : static_cast<std::int32_t>((static_cast<Index>(random() & 0xFFFFFF)) % vocabulary);
    }
  }
  T* row(Index i) { return memory.data() + shift + i * ld; }
  device::CrossEntropyArgs<T> args(float scale, bool want_grad) {
    return {row(0), ld, rows, vocabulary, labels.data(), scale, nullptr, losses.data(), correct.data(), want_grad};
  }
};

/// A sum of n floats that a thread of 512 begins and trees go on with: relative error in units of float.
double sum_units(Index n) { return static_cast<double>(n) / 512 + 24; }

template <class T>
void check(Chunk<T>& chunk, bool want_grad) {
  const float scale = 0.125f;
  std::vector<std::vector<T>> before;
  for (Index i = 0; i < chunk.rows; ++i) before.emplace_back(chunk.row(i), chunk.row(i) + chunk.ld);
  REQUIRE(device::cross_entropy_chunk(chunk.args(scale, want_grad), nullptr) == cudaSuccess);
  for (Index i = 0; i < chunk.rows; ++i) {
    const auto& z = before[static_cast<std::size_t>(i)];
    const int count = static_cast<int>(chunk.vocabulary);
    const Result exact = reference(z.data(), count, chunk.labels[i], scale);
    INFO("row " << i << " of " << chunk.rows << " x " << count << ", label " << chunk.labels[i]);
    // Numbers of the loss are below 32; exponents are exact to a unit of a difference below 32, too.
    const double relative = (sum_units(count) + 40) * 0x1p-24;
    REQUIRE(std::abs(chunk.losses[i] - exact.loss) <= relative + 64 * 0x1p-24);
    REQUIRE(chunk.correct[i] == (exact.correct ? 1 : 0));
    for (int j = 0; j < count; ++j) {
      const T now = chunk.row(i)[j];
      const double wanted = want_grad ? exact.gradient[static_cast<std::size_t>(j)] : widened(z[static_cast<std::size_t>(j)]);
      const double size = want_grad ? std::abs(wanted) * unit<T>() + scale * relative + (sizeof(T) == 2 ? 0x1p-25 : 0) : 0.0;
      if (std::abs(widened(now) - wanted) > size) {
        CAPTURE(j, widened(now), wanted);
        REQUIRE(std::abs(widened(now) - wanted) <= size);
      }
    }
    for (Index j = count; j < chunk.ld && i + 1 < chunk.rows; ++j) {
      REQUIRE(std::memcmp(chunk.row(i) + j, &z[static_cast<std::size_t>(j)], sizeof(T)) == 0);
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Cross-entropy on the device", "[cuda][cross_entropy]", float, f16, bf16) {
  peft_emulator::Options options;
  options.seed = 5;
  options.random_schedule = true;
  const peft_emulator::WithOptions with(options);
  for (const Index vocabulary : {1, 3, 8, 77, 4099}) {
    for (const Index shift : {0, 3}) {
      // A stride that is no multiple of 16 bytes: every row begins elsewhere.
      Chunk<TestType> chunk(4, vocabulary, vocabulary + (shift == 0 ? 1 : 5), shift, static_cast<unsigned>(vocabulary + shift));
      check(chunk, true);
    }
  }
  Chunk<TestType> read(3, 600, 600, 0, 9);
  check(read, false);
  REQUIRE_CLEAN();
}

TEST_CASE("Rows that do not fit shared memory are read twice", "[cuda][cross_entropy]") {
  Chunk<f16> halves(2, 33000, 33008, 0, 7);
  halves.labels[1] = 32999;
  check(halves, true);
  Chunk<float> floats(1, 17001, 17001, 1, 8);
  check(floats, true);
  REQUIRE_CLEAN();
}

TEST_CASE("Labels that win, ties, masked logits and labels out of range", "[cuda][cross_entropy]") {
  Chunk<float> chunk(6, 1000, 1000, 0, 11);
  const float low = -std::numeric_limits<float>::infinity();
  for (Index i = 0; i < 6; ++i) chunk.labels[i] = 700;
  chunk.row(0)[700] = 50.0f;                          // right
  chunk.row(1)[700] = chunk.row(1)[20] = 50.0f;       // an equal before it
  chunk.row(2)[700] = chunk.row(2)[999] = 50.0f;      // an equal behind it
  for (int j = 0; j < 1000; ++j) chunk.row(3)[j] = j % 2 == 0 ? 1.0f : low;
  chunk.row(4)[701] = 60.0f;
  chunk.labels[5] = 1000;
  auto args = chunk.args(1.0f, true);
  REQUIRE(device::cross_entropy_chunk(args, nullptr) == cudaSuccess);
  const std::uint8_t correct[] = {1, 0, 1, 0, 0, 0};
  for (Index i = 0; i < 6; ++i) REQUIRE(chunk.correct[i] == correct[i]);
  REQUIRE(std::abs(chunk.losses[3] - std::log(500.0f)) < 1e-5f);
  REQUIRE(chunk.row(3)[1] == 0.0f);
  REQUIRE(std::abs(chunk.row(3)[0] - 1.0f / 500) < 1e-9f);
  REQUIRE(chunk.losses[5] != chunk.losses[5]);
  REQUIRE_CLEAN();
}

TEST_CASE("A row's logits are read once and written once", "[cuda][cross_entropy]") {
  Chunk<bf16> chunk(2, 32000, 32000, 0, 3);
  chunk.labels[1] = 5;
  REQUIRE(device::cross_entropy_chunk(chunk.args(1.0f, true), nullptr) == cudaSuccess);
  const auto& report = peft_emulator::last_report();
  INFO(report.counts_text());
  REQUIRE(static_cast<double>(report.global_sectors) * 32 <= 1.05 * 2 * 2 * 32000 * 2);
  REQUIRE(report.bank_conflicts == 0);
  REQUIRE_CLEAN();
}

TEST_CASE("The same bits in any schedule, and totals in a fixed order", "[cuda][cross_entropy]") {
  std::vector<float> losses;
  std::vector<std::uint16_t> gradient;
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    Chunk<f16> chunk(5, 1500, 1500, 0, 21);
    Buffer<float> factor(1, 0.5f);
    auto args = chunk.args(2.0f, true);
    args.scale_from = factor.data();
    REQUIRE(device::cross_entropy_chunk(args, nullptr) == cudaSuccess);
    std::vector<std::uint16_t> bits;
    for (Index j = 0; j < 5 * 1500; ++j) bits.push_back(chunk.row(0)[j].bits);
    if (seed == 1) {
      losses = chunk.losses.to_vector();
      gradient = bits;
    }
    REQUIRE(std::memcmp(losses.data(), chunk.losses.data(), 5 * sizeof(float)) == 0);
    REQUIRE(gradient == bits);

    Buffer<device::CrossEntropyTotals> totals(1, "totals");
    totals[0] = {0.0, 0, 0};
    const device::CrossEntropyTotalArgs total{chunk.losses.data(), chunk.labels.data(), chunk.correct.data(), 5, totals.data()};
    REQUIRE(device::cross_entropy_total(total, nullptr) == cudaSuccess);
    REQUIRE(device::cross_entropy_total(total, nullptr) == cudaSuccess);
    double sum = 0;
    for (Index i = 0; i < 5; ++i) sum += static_cast<double>(chunk.losses[i]);
    REQUIRE(std::abs(totals[0].loss - 2 * sum) <= 1e-14 * sum);
    REQUIRE(totals[0].tokens == 8);
    REQUIRE(totals[0].correct == 2 * (chunk.correct[0] + chunk.correct[1] + chunk.correct[2] + chunk.correct[4]));
  }
  REQUIRE_CLEAN();
}
