// mma and ldmatrix against products and matrices written out by hand.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace {

using namespace peft::cuda::kernels;
using peft::bf16;
using peft::f16;
using peft_emulator::Buffer;

struct MmaArgs {
  const std::uint16_t* a;  // [16, depth]
  const std::uint16_t* b;  // [depth, 8]
  float* d;                // [16, 8], added to
};

std::uint32_t pair(const std::uint16_t* low, const std::uint16_t* high) {
  return load(low) | (static_cast<std::uint32_t>(load(high)) << 16);
}

/// Fragments gathered element by element, as the PTX ISA draws them.
template <class T, int kDepth>
PEFT_KERNEL void mma_kernel(MmaArgs args) {
  const int g = lane_index() / 4;
  const int t = lane_index() % 4;
  std::uint32_t a[kDepth / 4];
  std::uint32_t b[kDepth / 8];
  for (int part = 0; part < kDepth / 8; ++part) {
    const int k = 8 * part + 2 * t;
    a[2 * part] = pair(args.a + g * kDepth + k, args.a + g * kDepth + k + 1);
    a[2 * part + 1] = pair(args.a + (g + 8) * kDepth + k, args.a + (g + 8) * kDepth + k + 1);
    b[part] = pair(args.b + k * 8 + g, args.b + (k + 1) * 8 + g);
  }
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = load(args.d + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2);
  if constexpr (kDepth == 16) {
    mma_16816<T>(d, a, b);
  } else {
    mma_1688_f16(d, a, b[0]);
  }
  for (int i = 0; i < 4; ++i) store(args.d + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2, d[i]);
}

template <class T, int kDepth>
void check_mma() {
  std::mt19937 random(kDepth);
  std::normal_distribution<float> normal;
  Buffer<std::uint16_t> a(16 * kDepth);
  Buffer<std::uint16_t> b(kDepth * 8);
  Buffer<float> d(16 * 8);
  std::vector<double> expected;
  std::vector<double> norm;
  for (auto& x : a) x = T(normal(random)).bits;
  for (auto& x : b) x = T(normal(random)).bits;
  for (auto& x : d) x = normal(random);
  const auto number = [](std::uint16_t bits) {
    T x;
    x.bits = bits;
    return static_cast<double>(static_cast<float>(x));
  };
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = static_cast<double>(d[row * 8 + column]);
      double size = std::fabs(sum);
      for (int k = 0; k < kDepth; ++k) {
        const double product = number(a[row * kDepth + k]) * number(b[k * 8 + column]);
        sum += product;
        size += std::fabs(product);
      }
      expected.push_back(sum);
      norm.push_back(size);
    }
  }
  REQUIRE(launch<mma_kernel<T, kDepth>>(Grid{}, 32, 0, nullptr, MmaArgs{a.data(), b.data(), d.data()}) == cudaSuccess);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::fabs(static_cast<double>(d[static_cast<std::ptrdiff_t>(i)]) - expected[i]) <= norm[i] * 0x1p-23);
  }
  REQUIRE_CLEAN();
}

TEST_CASE("mma multiplies the fragments of the PTX ISA", "[cuda]") {
  check_mma<f16, 16>();
  check_mma<bf16, 16>();
  check_mma<f16, 8>();
}

struct MatrixArgs {
  std::uint32_t* r;  // [32, 4]
  int mode;
};

/// Shared memory holds 32 rows of 8 numbers, row·8 + column, rows 16 bytes apart.
PEFT_KERNEL void matrix_kernel(MatrixArgs args) {
  const auto rows = shared_memory().at<std::uint16_t>(0);
  const int lane = lane_index();
  for (int i = 0; i < 8; ++i) rows.store(8 * lane + i, static_cast<std::uint16_t>(8 * lane + i));
  sync_warp();
  std::uint32_t four[4] = {};
  std::uint32_t two[2] = {};
  if (args.mode == 0) {
    ldmatrix_x4(four, rows + 8 * lane);
  } else if (args.mode == 1) {
    ldmatrix_x4_trans(four, rows + 8 * lane);
  } else if (args.mode == 2) {
    ldmatrix_x2(two, rows + 8 * (lane % 16));
  } else {
    ldmatrix_x2_trans(two, rows + 8 * (lane % 16));
  }
  if (args.mode >= 2) {
    four[0] = two[0];
    four[1] = two[1];
  }
  store(reinterpret_cast<Vec<std::uint32_t, 4>*>(args.r) + lane, Vec<std::uint32_t, 4>{{four[0], four[1], four[2], four[3]}});
}

TEST_CASE("ldmatrix gives rows or columns of each 8 by 8 matrix", "[cuda]") {
  for (int mode = 0; mode < 4; ++mode) {
    Buffer<std::uint32_t> r(32 * 4);
    REQUIRE(launch<matrix_kernel>(Grid{}, 32, 512, nullptr, MatrixArgs{r.data(), mode}) == cudaSuccess);
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < (mode < 2 ? 4 : 2); ++matrix) {
        const auto at = [&](int row, int column) { return static_cast<std::uint32_t>(64 * matrix + 8 * row + column); };
        const int g = lane / 4;
        const int t = 2 * (lane % 4);
        const bool transposed = mode % 2 == 1;
        const std::uint32_t low = transposed ? at(t, g) : at(g, t);
        const std::uint32_t high = transposed ? at(t + 1, g) : at(g, t + 1);
        CAPTURE(mode, lane, matrix);
        REQUIRE(r[4 * lane + matrix] == (low | (high << 16)));
      }
    }
    // Eight rows of 16 bytes that follow each other fill the 32 banks once: no conflict.
    REQUIRE(peft_emulator::last_report().bank_conflicts == 3 * 8);  // the byte-wise stores above: lanes 4 words apart
    REQUIRE_CLEAN();
  }
}

}  // namespace
