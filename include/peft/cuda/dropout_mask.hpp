#pragma once
/// A dropout mask in the device's memory, made from the same key as the CPU's and equal to it, bit for bit (core/rng.hpp).

#include "peft/core/rng.hpp"
#include "peft/cuda/buffer.hpp"
#include "peft/cuda/check.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/kernels/dropout.cuh"
#include "peft/cuda/mask_bits.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Reuse it from step to step: memory is kept.
class DropoutMask {
 public:
  /// Which mask make() makes; none: no dropout.
  void reserve(Index rows, Index cols) {
    if (rows * row_bytes(cols) > bits_.capacity()) bits_.resize_discard(rows * row_bytes(cols));
  }

  /// The mask of `key` over [rows, cols] with probability p of dropping; p = 0: none. Throws CudaError where reserve() was for
  /// less.
  void make(const DropoutKey& key, Index rows, Index cols, float p, Context& context) {
    view_ = {};
    if (p <= 0.0f || rows == 0 || cols == 0) return;
    const Index stride = row_bytes(cols);
    if (rows * stride > bits_.capacity()) {
      fail<CudaError>("cuda::DropoutMask: [{}, {}] is {} bytes; expected reserve() for it before, got {}", rows, cols,
                      rows * stride, bits_.capacity());
    }
    kernels::DropoutArgs args{};
    args.seed = key.seed;
    args.step = key.step;
    args.module = key.module;
    args.first_row = key.first_row;
    args.p = p;
    args.bits = bits_.data();
    args.stride_bytes = stride;
    args.rows = rows;
    args.cols = cols;
    check(kernels::dropout_mask(args, context.stream()), "cuda::DropoutMask: making [{}, {}]", rows, cols);
    view_ = {bits_.data(), stride, static_cast<float>(1.0 / (1.0 - static_cast<double>(p)))};
  }
  void clear() noexcept { view_ = {}; }
  const DeviceMaskBits& view() const noexcept { return view_; }

 private:
  static Index row_bytes(Index cols) noexcept { return (cols + 7) / 8; }

  DeviceBuffer<std::uint8_t> bits_;
  DeviceMaskBits view_{};
};

}  // namespace cuda
PEFT_END_NAMESPACE
