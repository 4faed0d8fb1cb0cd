#include "peft/io/mapped_file_guard.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "scratch.hpp"
#include "support/catch.hpp"

using io_test::ScratchFolder;
using io_test::write_file;
using namespace peft;

namespace {

struct Ending {
  int status = 0;
  std::string said;  // on standard error
};

/// How a child process that runs `body` ends. A sanitizer's own handler of SIGBUS does not count.
template <class Body>
Ending child(Body&& body) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t process = ::fork();
  REQUIRE(process >= 0);
  if (process == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::signal(SIGBUS, SIG_DFL);
    ::signal(SIGABRT, SIG_DFL);
    body();
    ::_exit(0);
  }
  ::close(ends[1]);
  Ending ending;
  char bytes[512];
  for (ssize_t count; (count = ::read(ends[0], bytes, sizeof bytes)) > 0;) {
    ending.said.append(bytes, static_cast<std::size_t>(count));
  }
  ::close(ends[0]);
  REQUIRE(::waitpid(process, &ending.status, 0) == process);
  return ending;
}

}  // namespace

TEST_CASE("mapped file guard: a file truncated while it is in use ends the program with a message") {
  const ScratchFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::filesystem::path path = folder / "weights.safetensors";
  const auto ending_among = [&](std::size_t files, bool guard_first, bool closed) {
    write_file(path, std::string(3 * page, 'x'));
    write_file(folder / "other", "y");
    return child([&] {
      if (guard_first) install_mapped_file_guard();
      std::vector<std::shared_ptr<const MappedFile>> others;
      for (std::size_t i = 0; i < files; ++i) others.push_back(MappedFile::open(folder / "other"));
      if (closed) others.clear();  // their places are free again
      const auto file = MappedFile::open(path);
      install_mapped_file_guard();  // once is enough, twice no harm
      std::filesystem::resize_file(path, page);
      const volatile std::byte* bytes = file->bytes().data();
      if (bytes[page - 1] != std::byte{'x'}) ::_exit(1);
      (void)bytes[2 * page + 5];
    });
  };
  for (const auto& [others, guard_first, closed] :
       {std::tuple(0u, true, false), std::tuple(1u, false, true), std::tuple(1000u, true, true), std::tuple(63u, true, false),
        std::tuple(64u, true, false), std::tuple(1000u, false, false)}) {
    const Ending ending = ending_among(others, guard_first, closed);
    INFO(others << " other files: " << ending.said);
    REQUIRE(WIFEXITED(ending.status));
    CHECK(WEXITSTATUS(ending.status) == 74);
    CHECK(ending.said.find("reading " + path.string() + ": byte " + std::to_string(2 * page + 5) + " of " +
                           std::to_string(3 * page) + " is no longer there") != std::string::npos);
    CHECK(ending.said.back() == '\n');
  }
}

TEST_CASE("mapped file guard: a file that another process truncates, read by another thread") {
  const ScratchFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::filesystem::path path = folder / std::string(200, 'n');
  write_file(path, std::string(2 * page, 'x'));
  int truncated[2];
  REQUIRE(::pipe(truncated) == 0);
  const pid_t other = ::fork();
  REQUIRE(other >= 0);
  if (other == 0) {  // waits until it is told that the file is open
    char byte = 0;
    ::_exit(::read(truncated[0], &byte, 1) == 1 && ::truncate(path.c_str(), 0) == 0 ? 0 : 1);
  }
  const Ending ending = child([&] {
    install_mapped_file_guard(7);
    const auto file = MappedFile::open(path);
    if (::write(truncated[1], "x", 1) != 1) ::_exit(1);
    std::thread reader([&] {
      const volatile std::byte* bytes = file->bytes().data();
      while (true) (void)bytes[page];
    });
    reader.join();
  });
  int status = 0;
  REQUIRE(::waitpid(other, &status, 0) == other);
  CHECK(status == 0);
  ::close(truncated[0]);
  ::close(truncated[1]);
  INFO(ending.said);
  REQUIRE(WIFEXITED(ending.status));
  CHECK(WEXITSTATUS(ending.status) == 7);
  CHECK(ending.said.find("reading " + path.string() + ": byte " + std::to_string(page) + " of ") != std::string::npos);
}

TEST_CASE("mapped file guard: a file that is closed is no longer known, nor is memory that another mapped") {
  const ScratchFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  write_file(folder / "ours", std::string(2 * page, 'x'));
  write_file(folder / "foreign", std::string(2 * page, 'x'));
  const Ending ending = child([&] {
    install_mapped_file_guard();
    const auto neighbour = MappedFile::open(folder / "ours");
    auto file = MappedFile::open(folder / "ours");
    void* place = const_cast<std::byte*>(file->bytes().data());
    file.reset();
    const int foreign = ::open((folder / "foreign").c_str(), O_RDONLY);
    if (::mmap(place, 2 * page, PROT_READ, MAP_PRIVATE | MAP_FIXED, foreign, 0) != place) ::_exit(1);
    std::filesystem::resize_file(folder / "foreign", 0);
    (void)*static_cast<const volatile char*>(place);
  });
  INFO(ending.said);
  REQUIRE(WIFSIGNALED(ending.status));
  CHECK(WTERMSIG(ending.status) == SIGBUS);
  CHECK(ending.said.empty());
}

TEST_CASE("mapped file guard: a SIGBUS of another cause is left to whoever had it before") {
  const Ending by_default = child([] {
    install_mapped_file_guard(3);
    ::raise(SIGBUS);
  });
  REQUIRE(WIFSIGNALED(by_default.status));
  CHECK(WTERMSIG(by_default.status) == SIGBUS);
  CHECK(by_default.said.empty());
  const Ending handled = child([] {
    ::signal(SIGBUS, [](int) { ::_exit(42); });
    install_mapped_file_guard(3);
    ::raise(SIGBUS);
  });
  REQUIRE(WIFEXITED(handled.status));
  CHECK(WEXITSTATUS(handled.status) == 42);
  const Ending told = child([] {
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = [](int number, siginfo_t* info, void* context) {
      ::_exit(number == SIGBUS && info->si_pid == ::getpid() && context != nullptr ? 43 : 1);
    };
    ::sigaction(SIGBUS, &action, nullptr);
    install_mapped_file_guard(3);
    ::raise(SIGBUS);
  });
  REQUIRE(WIFEXITED(told.status));
  CHECK(WEXITSTATUS(told.status) == 43);
  const Ending ignored = child([] {
    ::signal(SIGBUS, SIG_IGN);
    install_mapped_file_guard(3);
    ::raise(SIGBUS);
    ::_exit(44);
  });
  REQUIRE(WIFEXITED(ignored.status));
  CHECK(WEXITSTATUS(ignored.status) == 44);
}
