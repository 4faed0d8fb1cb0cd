#pragma once
/// One layer under a batch whose rows belong to different adapters of different ranks:
///   y = base(x);   y[i] += s_a·(x[i]·A_aᵀ)·B_aᵀ  with a the adapter of row i
/// Two launches for all adapters together. What a row gets does not depend, in any bit of the update, on the rest of the batch.

#include <cstdint>
#include <span>
#include <vector>

#include "peft/cuda/adapter_row_map.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/kernels/adapter_batch.cuh"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/lora.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// The adapters of one layer, as a table in the device's memory. T: float, f16 or bf16.
template <Scalar T>
  requires(!std::is_same_v<T, double>)
class AdapterBatch {
 public:
  using value_type = T;

  /// How far the launches reach: over what the map holds now, or over all that it may hold, so that a captured graph can be
  /// replayed after other rows and adapters were set.
  enum class Reach : bool { kNow, kCapacity };

  /// Of a layer [out, in], for up to `adapters` adapters of ranks up to `most_rank`. Throws ShapeError, CudaError.
  AdapterBatch(Index in_features, Index out_features, Index adapters, Index most_rank)
      : in_(in_features), out_(out_features), most_rank_(most_rank), table_(adapters) {
    if (in_features < 1 || out_features < 1 || adapters < 1 || most_rank < 1) {
      fail<ShapeError>(
          "cuda::AdapterBatch: in_features {}, out_features {}, adapters {}, most_rank {}; expected each at least 1",
          in_features, out_features, adapters, most_rank);
    }
  }

  Index in_features() const noexcept { return in_; }
  Index out_features() const noexcept { return out_; }
  Index most_rank() const noexcept { return most_rank_; }

  /// adapters[a] is the map's adapter a, nullptr where it does not touch this layer; they must outlive the passes. Again after
  /// map.set() and after an adapter's refresh() or move. Throws ShapeError, CudaError.
  void set(std::span<const Lora<T>* const> adapters, const AdapterRowMap& map, Context& context) {
    constexpr std::string_view kWho = "cuda::AdapterBatch::set";
    const auto count = static_cast<Index>(adapters.size());
    if (count != map.adapters() || count > table_.size()) {
      fail<ShapeError>("{}: {} adapters; expected {}, as the map has, and at most {}", kWho, count, map.adapters(),
                       table_.size());
    }
    std::vector<kernels::AdapterSegment<T>> table;
    for (Index i = 0; i < count; ++i) {
      kernels::AdapterSegment<T> segment{};
      const AdapterRowOrder::Segment& rows = map.order().segments[static_cast<std::size_t>(i)];
      segment.first_row = rows.first;
      if (const Lora<T>* lora = adapters[static_cast<std::size_t>(i)]) {
        if (lora->in_features() != in_ || lora->out_features() != out_ || lora->r() > most_rank_) {
          fail<ShapeError>("{}: adapter {} is [{}, {}] with r {}; expected [{}, {}] (out, in) with r at most {}", kWho, i,
                           lora->out_features(), lora->in_features(), lora->r(), out_, in_, most_rank_);
        }
        if (lora->has_bias()) {
          fail<ConfigError>("{}: adapter {} has a bias (lora_bias); expected none in a batch of several adapters", kWho, i);
        }
        segment.a = lora->a_copy().data, segment.lda = lora->a_copy().stride;
        segment.b = lora->b_copy().data, segment.ldb = lora->b_copy().stride;
        segment.scale = static_cast<float>(lora->scaling());
        segment.rank = static_cast<std::int32_t>(lora->r());
        segment.count = rows.count;
      }
      table.push_back(segment);
    }
    // The source is staged before the call returns.
    check(
        cudaMemcpyAsync(table_.data(), table.data(), table.size() * sizeof(table[0]), cudaMemcpyHostToDevice, context.stream()),
        "{}: copying the table of {} adapters", kWho, count);
  }

  /// Scratch of a pass over a map made for up to `rows` rows.
  template <DeviceLinearLike<T> L>
  Index scratch_bytes(const L& base, Index rows) const {
    const Index sums =
        detail::most_bytes(rows, [this](Index n) { return kernels::adapter_batch_workspace<T>(n, in_, most_rank_); });
    const Index s = Context::padded(rows * aligned_stride<T>(most_rank_) * static_cast<Index>(sizeof(T)));
    return std::max(s + sums, Context::padded(scratch_bytes_of(base, rows)));
  }

  /// y = base(x) + the updates. x, y have the map's batch_rows() rows (with kCapacity: at least as many as any map set later).
  /// Throws ShapeError, CudaError.
  template <DeviceLinearLike<T> L>
  void forward(const L& base, DeviceMatrixView<const T> x, const AdapterRowMap& map, DeviceMatrixView<T> y, Context& context,
               Reach reach = Reach::kNow) const {
    constexpr std::string_view kWho = "cuda::AdapterBatch::forward";
    if (base.in_features() != in_ || base.out_features() != out_) {
      fail<ShapeError>("{}: the base layer is [{}, {}]; expected [{}, {}] (out, in)", kWho, Index{base.out_features()},
                       Index{base.in_features()}, out_, in_);
    }
    detail::check_shape(kWho, "x", x, reach == Reach::kNow ? map.batch_rows() : x.rows, in_);
    detail::check_shape(kWho, "y", y, x.rows, out_);
    if (x.rows == 0) return;
    base.forward(x, y, context);

    const AdapterRowOrder& order = map.order();
    kernels::AdapterBatchArgs<T> batch{};
    batch.segments = table_.data();
    batch.segment_count = map.adapters();
    batch.rows = map.rows().data;
    batch.row_count = reach == Reach::kNow ? static_cast<Index>(order.rows.size()) : std::min(map.capacity(), x.rows);
    batch.most_rows = reach == Reach::kNow ? order.most_rows : batch.row_count;
    batch.most_rank = most_rank_;
    batch.sm = context.device().sm;
    if (batch.row_count == 0) return;
    Context::Scratch scratch(context);
    batch.lds = aligned_stride<T>(most_rank_);
    batch.s = scratch.take<T>(batch.row_count * batch.lds, kWho);
    batch.workspace = scratch.take<float>(kernels::adapter_batch_workspace<T>(batch.row_count, in_, most_rank_) / 4, kWho);
    kernels::AdapterShrinkArgs<T> shrink{x.data, x.stride, in_, batch};
    check(kernels::adapter_batch_shrink(shrink, context.stream()), "adapter_batch_shrink kernel: {} rows of {} adapters, r {}",
          batch.row_count, batch.segment_count, most_rank_);
    kernels::AdapterExpandArgs<T> expand{y.data, y.stride, out_, batch};
    check(kernels::adapter_batch_expand(expand, context.stream()), "adapter_batch_expand kernel: {} rows of {} adapters, r {}",
          batch.row_count, batch.segment_count, most_rank_);
  }

 private:
  Index in_, out_, most_rank_;
  DeviceBuffer<kernels::AdapterSegment<T>> table_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
