#pragma once
/// Grouped-query attention over sequences packed one after another (Vaswani et al., 2017; Ainslie et al., "GQA", 2023):
///   out_i = Σ_j P_ij v_j,   P_i = softmax_j(scale · q_i·k_j),   query head h reads key/value head h / (H_q / H_kv)
///   q, out [tokens, H_q·d]; keys, values [key_count, H_kv·d] per sequence
/// Saved for backward: log_sum_exp [tokens, H_q] (Dao et al., "FlashAttention", 2022); P is recomputed:
///   D_i = Σ_j P_ij dout_i·v_j (which is dout_i·out_i);  dS_ij = P_ij (dout_i·v_j − D_i);  dv_j = Σ_i P_ij dout_i;
///   dq_i = scale Σ_j dS_ij k_j;  dk_j = scale Σ_i dS_ij q_i
/// One task owns one key/value head of one sequence, so every sum has one owner and one order.

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/ops/attention_reference.hpp"
#include "peft/ops/attention_types.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {
namespace detail {

// Query rows whose scores stand in memory at once: two tiles of the matrix product at most.
inline constexpr Index kQueryRows = 28;
// Fewer query rows than this read keys and values where they stand: packing them would cost more than it saves.
inline constexpr Index kThinQueryRows = 4;

/// The keys or values of one head as one float matrix [prefix + own, d]: in place where that is how they stand.
template <Scalar T>
struct HeadRows {
  const float* data;
  Index stride;

  static Index memory(const AttentionSegment<T>& segment, Index d) noexcept {
    return Half<T> || segment.prefix_keys.rows > 0 ? (segment.prefix_keys.rows + segment.keys.rows) * d : 0;
  }
  HeadRows(const kernels::KernelTable& t, MatrixView<const T> prefix, MatrixView<const T> own, Index head, Index d,
           float* memory) {
    if constexpr (!Half<T>) {
      if (prefix.rows == 0) {
        data = own.data + head * d;
        stride = own.stride;
        return;
      }
    }
    for (Index j = 0; j < prefix.rows; ++j) t.widen(d, prefix.row(j) + head * d, dtype_of<T>(), memory + j * d);
    for (Index j = 0; j < own.rows; ++j) {
      t.widen(d, own.row(j) + head * d, dtype_of<T>(), memory + (prefix.rows + j) * d);
    }
    data = memory;
    stride = d;
  }
};

/// Rows [first, first + rows) of one head as floats [rows, d]: in place for float.
template <Scalar T>
std::pair<const float*, Index> head_block(const kernels::KernelTable& t, MatrixView<const T> x, Index first, Index rows,
                                          Index column, Index d, float* memory) noexcept {
  if constexpr (Half<T>) {
    for (Index i = 0; i < rows; ++i) t.widen(d, x.row(first + i) + column, dtype_of<T>(), memory + i * d);
    return {memory, d};
  } else {
    (void)t, (void)rows, (void)d, (void)memory;
    return {x.row(first) + column, x.stride};
  }
}

/// Dot products of up to kQueryRows rows with rows of w [n, d] (keys, values): on the matrix product's tile, over w
/// packed once per head as panels [d][tile columns]; few rows against w as it stands.
class RowDots {
 public:
  /// Floats of the packed panels.
  static Index memory(const kernels::KernelTable& t, Index query_rows, Index n, Index d) noexcept {
    return query_rows < kThinQueryRows ? 0 : padded(t.tile_columns, n) * d + t.tile_columns;
  }
  /// Row length of the scores: whole panels.
  static Index score_stride(const kernels::KernelTable& t, Index n) noexcept { return padded(t.tile_columns, n); }
  /// Rows of the scores: whole tiles.
  static Index score_rows(const kernels::KernelTable& t) noexcept { return padded(t.tile_rows, kQueryRows); }

  RowDots(const kernels::KernelTable& t, const float* w, Index w_stride, Index query_rows, Index n, Index d,
          float* memory) noexcept
      : t_(t), w_(w), w_stride_(w_stride), d_(d), panels_(query_rows < kThinQueryRows ? nullptr : memory) {
    const Index nr = t.tile_columns;
    for (Index j = 0; j < n && panels_ != nullptr; j += nr) {
      t.pack_transposed(w + j * w_stride, w_stride, DType::kF32, std::min(nr, n - j), nr, d, memory + j * d, nr);
    }
  }

