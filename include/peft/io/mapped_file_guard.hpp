#pragma once
/// What a program says when a mapped file loses its bytes: another process truncated it, or its disk or network failed.
/// The system then raises SIGBUS at the read, which without a guard ends the program without a word.

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "peft/io/mapped_file.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// A line on standard error, put together without memory of its own: write() is all that a signal handler may use.
class SignalMessage {
 public:
  SignalMessage& text(const char* value) noexcept {
    while (*value != '\0' && size_ < sizeof(bytes_)) bytes_[size_++] = *value++;
    return *this;
  }
  SignalMessage& number(std::size_t value) noexcept {
    char digits[24];
    std::size_t first = sizeof(digits) - 1;
    digits[first] = '\0';
    do {
      digits[--first] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value != 0);
    return text(digits + first);
  }
  void send() const noexcept {
    for (std::size_t sent = 0; sent < size_;) {
      const ssize_t count = ::write(STDERR_FILENO, bytes_ + sent, size_ - sent);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return;
      sent += static_cast<std::size_t>(count);
    }
  }

 private:
  char bytes_[1024];
  std::size_t size_ = 0;
};

struct MappedFileGuard {
  struct sigaction previous {};
  int exit_status = 0;
};
inline constinit MappedFileGuard mapped_file_guard;

inline void on_bus_error(int signal, siginfo_t* info, void* context) noexcept {
  // BUS_ADRERR: the address has no bytes behind it. Broken memory and signals that a process sent are others' business.
  if (info->si_code == BUS_ADRERR) {
    const MappedRanges::Place place = mapped_ranges.find(reinterpret_cast<std::uintptr_t>(info->si_addr));
    if (place.range != nullptr) {
      SignalMessage()
          .text("error: reading ").text(place.range->path).text(": byte ").number(place.offset)
          .text(" of ").number(place.range->size.load(std::memory_order_relaxed))
          .text(" is no longer there; the file was truncated, or its disk failed, while it was in use."
                " Replace files by renaming, and run again.\n")
          .send();
      ::_exit(mapped_file_guard.exit_status);
    }
  }
  // Not ours: as it was before this guard.
  const struct sigaction& previous = mapped_file_guard.previous;
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;  // the system does not let a fault be ignored
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  ::sigaction(signal, &by_default, nullptr);
  ::raise(signal);  // delivered when this handler returns
}

}  // namespace detail

/// For a program's main: from now on, reading a MappedFile past the end of a file that has shrunk ends the process with a
/// message on standard error and `exit_status` (EX_IOERR of sysexits.h) at once, without destructors: files that are being
/// written stay what they were. A SIGBUS of another cause goes to the handler that was there before. Call it once,
/// before threads that read; a library does not, since signals belong to the program. It knows the files that this copy
/// of the library maps: a shared object with hidden symbols has a copy, and a call, of its own. Throws IoError.
inline void install_mapped_file_guard(int exit_status = 74) {
  detail::mapped_file_guard.exit_status = exit_status;
  struct sigaction action {};
  action.sa_sigaction = detail::on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  struct sigaction previous {};
  if (::sigaction(SIGBUS, nullptr, &previous) != 0) {
    fail<IoError>("install_mapped_file_guard: asking for the handler of SIGBUS: {}", error_text(errno));
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction == detail::on_bus_error) return;
  detail::mapped_file_guard.previous = previous;
  if (::sigaction(SIGBUS, &action, nullptr) != 0) {
    fail<IoError>("install_mapped_file_guard: setting the handler of SIGBUS: {}", error_text(errno));
  }
}

PEFT_END_NAMESPACE
