// Packed weights: quantising and dequantising in millions of weights per second, and the layers Nf4Linear and GgufLinear beside
// the product of the same shape over a float weight, forward and backward.
//   bench_nf4 [--benchmark_filter=…]; rows (4096 × 4096): quantize, dequantize,
//   W/cache/m and W/memory/m (few rows, beside the read bandwidth), W/forward/m, W/backward/m for W of dense, nf4, q4_0 … q6_k
//   (these from cache alone); nf4_int8 takes activations in 8 bits, nf4_bf16 is bf16_probe.hpp.

#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bf16_probe.hpp"
#include "machine_limits.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/dense_linear.hpp"
#include "peft/gguf_linear.hpp"
#include "peft/nf4_linear.hpp"

namespace {

using namespace peft;
using namespace peft_benchmarks;

constexpr Index kSize = 4096;
double peak = 1;

Matrix<float> numbers(Index rows, Index cols) {
  Philox rng(static_cast<std::uint64_t>(rows));
  Matrix<float> result(rows, cols);
  for (float& value : result.flat()) value = rng.uniform(-1.0f, 1.0f);
  return result;
}

const Matrix<float>& weight() {
  static const Matrix<float> w = numbers(kSize, kSize);
  return w;
}

void report_weights(benchmark::State& state) {
  state.counters["Mweights/s"] =
      benchmark::Counter(1e-6 * kSize * kSize * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void quantize(benchmark::State& state, bool twice) {
  const MatrixView<const float> w = weight();
  for (auto _ : state) benchmark::DoNotOptimize(Nf4Tensor::quantize(w, {.double_quant = twice}));
  report_weights(state);
}

void dequantize(benchmark::State& state, bool twice) {
  const Nf4Tensor tensor = Nf4Tensor::quantize(weight().view(), {.double_quant = twice});
  Matrix<float> out(kSize, kSize);
  for (auto _ : state) {
    tensor.dequantize(out.view());
    benchmark::ClobberMemory();
  }
  report_weights(state);
}

template <class Layer>
void product(benchmark::State& state, const Layer& layer, Index m, bool forward) {
  const Matrix<float> x = numbers(m, kSize);
  Matrix<float> y(m, kSize);
  const ExecutorRef executor = default_executor();
  for (auto _ : state) {
    if (forward) {
      layer.template forward<float>(x.view(), y.view(), executor);
    } else {
      layer.template backward_input<float>(x.view(), y.view(), Accumulate::kOverwrite, executor);
    }
    benchmark::ClobberMemory();
  }
  const double flops = 2.0 * static_cast<double>(m) * kSize * kSize * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsRate);
  state.counters["%FMA"] = benchmark::Counter(flops * 1e-7 / peak, benchmark::Counter::kIsRate);
}

/// Layers that together do not fit in a cache.
constexpr int kLayers = 40;
std::vector<Nf4Linear> distinct_layers() {
  std::vector<Nf4Linear> layers;
  for (int i = 0; i < kLayers; ++i) layers.emplace_back(Nf4Tensor::quantize(weight().view()));
  return layers;
}

/// Blocks of random codes and scales; their halves are small numbers.
GgufLinear random_blocks(BlockFormat format) {
  const BlockFormatInfo& info = info_of(format);
  auto bytes = std::make_shared<Buffer<std::uint8_t>>(kSize * kSize / info.elements * info.bytes);
  Philox rng(1);
  for (std::uint8_t& byte : *bytes) byte = static_cast<std::uint8_t>(rng.uniform(0.0f, 256.0f));
  const Index half = format == BlockFormat::kQ6K ? 208 : 0;
  for (Index b = 0; b < bytes->size(); b += info.bytes) {
    for (const Index at : {half, half == 0 ? Index{2} : half}) (*bytes)[b + at + 1] = 0x10;
  }
  const VectorView<const std::uint8_t> view = std::as_const(*bytes).view();
  return GgufLinear(GgufTensor(format, kSize, kSize, view, std::move(bytes)));
}

/// m rows through one layer after another.
template <class Layer>
void few_rows(benchmark::State& state, std::span<const Layer> layers, Index m, double bandwidth) {
  const Matrix<float> x = numbers(m, kSize);
  Matrix<float> y(m, kSize);
  const ExecutorRef executor = default_executor();
  std::size_t next = 0;
  for (auto _ : state) {
    layers[next].template forward<float>(x.view(), y.view(), executor);
    next = (next + 1) % layers.size();
    benchmark::ClobberMemory();
  }
  const double bytes = static_cast<double>(layers[0].weight().byte_size()) * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["%read"] = benchmark::Counter(bytes * 1e-7 / bandwidth, benchmark::Counter::kIsRate);
}

#if PEFT_X86_64
void bf16_rows(benchmark::State& state, const Nf4Linear& layer, Index m) {
  const Matrix<float> x = numbers(m, kSize);
  Matrix<float> y(m, kSize);
  std::vector<std::uint16_t> memory;
  for (auto _ : state) {
    bf16_product(layer.weight(), x.view(), y.data(), memory);
    benchmark::ClobberMemory();
  }
  Matrix<float> expected(m, kSize);
  layer.forward<float>(x.view(), expected.view());
  double error = 0, size = 0;
  for (Index i = 0; i < y.size(); ++i) {
    error += std::pow(static_cast<double>(y.data()[i]) - static_cast<double>(expected.data()[i]), 2);
    size += std::pow(static_cast<double>(expected.data()[i]), 2);
  }
  state.counters["error"] = std::sqrt(error / size);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  peak = fma_peak();
  add_context(peak);
#if PEFT_X86_64
  if (has_bf16()) benchmark::AddCustomContext("vdpbf16ps peak, GFLOP/s", std::to_string(peak_of(bf16_rounds, 32)));
#endif
  const DenseLinear<float> dense(weight().clone());
  const Nf4Linear once(Nf4Tensor::quantize(weight().view()));
  Nf4Linear int8(Nf4Tensor::quantize(weight().view()));
  int8.use_int8_activations();
  const Nf4Linear twice(Nf4Tensor::quantize(weight().view(), {.double_quant = true}));
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMillisecond)->UseRealTime();
  };
  for (const bool double_quant : {false, true}) {
    const std::string end = double_quant ? "/double" : "";
    add("quantize" + end, [=](benchmark::State& s) { quantize(s, double_quant); });
    add("dequantize" + end, [=](benchmark::State& s) { dequantize(s, double_quant); });
  }
  const double from_cache = read_bandwidth(once.weight().byte_size());
  const double from_memory = read_bandwidth(kLayers * once.weight().byte_size());
  benchmark::AddCustomContext("read bandwidth over one weight's bytes, GB/s", std::to_string(from_cache));
  benchmark::AddCustomContext("read bandwidth over " + std::to_string(kLayers) + " weights' bytes, GB/s", std::to_string(from_memory));
  const std::vector<Nf4Linear> layers = distinct_layers();
  for (const Index m : {1, 4, 8}) {
    add("nf4/cache/" + std::to_string(m), [&, m](benchmark::State& s) { few_rows<Nf4Linear>(s, {&once, 1}, m, from_cache); });
    add("nf4_double/cache/" + std::to_string(m), [&, m](benchmark::State& s) { few_rows<Nf4Linear>(s, {&twice, 1}, m, from_cache); });
    add("nf4_int8/cache/" + std::to_string(m), [&, m](benchmark::State& s) { few_rows<Nf4Linear>(s, {&int8, 1}, m, from_cache); });
#if PEFT_X86_64
    if (has_bf16()) add("nf4_bf16/cache/" + std::to_string(m), [&, m](benchmark::State& s) { bf16_rows(s, once, m); });
#endif
    add("nf4/memory/" + std::to_string(m), [&, m](benchmark::State& s) { few_rows<Nf4Linear>(s, layers, m, from_memory); });
  }
  for (const bool forward : {true, false}) {
    for (const Index m : {16, 64, 128, 512}) {
      const std::string end = std::string(forward ? "/forward/" : "/backward/") + std::to_string(m);
      add("dense" + end, [&, m, forward](benchmark::State& s) { product(s, dense, m, forward); });
      add("nf4" + end, [&, m, forward](benchmark::State& s) { product(s, once, m, forward); });
      if (forward) add("nf4_int8" + end, [&, m](benchmark::State& s) { product(s, int8, m, true); });
      add("nf4_double" + end, [&, m, forward](benchmark::State& s) { product(s, twice, m, forward); });
    }
  }
  std::vector<GgufLinear> blocks;
  for (const BlockFormatInfo& info : kBlockFormats) blocks.push_back(random_blocks(info.format));
  for (const GgufLinear& layer : blocks) {
    std::string name(name_of(layer.weight().format()));
    for (char& c : name) c = static_cast<char>(c == 'Q' ? 'q' : c == 'K' ? 'k' : c);
    for (const Index m : {1, 4, 8}) {
      add(name + "/cache/" + std::to_string(m), [&, m](benchmark::State& s) { few_rows<GgufLinear>(s, {&layer, 1}, m, from_cache); });
    }
    for (const bool forward : {true, false}) {
      for (const Index m : {16, 128, 512}) {
        add(name + (forward ? "/forward/" : "/backward/") + std::to_string(m),
            [&, m, forward](benchmark::State& s) { product(s, layer, m, forward); });
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
