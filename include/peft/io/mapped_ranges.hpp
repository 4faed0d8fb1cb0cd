#pragma once
/// Which addresses belong to which mapped file, readable from a signal handler: a table without locks that only grows.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// The mapped files of this process, as far as this copy of the library maps them: 64 places in the object itself, more
/// in blocks that are made when they are needed and kept until the process ends.
class MappedRanges {
 public:
  struct Range {
    std::atomic<std::uintptr_t> begin{0};  // 0: free, kTaken: being filled
    std::atomic<std::size_t> size{0};
    char path[480] = {};  // cut where longer
  };
  /// An address within a mapped file.
  struct Place {
    const Range* range = nullptr;  ///< null: in none
    std::size_t offset = 0;
  };

  /// Null where there is no memory for another block: the file is then not known.
  Range* add(const void* begin, std::size_t size, std::string_view path) noexcept {
    for (MappedRanges* block = this; block != nullptr; block = block->next()) {
      for (Range& range : block->ranges_) {
        std::uintptr_t expected = 0;
        if (!range.begin.compare_exchange_strong(expected, kTaken, std::memory_order_acquire)) continue;
        range.size.store(size, std::memory_order_relaxed);
        const std::size_t length = path.size() < sizeof(range.path) ? path.size() : sizeof(range.path) - 1;
        std::memcpy(range.path, path.data(), length);
        range.path[length] = '\0';
        range.begin.store(reinterpret_cast<std::uintptr_t>(begin), std::memory_order_release);
        return &range;
      }
    }
    return nullptr;
  }
  static void remove(Range* range) noexcept {
    if (range != nullptr) range->begin.store(0, std::memory_order_release);
  }

  Place find(std::uintptr_t address) const noexcept {
    for (const MappedRanges* block = this; block != nullptr; block = block->next_.load(std::memory_order_acquire)) {
      for (const Range& range : block->ranges_) {
        const std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
        if (begin > kTaken && address >= begin && address - begin < range.size.load(std::memory_order_relaxed)) {
          return {&range, address - begin};
        }
      }
    }
    return {};
  }

 private:
  static constexpr std::uintptr_t kTaken = 1;

  /// The next block, made where there is none.
  MappedRanges* next() noexcept {
    MappedRanges* known = next_.load(std::memory_order_acquire);
    if (known != nullptr) return known;
    auto* made = new (std::nothrow) MappedRanges;
    if (made == nullptr || next_.compare_exchange_strong(known, made, std::memory_order_acq_rel)) return made;
    delete made;
    return known;  // another thread's
  }

  Range ranges_[64];
  std::atomic<MappedRanges*> next_{nullptr};
};

inline constinit MappedRanges mapped_ranges;

}  // namespace detail
PEFT_END_NAMESPACE
