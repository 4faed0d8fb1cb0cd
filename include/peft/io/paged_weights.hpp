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
  /// Parts that are no farther apart are one range.
  static constexpr std::size_t kGap = std::size_t{64} << 10;

  /// What is used together.
  struct Stage {
    std::vector<std::span<const std::byte>> parts;
    /// Whether it is a table of which single rows are read (an embedding): they come as they are touched, and not ahead.
    bool by_rows = false;
  };

  /// Pages nothing.
  PagedWeights() = default;
  /// At most `budget` bytes are in memory from now on. Bytes that are in no mapped file (converted when they were read) stay
  /// there and count. Throws ConfigError where the budget is too small, naming the least that works.
  PagedWeights(const std::vector<Stage>& stages, std::size_t budget) : budget_(budget) {
    std::size_t total = 0, largest = 0;
    for (const Stage& stage : stages) {
      Pages& pages = stages_.emplace_back();
      pages.by_rows = stage.by_rows;
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
    for (Pages& pages : stages_) {
      part_from_others(pages);
      release(pages);
    }
  }

  bool empty() const noexcept { return stages_.empty(); }
  /// Bytes that may be in memory now, at most.
  std::size_t resident() const noexcept { return used_ + fixed_; }

  /// Stage `stage` is used next. Makes room, and begins to read it and what follows.
  void enter(std::size_t stage) noexcept {
    if (stage >= stages_.size() || stage == current_) return;
    up_ = current_ == kNone || stage > current_;
    current_ = stage;
    take(stage);
    const std::size_t next = following();
    if (next == kNone || stages_[next].by_rows) return;
    if (fixed_ + stages_[stage].size + stages_[next].size <= budget_) take(next);
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  /// The system reads no more ahead for one call than for a file that is read in order: 128 KiB unless set otherwise.
  static constexpr std::size_t kReadAhead = std::size_t{128} << 10;

  struct Range {
    std::uintptr_t first = 0, last = 0;  // whole pages
  };
  struct Pages {
    std::vector<Range> ranges;
    std::size_t size = 0;  // of the ranges: what the stage takes in memory at most
    bool by_rows = false;
    bool is_there = false;
  };

  static std::uintptr_t page_size() noexcept {
    static const auto size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    return size;
  }

  void add(std::span<const std::byte> part, Pages& pages) {
    if (part.empty()) return;
    if (detail::mapped_ranges.find(reinterpret_cast<std::uintptr_t>(part.data())).range == nullptr) {
      if (in_memory_.insert(part.data()).second) fixed_ += part.size();
      return;
    }
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(part.data()), page = page_size();
    pages.ranges.push_back({first / page * page, (first + part.size() + page - 1) / page * page});
  }
  /// Ranges in order, neighbours as one.
  static void join(Pages& pages) {
    std::vector<Range>& ranges = pages.ranges;
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
    std::vector<Range> joined;
    for (const Range& range : ranges) {
      if (!joined.empty() && range.first <= joined.back().last + kGap) {
        joined.back().last = std::max(joined.back().last, range.last);
      } else {
        joined.push_back(range);
      }
    }
    ranges = std::move(joined);
    for (const Range& range : ranges) pages.size += range.last - range.first;
  }
  /// Around a page that is touched, the system maps what is in its file cache, up to a huge page, but nothing that was advised
  /// otherwise: a range's first and last page, in which the neighbours' bytes may begin, part it from them.
  static void part_from_others(const Pages& pages) noexcept {
    for (const Range& range : pages.ranges) {
      advise({range.last - page_size(), range.last}, MADV_SEQUENTIAL);
      advise({range.first, range.first + page_size()}, MADV_RANDOM);
    }
  }
  static void advise(const Range& range, int advice) noexcept {
    ::madvise(reinterpret_cast<void*>(range.first), range.last - range.first, advice);
  }

  /// The stage after the current one; passes turn round at either end.
  std::size_t following() const noexcept {
    const std::size_t last = stages_.size() - 1;
    if (last == 0) return kNone;
    if (up_) return current_ < last ? current_ + 1 : current_ - 1;
    return current_ > 0 ? current_ - 1 : current_ + 1;
  }

  void take(std::size_t stage) noexcept {
    Pages& pages = stages_[stage];
    if (pages.is_there) return;
    while (fixed_ + used_ + pages.size > budget_) {
      const std::size_t victim = farthest(stage);
      if (victim == kNone) break;
      release(stages_[victim]);
    }
    used_ += pages.size;
    pages.is_there = true;
    if (pages.by_rows) return;
    for (const Range& range : pages.ranges) {
      for (Range piece = range; piece.first < range.last; piece.first = piece.last) {
        piece.last = std::min(range.last, piece.first + kReadAhead);
        advise(piece, MADV_WILLNEED);
      }
    }
  }
  /// Of the stages in memory, but for the current one and `wanted`, that which is used last from now on: the farthest behind,
  /// else the farthest ahead.
  std::size_t farthest(std::size_t wanted) const noexcept {
    std::size_t ahead = kNone;
    const std::size_t count = stages_.size();
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t i = up_ ? k : count - 1 - k;  // from the farthest behind on
      if (!stages_[i].is_there || i == wanted || i == current_) continue;
      if (up_ ? i < current_ : i > current_) return i;
      ahead = i;
    }
    return ahead;
  }
  void release(Pages& pages) noexcept {
    for (const Range& range : pages.ranges) advise(range, MADV_DONTNEED);
    if (pages.is_there) used_ -= pages.size;
    pages.is_there = false;
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
