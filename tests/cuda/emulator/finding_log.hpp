#pragma once
/// What one launch gives rise to: findings, once per kind and line, and counts by line.

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>

#include "access_counter.hpp"
#include "report.hpp"

namespace peft_emulator {

/// "kernel.cuh:12".
inline std::string text_of(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }

/// "0x0000FFFF".
inline std::string hex(std::uint32_t value) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) text += kDigits[value >> shift & 0xFu];
  return text;
}

class FindingLog {
 public:
  LineTable lines;

  void open() {
    report_ = Report{};
    report_.launches = 1;
    places_.clear();
    lines.clear();
  }

  /// text() is asked for the first time only: a mistake in a loop is found often.
  template <class Text>
  void find(Kind kind, Where where, Text&& text) {
    const std::uint64_t key = reinterpret_cast<std::uintptr_t>(where.file) * 1000003u +
                              static_cast<std::uint64_t>(where.line) * 16u + static_cast<std::uint64_t>(kind);
    const auto [place, first] = places_.try_emplace(key, report_.findings.size());
    if (!first) {
      ++report_.findings[place->second].times;
      return;
    }
    Finding finding;
    finding.kind = kind;
    finding.file = where.file;
    finding.line = where.line;
    finding.text = text();
    report_.findings.push_back(std::move(finding));
  }

  const Report& close() {
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const LineCounts& counts = lines.counts(static_cast<std::uint16_t>(i));
      if (counts.instructions == 0) continue;
      report_.lines.push_back(counts);
      report_.bank_conflicts += counts.conflicts;
      report_.shared_transactions += counts.transactions;
      report_.global_sectors += counts.sectors;
      report_.global_sectors_needed += counts.sectors_needed;
      if (is_global(counts.access)) report_.global_bytes_requested += counts.bytes;
    }
    return report_;
  }

  const Report& report() const { return report_; }

 private:
  Report report_;
  std::unordered_map<std::uint64_t, std::size_t> places_;
};

}  // namespace peft_emulator
