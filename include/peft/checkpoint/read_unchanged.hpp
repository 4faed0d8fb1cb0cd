#pragma once
/// Reads an adapter's two files as of one save, while another process or thread may save: configuration and weights of two
/// saves do not go together.

#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "peft/error.hpp"
#include "peft/io/atomic_directory.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Which files stand in a folder now, and where. Saving puts new ones in their place, and moves them on the way: a file that
/// was not where it had been found was not missing. The time of the last change tells a new file from an old one whose
/// number it got.
class PairIdentity {
 public:
  PairIdentity(const std::filesystem::path& folder, std::string_view config, std::string_view weights) {
    const std::string_view names[] = {config, weights};
    for (std::size_t i = 0; i < files_.size(); ++i) {
      File& file = files_[i];
      file.path = AtomicDirectory::locate(folder, names[i]);
      struct stat status {};
      if (::stat(file.path.c_str(), &status) != 0) continue;
#if defined(__APPLE__)
      const timespec& changed = status.st_ctimespec;
#else
      const timespec& changed = status.st_ctim;
#endif
      file.is_there = true;
      file.device = status.st_dev;
      file.number = status.st_ino;
      file.seconds = changed.tv_sec;
      file.nanoseconds = changed.tv_nsec;
    }
  }

  bool is_complete() const noexcept { return files_[0].is_there && files_[1].is_there; }
  friend bool operator==(const PairIdentity&, const PairIdentity&) = default;

 private:
  struct File {
    std::filesystem::path path{};
    bool is_there = false;
    dev_t device{};
    ino_t number{};
    std::int64_t seconds = 0;
    std::int64_t nanoseconds = 0;
    friend bool operator==(const File&, const File&) = default;
  };
  std::array<File, 2> files_{};
};

/// read() until both files stayed the same meanwhile: where they changed, what was read, or failed to be read, does not
/// count. An error of read() passes once nothing changed around it; for a file that is missing, at the last try, since it
/// may just be moving. `what` names the folder in messages.
template <class Read>
auto read_unchanged(const std::filesystem::path& folder, std::string_view config, std::string_view weights,
                    std::string_view what, Read&& read) {
  constexpr int kTries = 8;
  for (int attempt = 1; attempt <= kTries; ++attempt) {
    const PairIdentity before(folder, config, weights);
    try {
      auto result = read();
      if (PairIdentity(folder, config, weights) == before && before.is_complete()) return result;
    } catch (const Error&) {
      if (PairIdentity(folder, config, weights) == before && (before.is_complete() || attempt == kTries)) throw;
    }
  }
  fail<IoError>("{} {}: it keeps changing while it is read", what, folder.string());
}

}  // namespace detail
PEFT_END_NAMESPACE
