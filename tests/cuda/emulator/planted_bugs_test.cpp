// Mistakes planted in small kernels: the emulator names each by kind and line, and finds nothing in the same kernel without it.
#include <cstdint>
#include <set>
#include <vector>

#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace {

using namespace peft::cuda::kernels;
using peft::f16;
using peft_emulator::Access;
using peft_emulator::Buffer;
using peft_emulator::Kind;
using peft_emulator::last_report;
using peft_emulator::Options;
using peft_emulator::take_report;
using peft_emulator::WithOptions;

/// The line at which the emulator shall point.
int planted_line = 0;
#define PLANTED planted_line = __LINE__

struct Args {
  const float* x;
  float* y;
  int n;
};

constexpr int kThreads = 64;
constexpr int kSharedBytes = 4 * kThreads * 4;

/// Runs the right kernel, which is clean, and the one with the mistake, which gives this kind of finding at the planted line;
/// in all schedules.
template <auto kRight, auto kWrong>
void check_planted(Kind kind, int threads = kThreads, int shared_bytes = kSharedBytes) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const WithOptions with(Options{.seed = seed, .random_schedule = seed > 0});
    Buffer<float> x(4 * kThreads, 1.0f, "x");
    Buffer<float> y(4 * kThreads, "y");
    const Args args{x.data(), y.data(), 4 * kThreads};
    INFO("seed " << seed);
    CHECK(launch<kRight>(Grid{2}, threads, shared_bytes, nullptr, args) == cudaSuccess);
    REQUIRE_CLEAN();
    CHECK(launch<kWrong>(Grid{2}, threads, shared_bytes, nullptr, args) == cudaErrorLaunchFailure);
    INFO("line " << planted_line << '\n' << last_report().text());
    CHECK(last_report().has(kind, planted_line));
    take_report();
  }
}

template <bool kBug>
PEFT_KERNEL void barrier_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  held.store(t, 2.0f * load_const(args.x + t));
  held.store(kThreads + t, 1.0f);
  if (!kBug) sync_threads();
  PLANTED; const float v = held.load((t + 33) % kThreads);
  if (block_x() == 0) store(args.y + t, v);
}
TEST_CASE("Planted: a missing barrier between a store and a load", "[cuda]") {
  // Seen at the load or at the store, whichever comes second.
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const WithOptions with(Options{.seed = seed, .random_schedule = seed > 0});
    Buffer<float> x(kThreads, 1.0f);
    Buffer<float> y(kThreads);
    const Args args{x.data(), y.data(), kThreads};
    CHECK(launch<barrier_kernel<false>>(Grid{2}, kThreads, kSharedBytes, nullptr, args) == cudaSuccess);
    REQUIRE_CLEAN();
    CHECK(launch<barrier_kernel<true>>(Grid{2}, kThreads, kSharedBytes, nullptr, args) == cudaErrorLaunchFailure);
    INFO(last_report().text());
    CHECK((last_report().has(Kind::kRace, planted_line) || last_report().has(Kind::kRace, planted_line - 3)));
    take_report();
  }
}

/// The barrier at the end of a loop's body: the next step's store overwrites what slower threads still read.
template <bool kBug>
PEFT_KERNEL void loop_barrier_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  float sum = 0.0f;
  for (int step = 0; step < 3; ++step) {
    PLANTED; held.store(t, load_const(args.x + t));
    sync_threads();
    sum += held.load(kThreads - 1 - t);
    if (!kBug) sync_threads();
  }
  if (block_x() == 0) store(args.y + t, sum);
}
TEST_CASE("Planted: a missing barrier before shared memory is used again", "[cuda]") {
  check_planted<loop_barrier_kernel<false>, loop_barrier_kernel<true>>(Kind::kRace);
}

/// Within a warp nothing is ordered by itself, and a shuffle orders no memory.
template <bool kBug>
PEFT_KERNEL void warp_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int lane = lane_index();
  if (lane == 7) held.store(0, load_const(args.x));
  const float other = shuffle(~0u, 1.0f, 3);
  if (!kBug) sync_warp();
  PLANTED; const float v = held.load(0);
  if (block_x() == 0) store(args.y + lane, v + other);
}
TEST_CASE("Planted: a missing sync_warp", "[cuda]") {
  check_planted<warp_kernel<false>, warp_kernel<true>>(Kind::kRace, 32);
}

