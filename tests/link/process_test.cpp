// The pool in a process that forks, that is called from many threads, and that ends.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "link/work.hpp"
#include "support/catch.hpp"

namespace {

/// How a child that runs `body` ends: its exit status, or -1 where a signal or the time limit ended it.
template <class Body>
int child(Body&& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(60);
    body();
    std::_Exit(99);  // body decides how to leave
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("Eight threads of a host call at once and get the same bits") {
  const std::uint64_t expected = work(4);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) wrong += work(4) == expected ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("A forked child starts workers of its own; parent and child leave in every way") {
  const std::uint64_t expected = work(5);
  CHECK(child([&] { std::_Exit(work(5) == expected ? 0 : 1); }) == 0);
  CHECK(child([&] { std::exit(work(5) == expected ? 0 : 1); }) == 0);  // static objects are destroyed
  CHECK(child([] { std::exit(0); }) == 0);                            // the parent's workers are not waited for
  // A child's child.
  CHECK(child([&] {
          const bool mine = work(5) == expected;
          std::exit(mine && child([&] { std::exit(work(5) == expected ? 0 : 1); }) == 0 ? 0 : 1);
        }) == 0);
  CHECK(work(5) == expected);
}

TEST_CASE("A fork amid the loops of other threads leaves a child that computes") {
  const std::uint64_t expected = work(6);
  std::atomic<bool> done{false};
  std::vector<std::thread> busy;
  for (int t = 0; t < 3; ++t) {
    busy.emplace_back([&] {
      while (!done) work(6);
    });
  }
  // The child has one thread; a loop that another was in never ends there, and its lock stays taken.
  for (int i = 0; i < 20; ++i) CHECK(child([&] { std::_Exit(work(6) == expected ? 0 : 1); }) == 0);
  done = true;
  for (std::thread& thread : busy) thread.join();
  CHECK(work(6) == expected);
}
