// Batches of mixed adapters on the device: ranks mixed, rows in any order, rows without an adapter, against double.

#include "peft/cuda/kernels/adapter_batch.cuh"

#include <memory>

#include "lora_problem.hpp"

namespace {

namespace device = peft::cuda::kernels;
using lora_problem::Matrix;
using lora_problem::Sum;
using peft::bf16;
using peft::f16;
using peft::Index;
using peft_emulator::Buffer;

struct Adapter {
  Index rank;
  Index pad;                       // of A's and B's rows
  std::vector<std::int32_t> rows;  // of the batch
};
struct Outputs {
  std::vector<float> s, y;
};

/// Runs both kernels and compares everything; the outputs' bits.
template <class T>
Outputs check(const std::vector<Adapter>& adapters, Index tokens, Index in, Index out, Index pad, int sm,
              bool has_workspace = true) {
  INFO("tokens " << tokens << ", in " << in << ", out " << out << ", pad " << pad << ", sm " << sm << ", bytes of T " << sizeof(T));
  std::vector<std::unique_ptr<Matrix<T>>> a, b;
  std::vector<device::AdapterSegment<T>> segments;
  std::vector<std::int32_t> rows;
  Index most_rows = 0;
  Index most_rank = 0;
  for (const Adapter& adapter : adapters) {
    const auto seed = static_cast<unsigned>(10 + 2 * adapter.rank);
    a.push_back(std::make_unique<Matrix<T>>(adapter.rank, in, adapter.pad, seed, "a"));
    b.push_back(std::make_unique<Matrix<T>>(out, adapter.rank, adapter.pad, seed + 1, "b"));
    segments.push_back({a.back()->data(), a.back()->ld(), b.back()->data(), b.back()->ld(),
                        0.5f * static_cast<float>(adapter.rank), static_cast<std::int32_t>(adapter.rank),
                        static_cast<std::int32_t>(rows.size()), static_cast<std::int32_t>(adapter.rows.size())});
    rows.insert(rows.end(), adapter.rows.begin(), adapter.rows.end());
    most_rows = std::max(most_rows, static_cast<Index>(adapter.rows.size()));
    most_rank = std::max(most_rank, adapter.rank);
  }
  const Buffer<device::AdapterSegment<T>> table(segments, "segments");
  const Buffer<std::int32_t> map(rows, "rows");
  const auto row_count = static_cast<Index>(rows.size());
  const Matrix<T> x(tokens, in, pad, 1, "x");
  const Matrix<T> before(tokens, out, pad, 2, "before");
  Matrix<T> y(tokens, out, pad, 2, "y");
  Matrix<T> s(row_count, most_rank, pad, "s");
  const Index bytes = has_workspace ? device::adapter_batch_workspace<T>(row_count, in, most_rank) : 0;
  Buffer<float> workspace(bytes / 4, "workspace");

  const device::AdapterBatchArgs<T> batch{table.data(), static_cast<Index>(segments.size()), map.data(), row_count, most_rows,
                                          most_rank, s.data(), s.ld(), bytes > 0 ? workspace.data() : nullptr, sm};
  peft_emulator::take_report();
  device::adapter_batch_shrink<T>({x.data(), x.ld(), in, batch}, nullptr);
  lora_problem::require_clean_without_conflicts();
  device::adapter_batch_expand<T>({y.data(), y.ld(), out, batch}, nullptr);
  lora_problem::require_clean_without_conflicts();

  std::vector<std::size_t> adapter_of;  // of a row of S
  for (std::size_t i = 0; i < adapters.size(); ++i) adapter_of.insert(adapter_of.end(), adapters[i].rows.size(), i);
  lora_problem::require_matches(s, [&](Index i, Index q) {
    const auto at = static_cast<std::size_t>(i);
    Sum sum;
    for (Index k = 0; k < in && q < adapters[adapter_of[at]].rank; ++k) sum.add(x(rows[at], k) * (*a[adapter_of[at]])(q, k));
    return sum;
  });
  std::vector<Index> place(static_cast<std::size_t>(tokens), -1);  // a token's row of S
  for (std::size_t i = 0; i < rows.size(); ++i) place[static_cast<std::size_t>(rows[i])] = static_cast<Index>(i);
  lora_problem::require_matches(y, [&](Index token, Index j) {
    Sum sum;
    const Index i = place[static_cast<std::size_t>(token)];
    if (i >= 0) {
      const std::size_t one = adapter_of[static_cast<std::size_t>(i)];
      for (Index q = 0; q < adapters[one].rank; ++q) sum.add(s(i, q) * (*b[one])(j, q));
      sum.scale(static_cast<double>(segments[one].scale));
    }
    sum.add(before(token, j));
    return sum;
  });
  return {s.values(), y.values()};
}

std::vector<std::int32_t> range(std::int32_t first, std::int32_t last) {
  std::vector<std::int32_t> rows;
  for (std::int32_t i = first; i < last; ++i) rows.push_back(i);
  return rows;
}

template <class T>
void check_all(int sm) {
  check<T>({{8, 0, {5, 0, 7}}, {16, 0, {2}}, {3, 1, {9, 4}}}, 11, 1100, 70, 0, sm);  // row 1 … has none; k in parts
  check<T>({{70, 0, range(0, 18)}, {24, 2, {}}, {8, 0, {20, 19}}}, 21, 72, 136, 3, sm, false);
  check<T>({{16, 0, range(3, 70)}, {5, 0, range(0, 3)}}, 72, 136, 67, 1, sm);  // middle tiles
}

}  // namespace

