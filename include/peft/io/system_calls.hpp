#pragma once
/// The calls by which files are written, as a table that a test replaces to make each of them fail, be interrupted or
/// fall short at will.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <string>
#include <system_error>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// Each follows the POSIX function of its name: -1 and errno on failure.
struct SystemCalls {
  int (*open)(const char* path, int flags, mode_t mode);
  ssize_t (*write)(int file, const void* data, std::size_t size);
  int (*fsync)(int file);
  int (*close)(int file);
  int (*rename)(const char* from, const char* to);
  /// Swaps two names in one step; ENOSYS, EINVAL or ENOTSUP where system or file system cannot.
  int (*exchange)(const char* one, const char* other);
  int (*mkdir)(const char* path, mode_t mode);
  int (*unlink)(const char* path);
  int (*rmdir)(const char* path);
  /// Takes the space of a file's first `size` bytes (posix_fallocate, but with errno).
  int (*allocate)(int file, off_t size);
};

/// The operating system's own.
inline const SystemCalls& posix_system_calls() noexcept {
  static constexpr SystemCalls kCalls{
      [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
      [](int file, const void* data, std::size_t size) { return ::write(file, data, size); },
      [](int file) { return ::fsync(file); },
      [](int file) { return ::close(file); },
      [](const char* from, const char* to) { return std::rename(from, to); },
      [](const char* one, const char* other) {
#if defined(__linux__) && defined(SYS_renameat2)
        constexpr unsigned kRenameExchange = 2;  // RENAME_EXCHANGE of linux/fs.h
        return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, kRenameExchange));
#else
        static_cast<void>(one);
        static_cast<void>(other);
        errno = ENOSYS;
        return -1;
#endif
      },
      [](const char* path, mode_t mode) { return ::mkdir(path, mode); },
      [](const char* path) { return ::unlink(path); },
      [](const char* path) { return ::rmdir(path); },
      [](int file, off_t size) {
        const int error = ::posix_fallocate(file, 0, size);
        if (error != 0) errno = error;
        return error != 0 ? -1 : 0;
      },
  };
  return kCalls;
}

namespace detail {
inline std::atomic<const SystemCalls*>& system_calls_override() noexcept {
  static constinit std::atomic<const SystemCalls*> value{nullptr};
  return value;
}
}  // namespace detail

/// What the library writes with.
inline const SystemCalls& system_calls() noexcept {
  const SystemCalls* chosen = detail::system_calls_override().load(std::memory_order_acquire);
  return chosen != nullptr ? *chosen : posix_system_calls();
}

/// Replaces them for the whole process, for tests; nullptr brings the operating system's back.
inline void set_system_calls(const SystemCalls* calls) noexcept {
  detail::system_calls_override().store(calls, std::memory_order_release);
}

/// "No space left on device".
inline std::string error_text(int error) { return std::generic_category().message(error); }

PEFT_END_NAMESPACE
