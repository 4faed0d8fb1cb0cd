#pragma once
/// Saves several files that belong together in one step: a reader finds the old ones or the new ones, never a mixture,
/// also after a kill or a power cut at any moment.
///
/// A new folder is made under a temporary name and renamed. For a folder that exists there are two ways:
///   kUpdate   its other files and sub-folders stay, as Python's save_pretrained leaves them. The new files are made in a
///             hidden sub-folder; renaming that to `.peft-commit` is the step that counts; then they move up one by one.
///   kReplace  the whole folder is exchanged for the new one, its old files are removed (Linux's renameat2; where it is
///             missing, the old folder is renamed to `.name.old-…` for the moment of the change).
/// After a kill in the middle of the moving, what counts is where locate() finds it; the next save tidies up. Programs
/// that know nothing of `.peft-commit` see, only then, some files new and some old.

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "peft/io/file_writer.hpp"
#include "peft/io/temporary.hpp"

PEFT_BEGIN_NAMESPACE

/// What happens to the files of a folder that are not saved anew.
enum class ExistingFolder : std::uint8_t { kUpdate, kReplace };

class AtomicDirectory {
 public:
  /// Makes the folders above `target` where they are missing. Throws IoError.
  explicit AtomicDirectory(const std::filesystem::path& target, ExistingFolder mode = ExistingFolder::kUpdate)
      : target_(normal(target)), mode_(mode) {
    make_parents();
    restore(target_);
    std::error_code error;
    exists_ = std::filesystem::exists(target_, error);
    if (exists_ && !std::filesystem::is_directory(target_, error)) {
      fail<IoError>("saving to {}: it is a file; expected a folder or a new name", target_.string());
    }
    if (exists_ && mode_ == ExistingFolder::kReplace) refuse_sub_folders();
    create();
  }
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  ~AtomicDirectory() {
    if (!committed_) detail::remove_flat_folder(temporary_);
    unlock();
  }

  /// A file of the set; finish() it before commit(). Throws IoError.
  FileWriter create(std::string_view name) {
    if (name.empty() || name.find('/') != std::string_view::npos || name.front() == '.') {
      fail<IoError>("saving to {}: a file named {}; expected a plain name", target_.string(), quoted_name(name));
    }
    return FileWriter(temporary_ / name, target_ / name);
  }

  /// Throws IoError; the old files then count, except where the message says that the new ones do.
  void commit() {
    detail::sync_folder(temporary_);
    if (!exists_) {
      rename_new();
    } else if (mode_ == ExistingFolder::kReplace) {
      exchange();
    } else {
      publish();
    }
  }

  const std::filesystem::path& target() const noexcept { return target_; }

  /// Where a file of the last complete save of `folder` stands. It need not exist.
  static std::filesystem::path locate(const std::filesystem::path& folder, std::string_view name) {
    const std::filesystem::path target = normal(folder);
    std::error_code error;
    const std::filesystem::path pending = target / kCommit / name;
    if (std::filesystem::exists(pending, error)) return pending;
    if (!std::filesystem::exists(target, error)) {
      const auto old = detail::entries_with_prefix(target.parent_path(), old_prefix(target));
      if (!old.empty()) return old.front() / name;
    }
    return target / name;
  }

  /// Finishes what a killed process began: moves committed files to their place, brings a renamed old folder back. Saving
  /// does it first; reading does not need it. Throws IoError.
  static void restore(const std::filesystem::path& folder) {
    const std::filesystem::path target = normal(folder);
    std::error_code error;
    if (std::filesystem::exists(target / kCommit, error)) move_up(target);
    const auto old = detail::entries_with_prefix(target.parent_path(), old_prefix(target));
    if (old.empty()) return;
    if (std::filesystem::exists(target, error)) {
      for (const std::filesystem::path& path : old) detail::remove_flat_folder(path);
    } else {
      rename(old.front(), target, "bringing back");
    }
  }

 private:
  static constexpr const char* kCommit = ".peft-commit";

  static std::filesystem::path normal(const std::filesystem::path& folder) {
    std::filesystem::path path = detail::follow_link(folder);
    if (!path.has_filename()) path = path.parent_path();  // "out/"
    if (path.filename() == "." || path.filename() == "..") {
      std::error_code error;
      const std::filesystem::path real = std::filesystem::weakly_canonical(path, error);
      if (!error) path = real;
    }
    return path;
  }
  static std::string old_prefix(const std::filesystem::path& target) {
    return fmt::format(".{}.old-", target.filename().string().substr(0, 200));
  }
  static std::string quoted_name(std::string_view name) { return "\"" + std::string(name) + "\""; }

  static void rename(const std::filesystem::path& from, const std::filesystem::path& to, std::string_view what) {
    if (system_calls().rename(from.c_str(), to.c_str()) != 0) {
      fail<IoError>("{} {}: renaming {} to it: {}", what, to.string(), from.string(), error_text(errno));
    }
  }

