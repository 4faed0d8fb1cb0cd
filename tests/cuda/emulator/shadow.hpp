#pragma once
/// Who last wrote and who has read each byte of a memory, in order to find races. Words of four bytes share one entry until
/// something narrower touches them.
///
/// Order between threads of a block: a barrier of the block (its number is the epoch, counted over all blocks and launches), a
/// sync_warp of all lanes (the warp's count), or of some lanes (the lane's clock and what other lanes know of it). Threads of
/// different blocks of a launch are never ordered.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace peft_emulator {

/// A thread at a moment, as far as order is concerned.
struct Moment {
  std::uint32_t launch_epoch = 0;  ///< at which the launch began
  std::uint32_t block_epoch = 0;   ///< at which the block began
  std::uint32_t epoch = 0;
  std::uint32_t warp_epoch = 0;
  std::uint16_t thread = 0;
  std::uint16_t clock = 0;
  /// [32]: of each lane of the warp, the clock up to which this thread knows its accesses. Null: of all up to warp_epoch.
  const std::uint16_t* known = nullptr;
};

/// Zero bytes mean: never touched.
struct ShadowEntry {
  std::uint32_t write_epoch;
  std::uint32_t write_warp_epoch;
  std::uint32_t read_epoch;
  std::uint32_t read_warp_epoch;
  std::uint32_t read_lanes;
  std::uint32_t foreign_read_epoch;  // of a read by a block before the one of read_epoch
  std::uint16_t write_thread;
  std::uint16_t write_clock;
  std::uint16_t read_warp;
  std::uint16_t read_clock;
  std::uint16_t write_line;
  std::uint16_t read_line;
  std::uint16_t many_warps;
  std::uint16_t pad;
  std::uint32_t split;  // 1 + the place among the split words; 0: one entry for the word
};

/// What an access clashed with.
struct Clash {
  enum class With : std::uint8_t { kNothing, kWrite, kRead } with = With::kNothing;
  bool other_block = false;
  bool written = false;      // by this launch, whoever and whenever
  std::uint16_t thread = 0;  // of a write
  std::uint16_t line = 0;
};

class Shadow {
 public:
  Shadow() = default;
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;
  ~Shadow() { std::free(words_); }

  /// Entries are touched when used only: large buffers cost what is accessed.
  void resize(std::size_t bytes) {
    std::free(words_);
    split_.clear();
    size_ = (bytes + 3) / 4;
    words_ = static_cast<ShadowEntry*>(std::calloc(size_ + 1, sizeof(ShadowEntry)));
    if (words_ == nullptr) throw std::bad_alloc();
  }
  bool empty() const { return words_ == nullptr; }

  Clash read(std::size_t offset, std::size_t size, const Moment& now, std::uint16_t line) {
    return each(offset, size, [&](ShadowEntry& e) { return read(e, now, line); });
  }
  Clash write(std::size_t offset, std::size_t size, const Moment& now, std::uint16_t line) {
    return each(offset, size, [&](ShadowEntry& e) { return write(e, now, line); });
  }

 private:
  template <class F>
  Clash each(std::size_t offset, std::size_t size, F&& f) {
    Clash worst;
    const auto take = [&](const Clash& clash) {
      if (clash.with != Clash::With::kNothing || clash.written) {
        const bool clashed = worst.with != Clash::With::kNothing;
        const bool written = worst.written || clash.written;
        if (!clashed) worst = clash;
        worst.written = written;
      }
    };
    const std::size_t end = offset + size;
    while (offset < end) {
      ShadowEntry& word = words_[offset / 4];
      if (word.split == 0 && offset % 4 == 0 && end - offset >= 4) {
        take(f(word));
        offset += 4;
        continue;
      }
      if (word.split == 0) {
        split_.push_back({word, word, word, word});
        word.split = static_cast<std::uint32_t>(split_.size());
      }
      auto& bytes = split_[word.split - 1];
      do {
        take(f(bytes[offset % 4]));
        ++offset;
      } while (offset < end && offset % 4 != 0);
    }
    return worst;
  }

