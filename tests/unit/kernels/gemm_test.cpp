#include "peft/kernels/gemm.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"

using namespace peft;
using kernels::GemmProblem;
using kernels::Operand;

namespace {

// A matrix in any storage with a row stride; everything outside the matrix is NaN, so that a read past it shows.
struct Stored {
  Stored(Philox& rng, Index rows, Index cols, DType type, bool transposed)
      : type_(type), transposed_(transposed) {
    const Index r = transposed ? cols : rows, c = transposed ? rows : cols;
    stride_ = c + 3;
    values_.assign(static_cast<std::size_t>(r * stride_), std::numeric_limits<float>::quiet_NaN());
    halves_.assign(values_.size(), 0x7FFF);
    for (Index i = 0; i < r; ++i) {
      for (Index j = 0; j < c; ++j) {
        float value = rng.uniform(-1.0f, 1.0f);
        const auto at = static_cast<std::size_t>(i * stride_ + j);
        if (type == DType::kBF16) {
          halves_[at] = bf16(value).bits;
          value = static_cast<float>(bf16(value));
        } else if (type == DType::kF16) {
          halves_[at] = f16(value).bits;
          value = static_cast<float>(f16(value));
        }
        values_[at] = value;
      }
    }
  }
  double operator()(Index i, Index j) const {
    return static_cast<double>(values_[static_cast<std::size_t>(transposed_ ? j * stride_ + i : i * stride_ + j)]);
  }
  Operand operand() const {
    const void* data = type_ == DType::kF32 ? static_cast<const void*>(values_.data()) : halves_.data();
    return {data, stride_, type_, transposed_};
  }
  const float* floats() const { return values_.data(); }
  Index stride() const { return stride_; }

  static void fill(const void* self, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
    const Stored& b = *static_cast<const Stored*>(self);
    for (Index k = 0; k < kc; ++k)
      for (Index n = 0; n < nc; ++n) panel[k * ld + n] = static_cast<float>(b(k0 + k, n0 + n));
  }

 private:
  Index stride_ = 0;
  DType type_;
  bool transposed_;
  std::vector<float> values_;
  std::vector<std::uint16_t> halves_;
};

struct Case {
  Index m, n, k;
  DType a_type = DType::kF32, b_type = DType::kF32, c_type = DType::kF32;
  bool a_transposed = false, b_transposed = true, generic = false;
  std::vector<Index> ranks{};
  bool l_transposed = true, mask = false, bias = false, accumulate = false;
};

constexpr double kUnit(DType type) {
  return type == DType::kF32 ? 0x1p-24 : type == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

void check(const Case& c, std::uint64_t seed) {
  Philox rng(seed);
  const Stored a(rng, c.m, c.k, c.a_type, c.a_transposed), b(rng, c.k, c.n, c.b_type, c.b_transposed);
  std::vector<Stored> s, l;
  std::vector<kernels::LowRankColumns> terms;
  for (Index rank : c.ranks) {
    s.emplace_back(rng, c.m, rank, DType::kF32, false);
    l.emplace_back(rng, rank, c.n, DType::kF32, c.l_transposed);
  }
  for (std::size_t t = 0; t < c.ranks.size(); ++t) {
    terms.push_back({s[t].floats(), s[t].stride(), c.ranks[t], l[t].floats(), l[t].stride(), c.l_transposed,
                     0.5f + static_cast<float>(t)});
  }
  const Index mask_stride = (c.n + 7) / 8;
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(c.m * mask_stride));
  for (Index i = 0; i < c.m; ++i) dropout_mask_row({seed, 1, 2, 0}, i, c.n, 0.3f, bits.data() + i * mask_stride);
  std::vector<float> bias(static_cast<std::size_t>(c.n));
  for (float& x : bias) x = rng.uniform(-1.0f, 1.0f);

  const Index c_stride = c.n + 5;
  const auto size = static_cast<std::size_t>(c.m * c_stride);
  std::vector<float> before(size, 7.0f);
  std::vector<std::uint16_t> before_half(size, 0x1234);
  for (Index i = 0; i < c.m; ++i) {
    for (Index j = 0; j < c.n; ++j) {
      const auto at = static_cast<std::size_t>(i * c_stride + j);
      float value = rng.uniform(-1.0f, 1.0f);
      if (c.c_type == DType::kBF16) value = static_cast<float>(bf16(value));
      if (c.c_type == DType::kF16) value = static_cast<float>(f16(value));
      before_half[at] = c.c_type == DType::kBF16 ? bf16(value).bits : f16(value).bits;
      before[at] = value;
    }
  }
  GemmProblem p;
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = a.operand();
  p.b = {&b, Stored::fill, c.generic ? Operand{} : b.operand()};
  p.low_rank = terms.data();
  p.low_rank_count = static_cast<Index>(terms.size());
  if (c.mask) p.low_rank_mask = {bits.data(), mask_stride, 1.0f / 0.7f};
  p.bias = c.bias ? bias.data() : nullptr;
  p.accumulate = c.accumulate;
  p.c_stride = c_stride;
  p.c_type = c.c_type;

  std::vector<float> first;
  std::vector<std::uint16_t> first_half;
  for (int threads : peft_test::kThreadCounts) {
    ThreadPool pool(threads);
    std::vector<float> out = before;
    std::vector<std::uint16_t> out_half = before_half;
    const bool wide = c.c_type != DType::kF32;
    p.c = wide ? static_cast<void*>(out_half.data()) : out.data();
    kernels::gemm(p, pool);
    if (threads > 1) {  // bit for bit, padding included
      REQUIRE(out_half == first_half);
      REQUIRE(std::memcmp(out.data(), first.data(), out.size() * sizeof(float)) == 0);
      continue;
    }
    first = out;
    first_half = out_half;
    for (Index i = 0; i < c.m; ++i) {
      for (Index j = 0; j < c_stride; ++j) {
        const auto at = static_cast<std::size_t>(i * c_stride + j);
        if (j >= c.n) {
          REQUIRE(out[at] == 7.0f);
          REQUIRE(out_half[at] == 0x1234);
          continue;
        }
        double low_rank = 0, low_rank_size = 0, sum = 0, magnitude = 0;
        for (std::size_t t = 0; t < terms.size(); ++t) {
          for (Index q = 0; q < c.ranks[t]; ++q) {
            const double product = static_cast<double>(terms[t].scale) * s[t](i, q) * l[t](q, j);
            low_rank += product;
            low_rank_size += std::fabs(product);
          }
        }
        if (c.mask) {
          const bool keep = (bits[static_cast<std::size_t>(i * mask_stride + j / 8)] >> (j % 8)) & 1u;
          low_rank *= keep ? static_cast<double>(1.0f / 0.7f) : 0.0;
        }
        for (Index k = 0; k < c.k; ++k) {
          sum += a(i, k) * b(k, j);
          magnitude += std::fabs(a(i, k) * b(k, j));
        }
        sum += low_rank;
        magnitude += 2 * low_rank_size;
        Index additions = c.k + 8;
        for (Index rank : c.ranks) additions += rank;
        if (c.bias) sum += static_cast<double>(bias[static_cast<std::size_t>(j)]);
        if (c.accumulate) sum += static_cast<double>(before[at]);
        magnitude += 2.0;
        float got = out[at];
        if (wide) {
          bf16 hb;
          f16 hf;
          hb.bits = hf.bits = out_half[at];
          got = c.c_type == DType::kBF16 ? static_cast<float>(hb) : static_cast<float>(hf);
        }
        // |fl(Σ) − Σ| ≤ n·u·Σ|terms| (Higham), and one rounding to the stored type.
        const double bound = static_cast<double>(additions) * 0x1p-24 * magnitude + kUnit(c.c_type) * std::fabs(sum) * 1.01;
        INFO("m " << c.m << " n " << c.n << " k " << c.k << " at " << i << "," << j << " got " << got << " expected " << sum);
        REQUIRE(std::fabs(static_cast<double>(got) - sum) <= bound);
      }
    }
  }
}

}  // namespace

