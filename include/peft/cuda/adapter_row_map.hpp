#pragma once
/// Which adapter each row of a batch belongs to, sorted by adapter: `rows` lists the batch's rows, an adapter's beside one
/// another, in their order; segment a of it is adapter a's. One map serves all layers of a pass.

#include <cstdint>
#include <span>
#include <vector>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/context.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// The sorted rows in the host's memory.
struct AdapterRowOrder {
  struct Segment {
    std::int32_t first = 0, count = 0;
  };
  std::vector<std::int32_t> rows;
  std::vector<Segment> segments;  ///< one per adapter; may be empty
  Index most_rows = 0;            ///< of one segment

  /// adapter_of_row[i]: the adapter of row i, or -1 for none. Throws ConfigError for one that does not exist.
  static AdapterRowOrder of(std::span<const std::int32_t> adapter_of_row, Index adapters) {
    AdapterRowOrder order;
    order.segments.resize(static_cast<std::size_t>(adapters));
    for (std::size_t i = 0; i < adapter_of_row.size(); ++i) {
      const std::int32_t adapter = adapter_of_row[i];
      if (adapter < -1 || adapter >= adapters) {
        fail<ConfigError>("AdapterRowMap: row {} has adapter {}; expected one from 0 to {}, or -1 for none", i, adapter,
                          adapters - 1);
      }
      if (adapter >= 0) ++order.segments[static_cast<std::size_t>(adapter)].count;
    }
    std::int32_t first = 0;
    for (Segment& segment : order.segments) {
      segment.first = first;
      first += segment.count;
      order.most_rows = order.most_rows < segment.count ? segment.count : order.most_rows;
    }
    order.rows.resize(static_cast<std::size_t>(first));
    std::vector<std::int32_t> next;
    for (const Segment& segment : order.segments) next.push_back(segment.first);
    for (std::size_t i = 0; i < adapter_of_row.size(); ++i) {
      if (adapter_of_row[i] < 0) continue;
      order.rows[static_cast<std::size_t>(next[static_cast<std::size_t>(adapter_of_row[i])]++)] = static_cast<std::int32_t>(i);
    }
    return order;
  }
};

/// The same on the device.
class AdapterRowMap {
 public:
  /// For up to `rows` rows and `adapters` adapters. Throws ShapeError, CudaError.
  AdapterRowMap(Index rows, Index adapters) : capacity_(rows), adapters_(adapters), rows_(rows) {
    if (rows < 1 || rows > INT32_MAX || adapters < 1 || adapters > 65535) {
      fail<ShapeError>("AdapterRowMap: {} rows, {} adapters; expected 1 to {} rows and 1 to 65535 adapters", rows, adapters,
                       INT32_MAX);
    }
    order_.segments.resize(static_cast<std::size_t>(adapters));
  }

  /// adapter_of_row[i]: the adapter of row i, or -1. Throws ConfigError, ShapeError, CudaError.
  void set(std::span<const std::int32_t> adapter_of_row, Context& context) {
    if (static_cast<Index>(adapter_of_row.size()) > capacity_) {
      fail<ShapeError>("AdapterRowMap::set: {} rows; expected at most {}, as it was made for", adapter_of_row.size(),
                       capacity_);
    }
    order_ = AdapterRowOrder::of(adapter_of_row, adapters_);
    batch_rows_ = static_cast<Index>(adapter_of_row.size());
    if (order_.rows.empty()) return;
    // The source is staged before the call returns.
    check(cudaMemcpyAsync(rows_.data(), order_.rows.data(), order_.rows.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice,
                          context.stream()),
          "AdapterRowMap::set: copying {} rows", order_.rows.size());
  }

  Index capacity() const noexcept { return capacity_; }
  Index adapters() const noexcept { return adapters_; }
  /// Rows of the batch, with and without an adapter.
  Index batch_rows() const noexcept { return batch_rows_; }
  const AdapterRowOrder& order() const noexcept { return order_; }
  DeviceVectorView<const std::int32_t> rows() const noexcept { return rows_.device_view(); }

 private:
  Index capacity_, adapters_, batch_rows_ = 0;
  AdapterRowOrder order_;
  DeviceBuffer<std::int32_t> rows_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
