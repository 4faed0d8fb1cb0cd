#pragma once
/// Attention as its equations stand, in double: the path of T = double and what the fast one is tested against.

#include <cmath>
#include <vector>

#include "peft/ops/attention_types.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops::detail {

/// The row of key j (prefix first) of a pair of matrices.
inline const double* joined_row(MatrixView<const double> prefix, MatrixView<const double> own, Index j) noexcept {
  return j < prefix.rows ? prefix.row(j) : own.row(j - prefix.rows);
}

inline Index reference_visible(const AttentionSegment<double>& s, Index i, bool causal) noexcept {
  return s.prefix_keys.rows + (causal ? s.keys.rows - s.query_count + i + 1 : s.keys.rows);
}

inline double reference_dot(const double* a, const double* b, Index n) noexcept {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline void reference_forward(MatrixView<const double> q, const AttentionSegment<double>& s,
                              const AttentionShape& shape, MatrixView<double> out, MatrixView<double> log_sum_exp) {
  const Index d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  for (Index i = 0; i < s.query_count; ++i) {
    const Index token = s.query_first + i, seen = reference_visible(s, i, shape.causal);
    for (Index h = 0; h < shape.query_heads; ++h) {
      const Index column = h / group * d;
      std::vector<double> p(static_cast<std::size_t>(seen));
      double largest = -1e300, sum = 0;
      for (Index j = 0; j < seen; ++j) {
        double& score = p[static_cast<std::size_t>(j)];
        score = static_cast<double>(shape.scale) *
                reference_dot(q.row(token) + h * d, joined_row(s.prefix_keys, s.keys, j) + column, d);
        largest = score > largest ? score : largest;
      }
      for (double& score : p) sum += score = std::exp(score - largest);
      if (shape.dropout > 0.0f) {
        std::vector<std::uint8_t> bits(static_cast<std::size_t>((seen + 7) / 8));
        drop_keys(shape, token, h, seen, bits.data(), p.data());
      }
      for (Index c = 0; c < d; ++c) {
        double value = 0;
        for (Index j = 0; j < seen; ++j) {
          value += p[static_cast<std::size_t>(j)] * joined_row(s.prefix_values, s.values, j)[column + c];
        }
        out(token, h * d + c) = value / sum;
      }
      if (log_sum_exp.data != nullptr) log_sum_exp(token, h) = largest + std::log(sum);
    }
  }
}

inline void reference_backward(MatrixView<const double> d_out, MatrixView<const double> q,
                               MatrixView<const double> log_sum_exp, const AttentionSegment<double>& s,
                               const AttentionShape& shape, MatrixView<double> dq,
                               const AttentionGradSegment<double>& grad) {
  const Index d = shape.head_dim, group = shape.query_heads / shape.kv_heads, prefix = s.prefix_keys.rows;
  for (Index j = 0; j < s.keys.rows; ++j) {
    for (Index c = 0; c < s.keys.cols; ++c) grad.d_keys(j, c) = grad.d_values(j, c) = 0.0;
  }
  const auto target = [&](MatrixView<double> own, MatrixView<double> of_prefix, Index j) -> double* {
    if (j >= prefix) return own.row(j - prefix);
    return of_prefix.data != nullptr ? of_prefix.row(j) : nullptr;
  };
  for (Index i = 0; i < s.query_count; ++i) {
    const Index token = s.query_first + i, seen = reference_visible(s, i, shape.causal);
    for (Index h = 0; h < shape.query_heads; ++h) {
      const Index column = h / group * d;
      const std::vector<double> upper(d_out.row(token) + h * d, d_out.row(token) + (h + 1) * d);
      std::vector<double> own_dq(static_cast<std::size_t>(d), 0.0), keep(static_cast<std::size_t>(seen), 1.0);
      if (shape.dropout > 0.0f) {
        std::vector<std::uint8_t> bits(static_cast<std::size_t>((seen + 7) / 8));
        drop_keys(shape, token, h, seen, bits.data(), keep.data());
      }
      const double scale = static_cast<double>(shape.scale);
      std::vector<double> p(static_cast<std::size_t>(seen)), dp(static_cast<std::size_t>(seen));
      double delta = 0;
      for (Index j = 0; j < seen; ++j) {
        const auto at = static_cast<std::size_t>(j);
        const double* key = joined_row(s.prefix_keys, s.keys, j) + column;
        p[at] = std::exp(scale * reference_dot(q.row(token) + h * d, key, d) - log_sum_exp(token, h));
        dp[at] = keep[at] * reference_dot(upper.data(), joined_row(s.prefix_values, s.values, j) + column, d);
        delta += p[at] * dp[at];
      }
      for (Index j = 0; j < seen; ++j) {
        const auto at = static_cast<std::size_t>(j);
        const double* key = joined_row(s.prefix_keys, s.keys, j) + column;
        const double ds = scale * p[at] * (dp[at] - delta);
        double* dk = target(grad.d_keys, grad.d_prefix_keys, j);
        double* dv = target(grad.d_values, grad.d_prefix_values, j);
        for (Index c = 0; c < d; ++c) {
          own_dq[static_cast<std::size_t>(c)] += ds * key[c];
          if (dk != nullptr) dk[column + c] += ds * q(token, h * d + c);
          if (dv != nullptr) dv[column + c] += keep[at] * p[at] * upper[static_cast<std::size_t>(c)];
        }
      }
      for (Index c = 0; c < d; ++c) dq(token, h * d + c) = own_dq[static_cast<std::size_t>(c)];
    }
  }
}

}  // namespace ops::detail
PEFT_END_NAMESPACE
