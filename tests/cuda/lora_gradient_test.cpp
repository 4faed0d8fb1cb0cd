// The gradients of a low-rank update on the device against double: dS and dB, dA, dx.

#include "lora_problem.hpp"
#include "peft/cuda/kernels/lora_backward.cuh"
#include "peft/cuda/kernels/lora_factor_grad.cuh"
#include "peft/cuda/kernels/lora_input_grad.cuh"

namespace {

namespace device = peft::cuda::kernels;
using lora_problem::Mask;
using lora_problem::Matrix;
using lora_problem::Sum;
using peft::bf16;
using peft::f16;
using peft::Index;
using peft_emulator::Buffer;

struct Shape {
  Index m, out, in, r;
  float dropout = 0.0f;
  Index pad = 0;
  Index offset = 0;
};

std::string text_of(const Shape& shape, int sm, std::size_t bytes) {
  return "m " + std::to_string(shape.m) + ", out " + std::to_string(shape.out) + ", in " + std::to_string(shape.in) + ", r " +
         std::to_string(shape.r) + ", dropout " + std::to_string(shape.dropout) + ", pad " + std::to_string(shape.pad) +
         ", offset " + std::to_string(shape.offset) + ", sm " + std::to_string(sm) + ", bytes of T " + std::to_string(bytes);
}

template <class T>
void check_input_grad(const Shape& shape, int sm, bool is_wide = false) {
  INFO(text_of(shape, sm, sizeof(T)));
  const Matrix<T> dy(shape.m, shape.out, shape.pad, 1, "dy", shape.offset);
  const Matrix<T> w(shape.out, shape.in, shape.pad, 2, "w", shape.offset);
  const Matrix<T> ds(shape.m, shape.r, shape.pad, 3, "ds");
  const Matrix<T> a(shape.r, shape.in, shape.pad, 4, "a", shape.offset);
  const Mask mask(shape.m, shape.in, shape.dropout, shape.pad);
  Matrix<T> dx(shape.m, shape.in, shape.pad, "dx", shape.offset);
  const device::LoraInputGradArgs<T> args{dy.data(),     dy.ld(),       w.data(),  w.ld(),  ds.data(), ds.ld(),
                                          a.data(),      a.ld(),        mask.bits(), mask.stride(), mask.scale(), dx.data(),
                                          dx.ld(),       shape.m,       shape.out, shape.in, shape.r, sm};
  peft_emulator::take_report();
  if (is_wide) {
    const auto task = device::detail::lora_input_grad_task(args);
    if (sm < 80) {
      device::detail::launch_lora_input_grad<T, device::WideTile, true>(task, nullptr);
    } else {
      device::detail::launch_lora_input_grad<T, device::WideTile, false>(task, nullptr);
    }
  } else {
    device::lora_input_grad(args, nullptr);
  }
  lora_problem::require_clean_without_conflicts();
  lora_problem::require_matches(dx, [&](Index i, Index j) {
    Sum sum;
    for (Index q = 0; q < shape.r; ++q) sum.add(ds(i, q) * a(q, j));
    sum.scale(mask.factor(i, j));
    for (Index k = 0; k < shape.out; ++k) sum.add(dy(i, k) * w(k, j));
    return sum;
  });
}

template <class T>
void check_input_grads(int sm) {
  check_input_grad<T>({1, 200, 70, 8, 0.5f}, sm);         // thin
  check_input_grad<T>({18, 136, 72, 5, 0.25f, 3, 1}, sm);  // two of them, unaligned
  check_input_grad<T>({3, 8, 9, 0}, sm);                  // dense
  check_input_grad<T>({35, 136, 136, 16, 0.5f, 8}, sm);   // middle
  check_input_grad<T>({64, 67, 70, 70, 0.0f, 1, 1}, sm);  // two steps of r, no mask
}

/// The factor's gradient, with bits of the result: they may not depend on the order of threads.
template <class T>
std::vector<float> factor_grad(const Shape& shape, int sm, bool has_workspace = true) {
  INFO(text_of(shape, sm, sizeof(T)));
  const Matrix<T> x(shape.m, shape.in, shape.pad, 1, "x", shape.offset);
  const Matrix<T> ds(shape.m, shape.r, shape.pad, 2, "ds", shape.offset);
  const Mask mask(shape.m, shape.in, shape.dropout, shape.pad);
  Matrix<float> da(shape.r, shape.in, shape.pad, 3, "da");
  const Matrix<float> before(shape.r, shape.in, shape.pad, 3, "before");
  const Index bytes = has_workspace ? device::lora_factor_grad_workspace<T>(shape.m, shape.in, shape.r) : 0;
  Buffer<float> workspace(bytes / 4, "workspace");
  peft_emulator::take_report();
  REQUIRE(device::lora_factor_grad<T>({ds.data(), ds.ld(), x.data(), x.ld(), mask.bits(), mask.stride(), mask.scale(),
                                       da.data(), da.ld(), shape.m, shape.in, shape.r,
                                       bytes > 0 ? workspace.data() : nullptr, sm},
                                      nullptr) == cudaSuccess);
  lora_problem::require_clean_without_conflicts();
  lora_problem::require_matches(da, [&](Index q, Index j) {
    Sum sum;
    for (Index i = 0; i < shape.m; ++i) sum.add(ds(i, q) * x(i, j) * mask.factor(i, j));
    sum.add(before(q, j));
    return sum;
  });
  return da.values();
}

template <class T>
void check_factor_grads(int sm) {
  factor_grad<T>({530, 0, 24, 8, 0.25f}, sm);        // m in parts
  factor_grad<T>({70, 0, 136, 5, 0.5f, 1, 1}, sm);   // unaligned
  factor_grad<T>({33, 0, 70, 70, 0.5f}, sm);         // two blocks of r
  factor_grad<T>({300, 0, 66, 16}, sm, false);
}

struct Gradients {
  std::vector<float> ds, db;
  bool operator==(const Gradients&) const = default;
};

template <class T>
Gradients backward(const Shape& shape, int sm) {
  INFO(text_of(shape, sm, sizeof(T)));
  const Matrix<T> dy(shape.m, shape.out, shape.pad, 1, "dy", shape.offset);
  const Matrix<T> s(shape.m, shape.r, shape.pad, 2, "s", shape.offset);
  const Matrix<T> b(shape.out, shape.r, shape.pad, 3, "b", shape.offset);
  Matrix<T> ds(shape.m, shape.r, shape.pad, "ds");
  Matrix<float> db(shape.out, shape.r, shape.pad, 4, "db");
  const Matrix<float> before(shape.out, shape.r, shape.pad, 4, "before");
  const Index bytes = device::lora_backward_workspace<T>(shape.m, shape.out, shape.r);
  Buffer<float> workspace(bytes / 4, "workspace");
  peft_emulator::take_report();
  REQUIRE(device::lora_backward<T>({dy.data(), dy.ld(), s.data(), s.ld(), b.data(), b.ld(), 0.75f, ds.data(), ds.ld(),
                                    db.data(), db.ld(), shape.m, shape.out, shape.r,
                                    bytes > 0 ? workspace.data() : nullptr, sm},
                                   nullptr) == cudaSuccess);
  lora_problem::require_clean_without_conflicts();
  lora_problem::require_matches(ds, [&](Index i, Index q) {
    Sum sum;
    for (Index j = 0; j < shape.out; ++j) sum.add(dy(i, j) * b(j, q));
    sum.scale(0.75);
    return sum;
  });
  lora_problem::require_matches(db, [&](Index j, Index q) {
    Sum sum;
    for (Index i = 0; i < shape.m; ++i) sum.add(dy(i, j) * s(i, q));
    sum.scale(0.75);
    sum.add(before(j, q));
    return sum;
  });
  return {ds.values(), db.values()};
}

template <class T>
void check_backwards(int sm) {
  backward<T>({1, 5, 0, 3, 0.0f, 2}, sm);            // one block
  backward<T>({70, 200, 0, 8}, sm);                  // several blocks of columns
  backward<T>({530, 72, 0, 16, 0.0f, 8}, sm);        // rows in parts
  backward<T>({66, 131, 0, 12, 0.0f, 1, 1}, sm);     // unaligned
  backward<T>({130, 136, 0, 72}, sm);                // several blocks of r
}

}  // namespace