  static bool ordered(std::uint16_t thread, std::uint32_t warp_epoch, std::uint16_t clock, const Moment& now) {
    if (thread / 32 != now.thread / 32) return false;
    if (warp_epoch < now.warp_epoch) return true;
    return now.known != nullptr && now.known[thread % 32] > clock;
  }

  static Clash after_write(const ShadowEntry& e, const Moment& now) {
    Clash clash;
    if (e.write_epoch < now.launch_epoch || e.write_epoch == 0) return clash;
    clash.written = true;
    clash.thread = e.write_thread;
    clash.line = e.write_line;
    if (e.write_epoch < now.block_epoch) {
      clash.with = Clash::With::kWrite;
      clash.other_block = true;
    } else if (e.write_epoch == now.epoch && e.write_thread != now.thread &&
               !ordered(e.write_thread, e.write_warp_epoch, e.write_clock, now)) {
      clash.with = Clash::With::kWrite;
    }
    return clash;
  }

  static Clash read(ShadowEntry& e, const Moment& now, std::uint16_t line) {
    const Clash clash = after_write(e, now);
    const auto warp = static_cast<std::uint16_t>(now.thread / 32);
    const std::uint32_t lane = 1u << (now.thread % 32);
    if (e.read_epoch != now.epoch) {
      if (e.read_epoch != 0 && e.read_epoch < now.block_epoch) e.foreign_read_epoch = e.read_epoch;
      e.read_epoch = now.epoch;
      e.read_warp = warp;
      e.read_lanes = lane;
      e.read_warp_epoch = now.warp_epoch;
      e.read_clock = now.clock;
      e.many_warps = 0;
    } else if (e.read_warp != warp) {
      e.many_warps = 1;
    } else if (e.read_warp_epoch != now.warp_epoch) {
      e.read_lanes = lane;
      e.read_warp_epoch = now.warp_epoch;
      e.read_clock = now.clock;
    } else {
      e.read_lanes |= lane;
      if (now.clock > e.read_clock) e.read_clock = now.clock;
    }
    e.read_line = line;
    return clash;
  }

  static Clash write(ShadowEntry& e, const Moment& now, std::uint16_t line) {
    Clash clash = after_write(e, now);
    if (clash.with == Clash::With::kNothing) {
      clash.line = e.read_line;
      const bool foreign = e.read_epoch != 0 && e.read_epoch >= now.launch_epoch && e.read_epoch < now.block_epoch;
      if (foreign || (e.foreign_read_epoch != 0 && e.foreign_read_epoch >= now.launch_epoch)) {
        clash.with = Clash::With::kRead;
        clash.other_block = true;
      } else if (e.read_epoch == now.epoch && e.read_epoch != 0) {
        if (e.many_warps != 0 || e.read_warp != now.thread / 32) {
          clash.with = Clash::With::kRead;
        } else if (e.read_warp_epoch == now.warp_epoch) {
          for (std::uint32_t lanes = e.read_lanes & ~(1u << (now.thread % 32)); lanes != 0; lanes &= lanes - 1) {
            const auto lane = static_cast<std::uint16_t>(__builtin_ctz(lanes));
            const auto reader = static_cast<std::uint16_t>(now.thread / 32 * 32 + lane);
            if (!ordered(reader, e.read_warp_epoch, e.read_clock, now)) clash.with = Clash::With::kRead;
          }
        }
      }
    }
    const std::uint32_t split = e.split;
    e = ShadowEntry{};
    e.split = split;
    e.write_epoch = now.epoch;
    e.write_warp_epoch = now.warp_epoch;
    e.write_thread = now.thread;
    e.write_clock = now.clock;
    e.write_line = line;
    return clash;
  }

  ShadowEntry* words_ = nullptr;
  std::size_t size_ = 0;
  std::vector<std::array<ShadowEntry, 4>> split_;
};

}  // namespace peft_emulator
