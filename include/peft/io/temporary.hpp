#pragma once
/// Names of files and folders in the making, and how those of killed processes are told from those in use.
/// A temporary of `name` is `.name.tmp-<process>-<number>`, beside it, and is locked (flock) as long as its maker lives:
/// the lock ends with the process, however it ends. Whoever saves next removes those that it can lock. Readers never see
/// them. Where a file system knows no locks, left-over temporaries stay: harmless, and safe to delete by hand.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/io/file_writer.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// `.name.tmp-`. Names of more than 200 bytes are cut, so that the whole fits the usual limit of 255.
inline std::string temporary_prefix(const std::filesystem::path& target) {
  return fmt::format(".{}.tmp-", target.filename().string().substr(0, 200));
}

/// A name that no other call gives, in this process or another that runs.
inline std::filesystem::path temporary_name(const std::filesystem::path& target) {
  static constinit std::atomic<std::uint64_t> next{0};
  const std::uint64_t number = next.fetch_add(1, std::memory_order_relaxed);
  return target.parent_path() / fmt::format("{}{}-{}", temporary_prefix(target), ::getpid(), number);
}

/// Locks a temporary just made. False where another process took it for left over and removed it: make another.
inline bool lock_temporary(int file) noexcept {
  while (::flock(file, LOCK_EX) != 0) {
    if (errno != EINTR) return true;  // no locks here, so nobody removes it either
  }
  struct stat status {};
  return ::fstat(file, &status) != 0 || status.st_nlink > 0;
}

/// Removes a folder's files and then the folder; one with sub-folders stays, since the library makes none.
inline void remove_flat_folder(const std::filesystem::path& folder) noexcept {
  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    files.push_back(it->path());
  }
  for (const std::filesystem::path& file : files) system_calls().unlink(file.c_str());
  system_calls().rmdir(folder.c_str());
}

/// The entries of `folder` whose name begins with `prefix`.
inline std::vector<std::filesystem::path> entries_with_prefix(const std::filesystem::path& folder,
                                                              const std::string& prefix) noexcept {
  std::error_code error;
  std::vector<std::filesystem::path> found;
  const std::filesystem::path path = folder.empty() ? std::filesystem::path(".") : folder;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(prefix)) found.push_back(it->path());
  }
  return found;
}

/// Removes the temporaries of `target` whose maker is gone. What cannot be removed stays.
inline void remove_left_over(const std::filesystem::path& target) noexcept {
  for (const std::filesystem::path& path : entries_with_prefix(target.parent_path(), temporary_prefix(target))) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) continue;
    struct stat status {};
    if (::flock(file, LOCK_EX | LOCK_NB) == 0 && ::fstat(file, &status) == 0) {
      if (S_ISDIR(status.st_mode)) {
        remove_flat_folder(path);
      } else {
        system_calls().unlink(path.c_str());
      }
    }
    ::close(file);
  }
}

/// What a symbolic link stands for, so that saving replaces the file and not the link.
inline std::filesystem::path follow_link(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return path;
  const std::filesystem::path real = std::filesystem::weakly_canonical(path, error);
  return error ? path : real;
}

}  // namespace detail

PEFT_END_NAMESPACE
