// Threads, warps and blocks of the emulator: indices, meetings of lanes, barriers, schedules.
#include <cstdint>
#include <vector>

#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace {

using namespace peft::cuda::kernels;
using peft_emulator::Buffer;
using peft_emulator::Kind;
using peft_emulator::last_report;
using peft_emulator::Options;
using peft_emulator::take_report;
using peft_emulator::WithOptions;

struct IndexArgs {
  int* out;  // [blocks, threads, 8]
};
PEFT_KERNEL void index_kernel(IndexArgs args) {
  const int block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
  int* mine = args.out + (block * block_threads() + thread_index()) * 8;
  store(mine + 0, block_x());
  store(mine + 1, block_y());
  store(mine + 2, block_z());
  store(mine + 3, thread_index());
  store(mine + 4, lane_index());
  store(mine + 5, warp_index());
  store(mine + 6, block_threads());
  store(mine + 7, grid_x() * 100 + grid_y() * 10 + grid_z());
}

TEST_CASE("Every thread of every block runs once", "[cuda]") {
  Buffer<int> out(2 * 3 * 2 * 40 * 8, -1);
  REQUIRE(launch<index_kernel>(Grid{2, 3, 2}, 40, 0, nullptr, IndexArgs{out.data()}) == cudaSuccess);
  const int* at = out.data();
  for (int z = 0; z < 2; ++z) {
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < 2; ++x) {
        for (int thread = 0; thread < 40; ++thread, at += 8) {
          const std::vector<int> expected{x, y, z, thread, thread % 32, thread / 32, 40, 232};
          REQUIRE(std::vector<int>(at, at + 8) == expected);
        }
      }
    }
  }
  REQUIRE_CLEAN();
}

struct ExchangeArgs {
  float* floats;          // [5, 64]
  std::uint32_t* ballots;  // [2, 64]
};
PEFT_KERNEL void exchange_kernel(ExchangeArgs args) {
  const int t = thread_index();
  const int lane = lane_index();
  const auto v = static_cast<float>(t);
  store(args.floats + t, shuffle(~0u, v, (lane + 5) % 32));
  store(args.floats + 64 + t, shuffle_xor(~0u, v, 7));
  store(args.floats + 128 + t, shuffle_down(~0u, v, 3));
  store(args.floats + 192 + t, warp_sum(v));
  store(args.floats + 256 + t, warp_max(v));
  store(args.ballots + t, ballot(~0u, lane % 3 == 0));
  std::uint32_t low = 0;
  if (lane < 8) low = ballot(0xFFu, lane % 2 == 0);
  store(args.ballots + 64 + t, low);
}

TEST_CASE("Lanes exchange numbers and votes", "[cuda]") {
  for (const bool random : {false, true}) {
    const WithOptions with(Options{.seed = 5, .random_schedule = random});
    Buffer<float> floats(5 * 64);
    Buffer<std::uint32_t> ballots(2 * 64);
    REQUIRE(launch<exchange_kernel>(Grid{}, 64, 0, nullptr, ExchangeArgs{floats.data(), ballots.data()}) == cudaSuccess);
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      const int base = t - lane;
      CHECK(floats[t] == static_cast<float>(base + (lane + 5) % 32));
      CHECK(floats[64 + t] == static_cast<float>(base + (lane ^ 7)));
      CHECK(floats[128 + t] == static_cast<float>(lane + 3 > 31 ? t : t + 3));
      CHECK(floats[192 + t] == static_cast<float>(32 * base + 31 * 16));
      CHECK(floats[256 + t] == static_cast<float>(base + 31));
      CHECK(ballots[t] == 0x49249249u);
      CHECK(ballots[64 + t] == (lane < 8 ? 0x55u : 0u));
    }
    REQUIRE_CLEAN();
  }
}

struct ReverseArgs {
  const int* x;  // [blocks, threads]
  int* y;
};
/// Three stages through shared memory, the warps of a block exchanging what they hold.
PEFT_KERNEL void reverse_kernel(ReverseArgs args) {
  const auto held = shared_memory().at<int>(0);
  const int n = block_threads();
  const int t = thread_index();
  int value = load_const(args.x + block_x() * n + t);
  for (int stage = 0; stage < 3; ++stage) {
    held.store(t, value);
    sync_threads();
    value = held.load(n - 1 - t) + 1;
    sync_threads();
  }
  store(args.y + block_x() * n + t, value);
}

TEST_CASE("Barriers hold in every schedule", "[cuda]") {
  constexpr int kThreads = 96;
  Buffer<int> x(4 * kThreads);
  for (int i = 0; i < 4 * kThreads; ++i) x[i] = 10 * i;
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const WithOptions with(Options{.seed = seed, .random_schedule = seed > 0});
    Buffer<int> y(4 * kThreads);
    REQUIRE(launch<reverse_kernel>(Grid{4}, kThreads, kThreads * 4, nullptr, ReverseArgs{x.data(), y.data()}) == cudaSuccess);
    for (int block = 0; block < 4; ++block) {
      for (int t = 0; t < kThreads; ++t) REQUIRE(y[block * kThreads + t] == x[block * kThreads + kThreads - 1 - t] + 3);
    }
  }
  REQUIRE_CLEAN();
}

struct PartArgs {
  int* y;
};
/// Half-warps that meet by themselves: what one lane of a half stores, the other lanes of it may read after sync_warp.
template <std::uint32_t kMaskOfOther>
PEFT_KERNEL void halves_kernel(PartArgs args) {
  const auto held = shared_memory().at<int>(0);
  const int lane = lane_index();
  const std::uint32_t mask = lane < 16 ? 0x0000FFFFu : kMaskOfOther;
  for (int i = 0; i < 3; ++i) {
    held.store(lane, lane + i);
    sync_warp(mask);
    store(args.y + lane, held.load(lane ^ 9));
    sync_warp(mask);
  }
}

TEST_CASE("sync_warp orders the lanes that its mask names", "[cuda]") {
  Buffer<int> y(32);
  REQUIRE(launch<halves_kernel<0xFFFF0000u>>(Grid{}, 32, 128, nullptr, PartArgs{y.data()}) == cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) CHECK(y[lane] == (lane ^ 9) + 2);
  REQUIRE_CLEAN();
}

/// The same across the halves: not ordered.
PEFT_KERNEL void across_halves_kernel(PartArgs args) {
  const auto held = shared_memory().at<int>(0);
  const int lane = lane_index();
  held.store(lane, lane);
  sync_warp(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u);
  store(args.y + lane, held.load(lane ^ 16));
}

TEST_CASE("sync_warp does not order the lanes that its mask leaves out", "[cuda]") {
  Buffer<int> y(32);
  CHECK(launch<across_halves_kernel>(Grid{}, 32, 128, nullptr, PartArgs{y.data()}) == cudaErrorLaunchFailure);
  CHECK(last_report().has(Kind::kRace));
  take_report();
}

TEST_CASE("A launch that the device would refuse", "[cuda]") {
  Buffer<int> y(32);
  const PartArgs args{y.data()};
  CHECK(launch<across_halves_kernel>(Grid{0}, 32, 128, nullptr, args) == cudaErrorInvalidValue);
  CHECK(launch<across_halves_kernel>(Grid{}, 1025, 128, nullptr, args) == cudaErrorLaunchFailure);
  CHECK(last_report().has(Kind::kLaunch));
  CHECK(launch<across_halves_kernel>(Grid{}, 32, 228 * 1024, nullptr, args) == cudaErrorLaunchFailure);
  CHECK(last_report().has(Kind::kLaunch));
  take_report();
}

}  // namespace