TEST_CASE("CUDA: the gradient of a LoRA layer's input equals its sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_input_grads<f16>(sm);
    check_input_grads<bf16>(sm);
    check_input_grads<float>(sm);
  }
}

TEST_CASE("CUDA: the gradient of a LoRA layer's input in wide tiles", "[cuda]") {
  check_input_grad<f16>({130, 72, 136, 16, 0.5f}, 80, true);
  check_input_grad<bf16>({129, 65, 133, 3, 0.25f}, 80, true);
  check_input_grad<f16>({2, 70, 136, 8, 0.5f}, 75, true);
  check_input_grad<bf16>({5, 72, 130, 8, 0.5f}, 75, true);
  check_input_grad<float>({131, 40, 70, 8, 0.5f}, 80, true);
}

TEST_CASE("CUDA: the gradient of a LoRA layer's A equals its sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_factor_grads<f16>(sm);
    check_factor_grads<bf16>(sm);
    check_factor_grads<float>(sm);
  }
  REQUIRE(device::lora_factor_grad_workspace<f16>(530, 24, 8) > 0);
}

TEST_CASE("CUDA: dS and dB of a LoRA layer equal their sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_backwards<f16>(sm);
    check_backwards<bf16>(sm);
    check_backwards<float>(sm);
  }
  REQUIRE(device::lora_backward_workspace<float>(1, 5, 3) == 0);
  device::LoraBackwardArgs<f16> args{};
  args.m = 70;
  args.out = 200;
  args.r = 8;
  args.sm = 80;
  REQUIRE(device::lora_backward(args, nullptr) == cudaErrorInvalidValue);  // no workspace
}

