#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "peft/core/parallel.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

long sum_with(ExecutorRef executor, Index count) {
  std::atomic<long> total{0};
  parallel_for(executor, count, [&](Index i) { total.fetch_add(static_cast<long>(i) + 1); });
  return total.load();
}

}  // namespace

TEST_CASE("every index runs exactly once, for any width and count") {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    CHECK(pool.concurrency() == threads);
    for (Index count : {0, 1, 2, 5, 64, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      parallel_for(pool, count, [&](Index i) { ++seen[static_cast<std::size_t>(i)]; });
      for (auto& times : seen) REQUIRE(times.load() == 1);
    }
  }
}

TEST_CASE("many short loops in a row, with pauses that let the workers park") {
  ThreadPool pool(3);
  for (int i = 0; i < 3000; ++i) REQUIRE(sum_with(pool, 17) == 17 * 18 / 2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    REQUIRE(sum_with(pool, 17) == 17 * 18 / 2);
  }
}

TEST_CASE("a loop inside a loop runs serially and does not deadlock") {
  ThreadPool pool(3);
  std::atomic<long> total{0};
  parallel_for(pool, 8, [&](Index) { total.fetch_add(sum_with(pool, 10)); });
  CHECK(total.load() == 8 * 55);
}

TEST_CASE("eight host threads share one pool") {
  ThreadPool pool(3);
  std::vector<std::thread> hosts;
  std::atomic<int> wrong{0};
  for (int h = 0; h < 8; ++h) {
    hosts.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        if (sum_with(pool, 50) != 50 * 51 / 2) ++wrong;
      }
    });
  }
  for (auto& host : hosts) host.join();
  CHECK(wrong.load() == 0);
}

TEST_CASE("a forked child starts its own workers") {
  ThreadPool pool(3);
  REQUIRE(sum_with(pool, 100) == 5050);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(20);  // a hang would otherwise be the parent's
    _exit(sum_with(pool, 100) == 5050 ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(sum_with(pool, 100) == 5050);
}

TEST_CASE("the default executor is replaceable") {
  struct Counting {
    int loops = 0;
    void parallel_for(Index count, TaskFunction task, void* context) {
      ++loops;
      for (Index i = count; i-- > 0;) task(context, i);
    }
    int concurrency() const { return 1; }
  } counting;
  const ExecutorRef mine(counting);
  set_default_executor(&mine);
  CHECK(sum_with(default_executor(), 10) == 55);
  CHECK(counting.loops == 1);
  set_default_executor(nullptr);
  CHECK(sum_with(default_executor(), 10) == 55);
  CHECK(counting.loops == 1);
}

TEST_CASE("ranges cover the count and are cut by the grain alone") {
  ThreadPool pool(2);
  for (Index count : {0, 1, 9, 10, 11}) {
    std::vector<int> seen(static_cast<std::size_t>(count));
    parallel_for_ranges(pool, count, 5, [&](Index first, Index last) {
      CHECK(first % 5 == 0);
      CHECK(last - first <= 5);
      for (Index i = first; i < last; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    for (int times : seen) CHECK(times == 1);
  }
}
