#pragma once
/// Progress on stderr: one line that is redrawn on a terminal, a line every twenty seconds elsewhere.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

#include "cli/process.hpp"
#include "peft/core/scalar.hpp"

namespace peft_examples {

/// "1:05", "2:03:00".
inline std::string duration_text(double seconds) {
  const auto whole = static_cast<long>(std::max(0.0, seconds) + 0.5);
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

/// Not for several threads.
class Progress {
 public:
  Progress() : columns_(terminal_columns()) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// A message of its own line; the bar stays below it.
  void line(std::string_view text) {
    clear();
    std::fprintf(stderr, "%.*s\n", static_cast<int>(text.size()), text.data());
    draw();
  }

  /// `share` of the work is done (0 to 1), with what belongs to it.
  void update(double share, std::string_view text) {
    const auto now = std::chrono::steady_clock::now();
    if (columns_ == 0) {
      if (now - drawn_ < std::chrono::seconds(20)) return;
      drawn_ = now;
      std::fprintf(stderr, "%3.0f%%  %.*s\n", share * 100.0, static_cast<int>(text.size()), text.data());
      return;
    }
    constexpr int kWidth = 24;
    const int full = std::clamp(static_cast<int>(share * kWidth + 0.5), 0, kWidth);
    bar_ = fmt::format("[{:#<{}}{:.<{}}] {:3.0f}%  {}", "", full, "", kWidth - full, share * 100.0, text);
    if (static_cast<int>(bar_.size()) > columns_ - 1) bar_.resize(static_cast<std::size_t>(columns_ - 1));
    if (share < 1.0 && shown_ && now - drawn_ < std::chrono::milliseconds(50)) return;
    drawn_ = now;
    draw();
  }

  /// Takes the bar away: the work is done.
  void finish() {
    clear();
    bar_.clear();
  }

 private:
  void clear() {
    if (shown_) std::fputs("\r\033[K", stderr);
    shown_ = false;
  }
  void draw() {
    if (bar_.empty()) return;
    std::fprintf(stderr, "\r%s\033[K", bar_.c_str());
    shown_ = true;
  }

  int columns_;
  bool shown_ = false;
  std::string bar_;
  std::chrono::steady_clock::time_point drawn_ = std::chrono::steady_clock::now();
};

}  // namespace peft_examples
