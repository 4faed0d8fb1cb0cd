#pragma once
/// Replaces a file in one step: whoever opens it finds the whole old content or the whole new one, also after a kill or
/// a power cut at any moment.

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "peft/io/file_writer.hpp"
#include "peft/io/temporary.hpp"

PEFT_BEGIN_NAMESPACE

/// Written beside the target under a temporary name; commit() brings it to the disk and renames it. Destroyed without
/// commit(), and on every error, the target keeps its old content and the temporary is removed. A process that is killed
/// leaves its temporary (`.name.tmp-…`), which the next AtomicFile for the same target removes.
class AtomicFile {
 public:
  /// The target's folder must exist. Throws IoError.
  explicit AtomicFile(const std::filesystem::path& target)
      : target_(detail::follow_link(target)), writer_(create()) {}
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (!committed_) system_calls().unlink(temporary_.c_str());
  }

  /// Throws IoError, with the target's name and how many bytes were written.
  void write(std::span<const std::byte> bytes) { writer_.write(bytes); }
  void write(std::string_view text) { writer_.write(text); }
  FileWriter& writer() noexcept { return writer_; }

  /// Throws IoError; the target then has its old content, except where the message says that it is in place.
  void commit() {
    writer_.finish();
    if (system_calls().rename(temporary_.c_str(), target_.c_str()) != 0) {
      fail<IoError>("writing {}: renaming {} to it: {}; the old file is as it was", target_.string(),
                    temporary_.string(), error_text(errno));
    }
    committed_ = true;
    try {
      detail::sync_folder(target_.parent_path());
    } catch (const IoError& error) {
      fail<IoError>("{} is in place, but a power cut could still undo it: {}", target_.string(), error.what());
    }
  }

  const std::filesystem::path& target() const noexcept { return target_; }

 private:
  FileWriter create() {
    detail::remove_left_over(target_);
    while (true) {
      temporary_ = detail::temporary_name(target_);
      const int file = FileWriter::try_create(temporary_);
      if (file < 0) {
        if (errno == EEXIST) continue;  // left over by a process of the same number
        FileWriter::fail_create(temporary_, target_, errno);
      }
      FileWriter writer(file, target_);
      if (detail::lock_temporary(file)) return writer;
    }
  }

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  bool committed_ = false;
  FileWriter writer_;
};

PEFT_END_NAMESPACE