TEST_CASE("CUDA: dS and dB move dy once", "[cuda]") {
  const auto bytes_of = [](Index m, Index out, Index r) {
    const Matrix<f16> dy(m, out, 0, 1, "dy");
    const Matrix<f16> s(m, r, 0, 2, "s");
    const Matrix<f16> b(out, r, 0, 3, "b");
    Matrix<f16> ds(m, r, 0, "ds");
    Matrix<float> db(out, r, 0, 4, "db");
    Buffer<float> workspace(device::lora_backward_workspace<f16>(m, out, r) / 4, "workspace");
    peft_emulator::take_report();
    REQUIRE(device::lora_backward<f16>({dy.data(), out, s.data(), r, b.data(), r, 0.75f, ds.data(), r, db.data(), r, m, out, r,
                                        workspace.data(), 80},
                                       nullptr) == cudaSuccess);
    return lora_problem::moved_bytes();
  };
  // One block of columns: everything once, dB there and back.
  CHECK(bytes_of(128, 128, 16) == 2 * (128 * 128 + 128 * 16 + 128 * 16 + 128 * 16) + 8 * 128 * 16);
  // Two: S twice, and a block's sums of dS in float, there and back.
  CHECK(bytes_of(64, 256, 16) == 2 * (64 * 256 + 2 * 64 * 16 + 256 * 16 + 64 * 16) + 8 * 256 * 16 + 2 * 8 * 64 * 16);
  // Rows in two parts: B twice, and a part's sums of dB in float.
  CHECK(bytes_of(512, 128, 16) == 2 * (512 * 128 + 512 * 16 + 2 * 128 * 16 + 512 * 16) + 8 * 128 * 16 + 2 * 8 * 128 * 16);
}

