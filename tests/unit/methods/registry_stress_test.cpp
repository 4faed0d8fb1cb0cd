// Threads that switch, add, delete and disable adapters while others compute: every result is that of the snapshot it was
// computed with. Small enough to run under ThreadSanitizer.

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/core/parallel.hpp"
#include "peft/dense_linear.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

constexpr Index kWidth = 96, kRows = 24;

Matrix<float> random_matrix(Index rows, Index cols, std::uint64_t stream) {
  Matrix<float> matrix(rows, cols);
  Philox random(17, stream);
  for (float& value : matrix.flat()) value = random.uniform(-0.5f, 0.5f);
  return matrix;
}

/// Two linears in a row, and the adapters "a", "b" and "c" on both.
struct Model {
  std::vector<AdaptedLinear<float>> layers;
  AdapterRegistry<float> registry;
  Matrix<float> x = random_matrix(kRows, kWidth, 100);

  Model() {
    layers.reserve(2);
    for (const char* name : {"layers.0.q_proj", "layers.1.q_proj"}) {
      layers.emplace_back(name, DenseLinear<float>(random_matrix(kWidth, kWidth, layers.size())));
    }
    for (const char* name : {"a", "b", "c"}) add(name, static_cast<std::uint64_t>(*name));
    registry.set_adapter("a");
  }
  void add(const std::string& name, std::uint64_t seed) {
    AdaptedLinear<float>* sites[] = {&layers[0], &layers[1]};
    registry.add_adapter(name, {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}, .init_lora_weights = false},
                         std::span<AdaptedLinear<float>* const>(sites), seed);
  }
  Matrix<float> forward(const Selection<float>& selection, ExecutorRef executor) const {
    Matrix<float> hidden(kRows, kWidth), y(kRows, kWidth);
    layers[0].forward(x.view(), hidden.view(), selection, executor);
    layers[1].forward(std::as_const(hidden).view(), y.view(), selection, executor);
    return y;
  }
  /// The same by way of the calling thread's scope and the default executor.
  Matrix<float> forward_in_scope(const Selection<float>& selection) const {
    const SelectionScope<float> scope(selection);
    Matrix<float> hidden(kRows, kWidth), y(kRows, kWidth);
    layers[0].forward(x.view(), hidden.view());
    layers[1].forward(std::as_const(hidden).view(), y.view());
    return y;
  }
};

std::string names_of(const Selection<float>& selection) {
  std::string names;
  for (const auto& entry : selection.active()) names += entry.adapter->name() + "*" + std::to_string(entry.weight) + " ";
  return names;
}

bool same(const Matrix<float>& one, const Matrix<float>& other) {
  return std::equal(one.flat().begin(), one.flat().end(), other.flat().begin(), other.flat().end());
}

}  // namespace

TEST_CASE("Selections under stress: what is computed is what was selected when it began") {
  Model model;
  const std::vector<std::vector<std::pair<std::string, double>>> choices{
      {}, {{"a", 1.0}}, {{"b", 1.0}}, {{"c", 0.5}}, {{"a", 1.0}, {"b", -0.25}}, {{"c", 1.0}, {"a", 2.0}}};
  std::vector<std::pair<std::string, Matrix<float>>> expected;
  for (const auto& choice : choices) {
    const Selection<float> selection = model.registry.selection_of(choice);
    expected.emplace_back(names_of(selection), model.forward(selection, {}));
    for (std::size_t i = 0; i + 1 < expected.size(); ++i) REQUIRE_FALSE(same(expected[i].second, expected.back().second));
  }
  const auto right = [&](const Selection<float>& selection, const Matrix<float>& y) {
    const std::string names = names_of(selection);
    for (const auto& [known, result] : expected) {
      if (known == names) return same(result, y);
    }
    return false;
  };

  ThreadPool pool(3);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, forwards{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t) {
    readers.emplace_back([&, t] {
      while (!stop) {
        const Selection<float> selection = model.registry.selection();
        const Matrix<float> y = t == 0   ? model.forward_in_scope(selection)
                                : t == 1 ? model.forward(selection, {})
                                         : model.forward(selection, pool);
        if (!right(selection, y)) ++wrong;
        ++forwards;
      }
    });
  }
  constexpr int kSwitches = 300;
  std::vector<std::thread> writers;
  for (int t = 0; t < 2; ++t) {
    writers.emplace_back([&, t] {
      for (int i = 0; i < kSwitches; ++i) {
        const auto& choice = choices[static_cast<std::size_t>(i * (t + 1)) % choices.size()];
        if (i % 3 == 0) {
          model.registry.select(model.registry.selection_of(choice));
        } else {
          model.registry.set_adapters(choice);
        }
        std::this_thread::yield();
      }
    });
  }
  writers.emplace_back([&] {
    for (int i = 0; i < kSwitches; ++i) {
      const std::string name = "passing-" + std::to_string(i);
      model.add(name, 9);
      if (model.registry.names().size() < 4) ++wrong;
      model.registry.delete_adapter(name);
      (void)model.registry.active_adapters();
      const auto disabled = model.registry.disable_adapter();
      std::this_thread::yield();
    }
  });
  for (std::thread& writer : writers) writer.join();
  for (int settled = forwards + 20; forwards < settled;) std::this_thread::yield();
  stop = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(wrong == 0);
  CHECK(model.registry.names() == std::vector<std::string>{"a", "b", "c"});
}

TEST_CASE("Selections under stress: an adapter that is deleted and dropped while it is used lives until the last use") {
  Model model;
  std::atomic<int> wrong{0};
  for (int round = 0; round < 20; ++round) {
    model.add("short-lived", 5);
    Selection<float> selection = model.registry.selection_of("short-lived");
    const Matrix<float> expected = model.forward(selection, {});
    std::vector<std::thread> users;
    for (int t = 0; t < 3; ++t) {
      users.emplace_back([&, mine = selection]() mutable {
        if (!same(expected, model.forward(mine, default_executor()))) ++wrong;
        mine = {};  // the last one destroys the adapter
      });
    }
    model.registry.delete_adapter("short-lived");
    selection = {};
    for (std::thread& user : users) user.join();
  }
  CHECK(wrong == 0);
}
