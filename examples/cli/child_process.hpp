#pragma once
/// This program run again as a process of its own: so that its peak of memory is its own, and its failure too.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "cli/process.hpp"
#include "peft/error.hpp"
#include "peft/io/system_calls.hpp"

namespace peft_examples {

struct ChildResult {
  int status = -1;    ///< exit status; 128 + number for a signal
  std::string out;    ///< all of stdout
  std::string error;  ///< the last line of stderr
};

/// The last line of a text that is not empty.
inline std::string last_line(std::string_view text) {
  const std::size_t end = text.find_last_not_of("\r\n");
  if (end == std::string_view::npos) return {};
  const std::size_t begin = text.find_last_of("\r\n", end);
  return std::string(text.substr(begin == std::string_view::npos ? 0 : begin + 1, end - (begin == std::string_view::npos ? 0 : begin + 1) + 1));
}

/// Runs this program with `arguments` to its end. Its stderr goes on to ours; where `stop` came, it is interrupted, as by
/// Ctrl-C. Throws IoError where it cannot be started.
inline ChildResult run_again(const std::vector<std::string>& arguments, const StopSignal& stop) {
  std::array<int, 2> out{}, err{};
  if (::pipe2(out.data(), O_CLOEXEC) != 0) peft::fail<peft::IoError>("making a pipe: {}", peft::error_text(errno));
  if (::pipe2(err.data(), O_CLOEXEC) != 0) {
    const int error = errno;
    ::close(out[0]), ::close(out[1]);
    peft::fail<peft::IoError>("making a pipe: {}", peft::error_text(error));
  }
  std::string name = "peft";
  std::vector<char*> argv{name.data()};
  std::vector<std::string> own = arguments;
  for (std::string& argument : own) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, err[1], STDERR_FILENO);
  // A process group of its own: a terminal's Ctrl-C would reach it beside ours, and a second one ends it without saving.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t process = 0;
  const int error = ::posix_spawn(&process, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(out[1]), ::close(err[1]);
  if (error != 0) {
    ::close(out[0]), ::close(err[0]);
    peft::fail<peft::IoError>("starting this program again (/proc/self/exe): {}", peft::error_text(error));
  }

  ChildResult result;
  std::string errors;
  std::array<pollfd, 2> pipes{pollfd{out[0], POLLIN, 0}, pollfd{err[0], POLLIN, 0}};
  bool told = false;
  while (pipes[0].fd >= 0 || pipes[1].fd >= 0) {
    const int ready = ::poll(pipes.data(), pipes.size(), 200);
    if (stop.came() && !told) {
      told = true;
      ::kill(process, SIGINT);
    }
    if (ready <= 0) continue;
    for (pollfd& pipe : pipes) {
      if (pipe.fd < 0 || (pipe.revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
      std::array<char, 4096> buffer{};
      const ssize_t count = ::read(pipe.fd, buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        ::close(pipe.fd);
        pipe.fd = -1;
        continue;
      }
      const std::string_view text(buffer.data(), static_cast<std::size_t>(count));
      if (&pipe == &pipes[0]) {
        result.out += text;
      } else {
        errors += text;
        std::fwrite(text.data(), 1, text.size(), stderr);
        constexpr std::size_t kMost = 1 << 16;
        if (errors.size() > 2 * kMost) errors.erase(0, errors.size() - kMost);
      }
    }
  }
  int state = 0;
  while (::waitpid(process, &state, 0) < 0 && errno == EINTR) {
  }
  result.status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
  result.error = last_line(errors);
  return result;
}

}  // namespace peft_examples
