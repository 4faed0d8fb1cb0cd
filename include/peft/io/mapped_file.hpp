#pragma once
/// A file's bytes in memory without reading them: pages arrive when they are touched and are shared between processes.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <utility>

#include "peft/error.hpp"
#include "peft/io/mapped_ranges.hpp"
#include "peft/io/system_calls.hpp"

PEFT_BEGIN_NAMESPACE

/// Maps a whole regular file read-only for as long as it lives; whoever hands out views keeps a shared_ptr to it. The
/// file must not shrink meanwhile: reading past its new end raises SIGBUS (see mapped_file_guard.hpp). Files that this
/// library writes are replaced by renaming, which leaves a mapping of the old one whole.
class MappedFile {
 public:
  /// Throws IoError.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path) {
    return std::shared_ptr<const MappedFile>(new MappedFile(path));
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    detail::MappedRanges::remove(range_);
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  std::span<const std::byte> bytes() const noexcept { return {static_cast<const std::byte*>(data_), size_}; }
  const std::filesystem::path& path() const noexcept { return path_; }

  /// Gives back the memory of the whole pages within `range`, a part of bytes(). The bytes stay readable: a page that is
  /// touched again is read from the file again.
  void release(std::span<const std::byte> range) const noexcept {
    if (data_ == nullptr || range.empty()) return;
    static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto start = static_cast<std::size_t>(range.data() - static_cast<const std::byte*>(data_));
    const std::size_t first = (start + page - 1) / page * page;  // the mapping begins at a page
    const std::size_t last = start + range.size() == size_ ? size_ : (start + range.size()) / page * page;
    if (first < last) ::madvise(static_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
  }

 private:
  explicit MappedFile(const std::filesystem::path& path) : path_(path) {
    // O_NONBLOCK: opening a pipe must not wait for its writer; it is refused below.
    int file;
    do {
      file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (file < 0 && errno == EINTR);
    if (file < 0) fail<IoError>("MappedFile: opening {}: {}", path.string(), error_text(errno));
    struct stat status {};
    if (::fstat(file, &status) != 0) {
      const int error = errno;
      ::close(file);
      fail<IoError>("MappedFile: asking for the size of {}: {}", path.string(), error_text(error));
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(file);
      fail<IoError>("MappedFile: {} is {}; expected a regular file", path.string(),
                    S_ISDIR(status.st_mode) ? "a folder" : "a pipe or device");
    }
    const auto size = static_cast<std::uintmax_t>(status.st_size);
    if (size > static_cast<std::uintmax_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
      ::close(file);
      fail<IoError>("MappedFile: {} has {} bytes, more than this machine can address", path.string(), size);
    }
    if (size > 0) {  // an empty file cannot be mapped
      void* data = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, file, 0);
      if (data == MAP_FAILED) {
        const int error = errno;
        ::close(file);
        fail<IoError>("MappedFile: mapping the {} bytes of {}: {}", size, path.string(), error_text(error));
      }
      data_ = data;
      size_ = static_cast<std::size_t>(size);
      range_ = detail::mapped_ranges.add(data_, size_, path_.native());
    }
    ::close(file);
  }

  std::filesystem::path path_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
  detail::MappedRanges::Range* range_ = nullptr;
};

PEFT_END_NAMESPACE