  /// scores[i*stride + j] = x_i·w_j for i < rows, j < n; beside them up to whole tiles are overwritten. `packed`: room for
  /// score_rows(t)·d + tile rows floats.
  void operator()(const float* x, Index x_stride, Index rows, Index n, float* packed, float* scores,
                  Index stride) const noexcept {
    if (panels_ == nullptr) {
      t_.dots(x, x_stride, rows, w_, w_stride_, DType::kF32, n, d_, scores, stride);
      return;
    }
    const Index mr = t_.tile_rows, nr = t_.tile_columns;
    for (Index i = 0; i < rows; i += mr) {
      t_.pack_transposed(x + i * x_stride, x_stride, DType::kF32, std::min(mr, rows - i), mr, d_, packed + i * d_, mr);
    }
    kernels::TileCall call;
    call.k = d_;
    call.c_stride = stride;
    for (Index j = 0; j < n; j += nr) {
      call.b = panels_ + j * d_;
      for (Index i = 0; i < rows; i += mr) {
        call.a = packed + i * d_;
        call.c = scores + i * stride + j;
        t_.tile(call);
      }
    }
  }

 private:
  static Index padded(Index to, Index n) noexcept { return (n + to - 1) / to * to; }

  const kernels::KernelTable& t_;
  const float* w_;
  Index w_stride_, d_;
  float* panels_;
};

/// Floats that hold the bits of one row of a dropout mask.
constexpr Index bit_floats(Index keys) noexcept { return (keys + 31) / 32; }

/// Keys that row `i` of the segment's queries sees, the prefix among them.
template <Scalar T>
Index visible_keys(const AttentionSegment<T>& s, Index i, bool causal) noexcept {
  return s.prefix_keys.rows + (causal ? s.keys.rows - s.query_count + i + 1 : s.keys.rows);
}

template <Scalar T>
void forward_head(const kernels::KernelTable& t, MatrixView<const T> q, const AttentionSegment<T>& s,
                  const AttentionShape& shape, Index head, MatrixView<T> out, MatrixView<float> log_sum_exp) {
  const Index d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  const Index keys = s.prefix_keys.rows + s.keys.rows;
  const Index room = HeadRows<T>::memory(s, d), panels = RowDots::memory(t, s.query_count, keys, d);
  const Index stride = RowDots::score_stride(t, keys), score_rows = RowDots::score_rows(t);
  float* memory = kernels::scratch(kernels::ScratchSlot::kTile, 2 * room + panels + score_rows * (stride + d) +
                                                                    2 * kQueryRows * d + t.tile_rows + bit_floats(keys));
  const HeadRows<T> k(t, s.prefix_keys, s.keys, head, d, memory);
  const HeadRows<T> v(t, s.prefix_values, s.values, head, d, memory + room);
  const RowDots key_dots(t, k.data, k.stride, s.query_count, keys, d, memory + 2 * room);
  float* scores = memory + 2 * room + panels;
  float* query_memory = scores + score_rows * stride;
  float* sums = query_memory + kQueryRows * d;
  float* packed = sums + kQueryRows * d;
  auto* const bits = reinterpret_cast<std::uint8_t*>(packed + score_rows * d + t.tile_rows);
  for (Index h = head * group; h < (head + 1) * group; ++h) {
    for (Index first = 0; first < s.query_count; first += kQueryRows) {
      const Index rows = std::min(kQueryRows, s.query_count - first);
      const auto [x, x_stride] = head_block<T>(t, q, s.query_first + first, rows, h * d, d, query_memory);
      const Index seen = visible_keys(s, first + rows - 1, shape.causal);
      key_dots(x, x_stride, rows, seen, packed, scores, stride);
      std::fill_n(sums, rows * d, 0.0f);
      float inverse[kQueryRows];
      for (Index i = 0; i < rows; ++i) {
        float* row = scores + i * stride;
        const Index own = visible_keys(s, first + i, shape.causal);
        t.scale(own, shape.scale, row);
        const float largest = t.max(own, row);
        const float sum = t.exp_sum(own, row, largest, row);
        if (shape.dropout > 0.0f) drop_keys(shape, s.query_first + first + i, h, own, bits, row);
        std::fill(row + own, row + seen, 0.0f);
        inverse[i] = quotient(1.0f, sum);
        if (log_sum_exp.data != nullptr) log_sum_exp(s.query_first + first + i, h) = rounded(largest + std::log(sum));
      }
      t.outer_update(seen, rows, d, scores, 1, stride, v.data, v.stride, sums, d);
      for (Index i = 0; i < rows; ++i) {
        t.scale(d, inverse[i], sums + i * d);
        t.narrow(d, sums + i * d, dtype_of<T>(), out.row(s.query_first + first + i) + h * d);
      }
    }
  }
}

template <Scalar T>
void backward_head(const kernels::KernelTable& t, MatrixView<const T> d_out, MatrixView<const T> q,
                   MatrixView<const float> log_sum_exp, const AttentionSegment<T>& s, const AttentionShape& shape,
                   Index head, MatrixView<T> dq, const AttentionGradSegment<T>& grad, float* prefix_aside) {
  const Index d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  const Index prefix = s.prefix_keys.rows, keys = prefix + s.keys.rows;
  const Index room = HeadRows<T>::memory(s, d), panels = RowDots::memory(t, s.query_count, keys, d);
  const Index stride = RowDots::score_stride(t, keys), score_rows = RowDots::score_rows(t);
  float* memory = kernels::scratch(
      kernels::ScratchSlot::kTile,
      2 * (room + panels + keys * d + score_rows * stride) + 3 * kQueryRows * d + score_rows * d + t.tile_rows +
          bit_floats(keys));
  const HeadRows<T> k(t, s.prefix_keys, s.keys, head, d, memory);
  const HeadRows<T> v(t, s.prefix_values, s.values, head, d, memory + room);
  const RowDots key_dots(t, k.data, k.stride, s.query_count, keys, d, memory + 2 * room);
  const RowDots value_dots(t, v.data, v.stride, s.query_count, keys, d, memory + 2 * room + panels);
  float* dk = memory + 2 * (room + panels);
  float* dv = dk + keys * d;
  float* p = dv + keys * d;
  float* ds = p + score_rows * stride;
  float* query_memory = ds + score_rows * stride;
  float* upper_memory = query_memory + kQueryRows * d;
  float* dq_memory = upper_memory + kQueryRows * d;
  float* packed = dq_memory + kQueryRows * d;
  auto* const bits = reinterpret_cast<std::uint8_t*>(packed + score_rows * d + t.tile_rows);
  std::fill_n(dk, 2 * keys * d, 0.0f);
  for (Index h = head * group; h < (head + 1) * group; ++h) {
    for (Index first = 0; first < s.query_count; first += kQueryRows) {
      const Index rows = std::min(kQueryRows, s.query_count - first), token = s.query_first + first;
      const auto [x, x_stride] = head_block<T>(t, q, token, rows, h * d, d, query_memory);
      const auto [upper, upper_stride] = head_block<T>(t, d_out, token, rows, h * d, d, upper_memory);
      const Index seen = visible_keys(s, first + rows - 1, shape.causal);
      key_dots(x, x_stride, rows, seen, packed, p, stride);
      value_dots(upper, upper_stride, rows, seen, packed, ds, stride);
      for (Index i = 0; i < rows; ++i) {
        float* p_row = p + i * stride;
        float* ds_row = ds + i * stride;
        const Index own = visible_keys(s, first + i, shape.causal);
        t.scale(own, shape.scale, p_row);
        t.exp_sum(own, p_row, log_sum_exp(token + i, h), p_row);
        std::fill(p_row + own, p_row + seen, 0.0f);
        if (shape.dropout > 0.0f) drop_keys(shape, token + i, h, own, bits, ds_row);
        const float delta = t.dot(own, p_row, ds_row);
        t.softmax_backward(own, p_row, delta, shape.scale, ds_row);
        if (shape.dropout > 0.0f) drop_keys(shape, token + i, h, own, bits, p_row);
        std::fill(ds_row + own, ds_row + seen, 0.0f);
      }
      t.outer_update(rows, seen, d, p, stride, 1, upper, upper_stride, dv, d);
      t.outer_update(rows, seen, d, ds, stride, 1, x, x_stride, dk, d);
      std::fill_n(dq_memory, rows * d, 0.0f);
      t.outer_update(seen, rows, d, ds, 1, stride, k.data, k.stride, dq_memory, d);
      for (Index i = 0; i < rows; ++i) t.narrow(d, dq_memory + i * d, dtype_of<T>(), dq.row(token + i) + h * d);
    }
  }
  if (grad.d_prefix_keys.data != nullptr || grad.d_prefix_values.data != nullptr) {
    std::copy_n(dk, prefix * d, prefix_aside);
    std::copy_n(dv, prefix * d, prefix_aside + prefix * d);
  }
  for (Index j = 0; j < s.keys.rows; ++j) {
    t.narrow(d, dk + (prefix + j) * d, dtype_of<T>(), grad.d_keys.row(j) + head * d);
    t.narrow(d, dv + (prefix + j) * d, dtype_of<T>(), grad.d_values.row(j) + head * d);
  }
}

/// Adds what backward_head put aside for one head of one segment: dk, then dv, [prefix, d] each.
template <Scalar T>
void add_prefix_gradients(const kernels::KernelTable& t, const float* aside, Index prefix, Index head, Index d,
                          const AttentionGradSegment<T>& grad) {
  for (Index j = 0; j < prefix; ++j) {
    if (grad.d_prefix_keys.data != nullptr) t.add(d, aside + j * d, grad.d_prefix_keys.row(j) + head * d);
    if (grad.d_prefix_values.data != nullptr) t.add(d, aside + (prefix + j) * d, grad.d_prefix_values.row(j) + head * d);
  }
}

}  // namespace detail