TEST_CASE("CUDA: batches of mixed adapters equal their sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_all<f16>(sm);
    check_all<bf16>(sm);
    check_all<float>(sm);
  }
  REQUIRE(device::adapter_batch_workspace<f16>(6, 1100, 16) > 0);
}

TEST_CASE("CUDA: an adapter's rows have the same bits whatever else is in the batch, in any order of threads", "[cuda]") {
  const Outputs alone = check<f16>({{8, 0, {3}}}, 72, 1100, 64, 0, 80);
  const Outputs mixed = check<f16>({{8, 0, {3}}, {16, 0, range(4, 70)}}, 72, 1100, 64, 0, 80);
  for (std::size_t q = 0; q < 8; ++q) REQUIRE(alone.s[q] == mixed.s[q]);
  for (std::size_t j = 0; j < 64; ++j) REQUIRE(alone.y[3 * 64 + j] == mixed.y[3 * 64 + j]);
  for (const std::uint64_t seed : {1u, 2u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    const Outputs again = check<f16>({{8, 0, {3}}}, 72, 1100, 64, 0, 80);
    REQUIRE(again.s == alone.s);
    REQUIRE(again.y == alone.y);
  }
}

TEST_CASE("CUDA: a batch of mixed adapters moves each adapter and its rows once", "[cuda]") {
  constexpr Index kTokens = 32, kIn = 256, kOut = 128, kRank = 16;
  const Matrix<f16> x(kTokens, kIn, 0, 1, "x"), a(kRank, kIn, 0, 2, "a"), b(kOut, kRank, 0, 3, "b");
  const Matrix<f16> a2(kRank, kIn, 0, 4, "a2"), b2(kOut, kRank, 0, 5, "b2");
  Matrix<f16> y(kTokens, kOut, 0, 6, "y"), s(kTokens, kRank, 0, "s");
  std::vector<device::AdapterSegment<f16>> segments = {
      {a.data(), kIn, b.data(), kRank, 1.0f, kRank, 0, 16}, {a2.data(), kIn, b2.data(), kRank, 1.0f, kRank, 16, 16}};
  std::vector<std::int32_t> rows(kTokens);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int32_t>(i * 5 % 32);
  const Buffer<device::AdapterSegment<f16>> table(segments, "segments");
  const Buffer<std::int32_t> map(rows, "rows");
  const device::AdapterBatchArgs<f16> batch{table.data(), 2, map.data(), kTokens, 16, kRank, s.data(), kRank, nullptr, 80};
  peft_emulator::take_report();
  REQUIRE(device::adapter_batch_shrink<f16>({x.data(), kIn, kIn, batch}, nullptr) == cudaSuccess);
  // Beside x, A and S, of which blocks of four warps make two: a warp reads five numbers of its segment, and for each of the
  // four steps of k the map of its four rows. Both stay in L1.
  CHECK(lora_problem::moved_bytes() == 2 * (kTokens * kIn + 2 * kRank * kIn + kTokens * kRank) + 32 * 2 * 4 * (5 + 4));
  REQUIRE(device::adapter_batch_expand<f16>({y.data(), kOut, kOut, batch}, nullptr) == cudaSuccess);
  // y there and back, B once, S once for each of two blocks of columns; a warp reads six numbers and twice the map of eight rows.
  CHECK(lora_problem::moved_bytes() == 2 * (2 * kTokens * kOut + 2 * kOut * kRank + 2 * kTokens * kRank) + 32 * 4 * 4 * (6 + 2));
}

TEST_CASE("CUDA: a batch without adapters costs nothing", "[cuda]") {
  device::AdapterBatchArgs<float> batch{};
  batch.sm = 80;
  peft_emulator::take_report();
  REQUIRE(device::adapter_batch_shrink<float>({nullptr, 0, 64, batch}, nullptr) == cudaSuccess);
  REQUIRE(device::adapter_batch_expand<float>({nullptr, 0, 64, batch}, nullptr) == cudaSuccess);
  REQUIRE(peft_emulator::take_report().launches == 0);
}
