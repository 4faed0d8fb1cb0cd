#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/kernels/dropout.hpp"
#include "peft/kernels/skinny.hpp"
#include "peft/kernels/softmax_xent.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

std::vector<float> random_floats(Philox& rng, Index n, float low = -1.0f, float high = 1.0f) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = rng.uniform(low, high);
  return x;
}
double at(const std::vector<float>& x, Index i) { return static_cast<double>(x[static_cast<std::size_t>(i)]); }

}  // namespace

TEST_CASE("the forced instruction set is the one that runs; else the best that there is") {
  const char* forced = std::getenv("PEFT_FORCE_ISA");
  // Where the processor is emulated (tests/isa), what has to be chosen is known.
  if (const char* expected = std::getenv("PEFT_TEST_EXPECTED_ISA")) {
    std::printf("kernels: %s\n", std::string(kernels::name_of(kernels::active_isa())).c_str());
    CHECK(kernels::name_of(kernels::active_isa()) == std::string_view(expected));
    CHECK(&kernels::table() == &kernels::table_of(kernels::active_isa()));
  }
  if (forced != nullptr && *forced != '\0') {
    const bool bf16 = std::string_view(forced) == "avx512bf16";  // has none of its own
    CHECK(kernels::name_of(kernels::active_isa()) == (bf16 ? "avx512vnni" : forced));
    CHECK(&kernels::table() == &kernels::table_of(kernels::active_isa()));
  } else {
    CHECK(kernels::has_isa(kernels::active_isa()));
  }
}

TEST_CASE("conversions equal the scalar types bit for bit") {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    Philox rng(seed);
    const Index n = 1 + static_cast<Index>(rng.below(70));
    std::vector<float> x(static_cast<std::size_t>(n)), back(x);
    for (float& value : x) {
      const std::uint32_t kind = rng.below(10);
      value = kind == 0   ? std::numeric_limits<float>::quiet_NaN()
              : kind == 1 ? std::numeric_limits<float>::infinity()
              : kind == 2 ? 65519.0f
              : kind < 6  ? std::ldexp(rng.uniform(-1, 1), static_cast<int>(rng.below(280)) - 140)
                          : rng.uniform(-2, 2);
    }
    for (DType type : {DType::kF16, DType::kBF16}) {
      std::vector<std::uint16_t> half(x.size() + 1, 0xABCD);
      kernels::convert(n, x.data(), DType::kF32, half.data(), type);
      REQUIRE(half.back() == 0xABCD);
      kernels::convert(n, half.data(), type, back.data(), DType::kF32);
      for (Index i = 0; i < n; ++i) {
        const float value = x[static_cast<std::size_t>(i)];
        const std::uint16_t bits = half[static_cast<std::size_t>(i)];
        INFO("value " << value);
        if (std::isnan(value)) {
          REQUIRE(std::isnan(back[static_cast<std::size_t>(i)]));
          continue;
        }
        REQUIRE(bits == (type == DType::kF16 ? f16(value).bits : bf16(value).bits));
        f16 hf;
        bf16 hb;
        hf.bits = hb.bits = bits;
        REQUIRE(back[static_cast<std::size_t>(i)] == (type == DType::kF16 ? static_cast<float>(hf) : static_cast<float>(hb)));
      }
    }
  }
}

TEST_CASE("exp is within two units in the last place, keeps NaN, and ends in 0") {
  const auto& t = kernels::table();
  std::vector<float> x, y;
  for (int i = -8730; i <= 8870; ++i) x.push_back(static_cast<float>(i) * 0.01f + 0.00037f);
  y.resize(x.size());
  t.exp_sum(static_cast<Index>(x.size()), x.data(), 0.0f, y.data());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    if (exact < 0x1p-126 || exact > 3.4e38) continue;
    int exponent = 0;
    std::frexp(exact, &exponent);
    worst = std::max(worst, std::fabs(static_cast<double>(y[i]) - exact) / std::ldexp(1.0, exponent - 24));
  }
  CHECK(worst <= 2.0);
  float special[3] = {-200.0f, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  t.exp_sum(3, special, 0.0f, special);
  CHECK(special[0] == 0.0f);
  CHECK(special[1] == 0.0f);
  CHECK(std::isnan(special[2]));
}

