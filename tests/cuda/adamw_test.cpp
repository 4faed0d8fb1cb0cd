// AdamW on the device, in 32 and 8 bits, and the norm of all gradients, against the CPU's kernels: bit for bit where these
// fuse multiply and add (all instruction sets but the scalar one on x86-64), else against the same formula here.

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "peft/cuda/kernels/adamw_8bit.cuh"
#include "peft/kernels/adamw.hpp"
#include "support/catch.hpp"

namespace {

namespace device = peft::cuda::kernels;
using peft::bf16;
using peft::f16;
using peft::Index;
using peft_emulator::Buffer;

std::vector<float> normal(Index n, unsigned seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0.0f, deviation);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = draw(random);
  return values;
}

peft::kernels::AdamWStep step_of(int t) {
  peft::kernels::AdamWStep step;
  step.lr = 3e-3;
  step.weight_decay = 0.1;
  step.bias_correction1 = 1.0 - std::pow(step.beta1, t);
  step.bias_correction2 = 1.0 - std::pow(step.beta2, t);
  step.grad_scale = 0.625;
  return step;
}
device::AdamWScalars scalars_of(const peft::kernels::AdamWStep& step) {
  return std::bit_cast<device::AdamWScalars>(peft::kernels::adamw_floats(step));
}

bool fuses() {
  return peft::kernels::active_isa() != peft::kernels::Isa::kScalar;
}

/// The update as adamw.hpp has it, products and sums fused.
void fused_step(const peft::kernels::AdamWStep& step, std::vector<float>& p, const std::vector<float>& grad, std::vector<float>& m,
                std::vector<float>& v) {
  const auto s = peft::kernels::adamw_floats(step);
  for (std::size_t i = 0; i < p.size(); ++i) {
    const float g = grad[i] * s.grad_scale;
    m[i] = std::fma(s.beta1, m[i], s.one_minus_beta1 * g);
    const float square = g * g;
    v[i] = std::fma(s.beta2, v[i], s.one_minus_beta2 * square);
    p[i] = std::fma(-s.step_size, m[i] / std::fma(std::sqrt(v[i]), s.inverse_root_correction2, s.eps), p[i] * s.decay);
  }
}

bool same_bits(const float* a, const float* b, Index n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}

template <class T>
bool is_copy(const Buffer<T>& copy, const std::vector<float>& p) {
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (copy[static_cast<Index>(i)].bits != T(p[i]).bits) return false;
  }
  return true;
}

struct Tables {
  Buffer<float> m_value, v_value;
  Buffer<std::uint32_t> m_word, v_word;

  Tables()
      : m_value(256), v_value(256), m_word(device::kEightBitSignedWords), v_word(device::kEightBitUnsignedBuckets) {
    const auto& m = peft::kernels::signed_eight_bit_table();
    const auto& v = peft::kernels::unsigned_eight_bit_table();
    std::copy_n(m.value, 256, m_value.data());
    std::copy_n(v.value, 256, v_value.data());
    std::copy_n(m.word, m_word.size(), m_word.data());
    std::copy_n(v.word, v_word.size(), v_word.data());
  }
  device::EightBitTables view() const { return {m_value.data(), m_word.data(), v_value.data(), v_word.data()}; }
};

using Table = peft::kernels::EightBitTable;
static_assert(Table::kFirst == device::kEightBitFirst && Table::kLast == device::kEightBitLast &&
              Table::kSignedShift == device::kEightBitSignedShift &&
              Table::kUnsignedShift == device::kEightBitUnsignedShift &&
              Table::kSignedBuckets == device::kEightBitSignedBuckets &&
              Table::kBuckets == device::kEightBitUnsignedBuckets &&
              peft::kernels::kEightBitBlock == device::kEightBitBlock);
static_assert(sizeof(device::AdamWScalars) == sizeof(peft::kernels::AdamWFloats));

/// Sectors of all launches since the last call, beside `bytes` that the kernel has to move.
void require_bytes(const peft_emulator::Report& report, double bytes) {
  INFO(report.counts_text());
  REQUIRE(static_cast<double>(report.global_sectors) * 32 <= 1.05 * bytes);
}

}  // namespace

