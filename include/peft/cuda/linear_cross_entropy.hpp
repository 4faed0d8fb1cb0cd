#pragma once
/// The language-model head and its loss in one, on the GPU:
///   z_i = h_i·Wᵀ + bias,   L = Σ_i (log Σ_j exp z_ij − z_i,label(i)),   dh_i = scale·(softmax(z_i) − onehot)·W
///   h [tokens, hidden], W [vocabulary, hidden]; the sum runs over the rows i whose label is not negative
/// peft::LinearCrossEntropy on the device: logits of T stand in the context's scratch, a chunk of rows at a time, and become
/// their gradient in place; nothing is saved for a backward pass. Labels, the factor of the gradient and the sums may all
/// stay on the device: nothing but sum() waits, so a step can be captured in a graph. Unlike on the CPU rows without a label
/// are multiplied, too, for the host does not know which they are.

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/kernels/cross_entropy.cuh"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/transfer.hpp"
#include "peft/loss_sum.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// A head that is trained, in chunks of rows, as TrainedHead: backward_rows adds to the gradients of the head's parameters and
/// overwrites dx, which may be x. `first`: which row of the hidden states the chunk's first is (dropout masks go by it).
template <class H, class T = typename H::value_type>
concept DeviceTrainedHead = DeviceLinearLike<H, T> && requires(const H& head, DeviceMatrixView<const T> x,
                                                              DeviceMatrixView<T> y, Index first, Context& context) {
  head.forward_rows(x, first, y, context);
  head.backward_rows(x, x, first, y, context);  // dz, x, first, dx
};

/// T: float, f16 or bf16, the type of hidden states and logits; sums are float within a row and double over rows. Movable; of
/// one stream.
template <Scalar T>
  requires(!std::is_same_v<T, double>)
class LinearCrossEntropy {
 public:
  using value_type = T;

  /// Logits that stand in memory at once. 1024 rows of a vocabulary of 128 Ki in 16 bits: enough rows that the products with
  /// the head are bound by the tensor cores and not by reading W once a chunk.
  static constexpr Index kLogitBytes = Index{256} << 20;

  /// With sums of zero. Throws CudaError.
  explicit LinearCrossEntropy(Context& context) : totals_(1) { zero_sum(context); }

  /// Fewer rows of logits at once, in more time; before scratch_bytes(). Throws ConfigError.
  void set_logit_bytes(Index bytes) {
    if (bytes < 1) fail<ConfigError>("cuda::LinearCrossEntropy: {} bytes of logits; expected at least 1", bytes);
    logit_bytes_ = bytes;
  }
  /// One more factor of gradients, in device memory, read when they are made (a loss scale, one over a step's tokens); null:
  /// none.
  void set_grad_factor(const float* factor) noexcept { grad_factor_ = factor; }

  /// Rows of a chunk for `rows` rows: as even as they come below `logit_bytes`, at least 16 where there are as many, in whole
  /// tiles of a matrix product where that fits.
  static Index chunk_rows(Index rows, Index vocabulary, Index logit_bytes = kLogitBytes) noexcept {
    const Index row_bytes = std::max<Index>(1, aligned_stride<T>(vocabulary)) * static_cast<Index>(sizeof(T));
    const Index most = std::max<Index>(16, logit_bytes / row_bytes);
    const Index chunks = std::max<Index>(1, (rows + most - 1) / most);
    const Index even = std::max<Index>(1, (rows + chunks - 1) / chunks);
    constexpr Index kTile = 128;
    const Index tiles = (even + kTile - 1) / kTile * kTile;
    return chunks > 1 && tiles <= most ? tiles : even;
  }
  /// Scratch that a pass over `rows` rows and `head` takes: for Context::reserve.
  template <DeviceLinearLike<T> Head>
  Index scratch_bytes(const Head& head, Index rows) const {
    const Index vocabulary = head.out_features(), chunk = chunk_rows(rows, vocabulary, logit_bytes_);
    return Context::padded(chunk * aligned_stride<T>(vocabulary) * static_cast<Index>(sizeof(T))) +
           Context::padded(chunk * static_cast<Index>(sizeof(float))) + Context::padded(chunk) +
           Context::padded(scratch_bytes_of(head, chunk));
  }

  /// Labels of the host's to the device's, checked: no kernel can say that an id is beyond the vocabulary (its loss is a NaN
  /// then). Waits. Throws ShapeError, CudaError.
  static void upload_labels(VectorView<const std::int32_t> from, Index vocabulary, DeviceVectorView<std::int32_t> to,
                            Context& context) {
    for (Index i = 0; i < from.size; ++i) {
      if (from[i] >= vocabulary) {
        fail<ShapeError>("cuda::LinearCrossEntropy: the label of row {} is {}; expected an id below {}, the head's "
                         "out_features, or a negative one (-100, -1) for none",
                         i, from[i], vocabulary);
      }
    }
    upload(from, to, context.stream(), "the labels");
  }

