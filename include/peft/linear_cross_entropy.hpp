#pragma once
/// The language-model head and its loss in one:
///   z_i = h_i·Wᵀ + bias,   L = Σ_i (log Σ_j exp z_ij − z_i,target(i)),   dh_i = scale · (softmax(z_i) − onehot)·W
///   h [tokens, hidden], W [vocab, hidden]; the sum runs over the rows i that have a target
/// Logits exist only for those rows, and only for a chunk of them at a time: the memory is bounded whatever the number
/// of tokens. Nothing is saved for a backward pass: the gradient of h is made while the chunk's logits are at hand, and a
/// TrainedHead adds to its own gradients then; any other is frozen. Chunks depend on the shape alone, so the bits do not
/// depend on the threads.

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/linear.hpp"
#include "peft/loss_sum.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/ops/cross_entropy.hpp"

PEFT_BEGIN_NAMESPACE

/// A head that is trained, in chunks of rows: forward_rows leaves what backward_rows of the same chunk needs. `first`: the
/// row of the hidden states that the chunk's first row is (dropout masks go by it). backward_rows adds to the gradients of
/// the head's parameters; dx is overwritten, and may be x.
template <class H, class T>
concept TrainedHead = LinearLike<H, T> && requires(const H& head, MatrixView<const T> x, MatrixView<T> y, Index first,
                                                   ExecutorRef executor) {
  head.forward_rows(x, first, y, executor);
  head.backward_rows(x, x, first, y, executor);  // dz, x, first, dx
};

/// A head that takes the hidden states, or takes them widened.
template <class H, class T>
concept LossHead = LinearLike<H, T> || LinearLike<H, Accumulator<T>>;

/// Loss of a head; holds the chunk's memory, so keep one from step to step. T: type of the hidden states.
/// The logits are Accumulator<T> where the head takes that type, else they come as T and are widened. One thread at a
/// time.
template <Scalar T>
class LinearCrossEntropy {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// Logits that stand in memory at once. Large enough that packing the head's weight once per chunk costs little beside
  /// the products with it (256 rows for a vocabulary of 49,152; with 85 they take a sixth longer), small enough for
  /// most of them to stay in a shared cache.
  static constexpr Index kLogitBytes = Index{48} << 20;

  /// The same for this head, where memory is short: fewer rows of logits at once, in more time. Throws ConfigError.
  void set_logit_bytes(Index bytes) {
    if (bytes < 1) fail<ConfigError>("LinearCrossEntropy: {} bytes of logits; expected at least 1", bytes);
    logit_bytes_ = bytes;
  }

  /// Rows of a chunk for `rows` rows with a target: as even as they come below `logit_bytes`, at least 16 where there
  /// are as many, in whole tiles of the matrix product where that costs little.
  static Index chunk_rows(Index rows, Index vocabulary, Index logit_bytes = kLogitBytes) noexcept {
    const Index row_bytes = std::max<Index>(1, vocabulary) * static_cast<Index>(sizeof(accumulator_type));
    const Index most = std::max<Index>(16, logit_bytes / row_bytes);
    const Index chunks = std::max<Index>(1, (rows + most - 1) / most);
    const Index even = std::max<Index>(1, (rows + chunks - 1) / chunks);
    constexpr Index kTile = 14;  // the widest tile's rows
    const Index tiles = (even + kTile - 1) / kTile * kTile;
    return chunks > 1 && tiles <= most ? tiles : even;
  }

  /// Adds loss, label tokens and hits to `sum`. targets: id per row, -1 = none. Throws ShapeError.
  template <LossHead<T> Head>
  void forward(const Head& head, MatrixView<const T> hidden, VectorView<const std::int32_t> targets, LossSum& sum,
               ExecutorRef executor = default_executor()) {
    run(head, hidden, targets, 0.0, MatrixView<T>(), sum, executor);
  }

  /// The same, and d_hidden = grad_scale × dL/dh (overwritten; 0 in rows without a target). d_hidden may be hidden's
  /// own memory. Throws ShapeError.
  template <LossHead<T> Head>
  void forward_backward(const Head& head, MatrixView<const T> hidden, VectorView<const std::int32_t> targets,
                        double grad_scale, MatrixView<T> d_hidden, LossSum& sum,
                        ExecutorRef executor = default_executor()) {
    detail::check_shape("LinearCrossEntropy", "d_hidden", d_hidden, hidden.rows, hidden.cols);
    for (Index i = 0; i < targets.size && i < d_hidden.rows; ++i) {
      if (targets[i] < 0) std::fill_n(d_hidden.row(i), d_hidden.cols, T(0.0f));
    }
    run(head, hidden, targets, grad_scale, d_hidden, sum, executor);
  }

 private:
  using A = accumulator_type;
  /// The type in which the head is run.
  template <class Head>
  using HeadType = std::conditional_t<LinearLike<Head, A>, A, T>;

