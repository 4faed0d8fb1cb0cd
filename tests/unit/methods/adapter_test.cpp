// Lora's start and errors, adapters by name, selections, switching, merging.
#include <atomic>
#include <cstring>
#include <thread>

#include "peft/adapter_registry.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/dense_linear.hpp"
#include "peft/merge.hpp"
#include "support/catch.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;

namespace {

constexpr Index kIn = 24, kOut = 18, kRows = 6;

/// Three layers of a made-up model.
template <class T>
struct Model {
  std::vector<AdaptedLinear<T>> layers;
  std::vector<AdaptedLinear<T>*> sites;
  AdapterRegistry<T> registry;
  Model() {
    for (const char* name : {"model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"}) {
      layers.emplace_back(name, DenseLinear<float>(random_matrix<float>(kOut, kIn, 100 + layers.size(), 0.2f)));
    }
  }
  std::span<AdaptedLinear<T>* const> all() {
    sites.clear();
    for (auto& layer : layers) sites.push_back(&layer);
    return sites;
  }
};

LoraConfig config_of(std::vector<std::string> targets, Index r = 4) {
  return {.r = r, .lora_alpha = 8, .target_modules = std::move(targets), .init_lora_weights = false};
}

template <class T>
Matrix<T> run(const AdaptedLinear<T>& layer, const Matrix<T>& x, const Selection<T>& selection) {
  Matrix<T> y(x.rows(), layer.out_features());
  layer.forward(x.view(), y.view(), selection, ExecutorRef());
  return y;
}

template <class T>
bool same_bits(const Matrix<T>& x, const Matrix<T>& y) {
  return x.rows() == y.rows() && x.cols() == y.cols() &&
         std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(T)) == 0;
}

template <class T>
double largest_difference(const Matrix<T>& x, const Matrix<T>& y) {
  double result = 0;
  for (Index i = 0; i < x.size(); ++i) {
    result = std::max(result, std::abs(static_cast<double>(x.data()[i]) - static_cast<double>(y.data()[i])));
  }
  return result;
}

}  // namespace

TEST_CASE("Lora starts as init_lora_weights says, by seed and stream") {
  const auto statistics = [](const Matrix<float>& matrix) {
    double sum = 0, squares = 0, largest = 0;
    for (const float value : matrix.flat()) {
      sum += static_cast<double>(value);
      squares += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    }
    const auto n = static_cast<double>(matrix.size());
    return std::array{sum / n, std::sqrt(squares / n), largest};
  };
  Lora<> kaiming(400, 300, LoraConfig{.r = 16, .lora_alpha = 32}, 7);
  REQUIRE(kaiming.scaling() == 2.0);
  // Uniform in ±1/√400: deviation 0.05/√3, with 6400 numbers known to about 1 % (3 standard errors: 3·0.36 %).
  auto [mean, deviation, largest] = statistics(kaiming.a());
  REQUIRE(std::abs(mean) < 4 * 0.05 / std::sqrt(3.0) / 80.0);
  REQUIRE(deviation == Approx(0.05 / std::sqrt(3.0)).epsilon(0.02));
  REQUIRE(largest <= 0.05 * (1 + 1e-6));
  REQUIRE(statistics(kaiming.b())[2] == 0.0);

  const Lora<> gaussian(400, 300, LoraConfig{.r = 16, .init_lora_weights = "gaussian"}, 7);
  REQUIRE(statistics(gaussian.a())[1] == Approx(1.0 / 16.0).epsilon(0.03));
  REQUIRE(statistics(gaussian.b())[2] == 0.0);

  const Lora<> random(400, 300, LoraConfig{.r = 16, .init_lora_weights = false}, 7);
  REQUIRE(statistics(random.b())[2] <= 0.25 * (1 + 1e-6));
  REQUIRE(statistics(random.b())[1] == Approx(0.25 / std::sqrt(3.0)).epsilon(0.02));

  const Lora<> again(400, 300, LoraConfig{.r = 16}, 7), other(400, 300, LoraConfig{.r = 16}, 8);
  REQUIRE(same_bits(kaiming.a(), again.a()));
  REQUIRE_FALSE(same_bits(kaiming.a(), other.a()));
  kaiming.reset(LoraConfig{.r = 16}, 7, 1);
  REQUIRE_FALSE(same_bits(kaiming.a(), again.a()));
}

