// The matrix product of kernels/gemm.hpp and the thin products around it, in GFLOP/s and in percent of the FMA rate that
// this program measures first on the same threads with the same instruction set (PEFT_FORCE_ISA, PEFT_NUM_THREADS).
//   bench_gemm [--benchmark_filter=…]; rows: gemm/m/n/k/storage/rank.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "machine_limits.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/skinny.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;

double peak = 1;

void report(benchmark::State& state, double flops) {
  const double total = flops * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(total * 1e-9, benchmark::Counter::kIsRate);
  state.counters["%peak"] = benchmark::Counter(total * 1e-7 / peak, benchmark::Counter::kIsRate);
}

struct Shape {
  Index m, n, k;
};

std::vector<float> numbers(Index count) {
  Philox rng(static_cast<std::uint64_t>(count));
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = rng.uniform(-1.0f, 1.0f);
  return values;
}

std::vector<std::uint16_t> rounded(const std::vector<float>& values, DType type) {
  std::vector<std::uint16_t> result;
  for (float value : values) result.push_back(type == DType::kBF16 ? bf16(value).bits : f16(value).bits);
  return result;
}

/// y = x·Wᵀ (+ S·Bᵀ) for `forward`, dx = dy·W (+ mask ∘ dS·A) otherwise; the base's product counts as the work.
void gemm(benchmark::State& state, Shape shape, DType weight_type, Index rank, bool forward) {
  const auto [m, n, k] = shape;
  const std::vector<float> x = numbers(m * k), w = numbers(n * k), s = numbers(m * rank + 1), l = numbers(n * rank + 1);
  const std::vector<std::uint16_t> w_half =
      weight_type == DType::kF32 ? std::vector<std::uint16_t>() : rounded(w, weight_type);
  std::vector<float> y(static_cast<std::size_t>(m * n));
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(m * ((n + 7) / 8)), 0xDB);
  kernels::LowRankColumns columns{s.data(), rank, rank, l.data(), forward ? rank : n, forward, 0.5f};
  kernels::GemmProblem problem;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.a = {x.data(), k, DType::kF32, false};
  const void* weights = weight_type == DType::kF32 ? static_cast<const void*>(w.data()) : w_half.data();
  problem.b.dense = {weights, forward ? k : n, weight_type, forward};
  problem.low_rank = &columns;
  problem.low_rank_count = rank > 0 ? 1 : 0;
  if (!forward && rank > 0) problem.low_rank_mask = {bits.data(), (n + 7) / 8, 2.0f};
  problem.c = y.data();
  problem.c_stride = n;
  for (auto _ : state) {
    kernels::gemm(problem, default_executor());
    benchmark::ClobberMemory();
  }
  report(state, 2.0 * static_cast<double>(m * n) * static_cast<double>(k));
}

enum class Thin { kS, kdS, kdA, kdB };

void skinny(benchmark::State& state, Thin which, Index m, Index k, Index r, bool masked) {
  const std::vector<float> x = numbers(m * k), a = numbers(r * k);
  std::vector<float> s = numbers(m * r), grad(static_cast<std::size_t>(r * k));
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(m * ((k + 7) / 8)), 0xDB);
  kernels::MaskBits mask;
  if (masked) mask = {bits.data(), (k + 7) / 8, 1.25f};
  const ExecutorRef executor = default_executor();
  for (auto _ : state) {
    switch (which) {
      case Thin::kS:
        kernels::skinny_nt(m, k, r, x.data(), k, DType::kF32, mask, a.data(), k, 1.0f, s.data(), r, false, executor);
        break;
      case Thin::kdS:
        kernels::skinny_nn(m, k, r, x.data(), k, DType::kF32, a.data(), r, 1.0f, s.data(), r, executor);
        break;
      case Thin::kdA:
        kernels::skinny_tn(m, k, r, s.data(), r, x.data(), k, DType::kF32, mask, 1.0f, grad.data(), k, executor);
        break;
      case Thin::kdB:
        kernels::skinny_tn_t(m, k, r, x.data(), k, DType::kF32, s.data(), r, 1.0f, grad.data(), r, executor);
        break;
    }
    benchmark::ClobberMemory();
  }
  report(state, 2.0 * static_cast<double>(m * k) * static_cast<double>(r));
}

void add_all() {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  const auto name_gemm = [](const char* kind, Shape s, DType type, Index rank) {
    return std::string(kind) + "/" + std::to_string(s.m) + "/" + std::to_string(s.n) + "/" + std::to_string(s.k) + "/" +
           std::string(name_of(type)) + "/r" + std::to_string(rank);
  };
  for (Shape s : {Shape{512, 576, 576}, Shape{512, 192, 576}, Shape{512, 1536, 576}, Shape{512, 576, 1536},
                  Shape{512, 1536, 1536}, Shape{512, 4096, 4096}, Shape{85, 49152, 576}, Shape{16, 4096, 4096},
                  Shape{64, 4096, 4096}, Shape{128, 4096, 4096}, Shape{64, 576, 576}, Shape{1, 4096, 4096},
                  Shape{1, 1536, 576}, Shape{1, 49152, 576}, Shape{8, 1536, 576}}) {
    for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (Index rank : {0, 8}) {
        for (bool forward : {true, false}) {
          add(name_gemm(forward ? "forward" : "backward", s, type, rank),
              [=](benchmark::State& state) { gemm(state, s, type, rank, forward); });
        }
      }
    }
  }
  for (Index m : {64, 512}) {
    for (Index k : {576, 1536}) {
      for (Index r : {8, 64}) {
        const std::string shape = std::to_string(m) + "/" + std::to_string(k) + "/r" + std::to_string(r);
        add("S/" + shape, [=](benchmark::State& state) { skinny(state, Thin::kS, m, k, r, false); });
        add("S_masked/" + shape, [=](benchmark::State& state) { skinny(state, Thin::kS, m, k, r, true); });
        add("dS/" + shape, [=](benchmark::State& state) { skinny(state, Thin::kdS, m, k, r, false); });
        add("dA_masked/" + shape, [=](benchmark::State& state) { skinny(state, Thin::kdA, m, k, r, true); });
        add("dB/" + shape, [=](benchmark::State& state) { skinny(state, Thin::kdB, m, k, r, false); });
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    peak = fma_peak();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  add_context(peak);
  add_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
