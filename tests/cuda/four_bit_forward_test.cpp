// y = x·Wᵀ + bias + scale·s·bᵀ and dx = dy·W + mask∘(ds·a) with W packed in four bits, every route, against sums in double of the
// weights that the route multiplies by.

#include <algorithm>
#include <cstring>

#include "four_bit_weight.hpp"
#include "peft/cuda/kernels/four_bit_linear.cuh"
#include "support/catch.hpp"

namespace {

using namespace four_bit_test;
using peft::bf16;
using peft::f16;

/// What varies beside the shape.
struct Case {
  Index m, out, in;
  int block;
  bool nested = false;
  Index r = 0;
  int sm = 80;
  Index offset = 0;  // of x and others from an aligned address, in elements
  bool bias = true;
  bool mask = true;
  peft::FourBitCode code = peft::FourBitCode::kNf4;
};

std::string text_of(const Case& c, const char* what, device::FourBitRoute route) {
  return std::string(what) + " route " + std::to_string(static_cast<int>(route)) + ": m " + std::to_string(c.m) + ", out " +
         std::to_string(c.out) + ", in " + std::to_string(c.in) + ", block " + std::to_string(c.block) + ", nested " +
         std::to_string(c.nested) + ", r " + std::to_string(c.r) + ", sm " + std::to_string(c.sm) + ", offset " +
         std::to_string(c.offset);
}

/// A matrix with a row stride that is no multiple of a vector where it starts off an aligned address.
template <class T>
struct Matrix {
  Index rows, columns, ld, offset;
  Buffer<T> memory;

  Matrix(Index rows_, Index columns_, Index offset_, unsigned seed, const char* name)
      : rows(rows_),
        columns(columns_),
        ld((columns_ + 7) / 8 * 8 + offset_),
        offset(offset_),
        memory(random_values<T>(rows_ == 0 ? 0 : (rows_ - 1) * ld + columns_ + offset_, seed), name) {}
  T* data() { return memory.data() + offset; }
  double operator()(Index i, Index j) const { return static_cast<double>(static_cast<float>(memory[offset + i * ld + j])); }
};

template <class T>
double as_stored(float value) {
  return static_cast<double>(static_cast<float>(T(value)));
}

/// Gives the bits of y.
template <class T>
std::vector<T> check_forward(const Case& c) {
  Weight w(c.out, c.in, c.block, c.nested, c.code);
  Matrix<T> x(c.m, c.in, c.offset, 2, "x"), s(c.m, c.r, c.offset, 3, "s"), b(c.out, c.r, c.offset, 4, "b");
  Matrix<T> y(c.m, c.out, c.offset, 5, "y");
  Buffer<T> bias(random_values<T>(c.out, 6), "bias");
  device::FourBitForwardArgs<T> args{};
  args.w = w.packed();
  args.x = x.data(), args.ldx = x.ld;
  args.bias = c.bias ? bias.data() : nullptr;
  args.s = s.data(), args.lds = s.ld;
  args.b = b.data(), args.ldb = b.ld;
  args.scale = 0.75f;
  args.y = y.data(), args.ldy = y.ld;
  args.m = c.m, args.r = c.r;
  args.sm = c.sm;
  Buffer<float> workspace(device::four_bit_forward_workspace<T>(args.w, c.m, c.sm) / 4, "workspace");
  args.workspace = workspace.data();
  const device::FourBitRoute route = device::four_bit_forward_route<T>(args.w, c.m, c.sm, c.offset == 0);
  INFO(text_of(c, "forward", route));
  REQUIRE(device::four_bit_forward(args, nullptr) == cudaSuccess);
  REQUIRE_CLEAN();
  for (Index i = 0; i < c.m; ++i) {
    for (Index o = 0; o < c.out; ++o) {
      double sum = 0, size = 0;
      for (Index k = 0; k < c.r; ++k) {
        const double term = 0.75 * s(i, k) * b(o, k);
        sum += term;
        size += std::abs(term);
      }
      for (Index k = 0; k < c.in; ++k) {
        double weight = as_stored<T>(w(o, k));
        if (route == device::FourBitRoute::kThin) weight = as_stored<T>(w.value(o, k)) * static_cast<double>(w.absmax(o, k));
        if (route == device::FourBitRoute::kFma) weight = static_cast<double>(w.value(o, k)) * static_cast<double>(w.absmax(o, k));
        const double term = x(i, k) * weight;
        sum += term;
        size += std::abs(term);
      }
      if (c.bias) {
        sum += static_cast<double>(static_cast<float>(bias[o]));
        size += std::abs(static_cast<double>(static_cast<float>(bias[o])));
      }
      const double bound = kUnit<T> * std::abs(sum) + 0x1p-24 * static_cast<double>(c.in + c.r + 1) * size;
      INFO("y(" << i << ", " << o << ") " << y(i, o) << ", expected " << sum);
      if (!(std::abs(y(i, o) - sum) <= bound)) REQUIRE(std::abs(y(i, o) - sum) <= bound);
    }
  }
  return y.memory.to_vector();
}

template <class T>
std::vector<T> check_gradient(const Case& c) {
  Weight w(c.out, c.in, c.block, c.nested, c.code);
  Matrix<T> dy(c.m, c.out, c.offset, 2, "dy"), ds(c.m, c.r, c.offset, 3, "ds"), a(c.r, c.in, c.offset, 4, "a");
  Matrix<T> dx(c.m, c.in, c.offset, 5, "dx");
  const Index stride = (c.in + 7) / 8 + 1;
  Buffer<std::uint8_t> mask(c.m * stride, "mask");
  std::mt19937 random(7);
  for (auto& byte : mask) byte = static_cast<std::uint8_t>(random());
  device::FourBitInputGradArgs<T> args{};
  args.w = w.packed();
  args.dy = dy.data(), args.lddy = dy.ld;
  args.ds = ds.data(), args.ldds = ds.ld;
  args.a = a.data(), args.lda = a.ld;
  args.mask = c.mask ? mask.data() : nullptr;
  args.mask_stride = stride;
  args.mask_scale = 1.25f;
  args.dx = dx.data(), args.lddx = dx.ld;
  args.m = c.m, args.r = c.r;
  args.sm = c.sm;
  Buffer<float> workspace(device::four_bit_input_grad_workspace<T>(args.w, c.m, c.sm) / 4, "workspace");
  args.workspace = workspace.data();
  INFO(text_of(c, "gradient", device::four_bit_input_grad_route<T>(args.w, c.sm, c.offset == 0 && c.out % 8 == 0)));
  REQUIRE(device::four_bit_input_grad(args, nullptr) == cudaSuccess);
  REQUIRE_CLEAN();
  for (Index i = 0; i < c.m; ++i) {
    for (Index j = 0; j < c.in; ++j) {
      double sum = 0, size = 0;
      const bool is_kept = (mask[i * stride + j / 8] >> (j % 8)) & 1;
      for (Index k = 0; k < c.r && (is_kept || !c.mask); ++k) {
        const double term = ds(i, k) * a(k, j) * (c.mask ? 1.25 : 1.0);
        sum += term;
        size += std::abs(term);
      }
      for (Index k = 0; k < c.out; ++k) {
        const double term = dy(i, k) * as_stored<T>(w(k, j));
        sum += term;
        size += std::abs(term);
      }
      const double bound = kUnit<T> * std::abs(sum) + 0x1p-24 * static_cast<double>(c.out + c.r + 1) * size;
      INFO("dx(" << i << ", " << j << ") " << dx(i, j) << ", expected " << sum);
      if (!(std::abs(dx(i, j) - sum) <= bound)) REQUIRE(std::abs(dx(i, j) - sum) <= bound);
    }
  }
  return dx.memory.to_vector();
}

}  // namespace