  template <class Head>
  void run(const Head& head, MatrixView<const T> hidden, VectorView<const std::int32_t> targets, double grad_scale,
           MatrixView<T> d_hidden, LossSum& sum, ExecutorRef executor) {
    const Index vocabulary = head.out_features();
    check(hidden, targets, head.in_features(), vocabulary);
    rows_.clear();
    labels_.clear();
    for (Index i = 0; i < targets.size; ++i) {
      if (targets[i] < 0) continue;
      rows_.push_back(i);
      labels_.push_back(targets[i]);
    }
    const Index total = static_cast<Index>(rows_.size());
    const Index chunk = chunk_rows(total, vocabulary, logit_bytes_);
    losses_.resize_discard(chunk);
    correct_.resize_discard(chunk);
    logits_.resize_discard(chunk, vocabulary);
    for (Index first = 0; first < total; first += chunk) {
      const Index count = std::min(chunk, total - first);
      const std::span<const Index> rows(rows_.data() + first, static_cast<std::size_t>(count));
      const MatrixView<A> logits = logits_.view().row_range(0, count);
      compute_logits(head, hidden, rows, logits, executor);
      const VectorView<double> losses = losses_.view().slice(0, count);
      const VectorView<std::uint8_t> correct = correct_.view().slice(0, count);
      const bool want_grad = d_hidden.data != nullptr;
      ops::cross_entropy<A>(logits, {labels_.data() + first, count}, static_cast<A>(grad_scale), want_grad, losses,
                            correct, executor);
      for (const double loss : losses) sum.loss = rounded(sum.loss + loss);
      for (const std::uint8_t hit : correct) sum.correct += hit != 0 ? 1 : 0;
      if (want_grad) compute_d_hidden(head, logits, rows, d_hidden, executor);
    }
    sum.tokens += total;
  }

  template <class Head>
  void compute_logits(const Head& head, MatrixView<const T> hidden, std::span<const Index> rows, MatrixView<A> logits,
                      ExecutorRef executor) {
    using H = HeadType<Head>;
    Matrix<H>& gathered = gathered_as<H>();
    gathered.resize_discard(logits.rows, hidden.cols);
    parallel_for(executor, logits.rows, [&](Index i) {
      convert_row(hidden.row(rows[static_cast<std::size_t>(i)]), gathered.row(i), hidden.cols);
    });
    const MatrixView<const H> x = std::as_const(gathered).view();
    if constexpr (std::is_same_v<H, A>) {
      product<H>(head, x, rows.front(), logits, executor);
    } else {
      narrow_logits_.resize_discard(logits.rows, logits.cols);
      product<H>(head, x, rows.front(), narrow_logits_.view(), executor);
      parallel_for(executor, logits.rows,
                   [&](Index i) { convert_row(narrow_logits_.row(i), logits.row(i), logits.cols); });
    }
  }

  /// d_hidden's rows = dlogits·W.
  template <class Head>
  void compute_d_hidden(const Head& head, MatrixView<A> dlogits, std::span<const Index> rows, MatrixView<T> d_hidden,
                        ExecutorRef executor) {
    using H = HeadType<Head>;
    Matrix<H>& gathered = gathered_as<H>();  // the hidden states in it, to become their gradient
    if constexpr (std::is_same_v<H, A>) {
      product_backward<H>(head, dlogits, rows.front(), gathered, executor);
    } else {
      parallel_for(executor, dlogits.rows,
                   [&](Index i) { convert_row(dlogits.row(i), narrow_logits_.row(i), dlogits.cols); });
      product_backward<H>(head, narrow_logits_.view().row_range(0, dlogits.rows), rows.front(), gathered, executor);
    }
    parallel_for(executor, dlogits.rows, [&](Index i) {
      convert_row(gathered.row(i), d_hidden.row(rows[static_cast<std::size_t>(i)]), d_hidden.cols);
    });
  }

  template <class H, class Head>
  static void product(const Head& head, MatrixView<const H> x, Index first, MatrixView<H> logits, ExecutorRef executor) {
    if constexpr (TrainedHead<Head, H>) {
      head.forward_rows(x, first, logits, executor);
    } else {
      forward_low_rank<H>(head, x, {}, logits, executor);
    }
  }
  template <class H, class Head>
  static void product_backward(const Head& head, MatrixView<const H> dlogits, Index first, Matrix<H>& x,
                               ExecutorRef executor) {
    if constexpr (TrainedHead<Head, H>) {
      head.backward_rows(dlogits, std::as_const(x).view(), first, x.view(), executor);
    } else {
      backward_low_rank<H>(head, dlogits, {}, x.view(), Accumulate::kOverwrite, executor);
    }
  }

  template <class From, class To>
  static void convert_row(const From* from, To* to, Index count) noexcept {
    for (Index i = 0; i < count; ++i) to[i] = static_cast<To>(static_cast<A>(from[i]));
  }

  template <class H>
  Matrix<H>& gathered_as() noexcept {
    if constexpr (std::is_same_v<H, A>) {
      return gathered_;
    } else {
      return narrow_gathered_;
    }
  }

  static void check(MatrixView<const T> hidden, VectorView<const std::int32_t> targets, Index width,
                    Index vocabulary) {
    detail::check_shape("LinearCrossEntropy", "hidden", hidden, targets.size, width);
    for (Index i = 0; i < targets.size; ++i) {
      if (targets[i] >= vocabulary) {
        fail<ShapeError>("LinearCrossEntropy: the target of row {} is {}; expected an id below {}, the head's "
                         "out_features, or -1 for none",
                         i, targets[i], vocabulary);
      }
    }
  }

  Index logit_bytes_ = kLogitBytes;
  std::vector<Index> rows_;            ///< rows with a target
  std::vector<std::int32_t> labels_;   ///< their targets
  Matrix<A> gathered_;                 ///< the chunk's hidden states, then their gradient
  Matrix<A> logits_;                   ///< the chunk's logits, then their gradient
  Matrix<T> narrow_gathered_;          ///< the same for a head that takes T alone
  Matrix<T> narrow_logits_;
  Buffer<double> losses_;
  Buffer<std::uint8_t> correct_;
};

PEFT_END_NAMESPACE
