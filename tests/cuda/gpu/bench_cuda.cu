// Speed of peft::cuda on a GPU, as Markdown: NF4 products and fused LoRA against cuBLASLt in f16 and against what the memory
// and the tensor cores allow, both measured by this program. Weights rotate over more than twice the L2. Where there is no GPU
// it says so and ends with 77 (skipped).
//   bench_cuda [quick] [part of a shape's name]
#include <algorithm>
#include <span>

#include "gpu_test.hpp"
#include "random_four_bit.hpp"

namespace {

using namespace gpu_test;
using cuda::kernels::Vec;

/// Microseconds of one of `work(i)`: `count` calls are one graph, so that the host's launches are not what is timed; the median
/// of several replays.
template <class Work>
double microseconds(Index count, Work&& work) {
  cuda::Context& c = context();
  for (Index i = 0; i < count; ++i) work(i);  // cuBLASLt chooses, kernels are loaded
  c.synchronize();
  const cuda::Graph graph(c.stream(), [&] {
    for (Index i = 0; i < count; ++i) work(i);
  });
  cuda::Event start(cuda::Event::Timing::kOn), stop(cuda::Event::Timing::kOn);
  graph.launch(c.stream());
  std::vector<double> times;
  for (int replay = 0; replay < 9; ++replay) {
    start.record(c.stream());
    graph.launch(c.stream());
    stop.record(c.stream());
    stop.synchronize();
    times.push_back(1000.0 * static_cast<double>(stop.milliseconds_since(start)) / static_cast<double>(count));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct ReadArgs {
  const Vec<std::uint32_t, 4>* data;
  std::uint32_t* out;
  Index count;
};
/// Reads everything once, 16 bytes a lane, four loads in flight.
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 4) void read_kernel(ReadArgs args) {
  using namespace cuda::kernels;
  const Index step = static_cast<Index>(grid_x()) * 256;
  std::uint32_t sum = 0;
  for (Index i = static_cast<Index>(block_x()) * 256 + thread_index(); i < args.count; i += 4 * step) {
    PEFT_UNROLL
    for (int u = 0; u < 4; ++u) {
      if (i + u * step < args.count) {
        const Vec<std::uint32_t, 4> v = load_stream(args.data + i + u * step);
        sum ^= v.v[0] ^ v.v[1] ^ v.v[2] ^ v.v[3];
      }
    }
  }
  if (sum == 0x12345678u) store(args.out, sum);  // so that the loads are needed
}

/// What the device can do, measured.
struct Roof {
  double bytes_per_us = 0, flops_per_us = 0;

  double microseconds(double bytes, double flops) const { return std::max(bytes / bytes_per_us, flops / flops_per_us); }
};

Roof measure_roof() {
  cuda::Context& c = context();
  Roof roof;
  const Index bytes = std::max<Index>(Index{1} << 30, 8 * c.device().l2_bytes);
  {
    cuda::DeviceBuffer<std::byte> memory(bytes);
    cuda::DeviceBuffer<std::uint32_t> out(1);
    memory.fill_zero(c.stream());
    const ReadArgs args{reinterpret_cast<const Vec<std::uint32_t, 4>*>(memory.data()), out.data(), bytes / 16};
    const cuda::kernels::Grid grid{c.device().multiprocessors * 8, 1, 1};
    const double us = microseconds(
        4, [&](Index) { cuda::check(cuda::kernels::launch<read_kernel>(grid, 256, 0, c.stream(), args), "reading"); });
    roof.bytes_per_us = static_cast<double>(bytes) / us;
  }
  constexpr Index n = 8192;
  const cuda::DeviceMatrix<f16> a = random_matrix<f16>(n, n, 1, 1.0f), b = random_matrix<f16>(n, n, 2, 1.0f);
  cuda::DeviceMatrix<f16> y(n, n);
  const double us = microseconds(4, [&](Index) {
    c.matmul()(cuda::Transpose::kNo, a.view(), cuda::Transpose::kYes, b.view(), 1.0f, 0.0f, static_cast<const f16*>(nullptr),
               y.view(), c.stream());
  });
  roof.flops_per_us = 2.0 * double{n} * double{n} * double{n} / us;
  return roof;
}

/// Copies of a weight of that size that exceed twice the L2 together.
Index copies_of(Index bytes) { return std::max<Index>(2, (5 * context().device().l2_bytes / 2 + bytes - 1) / bytes); }

std::string times_text(double reference, double us) { return fmt::format("{:.2f}", reference / us); }

void bench_shape(const Shape& shape, const Roof& roof, bool quick) {
  using T = f16;
  cuda::Context& c = context();
  constexpr Index r = 16;
  const Index out = shape.out, in = shape.in, dense_bytes = out * in * 2;
  const Index dense_copies = copies_of(dense_bytes), packed_copies = copies_of(dense_bytes / 4);
  if (!has_memory_for(dense_copies * (out * (in + r) * 2) + packed_copies * dense_bytes / 3 + (Index{2} << 30))) {
    std::printf("\n%s [%lld, %lld]: skipped, not enough memory\n", shape.name, static_cast<long long>(out),
                static_cast<long long>(in));
    return;
  }
  const FourBitStorage storage = random_storage(out, in, 64, true, 5);
  std::vector<cuda::Nf4Linear<T>> packed;
  for (Index i = 0; i < packed_copies; ++i) packed.emplace_back(cuda::Nf4Tensor(storage, c));
  std::vector<cuda::DenseLinear<T>> dense;
  const Factors factors(in, out, r, 2.0, 0.0f, 3);
  const cuda::Lora<T> lora(factors, c);
  for (Index i = 0; i < dense_copies; ++i) {
    dense.emplace_back(in, out, r);
    fill(dense.back().weight(), static_cast<std::uint32_t>(i), 0.05f);
    lora.install(dense.back(), c);
  }
  const std::vector<Index> rows =
      quick ? std::vector<Index>{1, 16, 256} : std::vector<Index>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
  c.reserve(std::max({packed[0].scratch_bytes(rows.back()), cuda::Context::padded(packed[0].panel_bytes()),
                      lora.scratch_bytes(dense[0], rows.back())}));

  std::printf("\n### %s: [%lld, %lld], %.0f M weights\n\n", shape.name, static_cast<long long>(out), static_cast<long long>(in),
              static_cast<double>(out * in) * 1e-6);
  std::printf(
      "| M | cuBLASLt f16 µs | NF4 µs | x cuBLASLt | GB/s | of roofline | NF4 + LoRA µs | NF4 panel µs | dense fused, r = 0 µs "
      "| r = 16 µs | LoRA's cost | K+r cuBLASLt µs | "
      "two products µs |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Index m : rows) {
    const cuda::DeviceMatrix<T> x = random_matrix<T>(m, in, 7, 1.0f, r), s = random_matrix<T>(m, r, 8, 1.0f);
    cuda::DeviceMatrix<T> y(m, out);
    const cuda::DeviceLowRankTerm<T> none{0, m, {}, {}, 1.0f}, term{0, m, s.view(), lora.b_copy(), 2.0f};
    const cuda::DeviceLowRankTerm<T> empty{0, m, cuda::DeviceMatrixView<const T>(s.data(), m, 0, s.stride()),
                                           cuda::DeviceMatrixView<const T>(lora.b_copy().data, out, 0, lora.b_copy().stride),
                                           1.0f};
    const auto over_dense = [&](auto&& work) {
      return microseconds(2 * dense_copies,
                          [&](Index i) { work(std::as_const(dense)[static_cast<std::size_t>(i % dense_copies)]); });
    };
    const auto over_packed = [&](auto&& work) {
      return microseconds(2 * packed_copies,
                          [&](Index i) { work(std::as_const(packed)[static_cast<std::size_t>(i % packed_copies)]); });
    };
    const double blas = over_dense([&](const auto& layer) { layer.forward(x.view(), y.view(), c); });
    const double nf4 = over_packed([&](const auto& layer) { layer.forward_packed(x.view(), none, y.view(), c); });
    const double nf4_lora = over_packed([&](const auto& layer) { layer.forward_packed(x.view(), term, y.view(), c); });
    const double panel = over_packed([&](const auto& layer) { layer.forward_panel(x.view(), y.view(), c); });
    const double fused0 = over_dense([&](const auto& layer) { layer.forward_fused(x.view(), empty, y.view(), c); });
    const double fused = over_dense([&](const auto& layer) { layer.forward_fused(x.view(), term, y.view(), c); });
    const double widened = over_dense([&](const auto& layer) { layer.forward_widened(x.view(), r, y.view(), c); });
    const double two = over_dense([&](const auto& layer) {
      layer.forward(x.view(), y.view(), c);
      layer.add_terms(std::span(&term, 1), y.view(), c);
    });
    const double bytes = static_cast<double>(packed[0].weight().byte_size() + 2 * m * (in + out));
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(out) * static_cast<double>(in);
    std::printf("| %lld | %.1f | %.1f | %s | %.0f | %.0f %% | %.1f | %.1f | %.1f | %.1f | %+.1f %% | %.1f | %.1f |\n",
                static_cast<long long>(m), blas, nf4, times_text(blas, nf4).c_str(), bytes / nf4 * 1e-3,
                100.0 * roof.microseconds(bytes, flops) / nf4, nf4_lora, panel, fused0, fused, 100.0 * (fused / fused0 - 1.0),
                widened, two);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (cuda::device_count() == 0) {
    std::printf("bench_cuda: SKIPPED, nothing was measured: there is no GPU here: %s\n", cuda::no_device_reason().c_str());
    return 77;
  }
  bool quick = false;
  std::string_view wanted;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "quick") {
      quick = true;
    } else {
      wanted = argv[i];
    }
  }
  try {
    const cuda::DeviceInfo& device = context().device();
    int runtime = 0, driver = 0;
    cuda::check(cudaRuntimeGetVersion(&runtime), "the runtime's version");
    cuda::check(cudaDriverGetVersion(&driver), "the driver's version");
    const Roof roof = measure_roof();
    std::printf(
        "## %s\n\nsm_%d, %d multiprocessors, %.0f MiB of L2; CUDA %d.%d, driver for %d.%d.\nMeasured: %.0f GB/s read from "
        "memory, "
        "%.0f TFLOP/s by cuBLASLt in f16 (8192 x 8192 x 8192).\nWeights rotate over more than twice the L2; medians of nine "
        "replays "
        "of a graph. Roofline: the larger of bytes over that bandwidth and operations over that rate.\n",
        device.name.c_str(), device.sm, device.multiprocessors, static_cast<double>(device.l2_bytes) / 1048576.0,
        runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, roof.bytes_per_us * 1e-3,
        roof.flops_per_us * 1e-6);
    for (const Shape& shape : model_shapes()) {
      if (std::string_view(shape.name).find(wanted) != std::string_view::npos) bench_shape(shape, roof, quick);
    }
  } catch (const Error& error) {
    std::printf("bench_cuda: %s\n", error.what());
    return 1;
  }
  return 0;
}
