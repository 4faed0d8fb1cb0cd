#pragma once
/// Counts what warps ask of memory, by line of source. The k-th access of each lane at a line since the warp's last meeting
/// (barrier, shuffle, mma, …) belongs to the warp's k-th instruction there: lanes run one after the other here.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "report.hpp"

namespace peft_emulator {

/// A line of source with the kind of access, by a small number.
class LineTable {
 public:
  std::uint16_t id(Where where, Access access) {
    const auto key = reinterpret_cast<std::uintptr_t>(where.file) * 31u + static_cast<std::uintptr_t>(where.line) * 4u +
                     static_cast<std::uintptr_t>(access);
    Slot& slot = cache_[(key ^ (key >> 10)) % cache_.size()];
    if (slot.file != where.file || slot.line != where.line || slot.access != access) {
      slot = {where.file, where.line, access, search(where, access)};
    }
    return slot.id;
  }
  Where where(std::uint16_t id) const { return places_[id]; }
  LineCounts& counts(std::uint16_t id) { return counts_[id]; }
  std::size_t size() const { return places_.size(); }
  /// Lines keep their numbers: only the counts are zero again.
  void clear() {
    for (LineCounts& counts : counts_) {
      counts.instructions = counts.lanes = counts.bytes = 0;
      counts.sectors = counts.sectors_needed = counts.transactions = counts.conflicts = 0;
    }
  }

 private:
  struct Slot {
    const char* file = nullptr;
    int line = 0;
    Access access = Access::kGlobalLoad;
    std::uint16_t id = 0;
  };

  std::uint16_t search(Where where, Access access) {
    for (std::size_t i = 0; i < places_.size(); ++i) {
      if (places_[i].line == where.line && counts_[i].access == access && std::string_view(places_[i].file) == where.file) {
        return static_cast<std::uint16_t>(i);
      }
    }
    places_.push_back(where);
    LineCounts counts;
    counts.file = where.file;
    counts.line = where.line;
    counts.access = access;
    counts_.push_back(counts);
    return static_cast<std::uint16_t>(places_.size() - 1);
  }

  std::array<Slot, 1024> cache_;
  std::vector<Where> places_;
  std::vector<LineCounts> counts_;
};

/// The accesses of one warp since it last met.
class AccessCounter {
 public:
  void add(std::uint16_t line, int lane, std::uint64_t address, std::size_t size) {
    if (line >= lines_.size()) lines_.resize(static_cast<std::size_t>(line) + 16);
    Line& entry = lines_[line];
    if (entry.generation != generation_) {
      entry.generation = generation_;
      entry.used = 0;
      entry.seen.fill(0);
      touched_.push_back(line);
    }
    const std::uint32_t which = entry.seen[static_cast<std::size_t>(lane)]++;
    if (which >= entry.used) {
      if (which >= entry.instructions.size()) entry.instructions.resize(2 * static_cast<std::size_t>(which) + 4);
      entry.instructions[which].lanes = 0;
      entry.used = which + 1;
    }
    Instruction& instruction = entry.instructions[which];
    instruction.lanes |= 1u << lane;
    instruction.size = static_cast<std::uint32_t>(size);
    instruction.address[static_cast<std::size_t>(lane)] = address;
  }

  void flush(LineTable& table) {
    for (const std::uint16_t line : touched_) {
      LineCounts& counts = table.counts(line);
      const bool global = is_global(counts.access);
      for (std::uint32_t i = 0; i < lines_[line].used; ++i) {
        const Instruction& instruction = lines_[line].instructions[i];
        const int lanes = __builtin_popcount(instruction.lanes);
        ++counts.instructions;
        counts.lanes += lanes;
        counts.bytes += static_cast<std::int64_t>(instruction.size) * lanes;
        if (global) {
          count_sectors(instruction, counts);
        } else {
          count_passes(instruction, counts);
        }
      }
    }
    touched_.clear();
    ++generation_;
  }

  void drop() {
    touched_.clear();
    ++generation_;
  }

 private:
  struct Instruction {
    std::uint32_t lanes = 0;
    std::uint32_t size = 0;
    std::array<std::uint64_t, 32> address;
  };
  struct Line {
    std::uint32_t generation = 0;
    std::uint32_t used = 0;
    std::array<std::uint32_t, 32> seen;
    std::vector<Instruction> instructions;
  };

  static void count_sectors(const Instruction& instruction, LineCounts& counts) {
    std::array<std::uint64_t, 32> sorted;
    std::size_t n = 0;
    for (std::uint32_t lanes = instruction.lanes; lanes != 0; lanes &= lanes - 1) {
      sorted[n++] = instruction.address[static_cast<std::size_t>(__builtin_ctz(lanes))];
    }
    const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(n);
    if (!std::is_sorted(sorted.begin(), end)) std::sort(sorted.begin(), end);
    std::uint64_t bytes_until = 0;
    std::uint64_t sectors_until = 0;
    std::uint64_t bytes = 0;
    std::uint64_t sectors = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t last = sorted[i] + instruction.size;
      bytes += last - std::min(last, std::max(bytes_until, sorted[i]));
      bytes_until = std::max(bytes_until, last);
      const std::uint64_t last_sector = (last - 1) / 32 + 1;
      sectors += last_sector - std::min(last_sector, std::max(sectors_until, sorted[i] / 32));
      sectors_until = std::max(sectors_until, last_sector);
    }
    counts.sectors += static_cast<std::int64_t>(sectors);
    counts.sectors_needed += static_cast<std::int64_t>((bytes + 31) / 32);
  }

  // 4 bytes and fewer: all lanes in a pass; 8: half of them; 16: a quarter. A bank gives one word per pass, to all who
  // ask for it.
  static void count_passes(const Instruction& instruction, LineCounts& counts) {
    const int lanes_per_pass = instruction.size <= 4 ? 32 : instruction.size == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += lanes_per_pass) {
      std::array<std::array<std::uint64_t, 32>, 32> words;
      std::array<int, 32> count{};
      int most = 0;
      for (int lane = first; lane < first + lanes_per_pass; ++lane) {
        if ((instruction.lanes >> lane & 1u) == 0) continue;
        const std::uint64_t address = instruction.address[static_cast<std::size_t>(lane)];
        for (std::uint64_t word = address / 4; word <= (address + instruction.size - 1) / 4; ++word) {
          auto& bank = words[word % 32];
          int& held = count[word % 32];
          const auto end = bank.begin() + held;
          if (held < 32 && std::find(bank.begin(), end, word) == end) bank[static_cast<std::size_t>(held++)] = word;
          most = std::max(most, held);
        }
      }
      counts.transactions += most;
      if (most > 1) counts.conflicts += most - 1;
    }
  }

  std::vector<Line> lines_;
  std::vector<std::uint16_t> touched_;
  std::uint32_t generation_ = 1;
};

}  // namespace peft_emulator