TEST_CASE("Lora refuses what cannot be, with the numbers") {
  REQUIRE_THROWS_WITH(Lora<>(4, 4, 0, 1.0), "Lora: in_features 4, out_features 4, r 0; expected each at least 1");
  REQUIRE_THROWS_WITH(Lora<>(4, 4, 1, 1.0, 1.0f), Catch::Contains("dropout is 1"));
  REQUIRE_THROWS_AS(Lora<>(4, 4, 1, std::numeric_limits<double>::infinity()), ConfigError);
  REQUIRE_THROWS_WITH(Lora<>(4, 4, LoraConfig{.init_lora_weights = "olora"}), Catch::Contains("olora"));
  const DenseLinear<float> base(Matrix<float>(5, 4));
  Lora<> lora(4, 6, 2, 1.0);
  Matrix<float> x(2, 4), y(2, 6);
  REQUIRE_THROWS_WITH(lora.forward(base, x.view(), y.view()),
                      "Lora::forward: the base layer is [5, 4]; expected [6, 4] (out, in) as the update");
}

TEST_CASE("A parameter's name is PEFT's key") {
  Model<float> model;
  model.registry.add_adapter("default", config_of({"q_proj"}, 2), model.all(), 1);
  std::vector<std::string> names;
  Index count = 0;
  model.registry.for_each_parameter(
      "default", [&](const ParameterInfo& info, VectorView<float> value, VectorView<float> grad) {
        names.emplace_back(info.name);
        REQUIRE(value.size == info.rows * info.cols);
        REQUIRE(grad.size == value.size);
        REQUIRE(info.decay);
        REQUIRE(info.role ==
                (info.name.find("lora_A") != std::string_view::npos ? ParameterRole::kLoraA : ParameterRole::kLoraB));
        count += value.size;
      });
  REQUIRE(names ==
          std::vector<std::string>{"model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_B.weight",
                                   "model.layers.1.q_proj.lora_A.weight", "model.layers.1.q_proj.lora_B.weight"});
  REQUIRE(model.registry.adapter("default")->parameter_count() == count);
}

TEST_CASE("The selection decides which adapters act, with which weight") {
  Model<float> model;
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 1);
  model.registry.add_adapter("a", config_of({"q_proj", "v_proj"}, 4), model.all(), 1);
  model.registry.add_adapter("b", config_of({"q_proj"}, 7), model.all(), 2);
  auto& q = model.layers[0];
  auto& v = model.layers[1];
  const Matrix<float> base = run(q, x, {});

  REQUIRE(model.registry.active_adapters().empty());
  REQUIRE(same_bits(run(q, x, model.registry.selection()), base));
  model.registry.set_adapter("a");
  const Matrix<float> with_a = run(q, x, model.registry.selection());
  REQUIRE(largest_difference(with_a, base) > 0.01);
  model.registry.set_adapter("b");
  const Matrix<float> with_b = run(q, x, model.registry.selection());
  REQUIRE(same_bits(run(v, x, model.registry.selection()), run(v, x, {})));  // b does not adapt v_proj

  model.registry.set_adapters({{"a", 0.25}, {"b", -2.0}});
  REQUIRE(model.registry.active_adapters() == std::vector<std::string>{"a", "b"});
  const Matrix<float> mixed = run(q, x, model.registry.selection());
  for (Index i = 0; i < mixed.size(); ++i) {
    const float want =
        base.data()[i] + 0.25f * (with_a.data()[i] - base.data()[i]) - 2.0f * (with_b.data()[i] - base.data()[i]);
    REQUIRE(mixed.data()[i] == Approx(want).margin(1e-4));
  }

  // The two-argument forward takes the thread's scope; scopes nest; other threads have their own.
  Matrix<float> y(kRows, kOut);
  {
    const SelectionScope<float> outer(model.registry.selection_of("a"));
    {
      const SelectionScope<float> inner{Selection<float>()};
      q.forward(x.view(), y.view());
      REQUIRE(largest_difference(y, base) == 0.0);
    }
    std::thread([&] {
      Matrix<float> elsewhere(kRows, kOut);
      q.forward(x.view(), elsewhere.view());
      if (!same_bits(elsewhere, base)) std::abort();
    }).join();
    q.forward(x.view(), y.view());
    REQUIRE(largest_difference(y, with_a) < 1e-5);
  }
  {
    const auto off = model.registry.disable_adapter();
    REQUIRE(model.registry.active_adapters().empty());
  }
  REQUIRE(model.registry.active_adapters().size() == 2);
}