TEST_CASE("CUDA: the gradient of a LoRA layer's A moves x once", "[cuda]") {
  const auto bytes_of = [](Index m, Index in, Index r, float dropout) {
    const Matrix<f16> x(m, in, 0, 1, "x");
    const Matrix<f16> ds(m, r, 0, 2, "ds");
    const Mask mask(m, in, dropout);
    Matrix<float> da(r, in, 0, 3, "da");
    Buffer<float> workspace(device::lora_factor_grad_workspace<f16>(m, in, r) / 4, "workspace");
    peft_emulator::take_report();
    REQUIRE(device::lora_factor_grad<f16>({ds.data(), r, x.data(), in, mask.bits(), mask.stride(), mask.scale(), da.data(), in, m, in,
                                           r, workspace.data(), 80},
                                          nullptr) == cudaSuccess);
    return lora_problem::moved_bytes();
  };
  CHECK(bytes_of(256, 64, 16, 0.0f) == 2 * (256 * 64 + 256 * 16) + 8 * 16 * 64);
  // Four blocks of x's columns: dS four times. A block takes 8 bytes of a mask's row, a sector.
  CHECK(bytes_of(256, 256, 16, 0.5f) == 2 * (256 * 256 + 4 * 256 * 16) + 8 * 16 * 256 + 4 * 256 * 32);
  // Rows in two parts: sums in float, there and back.
  CHECK(bytes_of(512, 64, 16, 0.0f) == 2 * (512 * 64 + 512 * 16) + 8 * 16 * 64 + 2 * 8 * 16 * 64);
}

TEST_CASE("CUDA: the gradient of a LoRA layer's input moves each operand once a block", "[cuda]") {
  const auto bytes_of = [](Index m, Index out, Index in, Index r, float dropout) {
    const Matrix<f16> dy(m, out, 0, 1, "dy");
    const Matrix<f16> w(out, in, 0, 2, "w");
    const Matrix<f16> ds(m, r, 0, 3, "ds");
    const Matrix<f16> a(r, in, 0, 4, "a");
    const Mask mask(m, in, dropout);
    Matrix<f16> dx(m, in, 0, "dx");
    peft_emulator::take_report();
    REQUIRE(device::lora_input_grad<f16>({dy.data(), out, w.data(), in, ds.data(), r, a.data(), in, mask.bits(), mask.stride(),
                                          mask.scale(), dx.data(), in, m, out, in, r, 80},
                                         nullptr) == cudaSuccess);
    return lora_problem::moved_bytes();
  };
  CHECK(bytes_of(16, 256, 64, 16, 0.0f) == 2 * (16 * 256 + 256 * 64 + 16 * 16 + 16 * 64 + 16 * 64));
  // Four blocks of columns: dy and dS four times; of a row's mask a sector for each of a block's four warps, once.
  CHECK(bytes_of(16, 64, 256, 16, 0.5f) ==
        2 * (4 * 16 * 64 + 64 * 256 + 4 * 16 * 16 + 16 * 256 + 16 * 256) + 4 * 4 * 16 * 32);
  // Middle tiles, 2 x 2: everything twice but dx.
  CHECK(bytes_of(128, 128, 128, 16, 0.0f) == 2 * (2 * 2 * 128 * 128 + 2 * 2 * 128 * 16 + 128 * 128));
}

TEST_CASE("CUDA: gradients of a LoRA layer have the same bits in any order of threads", "[cuda]") {
  const Shape shape{530, 136, 40, 8, 0.25f};
  const auto first = backward<f16>(shape, 80);
  const auto first_da = factor_grad<f16>(shape, 80);
  for (const std::uint64_t seed : {1u, 2u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    REQUIRE(backward<f16>(shape, 80) == first);
    REQUIRE(factor_grad<f16>(shape, 80) == first_da);
  }
}
