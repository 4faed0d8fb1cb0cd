#include "peft/io/mapped_file_guard.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
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
  const auto ending_after = [&](std::size_t files_before) {
    write_file(path, std::string(3 * page, 'x'));
    write_file(folder / "other", "y");
    return child([&] {
      install_mapped_file_guard();
      install_mapped_file_guard();  // once is enough
      std::vector<std::shared_ptr<const MappedFile>> others;
      for (std::size_t i = 0; i < files_before; ++i) others.push_back(MappedFile::open(folder / "other"));
      others.clear();  // their places are free again
      const auto file = MappedFile::open(path);
      std::filesystem::resize_file(path, page);
      const volatile std::byte* bytes = file->bytes().data();
      if (bytes[page - 1] != std::byte{'x'}) ::_exit(1);
      (void)bytes[2 * page + 5];
    });
  };
  for (const std::size_t before : {0u, 1u, 1000u}) {
    const Ending ending = ending_after(before);
    INFO(ending.said);
    REQUIRE(WIFEXITED(ending.status));
    CHECK(WEXITSTATUS(ending.status) == 74);
    CHECK(ending.said.find("reading " + path.string() + ": byte " + std::to_string(2 * page + 5) + " of " +
                           std::to_string(3 * page) + " is no longer there") != std::string::npos);
    CHECK(ending.said.back() == '\n');
  }
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
}
