#include "peft/ops/attention.hpp"

#include <cstring>

#include "peft/core/thread_pool.hpp"
#include "unit/ops/support.hpp"

using namespace ops_test;

namespace {

// Sequences of several lengths with grouped heads; `prefix` rows are shared by all; `past` keys precede each one's own.
template <class T>
struct Problem {
  Problem(std::uint64_t seed, std::vector<Index> sequence_lengths, Index query_heads, Index kv_heads, Index d,
          Index prefix, Index past, bool causal)
      : lengths(std::move(sequence_lengths)), past_keys(past) {
    Philox rng(seed);
    shape = {query_heads, kv_heads, d, 0.3f, causal};
    for (Index n : lengths) tokens += n;
    key_rows = tokens + past * static_cast<Index>(lengths.size());
    const Index width = kv_heads * d;
    q = random<T>(rng, tokens, query_heads * d);
    k = random<T>(rng, key_rows, width);
    v = random<T>(rng, key_rows, width);
    pk = random<T>(rng, prefix, width);
    pv = random<T>(rng, prefix, width);
    c = random<T>(rng, tokens, query_heads * d);
  }
  // The same numbers in double.
  template <class U>
  explicit Problem(const Problem<U>& o)
      : lengths(o.lengths), past_keys(o.past_keys), tokens(o.tokens), key_rows(o.key_rows), shape(o.shape),
        q(in_double(o.q)), k(in_double(o.k)), v(in_double(o.v)), pk(in_double(o.pk)), pv(in_double(o.pv)),
        c(in_double(o.c)) {}

  void drop(float p) {
    shape.dropout = p;
    shape.dropout_key = {7, 3, 11, 100};
  }
  std::vector<ops::AttentionSegment<T>> segments() const {
    std::vector<ops::AttentionSegment<T>> result;
    Index row = 0, key = 0;
    for (Index n : lengths) {
      result.push_back({row, n, k.view().row_range(key, n + past_keys), v.view().row_range(key, n + past_keys), pk, pv});
      row += n;
      key += n + past_keys;
    }
    return result;
  }
  struct Result {
    Matrix<T> out, dq, dk, dv;
    Matrix<Accumulator<T>> lse, dpk, dpv;
  };
  Result run(ExecutorRef executor) const {
    Result r{Matrix<T>(tokens, q.cols()), Matrix<T>(tokens, q.cols()), Matrix<T>(key_rows, k.cols()),
             Matrix<T>(key_rows, k.cols()), Matrix<Accumulator<T>>(tokens, shape.query_heads),
             Matrix<Accumulator<T>>::zeros(pk.rows(), pk.cols()), Matrix<Accumulator<T>>::zeros(pk.rows(), pk.cols())};
    const auto parts = segments();
    ops::attention_forward<T>(q, parts, shape, r.out, r.lse, executor);
    std::vector<ops::AttentionGradSegment<T>> grads;
    Index key = 0;
    for (Index n : lengths) {
      ops::AttentionGradSegment<T> g{r.dk.view().row_range(key, n + past_keys), r.dv.view().row_range(key, n + past_keys), {}, {}};
      if (pk.rows() > 0) g.d_prefix_keys = r.dpk.view(), g.d_prefix_values = r.dpv.view();
      grads.push_back(g);
      key += n + past_keys;
    }
    ops::attention_backward<T>(c, q, r.lse, parts, shape, r.dq, grads, executor);
    return r;
  }

  std::vector<Index> lengths;
  Index past_keys = 0, tokens = 0, key_rows = 0;
  ops::AttentionShape shape;
  Matrix<T> q, k, v, pk, pv, c;
};

struct Setting {
  std::vector<Index> lengths;
  Index query_heads, kv_heads, d, prefix, past;
  bool causal;
  float dropout = 0.0f;
};
const Setting kSettings[] = {{{1, 4, 3}, 4, 2, 6, 0, 0, true},   {{5}, 2, 2, 5, 3, 0, true},
                             {{2, 1, 18}, 3, 1, 4, 2, 2, true},  {{3, 6}, 2, 1, 3, 0, 0, false},
                             {{1, 1}, 6, 2, 8, 0, 37, true},     {{35, 17}, 2, 2, 16, 1, 0, true},
                             {{20}, 9, 3, 64, 0, 5, true},      {{4, 5}, 4, 2, 4, 2, 0, false, 0.3f},
                             {{19, 3}, 2, 2, 5, 0, 0, true, 0.5f}};

}  // namespace

TEST_CASE("attention against its equations, written out") {
  // One head, two tokens, by hand: token 0 sees itself; token 1 sees both.
  Matrix<double> q(2, 1), k(2, 1), v(2, 1), out(2, 1), lse(2, 1);
  q(0, 0) = 1, q(1, 0) = 2, k(0, 0) = 0.5, k(1, 0) = -1, v(0, 0) = 3, v(1, 0) = 5;
  const std::vector<ops::AttentionSegment<double>> segments{{0, 2, k, v, {}, {}}};
  ops::attention_forward<double>(q, segments, {1, 1, 1, 1.0f, true}, out, lse);
  const double a = std::exp(2 * 0.5), b = std::exp(2 * -1.0);
  CHECK(out(0, 0) == Approx(3.0));
  CHECK(out(1, 0) == Approx((a * 3 + b * 5) / (a + b)));
  CHECK(lse(1, 0) == Approx(std::log(a + b)));
}