TEST_CASE("gemm over all shapes modulo the tile") {
  std::uint64_t seed = 1;
  for (Index m : {1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 15, 27, 28, 29, 43}) {
    for (Index n : {1, 2, 7, 15, 16, 17, 31, 32, 33, 64, 65, 130}) {
      for (Index k : {1, 7, 16, 33}) check({.m = m, .n = n, .k = k}, seed++);
    }
  }
}

TEST_CASE("gemm over blocks of K, storage types and orientations") {
  std::uint64_t seed = 1000;
  for (Index k : {0, 1, 255, 256, 257, 600}) {
    for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int flags = 0; flags < 8; ++flags) {
        const bool generic = (flags & 4) != 0;
        for (Index m : {3, 17}) {
          check({.m = m, .n = 35, .k = k, .a_type = type, .b_type = type, .c_type = type,
                 .a_transposed = (flags & 1) != 0, .b_transposed = (flags & 2) != 0, .generic = generic,
                 .ranks = k == 0 ? std::vector<Index>{5} : std::vector<Index>{}, .bias = true}, seed++);
        }
      }
    }
  }
}

TEST_CASE("gemm with low-rank terms, masks, bias and accumulation") {
  std::uint64_t seed = 2000;
  for (int flags = 0; flags < 16; ++flags) {
    for (const auto& ranks : {std::vector<Index>{1}, std::vector<Index>{8}, std::vector<Index>{16, 3}, std::vector<Index>{300}}) {
      for (Index m : {1, 6, 20}) {
        for (Index k : {0, 40, 300}) {
          if (ranks[0] == 300 && k != 40) continue;  // more columns of rank than of K, once
          for (DType c_type : {DType::kF32, DType::kBF16}) {
            ++seed;
            if (peft_test::kSanitized && seed % 5 != 0) continue;
            check({.m = m, .n = 50, .k = k, .c_type = c_type, .b_transposed = (flags & 8) != 0, .ranks = ranks,
                   .l_transposed = (flags & 1) != 0, .mask = (flags & 2) != 0, .bias = (flags & 4) != 0,
                   .accumulate = (flags & 4) == 0}, seed);
          }
        }
      }
    }
  }
}

TEST_CASE("gemm over more rows than one block") {
  check({.m = 1100, .n = 40, .k = 30, .ranks = {4}, .mask = true}, 77);
  check({.m = 1100, .n = 40, .k = 300, .c_type = DType::kF16, .accumulate = true}, 78);
}

TEST_CASE("gemm over more of K than one stretch of packed rows") {
  for (const bool transposed : {false, true}) {
    check({.m = 400, .n = 70, .k = 1500, .a_transposed = transposed, .ranks = {4}, .mask = true, .bias = true}, 79);
    check({.m = 30, .n = 33, .k = 9000, .b_transposed = transposed, .ranks = {3}, .accumulate = true}, 80);
  }
}

TEST_CASE("gemm of nothing touches nothing") {
  GemmProblem p;
  kernels::gemm(p, {});
  float c = 3.0f;
  p.c = &c;
  p.m = 0;
  p.n = 1;
  kernels::gemm(p, {});
  CHECK(c == 3.0f);
}
