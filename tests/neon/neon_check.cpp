// The kernels of NEON against the scalar ones, for all shapes modulo vectors and tiles; run under qemu-user where the processor
// is another. AArch64 has the fused product, which the scalar kernels use there as well: what makes an element from elements has
// the same bits. Sums of n terms differ by at most 2·n·2^-24·Σ|terms|, products of matrices from those in double by half of it.
// A program of its own, without a test library: there is none for a cross compiler.
//   neon_check          exit status 1 where a check fails, 2 where PEFT_FORCE_ISA is refused

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/kernels/block_format.hpp"
#include "peft/kernels/dynamic_map.hpp"
#include "peft/kernels/eight_bit_tables.hpp"
#include "peft/kernels/gemm.hpp"

using namespace peft;
using kernels::KernelTable;

namespace {

int failures = 0, checks = 0;
const KernelTable& one = kernels::table_of(kernels::Isa::kScalar);
const KernelTable& neon = kernels::table_of(kernels::Isa::kNeon);

void require(bool holds, const char* what, Index a = 0, Index b = 0, Index c = 0) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED %s at %ld, %ld, %ld\n", what, long{a}, long{b}, long{c});
}

using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;
constexpr float kGuard = 7.0f;

/// n numbers and eight guards.
Floats numbers(Philox& rng, Index n, float size = 2.0f) {
  Floats x(static_cast<std::size_t>(n + 8), kGuard);
  for (Index i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = rng.uniform(-size, size);
  return x;
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
/// Runs `f(table, out)` with both tables on copies of `out`.
template <class Out, class F>
void bits(const char* what, Index n, const Out& out, F&& f) {
  Out a = out, b = out;
  f(one, a);
  f(neon, b);
  require(same(a, b), what, n);
}
/// f(table) is a sum of n terms whose sizes add up to `size`.
template <class F>
void sums(const char* what, Index n, double size, F&& f) {
  const double a = static_cast<double>(f(one)), b = static_cast<double>(f(neon));
  require(std::fabs(a - b) <= 2.0 * static_cast<double>(n + 4) * 0x1p-24 * size, what, n);
}

void check_rows(Index n) {
  Philox rng(static_cast<std::uint64_t>(n));
  const Floats x = numbers(rng, n), y = numbers(rng, n), z = numbers(rng, n);
  for (const DType type : {DType::kF16, DType::kBF16}) {
    Floats wild = x;
    for (Index i = 0; i < n; ++i) {
      float& value = wild[static_cast<std::size_t>(i)];
      value = i % 11 == 3 ? HUGE_VALF : std::ldexp(value, static_cast<int>(rng.below(60)) - 30);
    }
    std::vector<std::uint16_t> half(x.size(), 0xABCD);
    bits("narrow", n, half, [&](const KernelTable& t, auto& out) { t.narrow(n, wild.data(), type, out.data()); });
    one.narrow(n, wild.data(), type, half.data());
    bits("widen", n, x, [&](const KernelTable& t, Floats& out) { t.widen(n, half.data(), type, out.data()); });
  }
  Bytes mask(static_cast<std::size_t>(n / 8 + 40), 0xA5);
  const kernels::DropoutRow row{{3, 1, 4}, {15, 92}, 6536};
  bits("dropout_row", n, mask, [&](const KernelTable& t, Bytes& out) { t.dropout_row((n + 7) / 8, row, out.data()); });
  one.dropout_row((n + 7) / 8, row, mask.data());
  bits("apply_mask", n, x, [&](const KernelTable& t, Floats& out) { t.apply_mask(n, mask.data(), 16, n + 16, 1.25f, out.data()); });

  const kernels::AdamWFloats step{0.9f, 0.1f, 0.999f, 0.001f, 1e-2f, 1.5f, 1e-8f, 0.99f, 0.5f};
  Floats moments(3 * x.size(), 0.25f);
  bits("adamw", n, moments, [&](const KernelTable& t, Floats& out) {
    float* p = out.data();
    t.adamw(n, p, x.data(), p + x.size(), p + 2 * x.size(), step);
  });
  bits("scale", n, x, [&](const KernelTable& t, Floats& out) { t.scale(n, 0.3f, out.data()); });
  bits("axpy", n, x, [&](const KernelTable& t, Floats& out) { t.axpy(n, 0.3f, y.data(), out.data()); });
  bits("add", n, x, [&](const KernelTable& t, Floats& out) { t.add(n, y.data(), out.data()); });
  bits("scale_by", n, x, [&](const KernelTable& t, Floats& out) { t.scale_by(n, y.data(), z.data(), 0.7f, out.data()); });
  for (const bool more : {false, true}) {
    bits("norm_backward", n, x, [&](const KernelTable& t, Floats& out) {
      t.norm_backward(n, y.data(), z.data(), y.data(), 0.7f, 0.2f, more, out.data());
    });
    bits("layer_norm_backward", n, x, [&](const KernelTable& t, Floats& out) {
      t.layer_norm_backward(n, y.data(), z.data(), y.data(), 0.1f, 0.7f, 0.2f, 0.3f, more, out.data());
    });
  }
  bits("softmax_backward", n, x, [&](const KernelTable& t, Floats& out) { t.softmax_backward(n, y.data(), 0.1f, 0.5f, out.data()); });
  bits("swiglu", n, x, [&](const KernelTable& t, Floats& out) { t.swiglu(n, y.data(), z.data(), out.data()); });
  bits("swiglu_backward", n, moments, [&](const KernelTable& t, Floats& out) {
    t.swiglu_backward(n, x.data(), y.data(), z.data(), out.data(), out.data() + x.size());
  });
  bits("rotate", n, x, [&](const KernelTable& t, Floats& out) { t.rotate(n / 2, y.data(), z.data(), -1.0f, out.data()); });
  bits("layer_norm", n, x, [&](const KernelTable& t, Floats& out) { t.layer_norm(n, y.data(), 0.1f, 0.7f, z.data(), y.data(), out.data()); });
  bits("layer_norm_gradients", n, moments, [&](const KernelTable& t, Floats& out) {
    t.layer_norm_gradients(n, x.data(), y.data(), 0.1f, 0.7f, out.data(), out.data() + x.size());
  });
  for (const Activation kind : {Activation::kRelu, Activation::kGelu, Activation::kGeluTanh, Activation::kSilu, Activation::kTanh,
                                Activation::kLeakyRelu}) {
    Floats far = x;
    for (Index i = 0; i < n; i += 5) far[static_cast<std::size_t>(i)] *= 60.0f;
    bits("activate", n, x, [&](const KernelTable& t, Floats& out) { t.activate(n, kind, far.data(), out.data()); });
    bits("activate_backward", n, x, [&](const KernelTable& t, Floats& out) { t.activate_backward(n, kind, y.data(), far.data(), out.data()); });
  }
  require(one.max(n, x.data()) == neon.max(n, x.data()), "max", n);
  require(one.abs_max(n, x.data()) == neon.abs_max(n, x.data()), "abs_max", n);
  for (Index i = 0; i < n; ++i) {
    Floats wrong = x;
    wrong[static_cast<std::size_t>(i)] = i % 2 ? NAN : -HUGE_VALF;
    require(neon.any_non_finite(n, wrong.data()) && !neon.any_non_finite(n, x.data()), "any_non_finite", n, i);
  }
  const double size = 8.0 * static_cast<double>(n);
  sums("dot", n, size, [&](const KernelTable& t) { return t.dot(n, x.data(), y.data()); });
  sums("dot3", n, size, [&](const KernelTable& t) { return t.dot3(n, x.data(), y.data(), z.data()); });
  sums("sum", n, size, [&](const KernelTable& t) { return t.sum(n, x.data()); });
  sums("squared_distance", n, 2 * size, [&](const KernelTable& t) { return t.squared_distance(n, x.data(), 0.5f); });
  sums("sum_exp", n, size, [&](const KernelTable& t) { return t.sum_exp(n, x.data(), 0.1f); });
  sums("squared_norm", n, 0x1p-28 * size, [&](const KernelTable& t) { return t.squared_norm(n, x.data()); });
  for (const int part : {0, 1}) {
    sums("layer_norm_sums", n, 2 * size, [&](const KernelTable& t) {
      float out[2];
      t.layer_norm_sums(n, x.data(), y.data(), z.data(), 0.1f, 0.7f, out);
      return out[part];
    });
  }
  bits("exp_sum's elements", n, y, [&](const KernelTable& t, Floats& out) { t.exp_sum(n, x.data(), 0.1f, out.data()); });
  sums("exp_sum", n, size, [&](const KernelTable& t) {
    Floats out = y;
    return t.exp_sum(n, x.data(), 0.1f, out.data());
  });
  for (const FourBitCode code : {FourBitCode::kNf4, FourBitCode::kFp4}) {
    const kernels::FourBitTable& table = kernels::table_of(code);
    for (const bool divide : {false, true}) {
      Bytes codes(x.size(), 0x5A);
      bits("quantize_4bit", n, codes, [&](const KernelTable& t, Bytes& out) { t.quantize_4bit(n, x.data(), 0.8f, divide, table, out.data()); });
      one.quantize_4bit(n, x.data(), 0.8f, divide, table, codes.data());
      bits("dequantize_4bit", n, x, [&](const KernelTable& t, Floats& out) { t.dequantize_4bit(n, codes.data(), table.value, 1.3f, out.data()); });
    }
  }
}

void check_eight_bit(Index n) {
  Philox rng(static_cast<std::uint64_t>(n));
  Bytes scale_codes(static_cast<std::size_t>(n));
  for (std::uint8_t& code : scale_codes) code = static_cast<std::uint8_t>(rng.below(256));
  alignas(64) float map[256];
  for (float& value : map) value = rng.uniform(-1.0f, 1.0f);
  bits("expand_scales", n, numbers(rng, n), [&](const KernelTable& t, Floats& out) {
    t.expand_scales(n, scale_codes.data(), map, 0.3f, 0.7f, out.data());
  });
  const Floats start = numbers(rng, n), grad = numbers(rng, n);
  const kernels::AdamWFloats step{0.9f, 0.1f, 0.999f, 0.001f, 1e-2f, 1.5f, 1e-8f, 0.99f, 0.5f};
  Floats p[2], absmax[2];
  Bytes codes[2];
  for (const int i : {0, 1}) {
    p[i] = start, codes[i] = Bytes(static_cast<std::size_t>(2 * n), 0), absmax[i] = Floats(static_cast<std::size_t>(2 * (n / 256 + 1)), 0.0f);
    for (int round = 0; round < 3; ++round) {
      const kernels::EightBitMoments moments{codes[i].data(), codes[i].data() + n, absmax[i].data(), absmax[i].data() + n / 256 + 1};
      (i == 0 ? one : neon).adamw_8bit(n, p[i].data(), grad.data(), moments, kernels::signed_eight_bit_table(), kernels::unsigned_eight_bit_table(), step);
    }
  }
  require(same(p[0], p[1]) && same(codes[0], codes[1]) && same(absmax[0], absmax[1]), "adamw_8bit", n);
}

void check_blocks(const BlockFormatInfo& info) {
  const Index blocks = 3, rows = 5, k = blocks * info.elements, row_bytes = blocks * info.bytes;
  Philox rng(3);
  Bytes data(static_cast<std::size_t>(rows * row_bytes));
  for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(rng.below(256));
  const Index half = info.format == BlockFormat::kQ6K ? 208 : 0;
  for (Index b = 0; b < rows * blocks; ++b) {
    for (const Index at : {half, half == 0 ? Index{2} : half}) data[static_cast<std::size_t>(b * info.bytes + at + 1)] = 0x30;
  }
  for (Index first = 0; first < 40; ++first) {
    for (const Index count : {Index{1}, Index{3}, Index{4}, Index{33}, k - first}) {
      bits("decode_blocks", first, Floats(static_cast<std::size_t>(k + 4), kGuard), [&](const KernelTable& t, Floats& out) {
        t.decode_blocks(info.format, data.data(), first, count, out.data());
      });
    }
  }
  const Floats x = numbers(rng, 4 * k);
  for (Index m = 1; m <= 4; ++m) {
    Floats y[2];
    for (const int i : {0, 1}) {
      y[i] = Floats(static_cast<std::size_t>(4 * rows), kGuard);
      (i == 0 ? one : neon).thin_blocks({m, rows, k, info.format, x.data(), k, data.data(), row_bytes, y[i].data(), rows});
    }
    for (Index i = 0; i < m * rows; ++i) {
      Floats w(static_cast<std::size_t>(k));
      one.decode_blocks(info.format, data.data() + i % rows * row_bytes, 0, k, w.data());
      double size = 0;
      for (Index e = 0; e < k; ++e) size += std::fabs(static_cast<double>(w[static_cast<std::size_t>(e)]) * 2.0);
      const auto at = static_cast<std::size_t>(i);
      require(std::fabs(static_cast<double>(y[0][at]) - static_cast<double>(y[1][at])) <= 2.0 * static_cast<double>(k) * 0x1p-24 * size,
              "thin_blocks", m, i);
    }
  }
}

/// A weight in four bits: float activations against double, activations in 8 bits bit for bit.
void check_four_bit(Index n, Index k, Index block, Index m) {
  Philox rng(static_cast<std::uint64_t>(n * k + m));
  Bytes codes(static_cast<std::size_t>(n * k / 2));
  for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(rng.below(256));
  const Index blocks = k / block, stride = blocks + 4, x_stride = (k + 127) / 128 * 128;
  const Floats x = numbers(rng, m * k);
  Floats scales(static_cast<std::size_t>(n * stride), 0.0f);
  for (Index j = 0; j < n; ++j) {
    for (Index b = 0; b < blocks; ++b) scales[static_cast<std::size_t>(j * stride + b)] = rng.uniform(0.1f, 2.0f);
  }
  const kernels::FourBitTable& table = kernels::table_of(FourBitCode::kNf4);
  if (m <= 4) {
    Floats arranged(static_cast<std::size_t>(m * x_stride)), y(static_cast<std::size_t>(m * n));
    for (Index i = 0; i < m; ++i) neon.arrange_4bit(k, x.data() + i * k, arranged.data() + i * x_stride);
    neon.thin_4bit({m, n, k, block, arranged.data(), x_stride, codes.data(), table.value, scales.data(), stride, y.data(), n});
    for (Index i = 0; i < m; ++i) {
      for (Index j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (Index e = 0; e < k; ++e) {
          const int byte = codes[static_cast<std::size_t>(j * k / 2 + e / 2)], code = e % 2 == 0 ? byte >> 4 : byte & 15;
          const double product = static_cast<double>(table.value[code]) * static_cast<double>(scales[static_cast<std::size_t>(j * stride + e / block)]) *
                                 static_cast<double>(x[static_cast<std::size_t>(i * k + e)]);
          sum += product, size += std::fabs(product);
        }
        require(std::fabs(static_cast<double>(y[static_cast<std::size_t>(i * n + j)]) - sum) <= static_cast<double>(k + 2) * 0x1p-24 * size,
                "thin_4bit", m, i, j);
      }
    }
  }
  if (m == 1) {
    Floats turned(static_cast<std::size_t>(blocks * n));
    for (Index b = 0; b < blocks; ++b) {
      for (Index j = 0; j < n; ++j) turned[static_cast<std::size_t>(b * n + j)] = scales[static_cast<std::size_t>(j * stride + b)];
    }
    kernels::FourBitPart part;
    part.n = n, part.depth = k - 3, part.codes = codes.data(), part.row_bytes = k / 2, part.value = table.value;
    part.scales = turned.data(), part.scale_stride = n, part.block = block, part.ld = n;
    bits("turn_4bit", n, Floats(static_cast<std::size_t>(n * k), 7.0f), [&](const KernelTable& t, Floats& out) {
      part.out = out.data();
      t.turn_4bit(part);
    });
    part.depth = block - 1, part.ld = k;
    bits("rows_4bit", n, Floats(static_cast<std::size_t>(n * k), 7.0f), [&](const KernelTable& t, Floats& out) {
      part.out = out.data();
      t.rows_4bit(part);
    });
  }
  const Index run = kernels::int8_run(block), runs = k / run, width = (n + 15) / 16 * 16;
  for (const bool lanes : {false, true}) {
    const Index numbers = lanes ? x_stride : k, parts = lanes ? numbers / 8 : runs, own_stride = lanes ? runs + 4 : width;
    Floats own(static_cast<std::size_t>(lanes ? n * own_stride : runs * own_stride), 0.0f);
    for (Index j = 0; j < n; ++j) {
      for (Index u = 0; u < runs; ++u) {
        own[static_cast<std::size_t>(lanes ? j * own_stride + u : u * own_stride + j)] = scales[static_cast<std::size_t>(j * stride + u * run / block)];
      }
    }
    Floats y[2], x_scales[2];
    std::vector<std::int32_t> offsets[2];
    for (const int i : {0, 1}) {
      const KernelTable& t = i == 0 ? one : neon;
      Bytes q(static_cast<std::size_t>(m * numbers * t.int8_bytes));
      x_scales[i] = Floats(static_cast<std::size_t>(m * parts));
      offsets[i].resize(x_scales[i].size());
      for (Index r = 0; r < m; ++r) {
        t.quantize_int8({k, run, lanes, 15000.0f, x.data() + r * k, q.data() + r * numbers * t.int8_bytes, x_scales[i].data() + r * parts,
                         offsets[i].data() + r * parts});
      }
      Floats wide(static_cast<std::size_t>(m * width));
      t.four_bit_int8({m, n, k, run, lanes, q.data(), x_scales[i].data(), offsets[i].data(), codes.data(),
                       &kernels::bytes_of(FourBitCode::kNf4), own.data(), own_stride, wide.data(), width});
      for (Index r = 0; r < m; ++r) y[i].insert(y[i].end(), wide.begin() + r * width, wide.begin() + r * width + n);
    }
    require(same(x_scales[0], x_scales[1]) && same(offsets[0], offsets[1]), "quantize_int8", k, block, m);
    require(same(y[0], y[1]), "four_bit_int8", n, k, m);
  }
}

/// A product through the driver, in the kernels of active_isa(), against double.
void check_gemm(Index m, Index n, Index k, DType type, bool transposed, Index rank) {
  Philox rng(static_cast<std::uint64_t>(m * 1000 + n * 10 + k));
  const Floats a = numbers(rng, m * k), b = numbers(rng, n * k), s = numbers(rng, m * rank), l = numbers(rng, n * rank), bias = numbers(rng, n);
  std::vector<std::uint16_t> half(b.size());
  Floats used = b;
  if (type != DType::kF32) one.narrow(n * k, b.data(), type, half.data()), one.widen(n * k, half.data(), type, used.data());
  const kernels::LowRankColumns term{s.data(), rank, rank, l.data(), rank, true, 0.5f};
  Bytes mask(static_cast<std::size_t>(m * ((n + 7) / 8)), 0xA5);
  kernels::GemmProblem p;
  p.m = m, p.n = n, p.k = k;
  p.a = {a.data(), k, DType::kF32, false};
  const void* data = type == DType::kF32 ? static_cast<const void*>(b.data()) : half.data();
  p.b.dense = transposed ? kernels::Operand{data, k, type, true} : kernels::Operand{data, n, type, false};
  p.low_rank = &term, p.low_rank_count = rank > 0 ? 1 : 0;
  const bool masked = rank == 5;
  if (masked) p.low_rank_mask = {mask.data(), (n + 7) / 8, 2.0f};
  p.bias = bias.data();
  Floats c(static_cast<std::size_t>(m * n), kGuard);
  p.c = c.data(), p.c_stride = n;
  kernels::gemm(p, {});
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      double low = 0, size = 2.0, sum = 0;
      const auto add = [&](double& total, double x, double y, double factor) { total += factor * x * y, size += 2.0 * std::fabs(x * y); };
      for (Index q = 0; q < rank; ++q) {
        add(low, static_cast<double>(s[static_cast<std::size_t>(i * rank + q)]), static_cast<double>(l[static_cast<std::size_t>(j * rank + q)]), 0.5);
      }
      if (masked) low *= (mask[static_cast<std::size_t>(i * ((n + 7) / 8) + j / 8)] >> (j % 8)) & 1 ? 2.0 : 0.0;
      for (Index e = 0; e < k; ++e) {
        add(sum, static_cast<double>(a[static_cast<std::size_t>(i * k + e)]), static_cast<double>(used[static_cast<std::size_t>(transposed ? j * k + e : e * n + j)]), 1.0);
      }
      sum += low + static_cast<double>(bias[static_cast<std::size_t>(j)]);
      require(std::fabs(static_cast<double>(c[static_cast<std::size_t>(i * n + j)]) - sum) <= static_cast<double>(k + rank + 8) * 0x1p-24 * size, "gemm", m, n, k);
    }
  }
}

