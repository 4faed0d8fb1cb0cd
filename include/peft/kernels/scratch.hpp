#pragma once
/// Working memory of the kernels: per thread, grown to the largest need and kept. A slot has one user at a time: kShared
/// is the caller's of a product, the others are its tasks', on whichever thread.

#include "peft/core/buffer.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

enum class ScratchSlot : int { kShared, kPackedRows, kPackedLowRank, kPanel, kTile, kRows, kCount };

/// `count` floats of the calling thread's slot; the content is undefined. 64-byte aligned.
inline float* scratch(ScratchSlot slot, Index count) {
  static thread_local Buffer<float> buffers[static_cast<int>(ScratchSlot::kCount)];
  Buffer<float>& buffer = buffers[static_cast<int>(slot)];
  buffer.resize_discard(count);
  return buffer.data();
}

}  // namespace kernels
PEFT_END_NAMESPACE
