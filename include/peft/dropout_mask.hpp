#pragma once
/// The dropout of one layer's input in one step: which elements are kept. A mask is described by its key and rebuilt
/// from it wherever it is needed (forward, backward), or it is given as bits.

#include "peft/core/buffer.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/dropout.hpp"
#include "peft/kernels/gemm.hpp"

PEFT_BEGIN_NAMESPACE

/// No dropout, a mask by key, or a mask given as bits. Kept elements are multiplied by 1/(1-p).
class DropoutMask {
 public:
  /// No dropout.
  DropoutMask() = default;
  /// The mask of `key`, see dropout_mask_row.
  DropoutMask(const DropoutKey& key) noexcept  // NOLINT(google-explicit-constructor): a key is a mask
      : key_(key), kind_(Kind::kKey) {}
  /// Bits of the caller, as dropout_mask_row lays them out; they must live until backward is done.
  DropoutMask(const kernels::MaskBits& bits) noexcept  // NOLINT(google-explicit-constructor)
      : given_(bits), kind_(bits.bits == nullptr ? Kind::kNone : Kind::kGiven) {}

  bool is_none() const noexcept { return kind_ == Kind::kNone; }

  /// The bits of [rows, cols] with probability p of dropping; written to `scratch` where they are made from a key.
  kernels::MaskBits bits(Index rows, Index cols, float p, Buffer<std::uint8_t>& scratch, ExecutorRef executor) const {
    if (kind_ == Kind::kGiven) return given_;
    if (kind_ == Kind::kNone || p <= 0.0f) return {};
    const Index stride = (cols + 7) / 8;
    scratch.resize_discard(rows * stride);
    constexpr Index kRows = 16;
    parallel_for_ranges(executor, rows, kRows, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) kernels::dropout_row(key_, i, cols, p, scratch.data() + i * stride);
    });
    return {scratch.data(), stride, static_cast<float>(quotient(1.0, 1.0 - static_cast<double>(p)))};
  }

 private:
  enum class Kind : std::uint8_t { kNone, kKey, kGiven };
  DropoutKey key_{};
  kernels::MaskBits given_{};
  Kind kind_ = Kind::kNone;
};

PEFT_END_NAMESPACE
