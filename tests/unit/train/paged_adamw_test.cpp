// Moments in a file: the numbers of those in memory, within a budget, under a limit on memory that ends the others.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/train/paged_adamw.hpp"
#include "support/catch.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::FaultyCalls;
using io_test::ScratchFolder;

namespace {

/// Vectors of random numbers.
struct Vectors {
  std::vector<std::vector<float>> value, grad;
  bool reversed = false;

  explicit Vectors(const std::vector<Index>& sizes) {
    Philox random(7);
    for (const Index size : sizes) {
      auto& numbers = value.emplace_back();
      for (Index i = 0; i < size; ++i) numbers.push_back(random.uniform(-1.0f, 1.0f));
      grad.push_back(numbers);
    }
  }
  void next() {
    for (auto& one : grad) {
      for (float& g : one) g = 0.7f * g + 0.01f;
    }
  }
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (std::size_t k = 0; k < value.size(); ++k) {
      const std::size_t i = reversed ? value.size() - 1 - k : k;
      const auto n = static_cast<Index>(value[i].size());
      visit(ParameterInfo{std::to_string(i), ParameterRole::kOther, true, 1, n}, VectorView<float>(value[i].data(), n),
            VectorView<float>(grad[i].data(), n));
    }
  }
};

template <class Optimizer>
void train(Optimizer& optimizer, Vectors& model, int steps, ExecutorRef executor = {}) {
  for (int i = 0; i < steps; ++i) {
    optimizer.step(model, 1e-2, 0.5, executor);
    model.next();
  }
}

/// The least budget, as the error names it.
Index least_budget(const AdamWConfig& config, const ScratchFolder& folder, const std::vector<Index>& sizes) {
  AdamWConfig small = config;
  small.paged = {folder.path(), 1000};
  AdamW<float> optimizer(small);
  Vectors model(sizes);
  const Vectors before = model;
  const std::string message = io_test::message_of<ConfigError>([&] { optimizer.step(model, 1e-2); });
  const std::string words = "the least that works is ";
  REQUIRE(message.find(words) != std::string::npos);
  CHECK(model.value == before.value);
  return std::stoll(message.substr(message.find(words) + words.size()));
}

const std::vector<Index> kSizes{5, 70001, 4095, 4096, 16384, 300000, 50000, 1};

/// A number of /proc/self/status, in bytes.
Index status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return -1;
}

enum Outcome : int { kSame = 0, kNoMemory = 3, kOverBudget = 4, kOther = 5 };

/// In a process of its own: two steps over `sizes` where no more than `more` bytes of data can be added after the model, and
/// with a budget, where there is one, that the peak of memory has to keep; `sum` of the parameters afterwards.
[[maybe_unused]] Outcome run_limited(const std::vector<Index>& sizes, const AdamWConfig& config, Index more, double& sum) {
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    int outcome = kOther;
    double own = 0.0;
    try {
      Vectors model(sizes);
      AdamW<float> optimizer(config), first(config);
      Vectors few({5000});
      train(first, few, 1);  // code and tables come into memory
      const Index resident = status("VmRSS"), data = status("VmData");
      const auto limit = static_cast<rlim_t>(data + more);
      const rlimit limits{limit, limit};
      if (::setrlimit(RLIMIT_DATA, &limits) != 0) ::_exit(kOther);
      std::ofstream("/proc/self/clear_refs") << "5";  // the peak from now on
      train(optimizer, model, 2);
      outcome = kSame;
      // Beside the budget: the stack, libraries' pages, file names.
      const Index budget = config.paged ? config.paged->budget : 0;
      if (config.paged && status("VmHWM") > resident + budget + (Index{1} << 20)) outcome = kOverBudget;
      for (const auto& one : model.value) {
        for (const float x : one) own += static_cast<double>(x);
      }
    } catch (const std::bad_alloc&) {
      outcome = kNoMemory;
    } catch (...) {
    }
    static_cast<void>(::write(pipe[1], &own, sizeof(own)));
    ::_exit(outcome);
  }
  ::close(pipe[1]);
  CHECK(::read(pipe[0], &sum, sizeof(sum)) == sizeof(sum));
  ::close(pipe[0]);
  int ended = 0;
  REQUIRE(::waitpid(child, &ended, 0) == child);
  REQUIRE(WIFEXITED(ended));
  return static_cast<Outcome>(WEXITSTATUS(ended));
}

}  // namespace