/// out is overwritten for the rows of the segments; log_sum_exp may be empty where no backward follows. A prefix is
/// seen by every query; causal: query i of a segment sees own keys [0, key_count − query_count + i]. Throws ShapeError.
template <Scalar T>
void attention_forward(MatrixView<const T> q, std::span<const AttentionSegment<T>> segments,
                       const AttentionShape& shape, MatrixView<T> out, MatrixView<Accumulator<T>> log_sum_exp,
                       ExecutorRef executor = default_executor()) {
  detail::check_attention<T>("attention_forward", q, segments, shape);
  detail::check_shape("attention_forward", "out", out, q.rows, q.cols);
  if (log_sum_exp.data != nullptr) {
    detail::check_shape("attention_forward", "log_sum_exp", log_sum_exp, q.rows, shape.query_heads);
  }
  if constexpr (std::same_as<T, double>) {
    for (const auto& segment : segments) detail::reference_forward(q, segment, shape, out, log_sum_exp);
  } else {
    const kernels::KernelTable& t = kernels::table();
    const auto count = static_cast<Index>(segments.size());
    parallel_for(executor, count * shape.kv_heads, [&](Index task) {
      detail::forward_head<T>(t, q, segments[static_cast<std::size_t>(task / shape.kv_heads)], shape,
                              task % shape.kv_heads, out, log_sum_exp);
    });
  }
}