  /// Adds loss, label tokens and hits to the sums. labels: an id per row, negative: none. Throws ShapeError, CudaError.
  template <DeviceLinearLike<T> Head>
  void forward(const Head& head, DeviceMatrixView<const T> hidden, DeviceVectorView<const std::int32_t> labels,
               Context& context) {
    check("cuda::LinearCrossEntropy::forward", head, hidden, labels);
    run(head, hidden, labels, 0.0, {}, context);
  }
  /// The same, and d_hidden = grad_scale · dL/dh (overwritten; 0 in rows without a label). d_hidden may be hidden's own
  /// memory. In f16 a softmax's small numbers times grad_scale vanish below 2⁻²⁵: scale the loss. Throws ShapeError,
  /// ConfigError, CudaError.
  template <DeviceLinearLike<T> Head>
  void forward_backward(const Head& head, DeviceMatrixView<const T> hidden, DeviceVectorView<const std::int32_t> labels,
                        double grad_scale, DeviceMatrixView<T> d_hidden, Context& context) {
    static_assert(DeviceBackwardLinear<Head, T> || DeviceTrainedHead<Head, T>,
                  "a gradient through this head needs backward_input (cuda::DeviceBackwardLinear) or forward_rows and "
                  "backward_rows (cuda::DeviceTrainedHead)");
    constexpr std::string_view kWho = "cuda::LinearCrossEntropy::forward_backward";
    check(kWho, head, hidden, labels);
    detail::check_shape(kWho, "d_hidden", d_hidden, hidden.rows, hidden.cols);
    const bool in_place = d_hidden.data == hidden.data && d_hidden.stride == hidden.stride;
    if (!in_place) detail::check_no_alias(kWho, "d_hidden", d_hidden, "hidden", hidden);
    if (!is_finite(static_cast<float>(grad_scale))) {
      fail<ConfigError>("{}: grad_scale is {}; expected a finite number", kWho, grad_scale);
    }
    run(head, hidden, labels, grad_scale, d_hidden, context);
  }

  /// Sums begin anew. Throws CudaError.
  void zero_sum(Context& context) { totals_.fill_zero(context.stream()); }
  /// The sums since then, on the host. Waits. Throws CudaError.
  LossSum sum(Context& context) const {
    kernels::CrossEntropyTotals totals{};
    cuda::check(cudaMemcpyAsync(&totals, totals_.data(), sizeof(totals), cudaMemcpyDeviceToHost, context.stream()),
                "cuda::LinearCrossEntropy: reading the sums");
    context.synchronize();
    return {totals.loss, static_cast<Index>(totals.tokens), static_cast<Index>(totals.correct)};
  }
  /// The same on the device, for kernels of the caller's.
  const kernels::CrossEntropyTotals* totals() const noexcept { return totals_.data(); }

 private:
  template <class Head>
  static void check(std::string_view who, const Head& head, DeviceMatrixView<const T> hidden,
                    DeviceVectorView<const std::int32_t> labels) {
    detail::check_shape(who, "hidden", hidden, hidden.rows, head.in_features());
    if (labels.size != hidden.rows) {
      fail<ShapeError>("{}: {} labels; expected {}, one for each row of hidden [{}, {}]", who, labels.size, hidden.rows,
                       hidden.rows, hidden.cols);
    }
    if (labels.data == nullptr && !labels.empty()) {
      fail<ShapeError>("{}: {} labels have no memory; expected a device pointer", who, labels.size);
    }
    if (head.out_features() < 1) {
      fail<ShapeError>("{}: the head is [{}, {}]; expected a vocabulary of at least 1", who, Index{head.out_features()},
                       Index{head.in_features()});
    }
  }

  /// d_hidden without memory: no gradient.
  template <class Head>
  void run(const Head& head, DeviceMatrixView<const T> hidden, DeviceVectorView<const std::int32_t> labels, double grad_scale,
           DeviceMatrixView<T> d_hidden, Context& context) {
    constexpr std::string_view kWho = "cuda::LinearCrossEntropy";
    const Index rows = hidden.rows, vocabulary = head.out_features();
    if (rows == 0) return;
    const Index chunk = chunk_rows(rows, vocabulary, logit_bytes_), stride = aligned_stride<T>(vocabulary);
    Context::Scratch scratch(context);
    T* const logits = scratch.take<T>(chunk * stride, kWho);
    float* const losses = scratch.take<float>(chunk, kWho);
    std::uint8_t* const correct = scratch.take<std::uint8_t>(chunk, kWho);
    for (Index first = 0; first < rows; first += chunk) {
      const Index count = std::min(chunk, rows - first);
      const DeviceMatrixView<T> z(logits, count, vocabulary, stride);
      const DeviceMatrixView<const T> x = hidden.row_range(first, count);
      if constexpr (DeviceTrainedHead<Head, T>) {
        head.forward_rows(x, first, z, context);
      } else {
        head.forward(x, z, context);
      }
      kernels::CrossEntropyArgs<T> args{};
      args.logits = z.data, args.ld = z.stride;
      args.rows = count, args.vocabulary = vocabulary;
      args.labels = labels.data + first;
      args.scale = static_cast<float>(grad_scale);
      args.scale_from = grad_factor_;
      args.losses = losses;
      args.correct = correct;
      args.want_grad = d_hidden.data != nullptr;
      cuda::check(kernels::cross_entropy_chunk(args, context.stream()), "cross_entropy kernel: logits [{}, {}]", count,
                  vocabulary);
      const kernels::CrossEntropyTotalArgs total{losses, args.labels, correct, count, totals_.data()};
      cuda::check(kernels::cross_entropy_total(total, context.stream()), "cross_entropy_total kernel: {} rows", count);
      if (!args.want_grad) continue;
      const DeviceMatrixView<T> dx = d_hidden.row_range(first, count);
      if constexpr (DeviceTrainedHead<Head, T>) {
        head.backward_rows(DeviceMatrixView<const T>(z), x, first, dx, context);
      } else if constexpr (DeviceBackwardLinear<Head, T>) {
        head.backward_input(DeviceMatrixView<const T>(z), dx, context);
      }
    }
  }

  Index logit_bytes_ = kLogitBytes;
  const float* grad_factor_ = nullptr;
  DeviceBuffer<kernels::CrossEntropyTotals> totals_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