TEST_CASE("Deleting an adapter leaves the others active and snapshots valid") {
  Model<float> model;
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 1);
  model.registry.add_adapter("a", config_of({"q_proj"}), model.all(), 1);
  model.registry.add_adapter("b", config_of({"q_proj"}), model.all(), 2);
  model.registry.set_adapters({{"a", 1.0}, {"b", 1.0}});
  const Selection<float> before = model.registry.selection();
  const Matrix<float> with_both = run(model.layers[0], x, before);
  const std::weak_ptr<NamedAdapter<float>> watch = model.registry.adapter("a");
  model.registry.delete_adapter("a");
  REQUIRE(model.registry.active_adapters() == std::vector<std::string>{"b"});
  REQUIRE(model.registry.names() == std::vector<std::string>{"b"});
  REQUIRE(same_bits(run(model.layers[0], x, before), with_both));
  REQUIRE_FALSE(watch.expired());

  REQUIRE_THROWS_WITH(model.registry.set_adapter("a"), "AdapterRegistry: no adapter is named \"a\"; there are: b");
  REQUIRE_THROWS_WITH(model.registry.add_adapter("b", config_of({"q_proj"}), model.all(), 2),
                      Catch::Contains("already"));
  REQUIRE_THROWS_WITH(model.registry.set_adapters({{"b", 1.0}, {"b", 2.0}}), Catch::Contains("twice"));
  REQUIRE_THROWS_WITH(model.registry.set_adapters({{"b", std::nan("")}}),
                      Catch::Contains("weight of adapter \"b\" is nan"));
  REQUIRE_THROWS_WITH(
      model.registry.add_adapter("c", config_of({"query"}), model.all(), 2),
      Catch::Contains("[\"query\"] matches none of 3 linear layers; their names end in: q_proj, v_proj"));
  REQUIRE_THROWS_WITH(AdapterRegistry<float>().set_adapter("x"), Catch::Contains("there are none"));
}

TEST_CASE("Modules start alike whatever else is adapted, and one name is one module") {
  Model<float> model;
  const auto wide = make_adapter<float>("wide", config_of({"q_proj", "v_proj"}), model.all(), 5);
  const auto narrow = make_adapter<float>("narrow", config_of({"model.layers.1.q_proj"}), model.all(), 5);
  const ModuleId module("model.layers.1.q_proj");
  REQUIRE(same_bits(wide->find(module)->a(), narrow->find(module)->a()));
  REQUIRE(narrow->find(ModuleId("model.layers.0.q_proj")) == nullptr);
  REQUIRE(wide->module_count() == 3);
  REQUIRE_THROWS_WITH(narrow->add(module, Lora<float>(2, 2, 1, 1.0)), Catch::Contains("adapted twice"));
}

TEST_CASE("Threads may switch and read at once") {
  Model<float> model;
  const Matrix<float> x = random_matrix<float>(2, kIn, 1);
  model.registry.add_adapter("a", config_of({"q_proj"}), model.all(), 1);
  model.registry.add_adapter("b", config_of({"q_proj"}), model.all(), 2);
  const Matrix<float> with_a = run(model.layers[0], x, model.registry.selection_of("a"));
  const Matrix<float> with_b = run(model.layers[0], x, model.registry.selection_of("b"));
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  model.registry.set_adapter("a");
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        const Selection<float> selection = model.registry.selection();
        const Matrix<float> y = run(model.layers[0], x, selection);
        const bool is_a = selection.active().front().adapter->name() == "a";
        if (!same_bits(y, is_a ? with_a : with_b)) ++wrong;
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    model.registry.set_adapter(i % 2 == 0 ? "b" : "a");
    if (i % 20 == 0) {
      model.registry.add_adapter("c", config_of({"v_proj"}), model.all(), 3);
      model.registry.delete_adapter("c");
    }
    std::this_thread::yield();
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  REQUIRE(wrong == 0);
}