TEST_CASE("four bits on the device: a few rows", "[cuda]") {
  check_forward<f16>({.m = 1, .out = 40, .in = 192, .block = 64, .r = 8});
  check_forward<bf16>({.m = 3, .out = 33, .in = 96, .block = 32, .nested = true, .r = 20, .offset = 1});
  check_forward<f16>({.m = 8, .out = 5, .in = 1152, .block = 128, .nested = true, .bias = false});
  check_forward<f16>({.m = 9, .out = 32, .in = 64, .block = 32, .r = 3, .code = peft::FourBitCode::kFp4});
  check_forward<bf16>({.m = 16, .out = 37, .in = 256, .block = 256, .r = 16});
  check_forward<f16>({.m = 2, .out = 8, .in = 2112, .block = 64, .nested = true, .r = 16});  // k in two parts
  check_forward<float>({.m = 1, .out = 40, .in = 192, .block = 64, .r = 8});
  check_forward<float>({.m = 3, .out = 33, .in = 96, .block = 32, .nested = true, .r = 5, .offset = 1});
  check_forward<bf16>({.m = 4, .out = 32, .in = 128, .block = 64, .r = 5, .sm = 75});
  // A warp meets another nested maximum on its way along a row.
  check_forward<f16>({.m = 2, .out = 8, .in = 1088, .block = 32, .nested = true});
  check_forward<float>({.m = 2, .out = 16, .in = 1088, .block = 64, .nested = true});
}

