#pragma once
/// The block's shared memory and the registered buffers, as a thread sees them: every access is checked, then done.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "access_counter.hpp"
#include "buffer.hpp"
#include "finding_log.hpp"
#include "options.hpp"
#include "shadow.hpp"

namespace peft_emulator {

/// The thread that asks, at a moment.
struct Asker {
  Moment now;
  std::array<int, 3> block;
  AccessCounter* counter;  // its warp's

  int lane() const { return now.thread % 32; }
  std::string name() const {
    const std::string at = std::to_string(block[0]) + ", " + std::to_string(block[1]) + ", " + std::to_string(block[2]);
    return "block (" + at + ") thread " + std::to_string(now.thread);
  }
};

class DeviceMemory {
 public:
  DeviceMemory(FindingLog& log, const Options& options) : log_(log), options_(options) {}

  /// Nothing is in shared memory, and no copy is under way.
  void start_block(std::size_t shared_bytes, int threads) {
    size_ = shared_bytes;
    if (bytes_.size() < size_ + 1) {
      bytes_.resize(size_ + 1);
      state_.resize(size_ + 1);
      shadow_.resize(size_ + 1);
    }
    std::memset(bytes_.data(), kPoison, size_);
    std::memset(state_.data(), kNothingThere, size_);
    if (copies_.size() < static_cast<std::size_t>(threads)) copies_.resize(static_cast<std::size_t>(threads));
    for (Copies& copies : copies_) {
      copies.pending.clear();
      copies.groups = 0;
    }
  }

  // -- shared memory ---------------------------------------------------------------------------------------------
  void shared_load(const Asker& by, std::int64_t offset, std::size_t size, void* to, Where where) {
    std::memset(to, 0, size);
    const std::uint16_t line = log_.lines.id(where, Access::kSharedLoad);
    if (!is_shared_place(by, offset, size, line, where)) return;
    const auto at = static_cast<std::size_t>(offset);
    std::memcpy(to, bytes_.data() + at, size);
    check_state(by, at, size, where);
    if (!options_.check_races) return;
    const Clash clash = shadow_.read(at, size, in_block(by), line);
    if (clash.with != Clash::With::kNothing) report(by, clash, "reads", nullptr, at, where);
  }

  void shared_store(const Asker& by, std::int64_t offset, std::size_t size, const void* from, Where where) {
    const std::uint16_t line = log_.lines.id(where, Access::kSharedStore);
    if (!is_shared_place(by, offset, size, line, where)) return;
    const auto at = static_cast<std::size_t>(offset);
    check_pending(by, at, size, where, "overwritten");
    put(by, at, size, from, kWritten, line, where);
  }

  // -- cp.async --------------------------------------------------------------------------------------------------
  void copy(const Asker& by, std::int64_t offset, const void* from, bool valid, Where where) {
    Copies& mine = copies_[by.now.thread];
    Copy copy{static_cast<std::size_t>(offset), mine.groups, where, {}};
    if (valid) global_load(by, from, kCopyBytes, copy.data.data(), where, false);
    const std::uint16_t line = log_.lines.id(where, Access::kSharedStore);
    if (!is_shared_place(by, offset, kCopyBytes, line, where)) return;
    std::array<unsigned char, kCopyBytes> poison;
    poison.fill(kPoison);
    check_pending(by, copy.offset, kCopyBytes, where, "overwritten");
    put(by, copy.offset, kCopyBytes, poison.data(), kPending, line, where);
    mine.pending.push_back(copy);
  }
  void close_group(const Asker& by) { ++copies_[by.now.thread].groups; }
  /// What was copied in all but the youngest groups is there now, as if stored now.
  void wait(const Asker& by, std::uint32_t pending_groups) {
    Copies& mine = copies_[by.now.thread];
    std::size_t kept = 0;
    for (const Copy& copy : mine.pending) {
      if (copy.group + pending_groups < mine.groups) {
        const std::uint16_t line = log_.lines.id(copy.where, Access::kSharedStore);
        put(by, copy.offset, kCopyBytes, copy.data.data(), kWritten, line, copy.where);
      } else {
        mine.pending[kept++] = copy;
      }
    }
    mine.pending.resize(kept);
  }

  // -- global memory ---------------------------------------------------------------------------------------------
  void global_load(const Asker& by, const void* from, std::size_t size, void* to, Where where, bool read_only) {
    std::memset(to, 0, size);
    const auto address = reinterpret_cast<std::uintptr_t>(from);
    const std::uint16_t line = log_.lines.id(where, Access::kGlobalLoad);
    Region* region = find_region(by, address, size, line, where, "reads");
    if (region == nullptr) return;
    std::memcpy(to, from, size);
    if (!options_.check_races) return;
    const std::size_t at = address - region->begin;
    const Clash clash = region->shadow.read(at, size, by.now, line);
    if (clash.with != Clash::With::kNothing) report(by, clash, "reads", region, at, where);
    if (read_only && clash.written) {
      log_.find(Kind::kReadOnly, where,
                [&] { return by.name() + " reads " + place(region, at) + ", which this kernel writes"; });
    }
  }

  void global_store(const Asker& by, void* to, std::size_t size, const void* from, Where where) {
    const auto address = reinterpret_cast<std::uintptr_t>(to);
    const std::uint16_t line = log_.lines.id(where, Access::kGlobalStore);
    Region* region = find_region(by, address, size, line, where, "writes");
    if (region == nullptr) return;
    std::memcpy(to, from, size);
    if (!options_.check_races) return;
    const std::size_t at = address - region->begin;
    const Clash clash = region->shadow.write(at, size, by.now, line);
    if (clash.with != Clash::With::kNothing) report(by, clash, "writes", region, at, where);
  }