/// Bytes that lie beside each other are nobody's business; the same byte is.
template <bool kBug>
PEFT_KERNEL void bytes_kernel(Args args) {
  const auto held = shared_memory().at<std::uint8_t>(0);
  const int t = thread_index();
  PLANTED; held.store(kBug ? t / 2 : t, static_cast<std::uint8_t>(t));
  sync_threads();
  if (block_x() == 0) store(args.y + t, static_cast<float>(held.load(t / 2)));
}
TEST_CASE("Planted: two threads write one byte", "[cuda]") {
  check_planted<bytes_kernel<false>, bytes_kernel<true>>(Kind::kRace);
}

template <bool kBug>
PEFT_KERNEL void wait_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  cp_async_16(held + 4 * t, args.x + 4 * t, true);
  cp_async_commit();
  if (!kBug) cp_async_wait<0>();
  sync_threads();
  PLANTED; const float v = held.load((4 * t + 4) % (4 * kThreads));
  if (block_x() == 0) store(args.y + t, v);
}
TEST_CASE("Planted: a missing wait for cp.async", "[cuda]") {
  check_planted<wait_kernel<false>, wait_kernel<true>>(Kind::kAsync);
}

/// Two groups under way, and a wait that lets one more be pending than the loop may.
template <int kPending>
PEFT_KERNEL void wait_count_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  for (int stage = 0; stage < 2; ++stage) {
    cp_async_16(held + 4 * (stage * block_threads() + t), args.x + 4 * t, true);
    cp_async_commit();
  }
  cp_async_wait<kPending>();
  PLANTED; const float v = held.load(4 * t);
  cp_async_wait<0>();
  if (block_x() == 0) store(args.y + t, v + held.load(4 * (block_threads() + t)));
}
TEST_CASE("Planted: a wait for one group too few", "[cuda]") {
  check_planted<wait_count_kernel<1>, wait_count_kernel<2>>(Kind::kAsync, 32);
}

/// Waited for by the thread that asked, but no barrier before another one reads.
template <bool kBug>
PEFT_KERNEL void wait_barrier_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  cp_async_16(held + 4 * t, args.x + 4 * t, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!kBug) sync_threads();
  PLANTED; const float v = held.load(4 * (t == 0 ? kThreads - 1 : t - 1));
  if (block_x() == 0) store(args.y + t, v);
}
TEST_CASE("Planted: a wait without a barrier", "[cuda]") {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const WithOptions with(Options{.seed = seed, .random_schedule = seed > 0});
    Buffer<float> x(4 * kThreads, 1.0f);
    Buffer<float> y(kThreads);
    const Args args{x.data(), y.data(), 0};
    CHECK(launch<wait_barrier_kernel<false>>(Grid{}, kThreads, kSharedBytes, nullptr, args) == cudaSuccess);
    REQUIRE_CLEAN();
    CHECK(launch<wait_barrier_kernel<true>>(Grid{}, kThreads, kSharedBytes, nullptr, args) == cudaErrorLaunchFailure);
    CHECK(last_report().has(Kind::kRace));
    take_report();
  }
}

template <std::uint32_t kMask>
PEFT_KERNEL void mask_kernel(Args args) {
  const int lane = lane_index();
  float v = 1.0f;
  if (lane < 16) {
    PLANTED; v = shuffle(kMask, static_cast<float>(lane), lane ^ 1);
  }
  if (block_x() == 0) store(args.y + thread_index(), v);
}
TEST_CASE("Planted: a mask that names lanes which never arrive", "[cuda]") {
  check_planted<mask_kernel<0xFFFFu>, mask_kernel<0xFFFFFFFFu>>(Kind::kMask);
}
TEST_CASE("Planted: a mask that leaves out a lane which calls", "[cuda]") {
  check_planted<mask_kernel<0xFFFFu>, mask_kernel<0x7FFFu>>(Kind::kMask);
}

