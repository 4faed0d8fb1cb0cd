// Threads switch between adapters of different methods while others run forward. ThreadSanitizer's lane runs this.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/core/rng.hpp"
#include "peft/dense_linear.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

Matrix<float> numbers(Index rows, Index cols, std::uint64_t seed) {
  Matrix<float> result(rows, cols);
  Philox random(seed);
  for (float& value : result.flat()) value = 0.3f * random.normal();
  return result;
}

Matrix<float> run(const AdaptedLinear<float>& layer, const Matrix<float>& x, const Selection<float>& selection) {
  Matrix<float> y(x.rows(), layer.out_features());
  layer.forward(x.view(), y.view(), selection, ExecutorRef());
  return y;
}

}  // namespace

TEST_CASE("Threads may switch between methods while others run forward") {
  AdaptedLinear<float> layer("q_proj", DenseLinear<float>(numbers(18, 24, 1)));
  AdaptedLinear<float>* sites[] = {&layer};
  AdapterRegistry<float> registry;
  const ModuleSelector q = {"q_proj"};
  LoraConfig dora{.r = 4, .target_modules = q, .init_lora_weights = false};
  dora.use_dora = true;
  registry.add_adapter("lora", LoraConfig{.r = 4, .target_modules = q, .init_lora_weights = false}, sites, 1);
  registry.add_adapter("dora", dora, sites, 2);
  registry.add_adapter("ia3", Ia3Config{.target_modules = q, .init_ia3_weights = false}, sites, 3);
  registry.add_adapter("vera", VeraConfig{.r = 8, .target_modules = q, .init_weights = false}, sites, 4);
  registry.add_adapter("loha", LohaConfig{.r = 2, .target_modules = q, .init_weights = false}, sites, 5);
  registry.add_adapter("lokr", LokrConfig{.r = 2, .target_modules = q, .init_weights = false}, sites, 6);
  registry.add_adapter("full", FullConfig{}, sites, 7);
  const Matrix<float> x = numbers(5, 24, 8);
  const std::vector<std::string> names = registry.names();
  std::vector<Matrix<float>> want;
  for (const std::string& name : names) want.push_back(run(layer, x, registry.selection_of(name)));
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  registry.set_adapter(names[0]);
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        const Selection<float> selection = registry.selection();
        const std::string& name = selection.active().front().adapter->name();
        const auto at = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
        const Matrix<float> y = run(layer, x, selection);
        if (std::memcmp(y.data(), want[at].data(), static_cast<std::size_t>(y.size()) * sizeof(float)) != 0) ++wrong;
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    registry.set_adapter(names[static_cast<std::size_t>(i) % names.size()]);
    if (i % 50 == 0) {
      registry.add_adapter("passing", LoraConfig{.r = 2, .target_modules = q}, sites, 9);
      registry.delete_adapter("passing");
    }
    std::this_thread::yield();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  REQUIRE(wrong == 0);
}
