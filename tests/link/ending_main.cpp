// The library is used by destructors of static and thread-local objects, some made before its pool, some after: at the
// end of a thread, when main returns, or where a worker of the host calls exit (argument "exit").
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "link/work.hpp"

namespace {

std::uint64_t expected = 0;

/// Uses the library when it goes.
struct Late {
  const char* name;
  explicit Late(const char* n) : name(n) {}
  Late(const Late&) = delete;
  ~Late() {
    if (expected != 0 && work(2) != expected) {
      std::fprintf(stderr, "%s: other bits while the program ends\n", name);
      std::_Exit(3);
    }
    std::printf("%s ", name);
    std::fflush(stdout);
  }
};

Late before_pool("before-pool");  // made first, so destroyed after the pool and after the scratch memory of main's thread
thread_local Late of_thread_early("thread-local");

Late& after_pool() {
  static Late object("after-pool");
  return object;
}

}  // namespace

int main(int argc, char** argv) {
  (void)of_thread_early.name;  // before the library's own thread-local memory
  expected = work(2);
  (void)after_pool();
  std::thread([] {
    (void)of_thread_early.name;
    if (work(2) != expected) std::_Exit(4);
  }).join();
  if (argc > 1 && std::strcmp(argv[1], "exit") == 0) {
    std::thread([] { std::exit(0); }).join();
  }
  return 0;
}