TEST_CASE("paged AdamW gives the numbers of the one in memory, bit for bit, in 32 and 8 bits, whatever the budget") {
  const ScratchFolder folder;
  ThreadPool pool(3);
  for (const int bits : {32, 8}) {
    const AdamWConfig config{.weight_decay = 0.1, .optim_bits = bits};
    Vectors want(kSizes);
    AdamW<float> in_memory(config);
    train(in_memory, want, 3);
    const Index least = least_budget(config, folder, kSizes);
    for (const Index budget : {least, least + 1000000, Index{1} << 30}) {
      CAPTURE(bits, budget);
      AdamWConfig paged = config;
      paged.paged = {folder.path(), budget};
      Vectors model(kSizes);
      AdamW<float> optimizer(paged);
      train(optimizer, model, 1);
      model.reversed = true;  // parameters may come in another order
      train(optimizer, model, 1, pool);
      // Saved and restored, to go on elsewhere.
      AdamW<float> other(paged);
      other.restore(optimizer.moments(), optimizer.steps());
      train(other, model, 1);
      REQUIRE(model.value == want.value);
    }
    CHECK(io_test::names_in(folder.path()).empty());
  }
}

TEST_CASE("PagedAdamW and PagedAdamW8bit are AdamW and AdamW8bit") {
  const ScratchFolder folder;
  const auto trained = [](auto optimizer) {
    Vectors model({5000, 300});
    train(optimizer, model, 2);
    return std::pair(model.value, optimizer.moments()[0].is_8bit());
  };
  const auto plain = trained(AdamW<float>()), eight = trained(AdamW8bit<>());
  CHECK(trained(PagedAdamW<>({folder.path()})) == plain);
  CHECK(trained(PagedAdamW8bit<>({folder.path()})) == eight);
  CHECK_FALSE(plain.second);
  CHECK(eight.second);
  CHECK(plain.first[0] != eight.first[0]);
  CHECK(plain.first[1] == eight.first[1]);
}

TEST_CASE("paged AdamW trains under a limit on memory where the one in memory ends, and keeps its budget") {
#if defined(PEFT_SANITIZED)
  WARN("skipped: a sanitizer's own memory is not the program's");
#else
  if (status("VmHWM") < 0) {
    WARN("skipped: the system does not tell how much memory a process has");
    return;
  }
  const ScratchFolder folder;
  const std::vector<Index> sizes{700000, 1500000, 100, 400000, 1400000};  // 4 M: 32 MB of moments, or 8.1
  for (const int bits : {32, 8}) {
    CAPTURE(bits);
    const AdamWConfig config{.optim_bits = bits};
    AdamWConfig paged = config;
    paged.paged = {folder.path(), Index{3} << 20};
    double unlimited = 0.0, limited = 1.0;
    REQUIRE(run_limited(sizes, config, Index{1} << 30, unlimited) == kSame);
    CHECK(run_limited(sizes, config, Index{2} << 20, limited) == kNoMemory);
    REQUIRE(run_limited(sizes, paged, Index{2} << 20, limited) == kSame);
    CHECK(limited == unlimited);
  }
#endif
}

TEST_CASE("a disk that is full is an error before anything changes; a file system without nameless files has named ones") {
  const ScratchFolder folder;
  Vectors model(kSizes);
  const Vectors before = model;
  {
    PagedAdamW<> optimizer({folder.path()});
    const FaultyCalls calls([](int, const std::string& call) { return call == "allocate" ? ENOSPC : 0; });
    CHECK_THROWS_WITH(optimizer.step(model, 1e-2), Catch::Contains("No space left") && Catch::Contains(folder.path().string()));
    CHECK(model.value == before.value);
  }
  {
    PagedAdamW<> optimizer({folder / "none"});
    CHECK_THROWS_WITH(optimizer.step(model, 1e-2), Catch::Contains("none") && Catch::Contains("No such file"));
  }
  const FaultyCalls calls([](int number, const std::string& call) { return number == 0 && call == "open" ? EOPNOTSUPP : 0; });
  PagedAdamW<> optimizer({folder.path()});
  optimizer.step(model, 1e-2);
  CHECK(calls.count() == 4);
  CHECK(io_test::names_in(folder.path()).empty());
  CHECK(model.value != before.value);
}

TEST_CASE("8 bits are for float, and settings are refused by name") {
  CHECK_THROWS_WITH(AdamW8bit<double>(), Catch::Contains("double"));
  CHECK_THROWS_WITH(AdamW<float>({.optim_bits = 16}), Catch::Contains("optim_bits is 16"));
  CHECK_THROWS_WITH(AdamW<float>({.min_8bit_size = -1}), Catch::Contains("min_8bit_size"));
  AdamW<float> optimizer;
  Vectors model({5000});
  AdamW8bit<> other;
  train(other, model, 1);
  CHECK_THROWS_WITH(optimizer.restore(other.moments(), 1), Catch::Contains("parameter 0 are in 8 bits; expected 32"));
}