TEST_CASE("A base that can only run forward is trained where its input needs no gradient, else refused by name") {
  AdaptedLinear<float> layer("model.q_proj", foreign::ForwardOnly<float>(kIn, kOut, 1));
  AdaptedLinear<float>* sites[] = {&layer};
  AdapterRegistry<float> registry;
  registry.add_adapter("default", config_of({"q_proj"}), sites, 1);
  const TrainContext<float> context{registry.selection_of("default")};
  const Matrix<float> x = random_matrix<float>(2, kIn, 2), dy = random_matrix<float>(2, kOut, 3);
  Matrix<float> y(2, kOut), dx(2, kIn);
  AdaptedLinear<float>::Saved saved;
  layer.forward(x.view(), y.view(), saved, context, ExecutorRef());
  layer.backward(dy.view(), x.view(), saved, MatrixView<float>(), Accumulate::kOverwrite, context, ExecutorRef());
  Lora<float>& lora = *registry.adapter("default")->find(layer.module());
  const Matrix<float> da = lora.grad_a().clone();
  lora.zero_grad();
  lora.backward(dy.view(), x.view(), saved.adapters[0]);
  REQUIRE(same_bits(lora.grad_a(), da));
  REQUIRE(largest_difference(da, Matrix<float>::zeros(da.rows(), da.cols())) > 0.0);
  REQUIRE_THROWS_WITH(
      layer.backward(dy.view(), x.view(), saved, dx.view(), Accumulate::kOverwrite, context, ExecutorRef()),
      Catch::Contains("model.q_proj: its base layer can only run forward") && Catch::Contains("peft::PanelSource") &&
          Catch::Contains("peft::BackwardLinear"));
  saved.adapters.clear();
  REQUIRE_THROWS_WITH(
      layer.backward(dy.view(), x.view(), saved, MatrixView<float>(), Accumulate::kOverwrite, context, ExecutorRef()),
      Catch::Contains("saved with 0 adapters; expected 1"));
  REQUIRE_THROWS_WITH(layer.forward(x.view().column_range(0, 3), y.view()),
                      "model.q_proj: x is [2, 3]; expected [2, 24]");
}

TEST_CASE("Dropout: own masks per module, the same however a batch is cut, none in evaluation") {
  Model<float> model;
  LoraConfig config = config_of({"q_proj"}, 5);
  config.lora_dropout = 0.4f;
  model.registry.add_adapter("default", config, model.all(), 1);
  TrainContext<float> context{.selection = model.registry.selection_of("default"), .seed = 3, .step = 9};
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 1);
  const auto train = [&](std::size_t layer, Index first, Index count, AdaptedLinear<float>::Saved& saved) {
    Matrix<float> y(count, kOut);
    TrainContext<float> part = context;
    part.first_row = context.first_row + first;
    model.layers[layer].forward(x.view().row_range(first, count), y.view(), saved, part, ExecutorRef());
    return y;
  };
  AdaptedLinear<float>::Saved whole, upper, lower, other;
  train(0, 0, kRows, whole);
  train(0, 0, 2, upper);
  train(0, 2, kRows - 2, lower);
  train(2, 0, kRows, other);
  const float* s = whole.adapters[0].s.data();
  const std::size_t cut = 2 * 5;
  REQUIRE(std::memcmp(s, upper.adapters[0].s.data(), cut * sizeof(float)) == 0);
  REQUIRE(std::memcmp(s + cut, lower.adapters[0].s.data(), (kRows * 5 - cut) * sizeof(float)) == 0);
  // The other module: its own A, so compare masks, not S.
  Buffer<std::uint8_t> scratch_a, scratch_b;
  const auto bits = [&](const AdaptedLinear<float>::Saved& saved, Buffer<std::uint8_t>& scratch) {
    return saved.adapters[0].dropout.bits(kRows, kIn, 0.4f, scratch, ExecutorRef());
  };
  REQUIRE(std::memcmp(bits(whole, scratch_a).bits, bits(other, scratch_b).bits, kRows * 3) != 0);
  context.dropout = false;
  AdaptedLinear<float>::Saved evaluated;
  const Matrix<float> y = train(0, 0, kRows, evaluated);
  REQUIRE(evaluated.adapters[0].dropout.is_none());
  REQUIRE(same_bits(y, run(model.layers[0], x, context.selection)));
}

