// Memories of the emulator: widths, cp.async, counts of sectors and of passes over the banks.
#include <cstdint>

#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace {

using namespace peft::cuda::kernels;
using peft_emulator::Access;
using peft_emulator::Buffer;
using peft_emulator::last_report;
using peft_emulator::LineCounts;
using peft_emulator::Registration;

struct CopyArgs {
  const float* x;
  float* y;
  int n;
};

/// A ring of three stages of 16 bytes per thread; behind n there are zeros.
PEFT_KERNEL void ring_kernel(CopyArgs args) {
  const auto ring = shared_memory().at<float>(0);
  const int threads = block_threads();
  const int t = thread_index();
  const int steps = 5;
  const auto fetch = [&](int step) {
    const int first = 4 * (step * threads + t);
    if (step < steps) cp_async_16(ring + 4 * ((step % 3) * threads + t), args.x + first, first < args.n);
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<1>();
    sync_threads();
    const auto v = ring.load_vec<4>(4 * ((step % 3) * threads + (threads - 1 - t)));
    fetch(step + 2);
    store(reinterpret_cast<Vec<float, 4>*>(args.y) + step * threads + (threads - 1 - t), v);
  }
}

TEST_CASE("cp.async in a ring of stages", "[cuda]") {
  constexpr int kThreads = 64;
  constexpr int kSize = 5 * kThreads * 4;
  constexpr int kValid = kSize - 40;
  Buffer<float> x(kValid);
  for (int i = 0; i < kValid; ++i) x[i] = static_cast<float>(i);
  for (const bool random : {false, true}) {
    const peft_emulator::WithOptions with({.seed = 9, .random_schedule = random});
    Buffer<float> y(kSize);
    const CopyArgs args{x.data(), y.data(), kValid};
    REQUIRE(launch<ring_kernel>(Grid{}, kThreads, 3 * kThreads * 16, nullptr, args) == cudaSuccess);
    for (int i = 0; i < kSize; ++i) REQUIRE(y[i] == (i < kValid ? static_cast<float>(i) : 0.0f));
    CHECK(last_report().bank_conflicts == 0);
    CHECK(last_report().global_sectors == last_report().global_sectors_needed);
    REQUIRE_CLEAN();
  }
}

struct WidthArgs {
  unsigned char* memory;  // [32, 16] in, then out
  int width;
};
template <class T>
void copy_width(WidthArgs args) {
  const auto held = shared_memory().at<T>(0);
  const int lane = lane_index();
  held.store(lane, load_const(reinterpret_cast<const T*>(args.memory) + lane));
  store_stream(reinterpret_cast<T*>(args.memory + 512) + lane, held.load(lane));
}
PEFT_KERNEL void width_kernel(WidthArgs args) {
  if (args.width == 1) copy_width<std::uint8_t>(args);
  if (args.width == 2) copy_width<peft::f16>(args);
  if (args.width == 4) copy_width<float>(args);
  if (args.width == 8) copy_width<Vec<float, 2>>(args);
  if (args.width == 16) copy_width<Vec<peft::bf16, 8>>(args);
}

TEST_CASE("Loads and stores of 1 to 16 bytes", "[cuda]") {
  for (const int width : {1, 2, 4, 8, 16}) {
    Buffer<unsigned char> in(1024);
    for (int i = 0; i < 512; ++i) in[i] = static_cast<unsigned char>(i * 7);
    // load_const of a buffer that is written elsewhere is right.
    REQUIRE(launch<width_kernel>(Grid{}, 32, 512, nullptr, WidthArgs{in.data(), width}) == cudaSuccess);
    for (int i = 0; i < 32 * width; ++i) REQUIRE(in[512 + i] == in[i]);
    for (int i = 32 * width; i < 512; ++i) REQUIRE(in[512 + i] == 0xFF);
    CHECK(last_report().global_sectors == 2 * width);
    CHECK(last_report().global_bytes_requested == 64 * width);
    CHECK(last_report().bank_conflicts == 0);
    REQUIRE_CLEAN();
  }
}

