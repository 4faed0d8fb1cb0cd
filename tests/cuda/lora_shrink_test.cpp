// S = x̃·Aᵀ on the device against double, and dropout masks against the CPU's, bit for bit.

#include "peft/cuda/kernels/lora_shrink.cuh"

#include "lora_problem.hpp"
#include "peft/cuda/kernels/dropout.cuh"

namespace {

namespace device = peft::cuda::kernels;
using lora_problem::Mask;
using lora_problem::Matrix;
using lora_problem::Sum;
using peft::bf16;
using peft::f16;
using peft::Index;

struct Shape {
  Index m, in, r;
  float dropout = 0.0f;
  Index pad = 0;
  Index offset = 0;
  bool has_workspace = true;
};

template <class T>
std::vector<float> shrunk(const Shape& shape, int sm) {
  INFO("m " << shape.m << ", in " << shape.in << ", r " << shape.r << ", dropout " << shape.dropout << ", pad " << shape.pad
            << ", offset " << shape.offset << ", sm " << sm << ", bytes of T " << sizeof(T));
  const Matrix<T> x(shape.m, shape.in, shape.pad, 1, "x", shape.offset);
  const Matrix<T> a(shape.r, shape.in, shape.pad, 2, "a", shape.offset);
  const Mask mask(shape.m, shape.in, shape.dropout, shape.pad);
  Matrix<T> s(shape.m, shape.r, shape.pad, "s");
  const Index bytes = shape.has_workspace ? device::lora_shrink_workspace<T>(shape.m, shape.in, shape.r) : 0;
  peft_emulator::Buffer<float> workspace(bytes / 4, "workspace");
  peft_emulator::take_report();
  REQUIRE(device::lora_shrink<T>({x.data(), x.ld(), a.data(), a.ld(), s.data(), s.ld(), shape.m, shape.in, shape.r,
                                  mask.bits(), mask.stride(), mask.scale(), bytes > 0 ? workspace.data() : nullptr, sm},
                                 nullptr) == cudaSuccess);
  lora_problem::require_clean_without_conflicts();
  lora_problem::require_matches(s, [&](Index i, Index q) {
    Sum sum;
    for (Index k = 0; k < shape.in; ++k) sum.add(x(i, k) * mask.factor(i, k) * a(q, k));
    return sum;
  });
  return s.values();
}

template <class T>
void check_all(int sm) {
  shrunk<T>({5, 1100, 8, 0.25f}, sm);              // k in parts, masked
  shrunk<T>({66, 72, 16, 0.5f, 8}, sm);            // tails of rows and k
  shrunk<T>({3, 70, 5, 0.5f, 1, 1}, sm);           // unaligned, a byte of mask half used
  shrunk<T>({65, 200, 70, 0.25f}, sm);             // two blocks of r
  shrunk<T>({9, 530, 24, 0.0f, 0, 0, false}, sm);  // no mask, no workspace
}

}  // namespace

TEST_CASE("CUDA: lora_shrink equals its sums in double", "[cuda]") {
  for (const int sm : {80, 75}) {
    check_all<f16>(sm);
    check_all<bf16>(sm);
    check_all<float>(sm);
  }
  REQUIRE(device::lora_shrink_workspace<f16>(5, 1100, 8) > 0);
}

TEST_CASE("CUDA: lora_shrink has the same bits in any order of threads", "[cuda]") {
  const Shape shape{20, 1100, 8, 0.25f};
  const auto first = shrunk<f16>(shape, 80);
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    REQUIRE(shrunk<f16>(shape, 80) == first);
  }
}

TEST_CASE("CUDA: lora_shrink moves x, A and S once", "[cuda]") {
  const auto bytes_of = [](Index m, Index in, Index r, float dropout) {
    const Matrix<f16> x(m, in, 0, 1, "x");
    const Matrix<f16> a(r, in, 0, 2, "a");
    const Mask mask(m, in, dropout);
    Matrix<f16> s(m, r, 0, "s");
    peft_emulator::Buffer<float> workspace(device::lora_shrink_workspace<f16>(m, in, r) / 4, "workspace");
    peft_emulator::take_report();
    REQUIRE(device::lora_shrink<f16>({x.data(), in, a.data(), in, s.data(), r, m, in, r, mask.bits(), mask.stride(), mask.scale(),
                                      workspace.data(), 80},
                                     nullptr) == cudaSuccess);
    return lora_problem::moved_bytes();
  };
  CHECK(bytes_of(64, 256, 16, 0.0f) == 2 * (64 * 256 + 16 * 256 + 64 * 16));
  // Of a mask's row a step of k asks for 8 bytes, a sector, which four steps share in L1.
  CHECK(bytes_of(64, 256, 16, 0.5f) == 2 * (64 * 256 + 16 * 256 + 64 * 16) + 4 * (64 * 256 / 8));
  // A once for each 64 rows, x once for each 64 columns.
  CHECK(bytes_of(128, 128, 128, 0.0f) == 2 * (2 * 128 * 128 + 2 * 128 * 128 + 128 * 128));
  // Two parts of k: sums in float, there and back.
  CHECK(bytes_of(16, 512, 16, 0.0f) == 2 * (16 * 512 + 16 * 512 + 16 * 16) + 2 * 2 * 4 * 16 * 16);
}

TEST_CASE("CUDA: dropout masks move an eighth of a byte an element", "[cuda]") {
  peft_emulator::Buffer<std::uint8_t> bits(4 * 512, "bits");
  peft_emulator::take_report();
  REQUIRE(device::dropout_mask({1, 2, 3, 0, 0.1f, bits.data(), 512, 4, 4096}, nullptr) == cudaSuccess);
  CHECK(lora_problem::moved_bytes() == 4 * 4096 / 8);
}

TEST_CASE("CUDA: dropout masks are the CPU's bits", "[cuda]") {
  for (const Index columns : {1, 7, 8, 250, 2100}) {
    for (const float p : {0.0f, 0.05f, 0.5f, 0.99f}) {
      const peft::DropoutKey key{0x123456789ABCDEFu, 77, 9, 1000};
      const Index stride = (columns + 7) / 8 + 3;
      peft_emulator::Buffer<std::uint8_t> bits(3 * stride, "bits");
      REQUIRE(device::dropout_mask({key.seed, key.step, key.module, key.first_row, p, bits.data(), stride, 3, columns},
                                   nullptr) == cudaSuccess);
      REQUIRE_CLEAN();
      std::vector<std::uint8_t> expected(static_cast<std::size_t>(3 * stride), 0xFF);
      for (Index i = 0; i < 3; ++i) peft::dropout_mask_row(key, i, columns, p, expected.data() + i * stride);
      REQUIRE(bits.to_vector() == expected);
    }
  }
  device::DropoutArgs args{};
  args.p = 1.0f;
  args.rows = 1;
  args.cols = 1;
  REQUIRE(device::dropout_mask(args, nullptr) == cudaErrorInvalidValue);
}