TEST_CASE("Results have the same bits for any number of threads") {
  LoraConfig config = config_of({"q_proj"}, 5);
  config.lora_dropout = 0.3f;
  const Index rows = 150, in = 96, out = 80;
  const Matrix<float> x = random_matrix<float>(rows, in, 1), dy = random_matrix<float>(rows, out, 2);
  struct Result {
    Matrix<float> y, dx, da, db;
  };
  const auto with = [&](ExecutorRef executor) {
    AdaptedLinear<float> layer("q_proj", DenseLinear<bf16>(random_matrix<bf16>(out, in, 3)));
    AdaptedLinear<float>* sites[] = {&layer};
    AdapterRegistry<float> registry;
    registry.add_adapter("default", config, sites, 1);
    const TrainContext<float> context{.selection = registry.selection_of("default"), .seed = 4};
    AdaptedLinear<float>::Saved saved;
    Result result{Matrix<float>(rows, out), Matrix<float>(rows, in), {}, {}};
    layer.forward(x.view(), result.y.view(), saved, context, executor);
    layer.backward(dy.view(), x.view(), saved, result.dx.view(), Accumulate::kOverwrite, context, executor);
    Lora<float>& lora = *registry.adapter("default")->find(layer.module());
    result.da = lora.grad_a().clone();
    result.db = lora.grad_b().clone();
    return result;
  };
  ThreadPool two(2), three(3);
  const Result serial = with(ExecutorRef()), on_two = with(two), on_three = with(three);
  for (const Result* other : {&on_two, &on_three}) {
    REQUIRE(same_bits(serial.y, other->y));
    REQUIRE(same_bits(serial.dx, other->dx));
    REQUIRE(same_bits(serial.da, other->da));
    REQUIRE(same_bits(serial.db, other->db));
  }
}

TEST_CASE("Merging gives the adapted layer's result, and restoring the old bits") {
  const auto check = [](auto weight_tag, auto activation_tag, bool mapped) {
    using W = decltype(weight_tag);
    using T = decltype(activation_tag);
    auto memory = std::make_shared<Matrix<W>>(random_matrix<W>(kOut, kIn, 20, 0.2f));
    const Matrix<W> before = memory->clone();
    AnyLinear<T> base = mapped ? AnyLinear<T>(DenseLinear<W>(std::as_const(*memory).view(), memory))
                               : AnyLinear<T>(DenseLinear<W>(memory->clone()));
    std::vector<AdaptedLinear<T>> layers;
    layers.emplace_back("q_proj", std::move(base));
    AdaptedLinear<T>* sites[] = {&layers[0]};
    AdapterRegistry<T> registry;
    registry.add_adapter("a", config_of({"q_proj"}, 4), sites, 1);
    registry.add_adapter("b", config_of({"q_proj"}, 3), sites, 2);
    registry.set_adapters({{"a", 1.0}, {"b", 0.5}});
    const Selection<T> selection = registry.selection();

    // W' from the factors, in double, with one rounding to W.
    Measured want(kOut, kIn);
    for (Index j = 0; j < kOut; ++j) {
      for (Index k = 0; k < kIn; ++k) {
        const double w = to_double(before)(j, k);
        want.add(j, k, w, std::abs(w));
      }
    }
    for (const auto& term : layers[0].merge_change(selection).terms) {
      accumulate(want, product(to_double<Accumulator<T>>(term.b), false, to_double<Accumulator<T>>(term.a), false,
                               static_cast<double>(term.scale)));
    }
    auto merged = merge_adapter<T>(sites, selection);
    const DenseLinear<W>& dense = *layers[0].base().template get_if<DenseLinear<W>>();
    check_close<W>(dense.weight(), want, 8);
    REQUIRE(layers[0].is_merged());
    REQUIRE_FALSE(dense.is_mapped());

    // Whatever is selected, a merged layer is its base.
    const Matrix<T> x = random_matrix<T>(kRows, kIn, 21);
    REQUIRE(same_bits(run(layers[0], x, selection), run(layers[0], x, {})));
    REQUIRE_THROWS_WITH(merge_adapter<T>(sites, selection), Catch::Contains("merged into its weight already"));
    typename AdaptedLinear<T>::Saved saved;
    Matrix<T> y(kRows, kOut);
    REQUIRE_THROWS_WITH(layers[0].forward(x.view(), y.view(), saved, TrainContext<T>{selection}, ExecutorRef()),
                        Catch::Contains("unmerge before training"));

    unmerge_adapter(merged);
    REQUIRE_FALSE(layers[0].is_merged());
    REQUIRE(dense.is_mapped() == mapped);
    if (mapped) REQUIRE(dense.weight().data == memory->data());
    for (Index j = 0; j < kOut; ++j) {
      REQUIRE(std::memcmp(dense.weight().row(j), before.row(j), static_cast<std::size_t>(kIn) * sizeof(W)) == 0);
    }
    if constexpr (!std::is_same_v<T, double>) {
      const Matrix<float> copy = merged_weight(layers[0], selection);
      check_close<float>(copy.view(), want, 8);
    }
  };
  for (const bool mapped : {false, true}) {
    check(float{}, float{}, mapped);
    check(bf16{}, float{}, mapped);
    check(f16{}, float{}, mapped);
    check(bf16{}, bf16{}, mapped);
    check(double{}, double{}, mapped);
  }
}