struct StrideArgs {
  float* x;
  int stride;  // floats from lane to lane
};
constexpr int kGlobalLine = __LINE__ + 5;
constexpr int kSharedLine = __LINE__ + 5;
PEFT_KERNEL void stride_kernel(StrideArgs args) {
  const auto held = shared_memory().at<float>(0);
  const int at = lane_index() * args.stride;
  const float v = load(args.x + at);
  held.store(at, v);
}

TEST_CASE("Sectors and passes are counted by line and warp", "[cuda]") {
  Buffer<float> x(32 * 33, 1.0f);
  const auto run = [&](int stride) {
    REQUIRE(launch<stride_kernel>(Grid{}, 32, 32 * 33 * 4, nullptr, StrideArgs{x.data(), stride}) == cudaSuccess);
  };
  const auto counts = [](int line, Access access) { return last_report().at(line, access); };
  struct Row {
    int stride, sectors, conflicts;
  };
  // Lanes in one bank: the greatest common divisor of stride and 32.
  for (const Row row : {Row{1, 4, 0}, Row{2, 8, 1}, Row{4, 16, 3}, Row{8, 32, 7}, Row{32, 32, 31}, Row{33, 32, 0}}) {
    CAPTURE(row.stride);
    run(row.stride);
    const LineCounts global = counts(kGlobalLine, Access::kGlobalLoad);
    CHECK(global.instructions == 1);
    CHECK(global.lanes == 32);
    CHECK(global.sectors == row.sectors);
    CHECK(global.sectors_needed == 4);
    const LineCounts shared = counts(kSharedLine, Access::kSharedStore);
    CHECK(shared.instructions == 1);
    CHECK(shared.transactions == row.conflicts + 1);
    CHECK(shared.conflicts == row.conflicts);
  }
  REQUIRE_CLEAN();
}

struct VectorArgs {
  float* y;
  int step;  // vectors from lane to lane
};
template <int N>
PEFT_KERNEL void vector_kernel(VectorArgs args) {
  const auto held = shared_memory().at<float>(0);
  const int at = N * lane_index() * args.step;
  for (int i = 0; i < 3; ++i) held.template store_vec<N>(at, Vec<float, N>{});
  sync_warp();
  store(args.y + lane_index(), held.load(lane_index() / 32));
}

TEST_CASE("Vectors of 8 and 16 bytes take two and four passes", "[cuda]") {
  Buffer<float> y(32);
  const auto run = [&](auto width, int step) {
    REQUIRE(launch<vector_kernel<decltype(width)::value>>(Grid{}, 32, 32 * 16 * 4, nullptr, VectorArgs{y.data(), step}) ==
            cudaSuccess);
    const auto& report = last_report();
    return std::pair(report.shared_transactions - 1, report.bank_conflicts);
  };
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, 4> four;
  CHECK(run(two, 1) == std::pair<std::int64_t, std::int64_t>(3 * 2, 0));
  CHECK(run(four, 1) == std::pair<std::int64_t, std::int64_t>(3 * 4, 0));
  CHECK(run(two, 2) == std::pair<std::int64_t, std::int64_t>(3 * 4, 3 * 2));
  CHECK(run(four, 4) == std::pair<std::int64_t, std::int64_t>(3 * 16, 3 * 12));
  REQUIRE_CLEAN();
}

TEST_CASE("Memory of others is registered for a while", "[cuda]") {
  alignas(16) float mine[32] = {};
  {
    const Registration registered(mine, sizeof mine, "mine");
    CHECK(launch<stride_kernel>(Grid{}, 32, 128, nullptr, StrideArgs{mine, 1}) == cudaSuccess);
  }
  CHECK(launch<stride_kernel>(Grid{}, 32, 128, nullptr, StrideArgs{mine, 1}) == cudaErrorLaunchFailure);
  CHECK(last_report().has(peft_emulator::Kind::kBounds, kGlobalLine));
  peft_emulator::take_report();
}

}  // namespace