TEST_CASE("AdamW on the device has the CPU's bits", "[cuda][adamw]") {
  for (const unsigned seed : {1u, 2u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    for (const Index n : {1, 5, 1024, 2051, 4096 + 8}) {
      auto p = normal(n, seed, 0.1f), m = normal(n, seed + 10, 0.01f), v = normal(n, seed + 20, 0.01f);
      for (float& value : v) value *= value;
      Buffer<float> dp(p, "param"), dm(m, "m"), dv(v, "v");
      Buffer<bf16> copy(n, "copy");
      for (int t = 1; t <= 2; ++t) {
        const auto grad = normal(n, seed + 30 + static_cast<unsigned>(t), 0.3f);
        const Buffer<float> dg(grad, "grad");
        const auto step = step_of(t);
        device::AdamWArgs<bf16> args{};
        args.tensor = {dp.data(), dg.data(), dm.data(), dv.data(), copy.data(), n, 0};
        args.scalars = scalars_of(step);
        REQUIRE(device::adamw_step(args, nullptr) == cudaSuccess);
        if (fuses()) {
          peft::kernels::adamw_step(n, p.data(), grad.data(), m.data(), v.data(), step, {});
        } else {
          fused_step(step, p, grad, m, v);
        }
        REQUIRE(same_bits(dp.data(), p.data(), n));
        REQUIRE(same_bits(dm.data(), m.data(), n));
        REQUIRE(same_bits(dv.data(), v.data(), n));
        REQUIRE(is_copy(copy, p));
      }
    }
  }
  REQUIRE_CLEAN();
}

TEST_CASE("AdamW moves 28 bytes an element", "[cuda][adamw]") {
  constexpr Index n = 8192;
  Buffer<float> p(n, 0.5f), g(n, 0.25f), m(n, 0.0f), v(n, 0.0f);
  device::AdamWArgs<float> args{};
  args.tensor = {p.data(), g.data(), m.data(), v.data(), nullptr, n, 0};
  args.scalars = scalars_of(step_of(1));
  REQUIRE(device::adamw_step(args, nullptr) == cudaSuccess);
  require_bytes(peft_emulator::last_report(), 28.0 * n);
  REQUIRE_CLEAN();
}

TEST_CASE("AdamW takes many tensors, groups and a clip factor in one launch", "[cuda][adamw]") {
  const Index sizes[] = {4100, 3, 4096};
  const peft::kernels::AdamWStep steps[] = {step_of(1), step_of(5)};
  Buffer<float> clip(1, 0.5f);
  Buffer<device::AdamWScalars> scalars(2, "scalars");
  scalars[0] = scalars_of(steps[0]);
  scalars[1] = scalars_of(steps[1]);
  std::vector<std::vector<float>> p, m, v, g;
  Buffer<float> memory(4 * 3 * 4104, "memory");
  Buffer<f16> copy(4104, "copy");
  Buffer<device::AdamWTensor<f16>> tensors(3, "tensors");
  std::vector<device::TensorChunk> chunks;
  for (int i = 0; i < 3; ++i) {
    const Index n = sizes[i];
    p.push_back(normal(n, 1 + static_cast<unsigned>(i), 1.0f));
    g.push_back(normal(n, 11 + static_cast<unsigned>(i), 1.0f));
    m.emplace_back(n, 0.0f);
    v.emplace_back(n, 0.0f);
    // The last tensor is not aligned to 16 bytes.
    float* at = memory.data() + i * 4 * 4104 + (i == 2 ? 1 : 0);
    std::copy(p.back().begin(), p.back().end(), at);
    std::copy(g.back().begin(), g.back().end(), at + 4104);
    std::fill_n(at + 2 * 4104, n, 0.0f);
    std::fill_n(at + 3 * 4104, i == 2 ? n - 1 : n, 0.0f);
    if (i == 2) at[3 * 4104 - 1 + n] = 0.0f;
    tensors[i] = {at, at + 4104, at + 2 * 4104, at + 3 * 4104, i == 0 ? copy.data() : nullptr, n, i == 1 ? 1 : 0};
    for (Index c = 0; c < device::tensor_chunks(n); ++c) chunks.push_back({i, static_cast<std::int32_t>(c)});
  }
  const Buffer<device::TensorChunk> device_chunks(chunks, "chunks");
  device::AdamWArgs<f16> args{};
  args.tensors = tensors.data();
  args.chunks = device_chunks.data();
  args.chunk_count = static_cast<int>(chunks.size());
  args.scalars_from = scalars.data();
  args.clip = clip.data();
  REQUIRE(device::adamw_step(args, nullptr) == cudaSuccess);
  for (std::size_t i = 0; i < 3; ++i) {
    auto step = steps[i == 1 ? 1 : 0];
    step.grad_scale *= 0.5;  // exact
    fused_step(step, p[i], g[i], m[i], v[i]);
    const auto& one = tensors[static_cast<Index>(i)];
    REQUIRE(same_bits(one.param, p[i].data(), one.n));
    REQUIRE(same_bits(one.m, m[i].data(), one.n));
    REQUIRE(same_bits(one.v, v[i].data(), one.n));
  }
  REQUIRE(copy[4099].bits == f16(p[0][4099]).bits);
  REQUIRE_CLEAN();
}

TEST_CASE("AdamW in 8 bits has the CPU's codes, maxima and parameters", "[cuda][adamw]") {
  const Tables tables;
  peft_emulator::Options options;
  options.seed = 3;
  options.random_schedule = true;
  const peft_emulator::WithOptions with(options);
  for (const Index n : {7, 256, 700, 4096 + 300}) {
    const Index blocks = (n + 255) / 256;
    auto p = normal(n, 4, 0.1f);
    std::vector<std::uint8_t> m(static_cast<std::size_t>(n)), v(m);
    std::vector<float> m_absmax(static_cast<std::size_t>(blocks)), v_absmax(m_absmax);
    Buffer<float> dp(p, "param"), dma(m_absmax, "m_absmax"), dva(v_absmax, "v_absmax");
    Buffer<std::uint8_t> dm(m, "m"), dv(v, "v");
    Buffer<bf16> copy(n, "copy");
    for (int t = 1; t <= 3; ++t) {
      auto grad = normal(n, 40 + static_cast<unsigned>(t), 0.3f);
      // Sizes of many decades, and a block of zeros.
      for (std::size_t i = 0; i < grad.size(); ++i) grad[i] *= std::exp2(-static_cast<float>(i % 24));
      if (n > 512) std::fill(grad.begin() + 256, grad.begin() + 512, 0.0f);
      const Buffer<float> dg(grad, "grad");
      const auto step = step_of(t);
      device::AdamW8bitArgs<bf16> args{};
      args.tensor = {dp.data(), dg.data(), dm.data(), dv.data(), dma.data(), dva.data(), copy.data(), n, 0};
      args.scalars = scalars_of(step);
      args.tables = tables.view();
      REQUIRE(device::adamw_8bit_step(args, nullptr) == cudaSuccess);
      if (!fuses()) continue;
      peft::kernels::adamw_step(n, p.data(), grad.data(),
                                peft::kernels::EightBitMoments{m.data(), v.data(), m_absmax.data(), v_absmax.data()}, step, {});
      REQUIRE(same_bits(dp.data(), p.data(), n));
      REQUIRE(same_bits(dma.data(), m_absmax.data(), blocks));
      REQUIRE(same_bits(dva.data(), v_absmax.data(), blocks));
      REQUIRE(dm.to_vector() == m);
      REQUIRE(dv.to_vector() == v);
      REQUIRE(is_copy(copy, p));
    }
  }
  REQUIRE_CLEAN();
}

TEST_CASE("AdamW in 8 bits takes many tensors, aligned or not", "[cuda][adamw]") {
  const Tables tables;
  // One tensor of two chunks and one that begins off a boundary of 16 bytes.
  const Index sizes[] = {4096 + 256, 256};
  Buffer<float> memory(4 * 4400, 0.0f, "memory");
  Buffer<std::uint8_t> codes(4 * 4400, std::uint8_t{0}, "codes");
  Buffer<float> absmax(4 * 18, 0.0f, "absmax");
  Buffer<device::AdamW8bitTensor<float>> tensors(2, "tensors");
  Buffer<device::TensorChunk> chunks(3, "chunks");
  chunks[0] = {0, 0};
  chunks[1] = {0, 1};
  chunks[2] = {1, 0};
  for (int i = 0; i < 2; ++i) {
    float* const at = memory.data() + i * 2 * 4400 + (i == 1 ? 1 : 0);
    std::uint8_t* const code = codes.data() + i * 2 * 4400;
    const auto p = normal(sizes[i], 5, 0.1f), g = normal(sizes[i], 6, 0.1f);
    std::copy(p.begin(), p.end(), at);
    std::copy(g.begin(), g.end(), at + 4399);
    tensors[i] = {at,      at + 4399, code, code + 4400, absmax.data() + i * 36, absmax.data() + i * 36 + 18,
                  nullptr, sizes[i],  0};
  }
  device::AdamW8bitArgs<float> args{};
  args.tensors = tensors.data();
  args.chunks = chunks.data();
  args.chunk_count = 3;
  args.scalars = scalars_of(step_of(1));
  args.tables = tables.view();
  REQUIRE(device::adamw_8bit_step(args, nullptr) == cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    const auto step = step_of(1);
    auto p = normal(sizes[i], 5, 0.1f);
    const auto g = normal(sizes[i], 6, 0.1f);
    std::vector<float> m(p.size(), 0.0f), v(m);
    fused_step(step, p, g, m, v);
    REQUIRE(same_bits(tensors[i].param, p.data(), sizes[i]));
    for (Index j = 0; j < sizes[i]; ++j) {
      const auto place = static_cast<std::size_t>(j);
      const float largest = tensors[i].m_absmax[j / 256];
      REQUIRE(tensors[i].m[j] == peft::kernels::nearest_in(peft::kernels::dynamic_map(), m[place] * (1.0f / largest)));
    }
  }
  REQUIRE_CLEAN();
}

TEST_CASE("Blocks of fewer than 256 are divided by their maximum, others multiplied by its reciprocal", "[cuda][adamw]") {
  const Tables tables;
  // A number on a threshold, which the reciprocal's rounding carries over it.
  const auto& map = peft::kernels::dynamic_map();
  float largest = 0.0f, x = 0.0f;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> draw(1.0f, 2.0f);
  const float threshold = peft::kernels::threshold_above(map, 200);
  while (x == 0.0f) {
    largest = draw(random);
    const float product = threshold * largest;
    if (product / largest <= threshold && product * (1.0f / largest) > threshold) x = product;
  }
  for (const Index n : {2, 256}) {
    std::vector<float> grad(static_cast<std::size_t>(n), 0.0f);
    grad[0] = largest;
    grad[1] = x;
    const Buffer<float> g(grad);
    Buffer<float> p(n, 0.0f), m_absmax(1, 0.0f), v_absmax(1, 0.0f);
    Buffer<std::uint8_t> m(n, std::uint8_t{0}), v(n, std::uint8_t{0});
    device::AdamW8bitArgs<float> args{};
    args.tensor = {p.data(), g.data(), m.data(), v.data(), m_absmax.data(), v_absmax.data(), nullptr, n, 0};
    args.scalars = {0.0f, 1.0f, 0.0f, 1.0f, 0.1f, 1.0f, 1e-8f, 1.0f, 1.0f};  // m is the gradient
    args.tables = tables.view();
    REQUIRE(device::adamw_8bit_step(args, nullptr) == cudaSuccess);
    REQUIRE(m_absmax[0] == largest);
    REQUIRE(m[1] == (n == 2 ? 200 : 201));
  }
  REQUIRE_CLEAN();
}

TEST_CASE("AdamW in 8 bits moves 16 bytes an element and 16 a block", "[cuda][adamw]") {
  const Tables tables;
  constexpr Index n = 4 * 4096;
  Buffer<float> p(n, 0.5f), g(n, 0.25f), m_absmax(n / 256, 0.0f), v_absmax(n / 256, 0.0f);
  Buffer<std::uint8_t> m(n, std::uint8_t{0}), v(n, std::uint8_t{0});
  device::AdamW8bitArgs<float> args{};
  args.tensor = {p.data(), g.data(), m.data(), v.data(), m_absmax.data(), v_absmax.data(), nullptr, n, 0};
  args.scalars = scalars_of(step_of(1));
  args.tables = tables.view();
  REQUIRE(device::adamw_8bit_step(args, nullptr) == cudaSuccess);
  // Every one of the eight thread blocks has read the tables.
  require_bytes(peft_emulator::last_report(), 16.0625 * n + 8 * device::kAdamW8bitSharedBytes);
  // Equal numbers look up one word.
  REQUIRE(peft_emulator::last_report().bank_conflicts == 0);
  // Random ones meet in banks, in look-ups only: 3.4 passes on average where 32 lanes draw from 32 banks.
  const auto random = normal(n, 8, 0.3f);
  std::copy(random.begin(), random.end(), g.begin());
  for (int t = 1; t <= 2; ++t) REQUIRE(device::adamw_8bit_step(args, nullptr) == cudaSuccess);
  std::int64_t look_ups = 0, passes = 0;
  const auto& report = peft_emulator::last_report();
  INFO(report.counts_text());
  for (const auto& line : report.lines) {
    if (line.access == peft_emulator::Access::kSharedStore) REQUIRE(line.conflicts == 0);
    if (line.access == peft_emulator::Access::kSharedLoad) {
      look_ups += line.instructions;
      passes += line.transactions;
    }
  }
  REQUIRE(look_ups == 4 * n / 32);
  REQUIRE(passes <= 35 * look_ups / 10);
  REQUIRE_CLEAN();
}

TEST_CASE("The norm of gradients moves 4 bytes an element", "[cuda][adamw]") {
  constexpr Index n = 2 * 4096;
  const Buffer<float> g(n, 0.25f);
  Buffer<double> workspace(2, "workspace");
  Buffer<float> result(2, "result");
  device::SquaredNormArgs args{};
  args.buffer = {g.data(), n};
  args.chunk_count = 2;
  args.workspace = workspace.data();
  args.result = result.data();
  peft_emulator::take_report();
  REQUIRE(device::squared_norm(args, nullptr) == cudaSuccess);
  const auto report = peft_emulator::take_report();
  require_bytes(report, 4.0 * n);
  REQUIRE(report.bank_conflicts == 0);
}

TEST_CASE("The norm of all gradients and the clip factor", "[cuda][adamw]") {
  const Index sizes[] = {4096, 1, 5003};
  Buffer<float> memory(3 * 5008, "memory");
  Buffer<device::SquaredNormBuffer> buffers(3, "buffers");
  std::vector<device::TensorChunk> chunks;
  double exact = 0.0;
  for (int i = 0; i < 3; ++i) {
    const auto values = normal(sizes[i], 50 + static_cast<unsigned>(i), 2.0f);
    float* const at = memory.data() + i * 5008 + (i == 2 ? 1 : 0);
    std::copy(values.begin(), values.end(), at);
    buffers[i] = {at, sizes[i]};
    for (const float value : values) exact += static_cast<double>(value) * value;
    for (Index c = 0; c < device::tensor_chunks(sizes[i]); ++c) chunks.push_back({i, static_cast<std::int32_t>(c)});
  }
  exact = std::sqrt(exact);
  const Buffer<device::TensorChunk> device_chunks(chunks, "chunks");
  Buffer<double> workspace(static_cast<Index>(chunks.size()), "workspace");
  Buffer<float> result(2, "result");
  device::SquaredNormArgs args{};
  args.buffers = buffers.data();
  args.chunks = device_chunks.data();
  args.chunk_count = static_cast<int>(chunks.size());
  args.workspace = workspace.data();
  args.max_norm = 1.5f;
  args.result = result.data();
  float first[2] = {};
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    peft_emulator::Options options;
    options.seed = seed;
    options.random_schedule = true;
    const peft_emulator::WithOptions with(options);
    REQUIRE(device::squared_norm(args, nullptr) == cudaSuccess);
    // Squares and sums of four are rounded in float: 3 units in the square, 1.5 in the root, and the root's own.
    REQUIRE(std::abs(result[0] - exact) <= 2.0 * 0x1p-24 * exact);
    REQUIRE(std::abs(result[1] - 1.5 / (exact + 1e-6)) <= 4.0 * 0x1p-24 * result[1]);
    if (seed == 1) std::copy_n(result.data(), 2, first);
    REQUIRE(same_bits(result.data(), first, 2));
  }
  args.max_norm = 1e9f;
  REQUIRE(device::squared_norm(args, nullptr) == cudaSuccess);
  REQUIRE(result[1] == 1.0f);
  *(memory.data() + 5) = std::bit_cast<float>(0x7FC00000u);
  REQUIRE(device::squared_norm(args, nullptr) == cudaSuccess);
  REQUIRE(result[0] != result[0]);
  REQUIRE(result[1] != result[1]);
  args.buffers = nullptr;
  args.buffer = buffers[2];
  args.chunk_count = 2;
  REQUIRE(device::squared_norm(args, nullptr) == cudaSuccess);
  REQUIRE(result[0] > 100.0f);
  REQUIRE_CLEAN();
}
