#pragma once
/// Working memory of the kernels: per thread, grown to the largest need and kept. A slot has one user at a time: kShared
/// is the caller's of a product, kThin the product's own where it is thin, the others are its tasks', on whichever thread.

#include <cxxabi.h>

#include <new>

#include "peft/core/buffer.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

enum class ScratchSlot : int { kShared, kThin, kPackedRows, kPackedLowRank, kPanel, kTile, kRows, kCount };

namespace detail {

/// The shared object or program that this code is part of, as the C++ ABI names it. Under a name of our own: compilers
/// declare __dso_handle themselves where they need it, some with C++ linkage.
extern char this_object __asm__("__dso_handle") __attribute__((visibility("hidden")));

/// One thread's memory. Without a destructor, so that it can be used at any time of a thread's end: destructors of the
/// host's thread-local and static objects may call the library after a Buffer here would be gone. It is freed through
/// the ABI's list of what to do at a thread's end, on which it can be put again even while that is run.
struct ThreadScratch {
  struct Slot {
    float* data;
    Index capacity;
  };
  Slot slots[static_cast<int>(ScratchSlot::kCount)];
  bool listed;

  float* grow(Slot& slot, Index count) {
    if (!listed) {
      listed = abi::__cxa_thread_atexit([](void* self) { static_cast<ThreadScratch*>(self)->release(); }, this,
                                        &this_object) == 0;
    }
    release(slot);
    slot.data = static_cast<float*>(
        ::operator new(static_cast<std::size_t>(count) * sizeof(float), std::align_val_t{kAlignment}));
    slot.capacity = count;
    return slot.data;
  }
  void release() noexcept {
    for (Slot& slot : slots) release(slot);
    listed = false;
  }

 private:
  static void release(Slot& slot) noexcept {
    if (slot.data != nullptr) ::operator delete(slot.data, std::align_val_t{kAlignment});
    slot = {};
  }
};

}  // namespace detail

/// `count` floats of the calling thread's slot; the content is undefined. 64-byte aligned.
inline float* scratch(ScratchSlot slot, Index count) {
  static thread_local constinit detail::ThreadScratch memory{};
  detail::ThreadScratch::Slot& own = memory.slots[static_cast<int>(slot)];
  return count <= own.capacity ? own.data : memory.grow(own, count);
}

}  // namespace kernels
PEFT_END_NAMESPACE