void check_updates(Index m, Index r, Index n) {
  Philox rng(static_cast<std::uint64_t>(m + r * n));
  const Floats s = numbers(rng, m * r), x = numbers(rng, m * n);
  bits("outer_update", n, numbers(rng, r * n), [&](const KernelTable& t, Floats& g) {
    t.outer_update(m, r, n, s.data(), r, 1, x.data(), n, g.data(), n);
  });
}

}  // namespace

int main() {
  try {
    std::printf("kernels: %s\n", std::string(kernels::name_of(kernels::active_isa())).c_str());
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  require(&kernels::table() == &kernels::table_of(kernels::active_isa()), "the table");
  if (const char* expected = std::getenv("PEFT_TEST_EXPECTED_ISA")) {
    require(kernels::name_of(kernels::active_isa()) == expected, "the instruction set");
  }
  for (Index n = 1; n <= 41; ++n) check_rows(n);
  for (const Index n : {1, 5, 255, 256, 259}) check_rows(n), check_eight_bit(n);
  for (const BlockFormatInfo& info : kBlockFormats) check_blocks(info);
  for (const Index block : {32, 64, 128}) {
    for (Index blocks = 1; blocks <= 3; ++blocks) {
      for (const Index n : {1, 3, 4, 7, 18}) {
        for (const Index m : {1, 2, 3, 4, 6}) check_four_bit(n, block * blocks, block, m);
      }
    }
  }
  check_four_bit(5, 2112, 64, 5);  // more than a panel's depth
  for (const Index m : {1, 2, 3, 5, 8, 9, 15, 16, 17}) {
    for (const Index n : {1, 4, 11, 12, 13, 25}) {
      for (const Index k : {1, 4, 7, 33}) {
        const DType type = k == 7 ? DType::kBF16 : k == 4 ? DType::kF16 : DType::kF32;
        for (const bool transposed : {false, true}) check_gemm(m, n, k, type, transposed, (m + n) % 6);
      }
    }
  }
  check_gemm(20, 26, 300, DType::kF32, true, 3);
  for (const Index n : {1, 4, 9, 16, 23}) {
    for (const Index r : {1, 3, 4, 6}) check_updates(3, r, n);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
