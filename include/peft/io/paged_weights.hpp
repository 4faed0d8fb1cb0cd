#pragma once
/// Frozen weights that stay in their mapped files: of a model larger than memory, the stage at work, the one after it and as
/// many of those just used as a budget allows are in memory. Nothing is copied and nothing written: what is not needed now
/// is unmapped, and read again when its turn comes.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/io/mapped_ranges.hpp"

PEFT_BEGIN_NAMESPACE

/// A model's weights by stages, in the order of its forward pass. Whoever runs the model says which stage is next (enter);
/// passes go through the stages up (forward) and down (backward), so those farthest behind are wanted last and go first. It
/// refers to the mapped files, which outlive it. One thread at a time calls; weights may be read by several meanwhile.
class PagedWeights {
 public:
  /// Around what is touched, the system maps pages that happen to be in its file cache, up to the next such boundary.
  static constexpr std::size_t kNeighbourhood = std::size_t{64} << 10;

  /// What is used together.
  struct Stage {
    std::vector<std::span<const std::byte>> parts;
    /// Of a table of which single rows are read (an embedding), bytes of a row: they come as they are touched. 0: all is read.
    std::size_t row_bytes = 0;
  };

  /// Pages nothing.
  PagedWeights() = default;
  /// At most `budget` bytes are in memory from now on. Bytes that are in no mapped file (converted when they were read) stay
  /// there and count. Throws ConfigError where the budget is too small, naming the least that works.
  PagedWeights(const std::vector<Stage>& stages, std::size_t budget) : budget_(budget) {
    std::size_t total = 0, largest = 0;
    for (const Stage& stage : stages) {
      Pages& pages = stages_.emplace_back();
      pages.row_bytes = stage.row_bytes;
      for (const std::span<const std::byte> part : stage.parts) add(part, pages);
      join(pages);
      total += pages.size;
      largest = std::max(largest, pages.size);
    }
    if (largest + fixed_ > budget) {
      fail<ConfigError>("paged weights: they have {} bytes, {} of them in no file that could be mapped (converted when they were "
                        "read), and the budget is {}; the least that works is {}",
                        total + fixed_, fixed_, budget, largest + fixed_);
    }
    for (Pages& pages : stages_) release(pages);
  }

  bool empty() const noexcept { return stages_.empty(); }
  /// Bytes that may be in memory now, at most.
  std::size_t resident() const noexcept { return used_ + fixed_; }

  /// Stage `stage` is used next; `rows`: of a table, how many rows at most. Makes room, and begins to read what follows.
  void enter(std::size_t stage, Index rows = 0) noexcept {
    if (stage >= stages_.size()) return;
    if (stages_[stage].row_bytes > 0) {
      release(stages_[stage]);  // other rows than these
    } else if (stage == current_) {
      return;
    }
    if (stage != current_) up_ = current_ == kNone || stage > current_;
    current_ = stage;
    take(stage, wanted(stages_[stage], rows), stage);
    const std::size_t next = following();
    if (next == kNone || stages_[next].row_bytes > 0) return;
    if (fixed_ + stages_[stage].used + stages_[next].size <= budget_) take(next, stages_[next].size, stage);
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  struct Range {
    std::uintptr_t first = 0, last = 0;  // whole pages
  };
  struct Pages {
    std::vector<Range> ranges;
    std::size_t size = 0;  // of the ranges: what the stage takes in memory at most
    std::size_t row_bytes = 0;
    std::size_t used = 0;  // how much of that may be there
  };

  static std::uintptr_t page_size() noexcept {
    static const auto size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    return size;
  }

  /// The pages that hold `part`, as far as the system maps them along.
  void add(std::span<const std::byte> part, Pages& pages) {
    if (part.empty()) return;
    const auto first = reinterpret_cast<std::uintptr_t>(part.data());
    const detail::MappedRanges::Place place = detail::mapped_ranges.find(first);
    if (place.range == nullptr) {
      if (in_memory_.insert(part.data()).second) fixed_ += part.size();
      return;
    }
    const std::uintptr_t page = page_size(), around = std::max<std::uintptr_t>(kNeighbourhood, page);
    const std::uintptr_t begin = first - place.offset;  // of a page
    const std::uintptr_t end = (begin + place.range->size.load(std::memory_order_relaxed) + page - 1) / page * page;
    pages.ranges.push_back({std::max(begin, first / around * around),
                            std::min(end, (first + part.size() + around - 1) / around * around)});
  }
  /// Ranges in order, those that touch as one.
  static void join(Pages& pages) {
    std::vector<Range>& ranges = pages.ranges;
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
    std::vector<Range> joined;
    for (const Range& range : ranges) {
      if (!joined.empty() && range.first <= joined.back().last) {
        joined.back().last = std::max(joined.back().last, range.last);
      } else {
        joined.push_back(range);
      }
    }
    ranges = std::move(joined);
    for (const Range& range : ranges) pages.size += range.last - range.first;
  }

  static std::size_t wanted(const Pages& pages, Index rows) noexcept {
    if (pages.row_bytes == 0) return pages.size;
    const std::size_t row = pages.row_bytes + 2 * kNeighbourhood;
    const auto count = static_cast<std::size_t>(std::max<Index>(0, rows));
    return count < pages.size / row ? count * row : pages.size;
  }

  /// The stage after the current one; passes turn round at either end.
  std::size_t following() const noexcept {
    const std::size_t last = stages_.size() - 1;
    if (last == 0) return kNone;
    if (up_) return current_ < last ? current_ + 1 : current_ - 1;
    return current_ > 0 ? current_ - 1 : current_ + 1;
  }

  void take(std::size_t stage, std::size_t bytes, std::size_t in_use) noexcept {
    Pages& pages = stages_[stage];
    if (bytes <= pages.used) return;
    while (fixed_ + used_ + bytes - pages.used > budget_) {
      const std::size_t victim = farthest(stage, in_use);
      if (victim == kNone) break;
      release(stages_[victim]);
    }
    used_ += bytes - pages.used;
    pages.used = bytes;
    if (pages.row_bytes > 0) return;
    for (const Range& range : pages.ranges) {
      ::madvise(reinterpret_cast<void*>(range.first), range.last - range.first, MADV_WILLNEED);
    }
  }
  /// Of the stages in memory the one that is wanted last: the farthest behind, else the farthest ahead.
  std::size_t farthest(std::size_t wanted, std::size_t in_use) const noexcept {
    std::size_t behind = kNone, ahead = kNone;
    const std::size_t count = stages_.size();
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t i = up_ ? k : count - 1 - k;  // from the farthest behind on
      if (stages_[i].used == 0 || i == wanted || i == in_use) continue;
      const bool is_behind = up_ ? i < current_ : i > current_;
      if (is_behind && behind == kNone) behind = i;
      if (!is_behind) ahead = i;
    }
    return behind != kNone ? behind : ahead;
  }
  void release(Pages& pages) noexcept {
    for (const Range& range : pages.ranges) {
      ::madvise(reinterpret_cast<void*>(range.first), range.last - range.first, MADV_DONTNEED);
    }
    used_ -= pages.used;
    pages.used = 0;
  }

  std::vector<Pages> stages_;
  std::size_t budget_ = 0;
  std::size_t fixed_ = 0;  // bytes in no file
  std::set<const std::byte*> in_memory_;  // where they begin: what two stages share counts once
  std::size_t used_ = 0;
  std::size_t current_ = kNone;
  bool up_ = true;
};

PEFT_END_NAMESPACE