 private:
  static constexpr std::size_t kCopyBytes = 16;
  static constexpr unsigned char kPoison = 0xFF;  // not a number
  enum State : unsigned char { kNothingThere = 0, kWritten = 1, kPending = 2 };

  struct Copy {
    std::size_t offset;
    std::uint32_t group;
    Where where;
    std::array<unsigned char, kCopyBytes> data;
  };
  struct Copies {
    std::vector<Copy> pending;
    std::uint32_t groups = 0;  // closed
  };

  /// Shared memory has no past before the block.
  static Moment in_block(const Asker& by) {
    Moment now = by.now;
    now.launch_epoch = now.block_epoch;
    return now;
  }

  static std::string place(const Region* region, std::size_t at) {
    const std::string where = " at byte " + std::to_string(at);
    if (region == nullptr) return "shared memory" + where;
    return (region->name.empty() ? std::string("a buffer") : "'" + region->name + "'") + where;
  }

  void put(const Asker& by, std::size_t at, std::size_t size, const void* from, State state, std::uint16_t line, Where where) {
    std::memcpy(bytes_.data() + at, from, size);
    std::memset(state_.data() + at, state, size);
    if (!options_.check_races) return;
    const Clash clash = shadow_.write(at, size, in_block(by), line);
    if (clash.with != Clash::With::kNothing) report(by, clash, "writes", nullptr, at, where);
  }

  bool is_shared_place(const Asker& by, std::int64_t offset, std::size_t size, std::uint16_t line, Where where) {
    if (offset < 0 || static_cast<std::uint64_t>(offset) + size > size_) {
      log_.find(Kind::kBounds, where, [&] {
        return by.name() + " touches shared memory at bytes " + std::to_string(offset) + " … " +
               std::to_string(offset + static_cast<std::int64_t>(size) - 1) + " of " + std::to_string(size_);
      });
      return false;
    }
    if (static_cast<std::size_t>(offset) % size != 0) {
      log_.find(Kind::kAlignment, where, [&] {
        return by.name() + " moves " + std::to_string(size) + " bytes at byte " + std::to_string(offset) + " of shared memory";
      });
    }
    if (options_.count_accesses) by.counter->add(line, by.lane(), static_cast<std::uint64_t>(offset), size);
    return true;
  }

  Region* find_region(const Asker& by, std::uintptr_t address, std::size_t size, std::uint16_t line, Where where,
                      const char* what) {
    Region* region = registry().find(address, size);
    if (region == nullptr) {
      log_.find(Kind::kBounds, where, [&] {
        return by.name() + " " + what + " " + std::to_string(size) + " bytes: " + registry().describe(address);
      });
      return nullptr;
    }
    if (address % size != 0) {
      log_.find(Kind::kAlignment, where, [&] {
        return by.name() + " " + what + " " + std::to_string(size) + " bytes, " + place(region, address - region->begin) +
               ", at an address that is no multiple of that";
      });
    }
    if (options_.count_accesses) by.counter->add(line, by.lane(), address, size);
    if (options_.check_races && region->shadow.empty()) region->shadow.resize(region->size);
    return region;
  }

  void report(const Asker& by, const Clash& clash, const char* what, const Region* region, std::size_t at, Where where) {
    log_.find(Kind::kRace, where, [&] {
      std::string text = by.name() + " " + what + " " + place(region, at) + ", which ";
      if (clash.with == Clash::With::kWrite) {
        text += clash.other_block ? "another block wrote" : "thread " + std::to_string(clash.thread) + " wrote";
      } else {
        text += clash.other_block ? "another block read" : "another thread read";
      }
      text += " at " + text_of(log_.lines.where(clash.line));
      return text + (clash.other_block ? ": blocks are not ordered" : " with no barrier between");
    });
  }

  void check_pending(const Asker& by, std::size_t at, std::size_t size, Where where, const char* what) {
    if (std::memchr(state_.data() + at, kPending, size) == nullptr) return;
    log_.find(Kind::kAsync, where, [&] {
      std::string text = by.name() + ": bytes " + std::to_string(at) + " … " + std::to_string(at + size - 1) + " are " +
                         what + " before the thread that copies them has waited";
      for (std::size_t thread = 0; thread < copies_.size(); ++thread) {
        for (const Copy& copy : copies_[thread].pending) {
          if (copy.offset < at + size && at < copy.offset + kCopyBytes) {
            return text + ": thread " + std::to_string(thread) + " at " + text_of(copy.where);
          }
        }
      }
      return text;
    });
  }

  void check_state(const Asker& by, std::size_t at, std::size_t size, Where where) {
    bool complete = true;
    for (std::size_t i = 0; i < size; ++i) complete = complete && state_[at + i] == kWritten;
    if (complete) return;
    check_pending(by, at, size, where, "read");
    if (std::memchr(state_.data() + at, kNothingThere, size) == nullptr) return;
    log_.find(Kind::kUninitialised, where, [&] {
      return by.name() + " reads bytes " + std::to_string(at) + " … " + std::to_string(at + size - 1) +
             " of shared memory, to which nothing was stored";
    });
  }

  FindingLog& log_;
  const Options& options_;
  std::vector<unsigned char> bytes_;
  std::vector<unsigned char> state_;
  std::size_t size_ = 0;
  Shadow shadow_;
  std::vector<Copies> copies_;  // by thread
};

}  // namespace peft_emulator