template <int kOffset>
PEFT_KERNEL void source_kernel(Args args) {
  const int lane = lane_index();
  if (lane >= 16) return;
  PLANTED; const float v = shuffle(0xFFFFu, static_cast<float>(lane), lane + kOffset);
  if (block_x() == 0) store(args.y + thread_index(), v);
}
TEST_CASE("Planted: a shuffle from a lane outside the mask", "[cuda]") {
  check_planted<source_kernel<0>, source_kernel<1>>(Kind::kMask);
}

template <bool kBug>
PEFT_KERNEL void vote_kernel(Args args) {
  const int lane = lane_index();
  if (kBug && lane == 5) return;
  PLANTED; const std::uint32_t votes = ballot(~0u, lane < 9);
  if (block_x() == 0) store(args.y + thread_index(), static_cast<float>(votes));
}
TEST_CASE("Planted: a ballot without a lane that has left", "[cuda]") {
  check_planted<vote_kernel<false>, vote_kernel<true>>(Kind::kMask);
}

template <bool kBug>
PEFT_KERNEL void divergent_mma_kernel(Args args) {
  const std::uint32_t a[4] = {};
  const std::uint32_t b[2] = {};
  float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  if (!kBug || lane_index() != 31) {
    PLANTED; mma_16816<f16>(d, a, b);
  }
  if (block_x() == 0) store(args.y + thread_index(), d[3]);
}
TEST_CASE("Planted: an mma that not all lanes reach", "[cuda]") {
  check_planted<divergent_mma_kernel<false>, divergent_mma_kernel<true>>(Kind::kMask);
}

template <bool kBug>
PEFT_KERNEL void divergent_barrier_kernel(Args args) {
  const int t = thread_index();
  if (!kBug || t < 40) {
    PLANTED; sync_threads();
  }
  if (block_x() == 0) store(args.y + t, load_const(args.x + t));
}
TEST_CASE("Planted: a barrier that some threads go around", "[cuda]") {
  check_planted<divergent_barrier_kernel<false>, divergent_barrier_kernel<true>>(Kind::kDivergence);
}

template <bool kBug>
PEFT_KERNEL void two_barriers_kernel(Args args) {
  const int t = thread_index();
  if (kBug && t >= 32) {
    sync_threads();
  } else {
    PLANTED; sync_threads();
  }
  if (block_x() == 0) store(args.y + t, 0.0f);
}
TEST_CASE("Planted: threads wait at different barriers", "[cuda]") {
  check_planted<two_barriers_kernel<false>, two_barriers_kernel<true>>(Kind::kDivergence);
}

/// One half of a warp at a barrier, the other at a shuffle: nobody can go on.
template <bool kBug>
PEFT_KERNEL void barrier_and_shuffle_kernel(Args args) {
  const int t = thread_index();
  float v = 0.0f;
  if (kBug && t < 16) {
    PLANTED; sync_threads();
  }
  v = shuffle_xor(~0u, static_cast<float>(t), 1);
  sync_threads();
  if (block_x() == 0) store(args.y + t, v);
}
TEST_CASE("Planted: a barrier and a shuffle that wait for each other", "[cuda]") {
  check_planted<barrier_and_shuffle_kernel<false>, barrier_and_shuffle_kernel<true>>(Kind::kDivergence);
}

/// Tiles of 40 columns over a matrix of 4 rows and 64: the last one is narrower.
template <bool kBug>
PEFT_KERNEL void global_tile_kernel(Args args) {
  const int columns = args.n / 4;
  const int column = block_x() * 40 + thread_index();
  if (thread_index() >= 40 || column >= columns + (kBug ? 1 : 0)) return;
  PLANTED; store(args.y + 3 * columns + column, 1.0f);
}
TEST_CASE("Planted: a tile that goes one column too far in global memory", "[cuda]") {
  check_planted<global_tile_kernel<false>, global_tile_kernel<true>>(Kind::kBounds);
}

