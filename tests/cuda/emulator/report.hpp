#pragma once
/// What the emulator saw: findings, each a mistake in a kernel, and counts of memory accesses by source line.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace peft_emulator {

/// The call in the kernel's source: as a default argument, here() is the caller's line.
struct Where {
  const char* file;
  int line;

  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Kind : std::uint8_t {
  kRace,           ///< two threads touch a byte, one of them writing, with no barrier between
  kAsync,          ///< data of cp.async read or overwritten before the thread that asked for them has waited
  kMask,           ///< a lane that a mask names never arrives, or one that it does not name takes part
  kDivergence,     ///< a barrier that not all threads of the block reach, or that they reach at different lines
  kBounds,         ///< outside the registered buffers or the block's shared memory
  kAlignment,      ///< an address that is no multiple of what is moved
  kUninitialised,  ///< shared memory that nothing was stored to
  kReadOnly,       ///< load_const or load_stream of what this kernel wrote
  kLaunch,         ///< a launch that the device would refuse
};

constexpr std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::kRace:
      return "race";
    case Kind::kAsync:
      return "cp.async";
    case Kind::kMask:
      return "mask";
    case Kind::kDivergence:
      return "divergence";
    case Kind::kBounds:
      return "bounds";
    case Kind::kAlignment:
      return "alignment";
    case Kind::kUninitialised:
      return "uninitialised";
    case Kind::kReadOnly:
      return "read-only";
    case Kind::kLaunch:
      return "launch";
  }
  return "unknown";
}

/// One mistake: reported once per kind and line, with how often it was seen.
struct Finding {
  Kind kind;
  std::string file;
  int line = 0;
  std::string text;
  std::int64_t times = 1;
};

enum class Access : std::uint8_t { kGlobalLoad, kGlobalStore, kSharedLoad, kSharedStore };
constexpr bool is_global(Access access) { return access == Access::kGlobalLoad || access == Access::kGlobalStore; }

/// What the warps asked for at one line of source.
struct LineCounts {
  std::string file;
  int line = 0;
  Access access = Access::kGlobalLoad;
  std::int64_t instructions = 0;  ///< of warps
  std::int64_t lanes = 0;         ///< that took part
  std::int64_t bytes = 0;         ///< that lanes asked for
  std::int64_t sectors = 0;       ///< global: 32-byte sectors touched, per warp instruction
  std::int64_t sectors_needed = 0;  ///< global: had the bytes, each counted once, stood together
  std::int64_t transactions = 0;    ///< shared: passes over the 32 banks
  std::int64_t conflicts = 0;       ///< shared: passes beyond those that the width asks for (1, 2 or 4 per warp)
};

struct Report {
  std::vector<Finding> findings;
  std::vector<LineCounts> lines;
  std::int64_t launches = 0;
  std::int64_t bank_conflicts = 0;
  std::int64_t shared_transactions = 0;
  std::int64_t global_bytes_requested = 0;
  std::int64_t global_sectors = 0;
  std::int64_t global_sectors_needed = 0;

  bool clean() const { return findings.empty(); }

  /// Whether a mistake of this kind was seen, at this line where one is given.
  bool has(Kind kind, int line = 0) const {
    for (const Finding& finding : findings) {
      if (finding.kind == kind && (line == 0 || finding.line == line)) return true;
    }
    return false;
  }

  /// The counts of a line; all zero where nothing was accessed there.
  LineCounts at(int line, Access access) const {
    LineCounts sum;
    sum.line = line;
    sum.access = access;
    for (const LineCounts& counts : lines) {
      if (counts.line == line && counts.access == access) add(sum, counts);
    }
    return sum;
  }

  /// All findings, one a line.
  std::string text() const {
    std::string all;
    for (const Finding& finding : findings) {
      all += finding.file + ":" + std::to_string(finding.line) + ": ";
      all += std::string(name_of(finding.kind)) + ": " + finding.text;
      if (finding.times > 1) all += " (" + std::to_string(finding.times) + " times)";
      all += '\n';
    }
    return all;
  }

  /// The lines with their counts: for a look at where sectors and conflicts come from.
  std::string counts_text() const {
    static constexpr const char* kNames[] = {"global load", "global store", "shared load", "shared store"};
    std::string all;
    for (const LineCounts& counts : lines) {
      all += counts.file + ":" + std::to_string(counts.line) + ": " + kNames[static_cast<int>(counts.access)] + ": " +
             std::to_string(counts.instructions) + " warp instructions, " + std::to_string(counts.bytes) + " bytes, ";
      if (is_global(counts.access)) {
        all += std::to_string(counts.sectors) + " sectors (" + std::to_string(counts.sectors_needed) + " needed)\n";
      } else {
        all += std::to_string(counts.transactions) + " passes (" + std::to_string(counts.conflicts) + " conflicts)\n";
      }
    }
    return all;
  }

  /// Adds another report's findings and counts.
  void merge(const Report& other) {
    for (const Finding& finding : other.findings) add(finding);
    for (const LineCounts& counts : other.lines) {
      bool found = false;
      for (LineCounts& mine : lines) {
        if (mine.line == counts.line && mine.access == counts.access && mine.file == counts.file) {
          add(mine, counts);
          found = true;
          break;
        }
      }
      if (!found) lines.push_back(counts);
    }
    launches += other.launches;
    bank_conflicts += other.bank_conflicts;
    shared_transactions += other.shared_transactions;
    global_bytes_requested += other.global_bytes_requested;
    global_sectors += other.global_sectors;
    global_sectors_needed += other.global_sectors_needed;
  }

  void add(const Finding& finding) {
    for (Finding& mine : findings) {
      if (mine.kind == finding.kind && mine.line == finding.line && mine.file == finding.file) {
        mine.times += finding.times;
        return;
      }
    }
    findings.push_back(finding);
  }

 private:
  static void add(LineCounts& sum, const LineCounts& counts) {
    sum.instructions += counts.instructions;
    sum.lanes += counts.lanes;
    sum.bytes += counts.bytes;
    sum.sectors += counts.sectors;
    sum.sectors_needed += counts.sectors_needed;
    sum.transactions += counts.transactions;
    sum.conflicts += counts.conflicts;
  }
};

}  // namespace peft_emulator
