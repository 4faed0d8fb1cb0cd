#pragma once
/// What a program asks of its process: memory, a terminal, Ctrl-C.

#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

namespace peft_examples {

/// The most memory that was resident at once, in MiB (VmHWM).
inline double peak_rss_mib() noexcept {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

/// Columns of the terminal that stderr is; 0 where it is none.
inline int terminal_columns() noexcept {
  if (::isatty(STDERR_FILENO) == 0) return 0;
  struct winsize size {};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

/// Becomes true at the first Ctrl-C (or SIGTERM); a second one ends the process as usual.
class StopSignal {
 public:
  StopSignal() noexcept {
    flag().store(false);
    for (const int number : {SIGINT, SIGTERM}) {
      struct sigaction action {};
      action.sa_handler = [](int) { flag().store(true); };
      action.sa_flags = static_cast<int>(SA_RESETHAND);
      ::sigaction(number, &action, nullptr);
    }
  }
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  ~StopSignal() {
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
  }
  const std::atomic<bool>* get() const noexcept { return &flag(); }
  bool came() const noexcept { return flag().load(); }

 private:
  static std::atomic<bool>& flag() noexcept {
    static constinit std::atomic<bool> value{false};
    return value;
  }
  static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only touch lock-free atomics");
};

}  // namespace peft_examples
