#pragma once
/// How much of a mapped file is in this process's memory.

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

namespace peft_test {

/// Bytes of the mappings of `file` that are resident, by /proc/self/smaps; none where it is not mapped, or the system does
/// not tell.
inline std::optional<std::size_t> resident_bytes(const std::filesystem::path& file) {
  std::ifstream maps("/proc/self/smaps");
  std::optional<std::size_t> result;
  bool ours = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find(':') == std::string::npos || line.find('-') < line.find(' ')) ours = line.ends_with(file.string());
    if (ours && line.starts_with("Rss:")) result = result.value_or(0) + std::stoul(line.substr(4)) * 1024;
  }
  return result;
}

}  // namespace peft_test