TEST_CASE("attention's gradients by central differences in double") {
  std::uint64_t seed = 1;
  for (const Setting& s : kSettings) {
    if (s.d > 10) continue;
    Problem<double> p(++seed, s.lengths, s.query_heads, s.kv_heads, s.d, s.prefix, s.past, s.causal);
    p.drop(s.dropout);
    const auto r = p.run({});
    const auto loss = [&] {
      Matrix<double> out(p.tokens, p.q.cols());
      const auto parts = p.segments();
      ops::attention_forward<double>(p.q, parts, p.shape, out, {});
      return inner(out, p.c);
    };
    check_gradient(p.q, r.dq, loss);
    check_gradient(p.k, r.dk, loss);
    check_gradient(p.v, r.dv, loss);
    check_gradient(p.pk, r.dpk, loss);
    check_gradient(p.pv, r.dpv, loss);
  }
}

TEMPLATE_TEST_CASE("attention in float and 16 bits against double; same bits for any threads", "", float, bf16, f16) {
  using T = TestType;
  std::uint64_t seed = 100;
  for (const Setting& s : kSettings) {
    Problem<T> p(++seed, s.lengths, s.query_heads, s.kv_heads, s.d, s.prefix, s.past, s.causal);
    p.drop(s.dropout);
    const Problem<double> exact(p);
    ThreadPool one(1), three(3);
    const auto got = p.run(one);
    const auto expected = exact.run({});
    // Scores are sums of d products below 0.3 and probabilities below 1: d + 16 roundings through exp; gradients sum
    // over at most 55 keys or 3·55 queries. In 16 bits, out is rounded before it enters D_i.
    const double bound = static_cast<double>(s.d + 16) * 0x1p-24 * 8 / static_cast<double>(1 - s.dropout);
    const double grad_bound = 55 * 3 * bound + (sizeof(T) == 2 ? static_cast<double>(s.d) * unit<T>() * 8 : 0.0);
    check_near(got.out, expected.out, bound);
    check_near(got.lse, expected.lse, bound);
    check_near(got.dq, expected.dq, grad_bound);
    check_near(got.dk, expected.dk, grad_bound);
    check_near(got.dv, expected.dv, grad_bound);
    check_near(got.dpk, expected.dpk, grad_bound);
    check_near(got.dpv, expected.dpv, grad_bound);
    const auto again = p.run(three);
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(a(0, 0))) == 0;
    };
    REQUIRE(same(got.out, again.out));
    REQUIRE(same(got.dq, again.dq));
    REQUIRE(same(got.dk, again.dk));
    REQUIRE(same(got.dv, again.dv));
    if (s.prefix > 0) REQUIRE((same(got.dpk, again.dpk) && same(got.dpv, again.dpv)));
  }
}

TEST_CASE("attention with dropout loses keys with the masks that its key says, whatever the cut of the batch") {
  Problem<double> p(5, {3, 4}, 2, 1, 2, 1, 0, false);
  p.drop(0.4f);
  const auto parts = p.segments();
  Matrix<double> out(p.tokens, p.q.cols());
  ops::attention_forward<double>(p.q, parts, p.shape, out, {});
  Index lost = 0;
  for (const auto& s : parts) {
    for (Index i = 0; i < s.query_count; ++i) {
      for (Index h = 0; h < 2; ++h) {
        const Index token = s.query_first + i, keys = 1 + s.keys.rows;
        std::uint8_t bits = 0;
        dropout_mask_row({7, 3, 11, 0}, (100 + token) * 2 + h, keys, 0.4f, &bits);
        std::vector<double> weight;
        double sum = 0;
        for (Index j = 0; j < keys; ++j) {
          const double* key = j == 0 ? s.prefix_keys.row(0) : s.keys.row(j - 1);
          weight.push_back(std::exp(0.3f * (p.q(token, h * 2) * key[0] + p.q(token, h * 2 + 1) * key[1])));
          sum += weight.back();
        }
        for (Index c = 0; c < 2; ++c) {
          double expected = 0;
          for (Index j = 0; j < keys; ++j) {
            const double value = (j == 0 ? s.prefix_values.row(0) : s.values.row(j - 1))[c];
            if ((bits >> j & 1) != 0) expected += weight[static_cast<std::size_t>(j)] / sum * value / (1 - 0.4f);
          }
          CHECK(out(token, h * 2 + c) == Approx(expected).epsilon(1e-6));
        }
        for (Index j = 0; j < keys; ++j) lost += (bits >> j & 1) == 0 ? 1 : 0;
      }
    }
  }
  CHECK(lost > 10);  // of 64
  CHECK(lost < 45);
  // The second sequence alone, as a sub-batch that begins at row 103.
  auto cut = p.shape;
  cut.dropout_key.first_row = 103;
  const std::vector<ops::AttentionSegment<double>> alone{{0, 4, parts[1].keys, parts[1].values, p.pk, p.pv}};
  Matrix<double> rest(4, p.q.cols());
  ops::attention_forward<double>(p.q.view().row_range(3, 4), alone, cut, rest, {});
  for (Index i = 0; i < 4; ++i) {
    for (Index c = 0; c < 4; ++c) CHECK(rest(i, c) == out(3 + i, c));
  }
}

TEST_CASE("attention refuses shapes that do not fit") {
  Matrix<float> q(2, 8), k(1, 4), v(1, 4), out(2, 8);
  const std::vector<ops::AttentionSegment<float>> few{{0, 2, k, v, {}, {}}};
  CHECK_THROWS_AS((ops::attention_forward<float>(q, few, {2, 1, 4, 1.0f, true}, out, {})), ShapeError);
  const std::vector<ops::AttentionSegment<float>> beyond{{1, 2, q.view().column_range(0, 4), q.view().column_range(4, 4), {}, {}}};
  CHECK_THROWS_AS((ops::attention_forward<float>(q, beyond, {2, 1, 4, 1.0f, true}, out, {})), ShapeError);
  CHECK_THROWS_AS((ops::attention_forward<float>(q, few, {3, 2, 4, 1.0f, true}, out, {})), ShapeError);
}
