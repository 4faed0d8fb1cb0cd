#pragma once
/// Writes one new file from start to end; every byte is written or an error says how far it came.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "peft/error.hpp"
#include "peft/io/system_calls.hpp"

PEFT_BEGIN_NAMESPACE

/// Creates a file that must not exist yet. It belongs to one thread. Closing without finish() leaves what is written.
class FileWriter {
 public:
  /// `shown` stands for the file in messages: the name that it will have at last. Throws IoError.
  FileWriter(const std::filesystem::path& path, std::filesystem::path shown)
      : shown_(std::move(shown)), file_(try_create(path)) {
    if (file_ < 0) fail_create(path, shown_, errno);
  }
  /// Takes an open descriptor.
  FileWriter(int file, std::filesystem::path shown) noexcept : shown_(std::move(shown)), file_(file) {}
  FileWriter(FileWriter&& other) noexcept
      : shown_(std::move(other.shown_)), file_(std::exchange(other.file_, -1)), written_(other.written_) {}
  FileWriter& operator=(FileWriter&&) = delete;
  ~FileWriter() {
    if (file_ >= 0) system_calls().close(file_);
  }

  /// Throws IoError: on a full disk, …
  void write(std::span<const std::byte> bytes) {
    // Linux takes at most 2 GiB − 4096 at once, others fail above 2 GiB.
    constexpr std::size_t kMost = std::size_t{1} << 30;
    while (!bytes.empty()) {
      const ssize_t count = system_calls().write(file_, bytes.data(), std::min(bytes.size(), kMost));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        fail<IoError>("writing {}: {}, {} bytes after its start with at least {} to go; nothing is replaced",
                      shown_.string(), error_text(count < 0 ? errno : EIO), written_, bytes.size());
      }
      bytes = bytes.subspan(static_cast<std::size_t>(count));
      written_ += static_cast<std::uint64_t>(count);
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Returns when the bytes are on the disk, and closes. Throws IoError.
  void finish() {
    sync();
    const int file = std::exchange(file_, -1);
    // A network file system may report a failed write only now. After EINTR the descriptor is closed on Linux.
    if (system_calls().close(file) != 0 && errno != EINTR) {
      fail<IoError>("closing {} after {} bytes: {}; nothing is replaced", shown_.string(), written_, error_text(errno));
    }
  }

  /// Returns when the bytes are on the disk. Throws IoError.
  void sync() {
    int status;
    do {
      status = system_calls().fsync(file_);
    } while (status != 0 && errno == EINTR);
    if (status != 0) {
      fail<IoError>("bringing the {} bytes of {} to the disk: {}; nothing is replaced", written_, shown_.string(),
                    error_text(errno));
    }
  }

  std::uint64_t written() const noexcept { return written_; }
  const std::filesystem::path& shown() const noexcept { return shown_; }
  int descriptor() const noexcept { return file_; }

  /// The descriptor of a new file, or -1 and errno.
  static int try_create(const std::filesystem::path& path) noexcept {
    int file;
    do {
      file = system_calls().open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file < 0 && errno == EINTR);
    return file;
  }
  [[noreturn]] static void fail_create(const std::filesystem::path& path, const std::filesystem::path& shown, int error) {
    std::string hint;
    if (error == EACCES || error == EPERM || error == EROFS) hint = "; check the permissions of the folder";
    if (error == ENOENT) hint = "; create the folder first";
    fail<IoError>("writing {}: creating {}: {}{}", shown.string(), path.string(), error_text(error), hint);
  }

 private:
  std::filesystem::path shown_;
  int file_ = -1;
  std::uint64_t written_ = 0;
};

namespace detail {

/// Brings a folder's entries to the disk: without it a renaming may be undone by a power cut. Throws IoError.
inline void sync_folder(const std::filesystem::path& folder) {
  const std::filesystem::path& path = folder.empty() ? std::filesystem::path(".") : folder;
  const int file = system_calls().open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (file < 0) fail<IoError>("opening the folder {} to bring it to the disk: {}", path.string(), error_text(errno));
  int status;
  do {
    status = system_calls().fsync(file);
  } while (status != 0 && errno == EINTR);
  const int error = status != 0 ? errno : 0;
  system_calls().close(file);
  // Some file systems (FAT, SMB, FUSE) know no fsync of folders.
  if (status != 0 && error != EINVAL && error != ENOTSUP && error != ENOSYS) {
    fail<IoError>("bringing the folder {} to the disk: {}", path.string(), error_text(error));
  }
}

}  // namespace detail

PEFT_END_NAMESPACE
