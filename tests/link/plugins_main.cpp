// plugins_main A.so B.so: a host that holds the library itself opens and closes shared objects that hold it too, again and
// again, and works with all of them from eight threads. Pools must stop before their code goes away.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "link/work.hpp"

namespace {

using Work = std::uint64_t (*)(std::uint64_t);

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

struct Plugin {
  void* handle;
  Work run;
  void (*fail)();

  Plugin(const char* path, int mode) : handle(dlopen(path, mode)) {
    if (handle == nullptr) stop(dlerror());
    run = reinterpret_cast<Work>(dlsym(handle, "plugin_work"));
    fail = reinterpret_cast<void (*)()>(dlsym(handle, "plugin_fail"));
    if (run == nullptr || fail == nullptr) stop("a plugin lacks its functions");
  }
};

void expect_same(std::uint64_t got, std::uint64_t expected, const char* where) {
  if (got != expected) stop(std::string(where) + " computes other bits than the host");
}

long threads_of_process() {
  long count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

void catch_error(const Plugin& plugin, const char* path) {
  try {
    plugin.fail();
  } catch (const peft::ShapeError& error) {
    if (std::string(error.what()).find("DenseLinear::forward") != std::string::npos) return;
  }
  stop(std::string(path) + ": the host did not catch the plugin's ShapeError");
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t expected = work(1);
  long most = 0;
  for (int round = 0; round < 12; ++round) {
    for (int i = 1; i < argc; ++i) {
      const Plugin plugin(argv[i], RTLD_NOW | (round % 2 == 0 ? RTLD_LOCAL : RTLD_GLOBAL));
      expect_same(plugin.run(1), expected, argv[i]);
      catch_error(plugin, argv[i]);
      if (round % 3 != 0) {  // used by a thread that ends before the object is closed
        std::thread([&] { expect_same(plugin.run(1), expected, argv[i]); }).join();
      }
      if (dlclose(plugin.handle) != 0) stop(dlerror());
    }
    if (round == 1) most = threads_of_process();
    if (round > 1 && threads_of_process() > most) stop("threads pile up: every opening leaves some behind");
  }
  std::vector<Plugin> open;
  for (int i = 1; i < argc; ++i) open.emplace_back(argv[i], RTLD_NOW | RTLD_LOCAL);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        const std::size_t which = static_cast<std::size_t>(t + i) % (open.size() + 1);
        expect_same(which < open.size() ? open[which].run(1) : work(1), expected, "one of eight threads");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Plugin& plugin : open) dlclose(plugin.handle);
  expect_same(work(1), expected, "the host, after all plugins are closed,");
  return 0;
}
