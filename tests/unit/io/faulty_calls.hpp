#pragma once
/// System calls that fail, are interrupted, fall short or kill the process at a chosen call.

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <string>

#include "peft/io/system_calls.hpp"

namespace io_test {

/// Installed while it lives. Calls are counted from 0 in the order in which they come.
class FaultyCalls {
 public:
  /// What happens to a call: 0 lets it pass, another value is the errno it fails with.
  using Decide = std::function<int(int number, const std::string& call)>;

  explicit FaultyCalls(Decide decide) : decide_(std::move(decide)) {
    current() = this;
    peft::set_system_calls(&table());
  }
  FaultyCalls(const FaultyCalls&) = delete;
  FaultyCalls& operator=(const FaultyCalls&) = delete;
  ~FaultyCalls() {
    peft::set_system_calls(nullptr);
    current() = nullptr;
  }

  int count() const { return count_; }
  /// At most so many bytes are written by one call.
  std::size_t longest_write = std::size_t(-1);
  /// The process dies right after this call has been done; -1: never.
  int die_after = -1;

 private:
  static FaultyCalls*& current() {
    static FaultyCalls* value = nullptr;
    return value;
  }

  template <class Call>
  static auto run(const char* name, Call&& call) -> decltype(call()) {
    FaultyCalls& self = *current();
    const int number = self.count_++;
    if (const int error = self.decide_(number, name); error != 0) {
      errno = error;
      return -1;
    }
    const auto result = call();
    if (number == self.die_after) {
      raise(SIGKILL);
    }
    return result;
  }

  static const peft::SystemCalls& table() {
    static const peft::SystemCalls& real = peft::posix_system_calls();
    static const peft::SystemCalls calls{
        [](const char* path, int flags, mode_t mode) { return run("open", [&] { return real.open(path, flags, mode); }); },
        [](int file, const void* data, std::size_t size) {
          return run("write", [&] { return real.write(file, data, std::min(size, current()->longest_write)); });
        },
        [](int file) { return run("fsync", [&] { return real.fsync(file); }); },
        [](int file) {
          // A close that fails closes nevertheless: otherwise descriptors and their locks would leak.
          const int result = run("close", [&] { return 0; });
          const int error = errno;
          real.close(file);
          errno = error;
          return result;
        },
        [](const char* from, const char* to) { return run("rename", [&] { return real.rename(from, to); }); },
        [](const char* one, const char* other) { return run("exchange", [&] { return real.exchange(one, other); }); },
        [](const char* path, mode_t mode) { return run("mkdir", [&] { return real.mkdir(path, mode); }); },
        [](const char* path) { return run("unlink", [&] { return real.unlink(path); }); },
        [](const char* path) { return run("rmdir", [&] { return real.rmdir(path); }); },
        [](int file, off_t size) { return run("allocate", [&] { return real.allocate(file, size); }); },
    };
    return calls;
  }

  Decide decide_;
  int count_ = 0;
};

}  // namespace io_test
