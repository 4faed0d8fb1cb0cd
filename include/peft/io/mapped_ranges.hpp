#pragma once
/// Which addresses belong to which mapped file, readable from a signal handler: a fixed table, no locks, no memory.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// The mapped files of this process. One that finds no free place is left out: the guard then does not know it.
class MappedRanges {
 public:
  struct Range {
    std::atomic<std::uintptr_t> begin{0};  // 0: free, kTaken: being filled
    std::size_t size = 0;
    char path[480] = {};  // cut where longer
  };

  /// Null where no place is free.
  Range* add(const void* begin, std::size_t size, std::string_view path) noexcept {
    for (Range& range : ranges_) {
      std::uintptr_t expected = 0;
      if (!range.begin.compare_exchange_strong(expected, kTaken, std::memory_order_relaxed)) continue;
      range.size = size;
      const std::size_t length = path.size() < sizeof(range.path) ? path.size() : sizeof(range.path) - 1;
      std::memcpy(range.path, path.data(), length);
      range.path[length] = '\0';
      range.begin.store(reinterpret_cast<std::uintptr_t>(begin), std::memory_order_release);
      return &range;
    }
    return nullptr;
  }
  static void remove(Range* range) noexcept {
    if (range != nullptr) range->begin.store(0, std::memory_order_release);
  }

  /// Null where `address` is in none.
  const Range* find(std::uintptr_t address) const noexcept {
    for (const Range& range : ranges_) {
      const std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
      if (begin > kTaken && address >= begin && address - begin < range.size) return &range;
    }
    return nullptr;
  }

 private:
  static constexpr std::uintptr_t kTaken = 1;
  Range ranges_[256];
};

inline constinit MappedRanges mapped_ranges;

}  // namespace detail
PEFT_END_NAMESPACE