TEST_CASE("four bits on the device: many rows on tensor cores", "[cuda]") {
  check_forward<f16>({.m = 17, .out = 40, .in = 192, .block = 64, .r = 8});
  check_forward<bf16>({.m = 33, .out = 300, .in = 96, .block = 32, .nested = true, .r = 20, .offset = 1});
  check_forward<f16>({.m = 70, .out = 36, .in = 1024, .block = 128, .nested = true, .r = 16});  // k in two parts
  check_forward<f16>({.m = 20, .out = 33, .in = 128, .block = 64, .r = 4, .sm = 75, .code = peft::FourBitCode::kFp4});
}

TEST_CASE("four bits on the device: the gradient on tensor cores", "[cuda]") {
  check_gradient<f16>({.m = 1, .out = 40, .in = 192, .block = 64, .r = 8});
  check_gradient<bf16>({.m = 70, .out = 136, .in = 96, .block = 32, .nested = true, .r = 20, .offset = 1});
  check_gradient<f16>({.m = 9, .out = 1024, .in = 128, .block = 128, .nested = true, .r = 16, .mask = false});  // two parts
  check_gradient<f16>({.m = 20, .out = 33, .in = 640, .block = 64, .r = 3, .sm = 75, .code = peft::FourBitCode::kFp4});
}

TEST_CASE("four bits on the device: the route for what tensor cores do not take", "[cuda]") {
  check_forward<float>({.m = 6, .out = 70, .in = 96, .block = 32, .nested = true, .r = 8});
  check_forward<f16>({.m = 2, .out = 35, .in = 75, .block = 64, .r = 5, .offset = 1});
  check_forward<bf16>({.m = 66, .out = 9, .in = 200, .block = 64, .nested = true, .r = 8});
  check_forward<bf16>({.m = 6, .out = 70, .in = 96, .block = 32, .r = 8, .sm = 75});
  check_forward<float>({.m = 5, .out = 7, .in = 601, .block = 32, .r = 3});  // in two parts
  check_gradient<float>({.m = 6, .out = 70, .in = 96, .block = 32, .nested = true, .r = 8});
  check_gradient<f16>({.m = 2, .out = 35, .in = 75, .block = 64, .r = 5, .offset = 1});
  check_gradient<bf16>({.m = 66, .out = 9, .in = 200, .block = 64, .nested = true, .r = 8, .mask = false});
  check_gradient<bf16>({.m = 6, .out = 70, .in = 96, .block = 32, .r = 8, .sm = 75});
}

TEST_CASE("four bits on the device: the same bits in any order of threads and blocks", "[cuda]") {
  const Case few{.m = 5, .out = 40, .in = 2112, .block = 64, .nested = true, .r = 8};
  const Case many{.m = 20, .out = 40, .in = 1088, .block = 64, .nested = true, .r = 8};
  const Case flat{.m = 3, .out = 9, .in = 200, .block = 64, .r = 8};
  const auto all = [&] {
    return std::vector<std::vector<f16>>{check_forward<f16>(few), check_forward<f16>(many), check_gradient<f16>(many),
                                         check_forward<f16>(flat)};
  };
  const auto expected = all();
  for (const std::uint64_t seed : {1u, 2u}) {
    peft_emulator::WithOptions shuffled({.seed = seed, .random_schedule = true});
    const auto got = all();
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(std::memcmp(got[i].data(), expected[i].data(), expected[i].size() * sizeof(f16)) == 0);
    }
  }
}

