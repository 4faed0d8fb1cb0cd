#pragma once
/// Memory that stands in a file: what is not in use is not in memory, and no limit on memory counts it.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "peft/error.hpp"
#include "peft/io/mapped_ranges.hpp"
#include "peft/io/temporary.hpp"

PEFT_BEGIN_NAMESPACE

/// Zeroed bytes in a file without a name, shared with it (MAP_SHARED): the file's space is taken before they are used, so that
/// a full disk is an error and not a signal, and ends with the process, however that ends. Whoever uses them says which part
/// is needed next (prefetch), in use (populate), and no longer in use (release). One thread at a time calls; different bytes
/// may be used by several. After fork() parent and child share the bytes.
class PagedBuffer {
 public:
  /// Around what is touched, the system maps pages that happen to be in its file cache: so much on either side.
  static constexpr std::size_t kNeighbourhood = std::size_t{64} << 10;

  PagedBuffer() noexcept = default;
  /// `folder` should be on a disk: a file of a tmpfs is memory. Throws IoError.
  PagedBuffer(const std::filesystem::path& folder, std::size_t size) : size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(std::numeric_limits<off_t>::max())) {
      fail<IoError>("PagedBuffer: {} bytes; expected a size that a file can have", size);
    }
    try {
      file_ = create(folder);
      int status;
      do {
        status = system_calls().allocate(file_, static_cast<off_t>(size));
      } while (status != 0 && errno == EINTR);
      if (status != 0) {
        const int error = errno;
        fail<IoError>("PagedBuffer: taking {} bytes of the disk in {}: {}{}", size, folder.string(), error_text(error),
                      error == ENOSPC || error == EDQUOT ? "; make room, or name a folder on another disk" : "");
      }
      void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
      if (data == MAP_FAILED) {
        fail<IoError>("PagedBuffer: mapping {} bytes of a file in {}: {}", size, folder.string(), error_text(errno));
      }
      data_ = static_cast<std::byte*>(data);
    } catch (...) {
      close();
      throw;
    }
    range_ = detail::mapped_ranges.add(data_, size_, (folder / "(paged memory)").native());
    // Pages one by one: no huge ones, and none that nobody asked for. Where the system refuses, it costs memory only.
    ::madvise(data_, size_, MADV_RANDOM);
#if defined(MADV_NOHUGEPAGE)
    ::madvise(data_, size_, MADV_NOHUGEPAGE);
#endif
  }
  PagedBuffer(PagedBuffer&& other) noexcept { swap(other); }
  PagedBuffer& operator=(PagedBuffer&& other) noexcept {
    PagedBuffer(std::move(other)).swap(*this);
    return *this;
  }
  ~PagedBuffer() { close(); }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

  /// From now on release() leaves the first `bytes` bytes in memory, where they come as they are touched: neither prefetch()
  /// nor populate() look after them.
  void keep(std::size_t bytes) noexcept { kept_ = bytes; }

  /// Begins to read `part` from the disk, and does not wait for it.
  void prefetch(std::span<const std::byte> part) const noexcept {
    const Pages pages = pages_beyond_kept(part, 0);
    if (pages.size > 0) ::madvise(data_ + pages.first, pages.size, MADV_WILLNEED);
  }

  /// Brings `part` into memory, to be written, at once instead of page by page. Throws IoError where the disk fails.
  void populate(std::span<const std::byte> part) const {
    const Pages pages = pages_beyond_kept(part, 0);
    if (pages.size == 0) return;
#if defined(__linux__)
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE of Linux 5.14; older ones refuse it, and read when touched
    int status;
    do {
      status = ::madvise(data_ + pages.first, pages.size, kPopulateWrite);
    } while (status != 0 && (errno == EINTR || errno == EAGAIN));
    if (status != 0 && (errno == EFAULT || errno == EIO || errno == EHWPOISON)) {
      fail<IoError>("PagedBuffer: bringing bytes {} to {} of its file into memory: {}; the disk failed or lost space",
                    pages.first, pages.first + pages.size, error_text(errno));
    }
#endif
  }

  /// Begins to write `part` back to the disk and takes it out of memory, with what the system mapped around it. The bytes stay
  /// what they are and can be used again. Bytes that are not this buffer's are left alone.
  void release(std::span<const std::byte> part) const noexcept {
    const Pages pages = pages_beyond_kept(part, kNeighbourhood);
    if (pages.size == 0) return;
    ::madvise(data_ + pages.first, pages.size, MADV_DONTNEED);
#if defined(__linux__) && defined(SYNC_FILE_RANGE_WRITE)
    ::sync_file_range(file_, static_cast<off_t>(pages.first), static_cast<off_t>(pages.size), SYNC_FILE_RANGE_WRITE);
#endif
  }

  static std::size_t page_size() noexcept {
    static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return size;
  }

 private:
  struct Pages {
    std::size_t first = 0, size = 0;  ///< in bytes, from the start
  };

  /// The whole pages that hold `part` and `around` bytes on either side; none for bytes of another's memory.
  Pages pages_of(std::span<const std::byte> part, std::size_t around) const noexcept {
    const std::size_t start = reinterpret_cast<std::uintptr_t>(part.data()) - reinterpret_cast<std::uintptr_t>(data_);
    if (part.empty() || data_ == nullptr || start >= size_ || part.size() > size_ - start) return {};
    const std::size_t end = start + part.size();
    const std::size_t page = page_size();
    const std::size_t first = (start > around ? start - around : 0) / page * page;
    const std::size_t last = size_ - end > around ? (end + around + page - 1) / page * page : size_;
    return {first, (last < size_ ? last : size_) - first};
  }

  Pages pages_beyond_kept(std::span<const std::byte> part, std::size_t around) const noexcept {
    const Pages pages = pages_of(part, around);
    const std::size_t last = pages.first + pages.size, kept = kept_ / page_size() * page_size();
    const std::size_t first = pages.first < kept ? kept : pages.first;
    return first < last ? Pages{first, last - first} : Pages{};
  }

  /// A new file that no other process can name. Throws IoError.
  static int create(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder.empty() ? std::filesystem::path(".") : folder;
    int file = -1;
#if defined(O_TMPFILE)
    do {
      file = system_calls().open(path.c_str(), O_RDWR | O_TMPFILE | O_EXCL | O_CLOEXEC, 0600);
    } while (file < 0 && errno == EINTR);
    if (file >= 0) return file;
#endif
    // Not every file system has files without names.
    const std::filesystem::path name = detail::temporary_name(path / "paged");
    do {
      file = system_calls().open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    } while (file < 0 && errno == EINTR);
    if (file < 0) {
      fail<IoError>("PagedBuffer: creating a file in {}: {}; expected a folder that can be written to", path.string(),
                    error_text(errno));
    }
    system_calls().unlink(name.c_str());
    return file;
  }

  void swap(PagedBuffer& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(kept_, other.kept_);
    std::swap(range_, other.range_);
  }
  void close() noexcept {
    detail::MappedRanges::remove(range_);
    if (data_ != nullptr) ::munmap(data_, size_);
    if (file_ >= 0) system_calls().close(file_);
    range_ = nullptr;
    data_ = nullptr;
    file_ = -1;
  }

  int file_ = -1;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t kept_ = 0;
  detail::MappedRanges::Range* range_ = nullptr;
};

PEFT_END_NAMESPACE