TEST_CASE("rows of dropout masks have the bits of the scalar Philox, any number of columns, any probability") {
  for (Index columns = 0; columns <= 300; ++columns) {
    for (float p : {0.0f, 1e-6f, 0.05f, 0.5f, 0.999999f}) {
      const DropoutKey key{0x123456789ABCDEFu + static_cast<std::uint64_t>(columns), 7, 0xDEADBEEFu, 41};
      const std::size_t bytes = static_cast<std::size_t>((columns + 7) / 8);
      std::vector<std::uint8_t> expected(bytes + 2, 0xA5), got(expected);
      dropout_mask_row(key, 3, columns, p, expected.data());
      kernels::dropout_row(key, 3, columns, p, got.data());
      REQUIRE(got == expected);  // and nothing past the row
    }
  }
}

TEST_CASE("skinny products against sums in double, any rank, storage and mask; same bits for any threads") {
  std::uint64_t seed = 5;
  for (Index m : {0, 1, 3, 17, 70}) {
    for (Index k : {1, 15, 130, 300}) {
      for (Index r : {1, 3, 4, 8, 33}) {
        for (DType type : {DType::kF32, DType::kBF16}) {
          for (bool masked : {false, true}) {
            Philox rng(++seed);
            std::vector<float> x = random_floats(rng, m * k);
            std::vector<std::uint16_t> half(x.size());
            for (std::size_t i = 0; i < x.size(); ++i) {
              half[i] = bf16(x[i]).bits;
              if (type == DType::kBF16) x[i] = static_cast<float>(bf16(x[i]));
            }
            const void* data = type == DType::kF32 ? static_cast<const void*>(x.data()) : half.data();
            const auto a = random_floats(rng, r * k), s = random_floats(rng, m * r), b = random_floats(rng, k * r);
            const Index stride = (k + 7) / 8;
            std::vector<std::uint8_t> bits(static_cast<std::size_t>(m * stride));
            for (Index i = 0; i < m; ++i) dropout_mask_row({seed, 0, 0, 0}, i, k, 0.4f, bits.data() + i * stride);
            kernels::MaskBits mask;
            if (masked) mask = {bits.data(), stride, 1.0f / 0.6f};
            const auto dropped = [&](Index i, Index j) {
              const double value = at(x, i * k + j);
              if (!masked) return value;
              return (bits[static_cast<std::size_t>(i * stride + j / 8)] >> (j % 8)) & 1u ? value * static_cast<double>(1.0f / 0.6f) : 0.0;
            };
            const float scale = r % 2 == 1 ? 1.0f : 0.5f;  // a few rows go the way of thin products where it is 1
            std::vector<float> got_s, got_ds, got_a, got_b;
            for (int threads : {1, 3}) {
              ThreadPool pool(threads);
              std::vector<float> out_s(static_cast<std::size_t>(m * r), 9.0f), out_ds(out_s);
              std::vector<float> ga(static_cast<std::size_t>(r * k), 1.0f), gb(static_cast<std::size_t>(k * r), 1.0f);
              kernels::skinny_nt(m, k, r, data, k, type, mask, a.data(), k, scale, out_s.data(), r, false, pool);
              kernels::skinny_nn(m, k, r, data, k, type, b.data(), r, scale, out_ds.data(), r, pool);
              kernels::skinny_tn(m, k, r, s.data(), r, data, k, type, mask, 0.5f, ga.data(), k, pool);
              kernels::skinny_tn_t(m, k, r, data, k, type, s.data(), r, 0.5f, gb.data(), r, pool);
              if (threads == 1) {
                got_s = out_s, got_ds = out_ds, got_a = ga, got_b = gb;
              } else {
                REQUIRE((got_s == out_s && got_ds == out_ds && got_a == ga && got_b == gb));
              }
            }
            const double u = 0x1p-24 * 2.0;  // products up to 1/0.6
            for (Index i = 0; i < m; ++i) {
              for (Index q = 0; q < r; ++q) {
                double nt = 0, nn = 0;
                for (Index j = 0; j < k; ++j) {
                  nt += static_cast<double>(scale) * dropped(i, j) * at(a, q * k + j);
                  nn += static_cast<double>(scale) * at(x, i * k + j) * at(b, j * r + q);
                }
                REQUIRE(std::fabs(at(got_s, i * r + q) - nt) <= u * static_cast<double>(k * (k + 4)));
                REQUIRE(std::fabs(at(got_ds, i * r + q) - nn) <= u * static_cast<double>(k * (k + 4)));
              }
            }
            for (Index q = 0; q < r; ++q) {
              for (Index j = 0; j < k; ++j) {
                double tn = 1, tt = 1;
                for (Index i = 0; i < m; ++i) {
                  tn += 0.5 * at(s, i * r + q) * dropped(i, j);
                  tt += 0.5 * at(s, i * r + q) * at(x, i * k + j);
                }
                REQUIRE(std::fabs(at(got_a, q * k + j) - tn) <= u * static_cast<double>((m + 4) * (m + 4)));
                REQUIRE(std::fabs(at(got_b, j * r + q) - tt) <= u * static_cast<double>((m + 4) * (m + 4)));
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("AdamW follows its formula in double; tails included; same bits for any threads") {
  for (Index n : {1, 15, 16, 17, 40000}) {
    Philox rng(static_cast<std::uint64_t>(n));
    const auto p0 = random_floats(rng, n), g = random_floats(rng, n), m0 = random_floats(rng, n);
    const auto v0 = random_floats(rng, n, 0.0f, 1.0f);
    const kernels::AdamWStep step{.lr = 1e-2, .weight_decay = 0.1, .bias_correction1 = 0.271, .bias_correction2 = 0.003,
                                  .grad_scale = 0.5};
    std::vector<float> first;
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      auto p = p0, m = m0, v = v0;
      kernels::adamw_step(n, p.data(), g.data(), m.data(), v.data(), step, pool);
      if (threads > 1) {
        REQUIRE(p == first);
        continue;
      }
      first = p;
      for (Index i = 0; i < n; ++i) {
        const double grad = 0.5 * at(g, i);
        const double mi = 0.9 * at(m0, i) + 0.1 * grad, vi = 0.999 * at(v0, i) + 0.001 * grad * grad;
        const double update = 1e-2 / 0.271 * mi / (std::sqrt(vi) / std::sqrt(0.003) + 1e-8);
        const double pi = at(p0, i) * (1 - 1e-3) - update;
        // A dozen roundings of relative size 2^-24 on terms of these sizes; m may cancel.
        const double size = std::fabs(at(p0, i)) + std::fabs(update) * (1 + 1.0 / (std::fabs(mi) + 1e-3));
        REQUIRE(std::fabs(at(p, i) - pi) <= 16 * 0x1p-24 * size);
        REQUIRE(std::fabs(at(m, i) - mi) <= 4 * 0x1p-24);
        REQUIRE(std::fabs(at(v, i) - vi) <= 4 * 0x1p-24);
      }
    }
  }
}

TEST_CASE("cross-entropy rows against double") {
  for (Index vocab : {2, 15, 33, 5000}) {
    Philox rng(static_cast<std::uint64_t>(vocab));
    const Index rows = 4, stride = vocab + 2;
    auto z = random_floats(rng, rows * stride, -30.0f, 30.0f);
    const auto before = z;
    const std::int32_t targets[4] = {0, static_cast<std::int32_t>(vocab - 1), -1, 1};
    double loss[4];
    std::uint8_t correct[4];
    kernels::cross_entropy_rows(rows, vocab, z.data(), stride, targets, 2.0f, loss, correct, false, {});
    CHECK(z == before);
    kernels::cross_entropy_rows(rows, vocab, z.data(), stride, targets, 2.0f, loss, correct, true, {});
    for (Index i = 0; i < rows; ++i) {
      double largest = -1e9, sum = 0;
      Index best = 0;
      for (Index j = 0; j < vocab; ++j) {
        if (at(before, i * stride + j) > largest) largest = at(before, i * stride + j), best = j;
      }
      for (Index j = 0; j < vocab; ++j) sum += std::exp(at(before, i * stride + j) - largest);
      if (targets[i] < 0) {
        CHECK(loss[i] == 0.0);
        CHECK(correct[i] == 0);
        for (Index j = 0; j < vocab; ++j) REQUIRE(z[static_cast<std::size_t>(i * stride + j)] == 0.0f);
        continue;
      }
      const double expected = largest + std::log(sum) - at(before, i * stride + targets[i]);
      // sum_exp: relative error of exp (2 ulp) and of sums of up to 1024/W vectors.
      CHECK(std::fabs(loss[i] - expected) <= 128 * 0x1p-24);
      CHECK(correct[i] == (best == targets[i] ? 1 : 0));
      for (Index j = 0; j < vocab; ++j) {
        const double p = std::exp(at(before, i * stride + j) - largest) / sum;
        REQUIRE(std::fabs(at(z, i * stride + j) - 2.0 * (p - (j == targets[i] ? 1 : 0))) <= 2 * 140 * 0x1p-24);
      }
      REQUIRE(z[static_cast<std::size_t>(i * stride + vocab)] == before[static_cast<std::size_t>(i * stride + vocab)]);
    }
  }
}

TEST_CASE("norms and finite checks see every element") {
  for (Index n : {1, 15, 16, 31, 100}) {
    Philox rng(3);
    auto x = random_floats(rng, n);
    double expected = 0;
    for (float value : x) expected += static_cast<double>(value) * static_cast<double>(value);
    CHECK(kernels::squared_norm(n, x.data()) == Approx(expected).epsilon(1e-14));
    CHECK_FALSE(kernels::any_non_finite(n, x.data()));
    for (Index i = 0; i < n; ++i) {
      auto y = x;
      y[static_cast<std::size_t>(i)] = i % 2 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
      REQUIRE(kernels::any_non_finite(n, y.data()));
    }
    kernels::scale_in_place(n, 2.0f, x.data());
    CHECK(kernels::squared_norm(n, x.data()) == Approx(4 * expected).epsilon(1e-14));
  }
}

namespace {

/// The step with moments in 8 bits, from its parts: the map's values, the step in float, the nearest codes of what comes out.
struct SlowEightBit {
  std::vector<float> p;
  std::vector<std::uint8_t> m, v;
  std::vector<float> m_absmax, v_absmax;

  static void quantize(const kernels::DynamicMap& map, const float* x, Index n, std::uint8_t* codes, float& absmax) {
    absmax = 0.0f;
    for (Index i = 0; i < n; ++i) absmax = std::max(absmax, std::fabs(x[i]));
    const float least = std::max(absmax, 1e-38f), reciprocal = quotient(1.0f, least);
    for (Index i = 0; i < n; ++i) {
      const float scaled = n == 256 ? rounded(x[i] * reciprocal) : quotient(x[i], least);
      codes[i] = kernels::nearest_in(map, std::min(1.0f, std::max(-1.0f, scaled)));
    }
  }
  void step(const std::vector<float>& g, const kernels::AdamWStep& step) {
    const Index n = static_cast<Index>(p.size());
    std::vector<float> m1(p.size()), v1(p.size());
    for (std::size_t i = 0; i < p.size(); ++i) {
      m1[i] = rounded(kernels::dynamic_map()[m[i]] * m_absmax[i / 256]);
      v1[i] = rounded(kernels::unsigned_dynamic_map()[v[i]] * v_absmax[i / 256]);
    }
    kernels::adamw_step(n, p.data(), g.data(), m1.data(), v1.data(), step, {});
    for (Index first = 0; first < n; first += 256) {
      const Index count = std::min<Index>(256, n - first);
      const auto block = static_cast<std::size_t>(first / 256);
      quantize(kernels::dynamic_map(), m1.data() + first, count, m.data() + first, m_absmax[block]);
      quantize(kernels::unsigned_dynamic_map(), v1.data() + first, count, v.data() + first, v_absmax[block]);
    }
  }
};

SlowEightBit start_8bit(std::vector<float> p) {
  SlowEightBit result;
  result.m.resize(p.size());
  result.v.resize(p.size());
  result.m_absmax.resize((p.size() + 255) / 256);
  result.v_absmax = result.m_absmax;
  result.p = std::move(p);
  return result;
}

void step_8bit(SlowEightBit& state, const std::vector<float>& g, const kernels::AdamWStep& step, ExecutorRef executor) {
  kernels::adamw_step(static_cast<Index>(state.p.size()), state.p.data(), g.data(),
                      {state.m.data(), state.v.data(), state.m_absmax.data(), state.v_absmax.data()}, step, executor);
}

}  // namespace

TEST_CASE("AdamW in 8 bits is the float step between the maps, bit for bit; tails and zero blocks; any threads") {
  for (Index n : {1, 7, 16, 17, 255, 256, 257, 700, 40000}) {
    Philox rng(static_cast<std::uint64_t>(n));
    SlowEightBit want = start_8bit(random_floats(rng, n)), got = want, threaded = want;
    ThreadPool pool(3);
    for (int t = 1; t <= 4; ++t) {
      auto g = random_floats(rng, n);
      for (float& value : g) value = std::ldexp(value, -static_cast<int>(rng.below(20)));
      if (n > 600) std::fill(g.begin() + 256, g.begin() + 512, 0.0f);
      const kernels::AdamWStep step{.lr = 1e-2, .weight_decay = 0.1, .bias_correction1 = 0.1 * t, .bias_correction2 = 0.001 * t,
                                    .grad_scale = 0.5};
      want.step(g, step);
      step_8bit(got, g, step, {});
      step_8bit(threaded, g, step, pool);
      CAPTURE(n, t);
      REQUIRE(got.p == want.p);
      REQUIRE(got.m == want.m);
      REQUIRE(got.v == want.v);
      REQUIRE(got.m_absmax == want.m_absmax);
      REQUIRE(got.v_absmax == want.v_absmax);
      REQUIRE(threaded.p == want.p);
      REQUIRE(threaded.m == want.m);
      REQUIRE(threaded.v == want.v);
    }
  }
}

TEST_CASE("codes of 8 bits are the nearest ones, at every threshold and beside it") {
  // With both betas 0 the moments are g and g². Blocks of 256 have 1 as their first number.
  const kernels::AdamWStep step{.lr = 0.0, .beta1 = 0.0, .beta2 = 0.0};
  std::vector<float> g;
  const auto add = [&g](float x) {
    if (g.size() % 256 == 0) g.push_back(1.0f);
    g.push_back(x);
  };
  for (int code = 0; code < 255; ++code) {
    for (const float threshold : {kernels::threshold_above(kernels::dynamic_map(), code),
                                  std::sqrt(kernels::threshold_above(kernels::unsigned_dynamic_map(), code))}) {
      float x = std::nextafter(std::nextafter(threshold, -2.0f), -2.0f);
      for (int i = 0; i < 5; ++i, x = std::nextafter(x, 2.0f)) add(x), add(-x);
    }
  }
  Philox rng(1);
  for (int i = 0; i < 60000; ++i) add(std::ldexp(rng.uniform(-1.0f, 1.0f), -static_cast<int>(rng.below(30))));
  while (g.size() % 256 != 0) add(0.0f);
  SlowEightBit state = start_8bit(std::vector<float>(g.size()));
  step_8bit(state, g, step, {});
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    wrong += state.m[i] != kernels::nearest_in(kernels::dynamic_map(), g[i]) ? 1 : 0;
    wrong += state.v[i] != kernels::nearest_in(kernels::unsigned_dynamic_map(), rounded(g[i] * g[i])) ? 1 : 0;
  }
  CHECK(wrong == 0);
}
