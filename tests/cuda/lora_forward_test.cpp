// y = x·Wᵀ + bias + scale·S·Bᵀ on the device: all tiles, with tails in every dimension, aligned and not, against double.

#include "peft/cuda/kernels/lora_forward.cuh"

#include "lora_problem.hpp"

namespace {

namespace device = peft::cuda::kernels;
using lora_problem::Matrix;
using lora_problem::Sum;
using peft::bf16;
using peft::f16;
using peft::Index;

struct Shape {
  Index m, out, in, r;
  Index pad = 0;     // of every row
  Index offset = 0;  // of x's and W's first element
};

template <class T>
void check_forward(const Shape& shape, int sm, bool is_wide = false) {
  INFO("m " << shape.m << ", out " << shape.out << ", in " << shape.in << ", r " << shape.r << ", pad " << shape.pad
            << ", offset " << shape.offset << ", sm " << sm << ", bytes of T " << sizeof(T));
  const Matrix<T> x(shape.m, shape.in, shape.pad, 1, "x", shape.offset);
  const Matrix<T> w(shape.out, shape.in, shape.pad, 2, "w", shape.offset);
  const Matrix<T> s(shape.m, shape.r, shape.pad, 3, "s");
  const Matrix<T> b(shape.out, shape.r, shape.pad, 4, "b");
  const Matrix<T> bias(1, shape.out, 0, 5, "bias");
  const bool has_bias = shape.m % 2 == 1;
  Matrix<T> y(shape.m, shape.out, shape.pad, "y", shape.offset);
  const device::LoraForwardArgs<T> args{x.data(), x.ld(), w.data(), w.ld(), has_bias ? bias.data() : nullptr,
                                        s.data(), s.ld(), b.data(), b.ld(), 0.75f,
                                        y.data(), y.ld(), shape.m,  shape.out, shape.in, shape.r, sm};
  peft_emulator::take_report();
  if (is_wide) {
    const auto task = device::detail::lora_forward_task(args);
    if (sm < 80) {
      device::detail::launch_lora_forward<T, device::WideTile, true>(task, nullptr);
    } else {
      device::detail::launch_lora_forward<T, device::WideTile, false>(task, nullptr);
    }
  } else {
    device::lora_forward(args, nullptr);
  }
  lora_problem::require_clean_without_conflicts();
  lora_problem::require_matches(y, [&](Index i, Index j) {
    Sum sum;
    for (Index q = 0; q < shape.r; ++q) sum.add(s(i, q) * b(j, q));
    sum.scale(0.75);
    for (Index k = 0; k < shape.in; ++k) sum.add(x(i, k) * w(j, k));
    if (has_bias) sum.add(bias(0, j));
    return sum;
  });
}

template <class T>
void check_all(int sm) {
  check_forward<T>({1, 70, 200, 8}, sm);            // thin
  check_forward<T>({17, 64, 136, 5, 3, 1}, sm);     // two of them, unaligned
  check_forward<T>({3, 9, 8, 0, 8}, sm);            // dense, less than a tile
  check_forward<T>({35, 70, 200, 16, 8}, sm);       // middle
  check_forward<T>({64, 66, 67, 70, 1, 1}, sm);     // two steps of r, unaligned
}

}  // namespace

TEST_CASE("CUDA: the fused LoRA forward equals its sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_all<f16>(sm);
    check_all<bf16>(sm);
    check_all<float>(sm);
  }
}

TEST_CASE("CUDA: the fused LoRA forward in wide tiles", "[cuda]") {
  check_forward<f16>({130, 136, 136, 16}, 80, true);
  check_forward<bf16>({129, 5, 65, 3}, 80, true);
  check_forward<f16>({2, 130, 64, 0}, 75, true);
  check_forward<bf16>({5, 130, 72, 8}, 75, true);
  check_forward<float>({131, 70, 40, 8}, 80, true);
}

TEST_CASE("CUDA: the fused LoRA forward has the same bits in any order of threads", "[cuda]") {
  const Matrix<f16> x(20, 136, 0, 1, "x");
  const Matrix<f16> w(70, 136, 0, 2, "w");
  const Matrix<f16> s(20, 8, 0, 3, "s");
  const Matrix<f16> b(70, 8, 0, 4, "b");
  const auto run = [&](std::uint64_t seed) {
    Matrix<f16> y(20, 70, 0, "y");
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = seed != 0;
    const peft_emulator::WithOptions with(options);
    device::lora_forward<f16>({x.data(), x.ld(), w.data(), w.ld(), nullptr, s.data(), s.ld(), b.data(), b.ld(), 2.0f,
                               y.data(), y.ld(), 20, 70, 136, 8, 80},
                              nullptr);
    lora_problem::require_clean_without_conflicts();
    return y.values();
  };
  const auto first = run(0);
  for (const std::uint64_t seed : {1u, 2u, 3u}) REQUIRE(run(seed) == first);
}

TEST_CASE("CUDA: the fused LoRA forward moves each operand once a block, in whole sectors", "[cuda]") {
  const auto bytes_of = [](Index m, Index out, Index in, Index r) {
    const Matrix<f16> x(m, in, 0, 1, "x");
    const Matrix<f16> w(out, in, 0, 2, "w");
    const Matrix<f16> s(m, r, 0, 3, "s");
    const Matrix<f16> b(out, r, 0, 4, "b");
    Matrix<f16> y(m, out, 0, "y");
    device::lora_forward<f16>({x.data(), in, w.data(), in, nullptr, s.data(), r, b.data(), r, 2.0f, y.data(), out, m, out, in, r, 80},
                              nullptr);
    const peft_emulator::Report report = peft_emulator::take_report();
    REQUIRE(report.global_sectors == report.global_sectors_needed);
    return report.global_bytes_requested;
  };
  peft_emulator::take_report();
  // One thin block: W, x, S, B and y once.
  REQUIRE(bytes_of(16, 64, 256, 16) == 2 * (64 * 256 + 16 * 256 + 16 * 16 + 64 * 16 + 16 * 64));
  // Three beside one another: W and B once, x and S three times.
  REQUIRE(bytes_of(16, 192, 256, 16) == 2 * (192 * 256 + 3 * 16 * 256 + 3 * 16 * 16 + 192 * 16 + 16 * 192));
  // Middle tiles, 2 x 2: everything twice but y.
  REQUIRE(bytes_of(128, 128, 128, 16) == 2 * (2 * 2 * 128 * 128 + 2 * 2 * 128 * 16 + 128 * 128));
}

TEST_CASE("CUDA: the fused LoRA forward refuses negative and huge sizes, and does nothing without rows", "[cuda]") {
  device::LoraForwardArgs<float> args{};
  args.sm = 80;
  REQUIRE(device::lora_forward(args, nullptr) == cudaSuccess);
  args.m = -1;
  REQUIRE(device::lora_forward(args, nullptr) == cudaErrorInvalidValue);
  args.m = Index{1} << 40;
  REQUIRE(device::lora_forward(args, nullptr) == cudaErrorInvalidValue);
  args.m = 1;
  args.out = 1;
  args.sm = 70;
  REQUIRE(device::lora_forward(args, nullptr) == cudaErrorInvalidValue);
}