TEST_CASE("four bits on the device: weights are read once, without bank conflicts", "[cuda]") {
  using peft_emulator::Access;
  // Sectors of 32 bytes that the lines of one file, or one line, load.
  const auto sectors = [](Access access) {
    std::int64_t sum = 0;
    for (const auto& line : peft_emulator::last_report().lines) sum += line.access == access ? line.sectors : 0;
    return sum;
  };
  for (const bool nested : {false, true}) {
    for (const Index m : {1, 4, 16}) {
      const Case c{.m = m, .out = 64, .in = 1024, .block = 64, .nested = nested, .bias = false};
      check_forward<f16>(c);
      const auto& report = peft_emulator::last_report();
      const std::int64_t rows = c.out / 32, bricks = rows * c.in / 64;
      const std::int64_t codes = c.out * c.in / 2 / 32;
      // A nested maximum belongs to 256 blocks; lanes that share a sector read it at once.
      const std::int64_t scales = nested ? c.out * c.in / c.block / 32 + 4 * device::kGemvWarps * rows : c.out * c.in / c.block * 4 / 32;
      const std::int64_t x = m * c.in * 2 / 32;  // from L2 once for each row of bricks
      const std::int64_t map = nested ? 32 * rows : 0;
      INFO("m " << m << ", nested " << nested << "\n" << report.counts_text());
      CHECK(sectors(Access::kGlobalLoad) <= codes + scales + map + rows * x);
      // What memory has to give: codes, maxima, x and y once. A weight of a usual size has many rows of bricks to a map.
      const double read = static_cast<double>(sectors(Access::kGlobalLoad) - map - (rows - 1) * x + sectors(Access::kGlobalStore));
      const double least = static_cast<double>(codes + (nested ? c.out * c.in / c.block / 32 : scales) + x + m * c.out * 2 / 32);
      CHECK(read <= 1.05 * least + (nested ? 4.0 * device::kGemvWarps * static_cast<double>(rows) : 0.0));
      // The table: a pass for each look-up of 32 lanes, 32 a brick, and none besides.
      std::int64_t conflicts = report.bank_conflicts, look_ups = 0;
      for (const auto& line : report.lines) {
        if (line.access != Access::kSharedLoad || line.file.find("four_bit_decode") == std::string::npos) continue;
        // Of the nested map there is one copy: four look-ups a brick.
        if (nested && line.instructions == 4 * bricks) conflicts -= line.conflicts;
        if (line.instructions == 32 * bricks) look_ups += line.transactions;
      }
      CHECK(look_ups == 32 * bricks);
      CHECK(conflicts == 0);
    }
  }
  for (const Index m : {64, 20}) {
    check_forward<f16>({.m = m, .out = 64, .in = 256, .block = 64, .r = 16, .bias = false});
    CHECK(peft_emulator::last_report().bank_conflicts == 0);
    check_gradient<bf16>({.m = m, .out = 64, .in = 256, .block = 64, .r = 16});
    CHECK(peft_emulator::last_report().bank_conflicts == 0);
  }
  check_forward<float>({.m = 1, .out = 64, .in = 256, .block = 64, .bias = false});
  CHECK(peft_emulator::last_report().bank_conflicts == 0);
  check_forward<float>({.m = 20, .out = 64, .in = 256, .block = 64, .bias = false});
  CHECK(peft_emulator::last_report().bank_conflicts == 0);
}

TEST_CASE("four bits on the device: tiles of any height give the same bits", "[cuda]") {
  constexpr Index kRows = 130, kOut = 40, kIn = 192, kRank = 8;
  Weight w(kOut, kIn, 64, true);
  Matrix<f16> x(kRows, kIn, 0, 2, "x"), s(kRows, kRank, 0, 3, "s"), b(kOut, kRank, 0, 4, "b");
  Buffer<f16> wide(kRows * kOut, "y"), middle(kRows * kOut, "y"), slim(kRows * kOut, "y");
  device::FourBitGemmArgs<f16> args{};
  args.w = w.packed();
  args.x = x.data(), args.ldx = x.ld;
  args.left = s.data(), args.ldleft = s.ld;
  args.right = b.data(), args.ldright = b.ld;
  args.scale = 0.5f;
  args.ldy = kOut;
  args.m = kRows, args.r = kRank;
  args.steps_per_part = 3;
  args.x_aligned = args.low_rank_aligned = args.y_aligned = true;
  args.y = wide.data();
  REQUIRE(device::detail::launch_gemm<f16, device::detail::FourBitWide>(args, {1, 2, 1}, nullptr) == cudaSuccess);
  args.y = middle.data();
  REQUIRE(device::detail::launch_gemm<f16, device::detail::FourBitMiddle>(args, {1, 3, 1}, nullptr) == cudaSuccess);
  args.y = slim.data();
  REQUIRE(device::detail::launch_gemm<f16, device::detail::FourBitSlim>(args, {1, 5, 1}, nullptr) == cudaSuccess);
  REQUIRE_CLEAN();
  CHECK(std::memcmp(wide.data(), middle.data(), wide.bytes()) == 0);
  CHECK(std::memcmp(wide.data(), slim.data(), wide.bytes()) == 0);
}

TEST_CASE("four bits on the device: what is no product is refused", "[cuda]") {
  Weight w(8, 64, 64, false);
  Buffer<f16> x(64, "x"), y(8, "y");
  device::FourBitForwardArgs<f16> args{};
  args.w = w.packed();
  args.x = x.data(), args.ldx = 64;
  args.y = y.data(), args.ldy = 8;
  args.m = 0;
  CHECK(device::four_bit_forward(args, nullptr) == cudaSuccess);  // nothing to do
  args.m = -1;
  CHECK(device::four_bit_forward(args, nullptr) == cudaErrorInvalidValue);
  args.m = 1;
  args.w.block_size = 48;
  CHECK(device::four_bit_forward(args, nullptr) == cudaErrorInvalidValue);
  args.w.block_size = 64;
  args.w.in = 4096;  // k is cut, and there is no workspace
  args.ldx = 4096;
  CHECK(device::four_bit_forward_workspace<f16>(args.w, 1, 80) > 0);
  CHECK(device::four_bit_forward(args, nullptr) == cudaErrorInvalidValue);
}