template <int kFirst>
PEFT_KERNEL void shared_tile_kernel(Args args) {
  const auto tile = shared_memory().at<float>(0);
  const int t = thread_index();
  PLANTED; tile.store(kFirst + t, load_const(args.x + t));
}
TEST_CASE("Planted: a tile that goes one number too far in shared memory", "[cuda]") {
  check_planted<shared_tile_kernel<0>, shared_tile_kernel<1>>(Kind::kBounds, kThreads, kThreads * 4);
  check_planted<shared_tile_kernel<0>, shared_tile_kernel<-1>>(Kind::kBounds, kThreads, kThreads * 4);
}

template <bool kBug>
PEFT_KERNEL void read_behind_kernel(Args args) {
  const int t = thread_index();
  const auto* vectors = reinterpret_cast<const Vec<float, 4>*>(args.x);
  PLANTED; const auto v = load_const(vectors + t + (kBug ? 1 : 0));
  if (block_x() == 0) store(args.y + t, v[0]);
}
TEST_CASE("Planted: a vector read behind the end", "[cuda]") {
  check_planted<read_behind_kernel<false>, read_behind_kernel<true>>(Kind::kBounds);
}

template <int kFirst>
PEFT_KERNEL void misaligned_kernel(Args args) {
  const int t = thread_index();
  if (t >= kThreads - 1) return;
  PLANTED; const auto v = load_const(reinterpret_cast<const Vec<float, 4>*>(args.x + kFirst) + t);
  if (block_x() == 0) store(args.y + t, v[1]);
}
TEST_CASE("Planted: a vector load from a misaligned address", "[cuda]") {
  check_planted<misaligned_kernel<0>, misaligned_kernel<1>>(Kind::kAlignment);
}

template <int kFirst>
PEFT_KERNEL void misaligned_shared_kernel(Args args) {
  const auto held = shared_memory().at<f16>(0);
  const int t = thread_index();
  PLANTED; held.store_vec<8>(8 * t + kFirst, Vec<f16, 8>{});
  if (block_x() == 0) store(args.y + t, args.x[0]);
}
TEST_CASE("Planted: a vector store to a misaligned place in shared memory", "[cuda]") {
  check_planted<misaligned_shared_kernel<0>, misaligned_shared_kernel<4>>(Kind::kAlignment, 32);
}

template <int kFirst>
PEFT_KERNEL void misaligned_row_kernel(Args args) {
  const auto held = shared_memory().at<std::uint16_t>(0);
  for (int i = 0; i < 16; ++i) held.store(16 * lane_index() + i, 0);
  sync_warp();
  std::uint32_t r[4];
  PLANTED; ldmatrix_x4(r, held + 16 * lane_index() + kFirst);
  if (block_x() == 0) store(args.y + lane_index(), static_cast<float>(r[3]));
}
TEST_CASE("Planted: a matrix row at a misaligned address", "[cuda]") {
  check_planted<misaligned_row_kernel<8>, misaligned_row_kernel<4>>(Kind::kAlignment, 32, 1024);
}

template <bool kBug>
PEFT_KERNEL void uninitialised_kernel(Args args) {
  const auto held = shared_memory().at<float>(0);
  const int t = thread_index();
  if (!kBug || t != 17) held.store(t, 1.0f);
  sync_threads();
  PLANTED; const float v = held.load(kThreads - 1 - t);
  if (block_x() == 0) store(args.y + t, v);
}
TEST_CASE("Planted: shared memory read that nothing was stored to", "[cuda]") {
  // What a block leaves behind is nothing to the next one.
  check_planted<uninitialised_kernel<false>, uninitialised_kernel<true>>(Kind::kUninitialised);
}

template <bool kBug>
PEFT_KERNEL void read_only_kernel(Args args) {
  const int t = thread_index();
  if (block_x() != 0) return;
  store(args.y + t, 1.0f);
  PLANTED; const float v = kBug ? load_const(args.y + t) : load(args.y + t);
  store(args.y + kThreads + t, v);
}
TEST_CASE("Planted: load_const of what the kernel writes", "[cuda]") {
  check_planted<read_only_kernel<false>, read_only_kernel<true>>(Kind::kReadOnly);
}