  void make_parents() const {
    std::error_code error;
    const std::filesystem::path parent = target_.parent_path();
    if (!parent.empty()) std::filesystem::create_directories(parent, error);
    if (error) {
      fail<IoError>("saving to {}: making the folder {}: {}", target_.string(), parent.string(), error.message());
    }
  }

  void refuse_sub_folders() const {
    std::error_code error;
    for (std::filesystem::directory_iterator it(target_, error), end; !error && it != end; it.increment(error)) {
      std::error_code ignored;
      if (!it->is_directory(ignored) || it->is_symlink(ignored)) continue;
      if (it->path().filename().string().starts_with(std::string(kCommit) + ".tmp-")) continue;
      fail<IoError>("replacing the folder {}: it has a sub-folder {}, which would be lost; save to another folder",
                    target_.string(), it->path().filename().string());
    }
  }

  /// Makes and locks the temporary folder: within the target where files move up from it, else beside it.
  void create() {
    const bool inside = exists_ && mode_ == ExistingFolder::kUpdate;
    const std::filesystem::path final = inside ? target_ / kCommit : target_;
    detail::remove_left_over(final);
    while (true) {
      temporary_ = detail::temporary_name(final);
      if (system_calls().mkdir(temporary_.c_str(), 0777) != 0) {
        if (errno == EEXIST) continue;
        FileWriter::fail_create(temporary_, target_, errno);
      }
      lock_ = system_calls().open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
      if (lock_ < 0) {
        const int error = errno;
        system_calls().rmdir(temporary_.c_str());
        FileWriter::fail_create(temporary_, target_, error);
      }
      if (detail::lock_temporary(lock_)) return;
      unlock();
    }
  }
  void unlock() noexcept {
    if (lock_ >= 0) system_calls().close(std::exchange(lock_, -1));
  }

  void sync_parent(const std::filesystem::path& folder) const {
    try {
      detail::sync_folder(folder);
    } catch (const IoError& error) {
      fail<IoError>("{} has its new files, but a power cut could still undo it: {}", target_.string(), error.what());
    }
  }

  void rename_new() {
    rename(temporary_, target_, "saving");
    committed_ = true;
    sync_parent(target_.parent_path());
  }

  void exchange() {
    if (system_calls().exchange(temporary_.c_str(), target_.c_str()) == 0) {
      committed_ = true;
      sync_parent(target_.parent_path());
      detail::remove_flat_folder(temporary_);  // the old files
      return;
    }
    if (errno != ENOSYS && errno != EINVAL && errno != ENOTSUP && errno != EPERM) {
      fail<IoError>("saving {}: exchanging it with {}: {}", target_.string(), temporary_.string(), error_text(errno));
    }
    const std::filesystem::path old =
        target_.parent_path() / (old_prefix(target_) + temporary_.extension().string().substr(1));
    rename(target_, old, "moving away");
    try {
      rename(temporary_, target_, "saving");
    } catch (const IoError&) {
      system_calls().rename(old.c_str(), target_.c_str());
      throw;
    }
    committed_ = true;
    sync_parent(target_.parent_path());
    detail::remove_flat_folder(old);
  }

  void publish() {
    const std::filesystem::path pending = target_ / kCommit;
    while (system_calls().rename(temporary_.c_str(), pending.c_str()) != 0) {
      if (errno != EEXIST && errno != ENOTEMPTY) {
        fail<IoError>("saving to {}: renaming {} to {}: {}; the old files are as they were", target_.string(),
                      temporary_.string(), pending.string(), error_text(errno));
      }
      move_up(target_);  // another process has committed and not moved its files yet
    }
    committed_ = true;
    sync_parent(target_);
    try {
      move_up(target_);
    } catch (const IoError& error) {
      fail<IoError>("the new files of {} are complete in {}, but could not be moved up: {}", target_.string(),
                    pending.string(), error.what());
    }
    sync_parent(target_);
  }

  /// Moves the files of `.peft-commit` to the folder. Several processes may do it at once: what one has moved, the others
  /// find gone.
  static void move_up(const std::filesystem::path& target) {
    const std::filesystem::path pending = target / kCommit;
    for (const std::filesystem::path& file : detail::entries_with_prefix(pending, "")) {
      const std::filesystem::path place = target / file.filename();
      if (system_calls().rename(file.c_str(), place.c_str()) != 0 && errno != ENOENT) {
        fail<IoError>("saving {}: renaming {} to it: {}", place.string(), file.string(), error_text(errno));
      }
    }
    if (system_calls().rmdir(pending.c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST) {
      fail<IoError>("removing {}: {}", pending.string(), error_text(errno));
    }
  }

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  ExistingFolder mode_;
  bool exists_ = false;
  bool committed_ = false;
  int lock_ = -1;
};

PEFT_END_NAMESPACE