/// dq, d_keys and d_values are overwritten, the prefix's gradients are added to, in the order of the segments.
/// `grads` stands in the order of `segments`. dq may be d_out. Throws ShapeError.
template <Scalar T>
void attention_backward(MatrixView<const T> d_out, MatrixView<const T> q, MatrixView<const Accumulator<T>> log_sum_exp,
                        std::span<const AttentionSegment<T>> segments, const AttentionShape& shape, MatrixView<T> dq,
                        std::span<const AttentionGradSegment<T>> grads, ExecutorRef executor = default_executor()) {
  detail::check_attention<T>("attention_backward", q, segments, shape);
  detail::check_shape("attention_backward", "d_out", d_out, q.rows, q.cols);
  detail::check_shape("attention_backward", "dq", dq, q.rows, q.cols);
  detail::check_shape("attention_backward", "log_sum_exp", log_sum_exp, q.rows, shape.query_heads);
  detail::check_gradients<T>("attention_backward", segments, grads);
  if constexpr (std::same_as<T, double>) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      detail::reference_backward(d_out, q, log_sum_exp, segments[i], shape, dq, grads[i]);
    }
  } else {
    const kernels::KernelTable& t = kernels::table();
    const auto count = static_cast<Index>(segments.size());
    // A prefix's gradient has one owner per head: tasks put theirs aside, and they are added in the order of the segments.
    std::vector<Index> places(segments.size() + 1, 0);
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const bool wanted = grads[i].d_prefix_keys.data != nullptr || grads[i].d_prefix_values.data != nullptr;
      places[i + 1] = places[i] + (wanted ? 2 * segments[i].prefix_keys.rows * shape.head_dim : 0);
    }
    Buffer<float> aside(places.back() * shape.kv_heads);
    const auto aside_of = [&](std::size_t segment, Index head) {
      return aside.data() + head * places.back() + places[segment];
    };
    parallel_for(executor, count * shape.kv_heads, [&](Index task) {
      const auto at = static_cast<std::size_t>(task / shape.kv_heads);
      const Index head = task % shape.kv_heads;
      detail::backward_head<T>(t, d_out, q, log_sum_exp, segments[at], shape, head, dq, grads[at],
                               aside_of(at, head));
    });
    if (places.back() == 0) return;
    parallel_for(executor, shape.kv_heads, [&](Index head) {
      for (std::size_t i = 0; i < segments.size(); ++i) {
        detail::add_prefix_gradients<T>(t, aside_of(i, head), segments[i].prefix_keys.rows, head, shape.head_dim, grads[i]);
      }
    });
  }
}

}  // namespace ops
PEFT_END_NAMESPACE