template <bool kBug>
PEFT_KERNEL void blocks_kernel(Args args) {
  const int t = thread_index();
  PLANTED; store(args.y + (kBug ? 0 : block_x() * kThreads) + t, static_cast<float>(block_x()));
}
TEST_CASE("Planted: two blocks write the same numbers", "[cuda]") {
  check_planted<blocks_kernel<false>, blocks_kernel<true>>(Kind::kRace);
}

/// A tile of 32 by 32 numbers, turned: without a number of padding a column stands in one bank.
template <int kRow>
PEFT_KERNEL void turn_kernel(Args args) {
  const auto tile = shared_memory().at<float>(0);
  const int lane = lane_index();
  for (int row = 0; row < 32; ++row) tile.store(row * kRow + lane, load_const(args.x + row * 32 + lane));
  sync_warp();
  for (int row = 0; row < 32; ++row) {
    PLANTED; const float v = tile.load(lane * kRow + row);
    store(args.y + row * 32 + lane, v);
  }
}
TEST_CASE("Planted: a column of a tile in one bank", "[cuda]") {
  Buffer<float> x(1024, 1.0f);
  Buffer<float> y(1024);
  const Args args{x.data(), y.data(), 0};
  REQUIRE(launch<turn_kernel<33>>(Grid{}, 32, 33 * 32 * 4, nullptr, args) == cudaSuccess);
  CHECK(last_report().bank_conflicts == 0);
  REQUIRE(launch<turn_kernel<32>>(Grid{}, 32, 32 * 32 * 4, nullptr, args) == cudaSuccess);
  CHECK(last_report().at(planted_line, Access::kSharedLoad).instructions == 32);
  CHECK(last_report().at(planted_line, Access::kSharedLoad).conflicts == 32 * 31);
  CHECK(last_report().bank_conflicts == 32 * 31);
  REQUIRE_CLEAN();
}

template <bool kBug>
PEFT_KERNEL void column_kernel(Args args) {
  const int lane = lane_index();
  float sum = 0.0f;
  for (int i = 0; i < 8; ++i) {
    PLANTED; sum += load_const(args.x + (kBug ? lane * 8 + i : i * 32 + lane));
  }
  store(args.y + thread_index(), sum);
}
TEST_CASE("Planted: lanes that read columns", "[cuda]") {
  Buffer<float> x(256, 1.0f);
  Buffer<float> y(64);
  const Args args{x.data(), y.data(), 0};
  REQUIRE(launch<column_kernel<false>>(Grid{}, 64, 0, nullptr, args) == cudaSuccess);
  CHECK(last_report().global_sectors == last_report().global_sectors_needed);
  REQUIRE(launch<column_kernel<true>>(Grid{}, 64, 0, nullptr, args) == cudaSuccess);
  const auto counts = last_report().at(planted_line, Access::kGlobalLoad);
  CHECK(counts.instructions == 2 * 8);
  CHECK(counts.sectors == 2 * 8 * 32);
  CHECK(counts.sectors_needed == 2 * 8 * 4);
  CHECK(last_report().global_sectors > last_report().global_sectors_needed);
  REQUIRE_CLEAN();
}

/// The last thread to come wins, with nothing that orders them.
PEFT_KERNEL void last_wins_kernel(Args args) { PLANTED; store(args.y, static_cast<float>(block_x() * 64 + thread_index())); }

TEST_CASE("Planted: a result that depends on the schedule", "[cuda]") {
  const auto results = [](bool random) {
    std::set<float> seen;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const WithOptions with(Options{.seed = seed, .random_schedule = random, .check_races = false});
      Buffer<float> y(1);
      REQUIRE(launch<last_wins_kernel>(Grid{3}, 64, 0, nullptr, Args{nullptr, y.data(), 0}) == cudaSuccess);
      seen.insert(y[0]);
    }
    return seen;
  };
  CHECK(results(false).size() == 1);
  CHECK(results(true).size() > 3);
  REQUIRE_CLEAN();
  Buffer<float> y(1);
  CHECK(launch<last_wins_kernel>(Grid{3}, 64, 0, nullptr, Args{nullptr, y.data(), 0}) == cudaErrorLaunchFailure);
  CHECK(last_report().has(Kind::kRace, planted_line));
  take_report();
}

}  // namespace