TEST_CASE("A merge that would not be finite changes nothing, at any site") {
  std::vector<AdaptedLinear<float>> layers;
  layers.emplace_back("a.q_proj", DenseLinear<f16>(random_matrix<f16>(kOut, kIn, 30)));
  layers.emplace_back("b.q_proj", DenseLinear<f16>(random_matrix<f16>(kOut, kIn, 31)));
  AdaptedLinear<float>* sites[] = {&layers[0], &layers[1]};
  AdapterRegistry<float> registry;
  registry.add_adapter("default", config_of({"q_proj"}, 2), sites, 1);
  registry.adapter("default")->find(layers[1].module())->b()(7, 0) = 1e9f;  // above f16's range after the product
  const auto bytes = [&](std::size_t i) {
    const auto& dense = *layers[i].base().get_if<DenseLinear<f16>>();
    return std::vector<std::uint8_t>(reinterpret_cast<const std::uint8_t*>(dense.weight().data),
                                     reinterpret_cast<const std::uint8_t*>(dense.weight().data + kOut * kIn));
  };
  const auto first = bytes(0), second = bytes(1);
  REQUIRE_THROWS_WITH(merge_adapter<float>(sites, registry.selection_of("default")),
                      Catch::Contains("b.q_proj") && Catch::Contains("element [7, 0]"));
  REQUIRE(bytes(0) == first);
  REQUIRE(bytes(1) == second);
  REQUIRE_FALSE(layers[0].is_merged());

  AdaptedLinear<float> fixed("c.q_proj", foreign::ForwardOnly<float>(kIn, kOut, 1));
  AdaptedLinear<float>* one[] = {&fixed};
  registry.add_adapter("c", config_of({"q_proj"}, 2), one, 1);
  REQUIRE_THROWS_WITH(merge_adapter<float>(one, registry.selection_of("c")),
                      Catch::Contains("merge_adapter: c.q_proj") && Catch::Contains("MergeableLinear"));
  REQUIRE_THROWS_WITH(merged_weight(fixed, registry.selection_of("c")), Catch::Contains("merged_weight: c.q_proj"));
}

TEST_CASE("The line of print_trainable_parameters is PEFT's") {
  REQUIRE(trainable_parameters_text(460800, 134975808) ==
          "trainable params: 460,800 || all params: 134,975,808 || trainable%: 0.3414");
  REQUIRE(trainable_parameters_text(0, 7) == "trainable params: 0 || all params: 7 || trainable%: 0.0000");
  REQUIRE(trainable_parameters_text(999, 1000) == "trainable params: 999 || all params: 1,000 || trainable%: 99.9000");
}
