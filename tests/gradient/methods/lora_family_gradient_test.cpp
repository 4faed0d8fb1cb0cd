// Gradients of LoRA's family in double: every parameter and the input against central differences, alone and with several
// adapters at once; and the float path against the double one.
//
// The loss is L = Σ y∘g. It is a polynomial in each single number, of degree 2 where a number stands in two factors
// (LoHa's, LoKr's factors are multilinear: degree 1); the central difference has no truncation error. Rounding: with
// h = 2^-6, at most 2^6·(N + 8)·2^-53·Σ|terms|, N the longest sum; Σ|terms| below 2^14 for all cases here.
#include <cstring>

#include "peft/adapter_registry.hpp"
#include "peft/dense_linear.hpp"
#include "peft/merge.hpp"
#include "support/catch.hpp"
#include "support/central_differences.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;

namespace {

constexpr double kStep = 0x1p-6;
constexpr double kTolerance = 0x1p6 * 64 * 0x1p-53 * 0x1p14;
constexpr Index kRows = 4, kIn = 12, kOut = 10;

Buffer<double> some_bias() {
  Buffer<double> bias(kOut);
  for (Index j = 0; j < kOut; ++j) bias[j] = 0.25 * static_cast<double>(j % 5) - 0.5;
  return bias;
}

/// A linear with a bias, and one that knows only backward_input.
template <class T>
struct Layers {
  std::vector<std::unique_ptr<AdaptedLinear<T>>> owned;
  std::vector<AdaptedLinear<T>*> sites;
  Layers() {
    using W = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Buffer<double> values = some_bias();
    Buffer<Accumulator<T>> bias(kOut);
    for (Index j = 0; j < kOut; ++j) bias[j] = static_cast<Accumulator<T>>(values[j]);
    Matrix<W> weight(kOut, kIn);
    const Matrix<float> random = random_matrix<float>(kOut, kIn, 50);
    for (Index i = 0; i < random.size(); ++i) weight.data()[i] = static_cast<W>(random.data()[i]);
    owned.push_back(std::make_unique<AdaptedLinear<T>>("block.q_proj", DenseLinear<W>(std::move(weight), std::move(bias))));
    owned.push_back(std::make_unique<AdaptedLinear<T>>("block.v_proj", foreign::WithBackward<T>(kIn, kOut, 51)));
    for (auto& layer : owned) sites.push_back(layer.get());
  }
};

/// Every parameter gets numbers of its own; gains and lengths stay near 1.
template <class T>
void randomise(NamedAdapter<T>& adapter, std::uint64_t seed) {
  adapter.for_each_weight([&](const ParameterInfo& info, VectorView<Accumulator<T>> value, VectorView<Accumulator<T>>) {
    Philox random(seed++);
    const bool is_gain = info.name.find("ia3") != std::string_view::npos;
    for (auto& number : value) {
      const float draw = 0.4f * random.normal();
      number = is_gain ? 1.0f + draw : (info.name.find("magnitude") != std::string_view::npos ? number * (1.0f + 0.3f * draw)
                                                                                              : draw);
    }
  });
}

struct Setting {
  double weight = 1.0;
  AnyConfig config;
};

/// Adds one adapter per setting and selects them all.
template <class T>
Selection<T> attach(AdapterRegistry<T>& registry, Layers<T>& layers, const std::vector<Setting>& settings) {
  std::vector<std::pair<std::string, double>> weighted;
  for (const Setting& setting : settings) {
    const std::string name = "adapter" + std::to_string(weighted.size());
    const auto add = [&]<class C>() {
      if (const C* config = setting.config.get_if<C>()) registry.add_adapter(name, *config, layers.sites, weighted.size());
    };
    add.template operator()<LoraConfig>();
    add.template operator()<Ia3Config>();
    add.template operator()<VeraConfig>();
    add.template operator()<LohaConfig>();
    add.template operator()<LokrConfig>();
    add.template operator()<AdaLoraConfig>();
    add.template operator()<FullConfig>();
    randomise(*registry.adapter(name), 100 * (weighted.size() + 1));
    weighted.emplace_back(name, setting.weight);
  }
  return registry.selection_of(weighted);
}

struct Numbers {
  Matrix<double> y, dx;
  std::vector<std::pair<std::string, std::vector<double>>> grads;
};

template <class T>
Numbers run(AdapterRegistry<T>& registry, AdaptedLinear<T>& layer, const TrainContext<T>& context, const Matrix<T>& x,
            const Matrix<T>& dy) {
  Matrix<T> y(kRows, kOut), dx(kRows, kIn);
  typename AdaptedLinear<T>::Saved saved;
  layer.forward(x.view(), y.view(), saved, context, ExecutorRef());
  layer.backward(dy.view(), x.view(), saved, dx.view(), Accumulate::kOverwrite, context, ExecutorRef());
  Numbers result{to_double(y), to_double(dx), {}};
  for (const std::string& name : registry.names()) {
    registry.for_each_parameter(name, [&](const ParameterInfo& info, VectorView<Accumulator<T>>, VectorView<Accumulator<T>> grad) {
      result.grads.emplace_back(name + "/" + std::string(info.name), std::vector<double>(grad.begin(), grad.end()));
    });
  }
  return result;
}

void check(const std::vector<Setting>& settings, bool with_dropout) {
  Layers<double> layers;
  AdapterRegistry<double> registry;
  TrainContext<double> context{.selection = attach(registry, layers, settings), .seed = 5, .step = 6};
  context.dropout = with_dropout;
  for (AdaptedLinear<double>* layer : layers.sites) {
    INFO(layer->name() << (with_dropout ? " with dropout" : ""));
    for (const std::string& name : registry.names()) registry.adapter(name)->zero_grad();
    Matrix<double> x = random_matrix<double>(kRows, kIn, 3);
    const Matrix<double> dy = random_matrix<double>(kRows, kOut, 4);
    // DoRA's lengths n are constants for the gradient (detached): while A or B moves, m follows n, so that g stays.
    struct Length {
      Dora<double>* dora;
      Matrix<double> gain;
    };
    std::vector<Length> lengths;
    const AnyLinear<double>* base = &layer->base();  // what DoRA stands on: a trained copy where there is one
    for (const std::string& name : registry.names()) {
      auto* copy = registry.adapter(name)->template find<TrainedLinear<double>>(layer->module());
      if (copy != nullptr) base = copy->replacement();
    }
    for (const std::string& name : registry.names()) {
      Dora<double>* dora = registry.adapter(name)->template find<Dora<double>>(layer->module());
      if (dora == nullptr) continue;
      UpdateSaved<double> saved;
      dora->make_gain(*base, saved, ExecutorRef());
      lengths.push_back({dora, saved.gain.clone()});
    }
    const auto loss = [&](bool hold_gains) {
      std::vector<Matrix<double>> kept;
      for (Length& length : lengths) {
        kept.push_back(length.dora->magnitude().value().clone());
        if (!hold_gains) continue;
        length.dora->reset_magnitude(*base, ExecutorRef());
        for (Index j = 0; j < kOut; ++j) length.dora->magnitude().value()(0, j) *= length.gain(0, j);
      }
      AdaptedLinear<double>::Saved fresh;
      Matrix<double> y(kRows, kOut);
      layer->forward(x.view(), y.view(), fresh, context, ExecutorRef());
      for (std::size_t i = 0; i < kept.size(); ++i) {
        std::copy(kept[i].flat().begin(), kept[i].flat().end(), lengths[i].dora->magnitude().value().data());
      }
      double sum = 0;
      for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * dy.data()[i];
      return sum;
    };
    const auto differ = [&](VectorView<double> values, const std::vector<double>& grad, bool hold_gains) {
      check_differences(
          values, grad, [&](double& value) { return second_order_difference(value, kStep, [&] { return loss(hold_gains); }); },
          [](double) { return kTolerance; });
    };
    const Numbers numbers = run(registry, *layer, context, x, dy);
    differ(x.flat(), std::vector<double>(numbers.dx.flat().begin(), numbers.dx.flat().end()), false);
    std::size_t next = 0;
    bool any = false;
    for (const std::string& name : registry.names()) {
      registry.for_each_parameter(name, [&](const ParameterInfo& info, VectorView<double> value, VectorView<double>) {
        INFO(info.name);
        const std::vector<double>& grad = numbers.grads[next++].second;
        for (const double g : grad) any = any || g != 0.0;
        differ(value, grad, info.name.find("magnitude") == std::string_view::npos);
      });
    }
    REQUIRE(any);
    // Without the input's gradient the parameters' is the same.
    for (const std::string& name : registry.names()) registry.adapter(name)->zero_grad();
    AdaptedLinear<double>::Saved saved;
    Matrix<double> y(kRows, kOut);
    layer->forward(x.view(), y.view(), saved, context, ExecutorRef());
    layer->backward(dy.view(), x.view(), saved, MatrixView<double>(), Accumulate::kOverwrite, context, ExecutorRef());
    next = 0;
    for (const std::string& name : registry.names()) {
      registry.for_each_parameter(name, [&](const ParameterInfo&, VectorView<double>, VectorView<double> grad) {
        const std::vector<double>& want = numbers.grads[next++].second;
        for (Index i = 0; i < grad.size; ++i) REQUIRE(grad[i] == want[static_cast<std::size_t>(i)]);
      });
    }
  }
  // The fused float path, to float's rounding: sums of at most 64 products, Σ|terms| below 2^11.
  if (with_dropout) return;
  Layers<float> narrow;
  AdapterRegistry<float> narrow_registry;
  const TrainContext<float> narrow_context{.selection = attach(narrow_registry, narrow, settings), .seed = 5, .step = 6};
  Layers<double> wide;
  AdapterRegistry<double> wide_registry;
  const TrainContext<double> wide_context{.selection = attach(wide_registry, wide, settings), .seed = 5, .step = 6};
  for (const std::string& name : wide_registry.names()) {
    std::vector<std::vector<double>> values;
    narrow_registry.adapter(name)->for_each_weight([&](const ParameterInfo&, VectorView<float> value, VectorView<float>) {
      values.emplace_back(value.begin(), value.end());
    });
    std::size_t next = 0;
    wide_registry.adapter(name)->for_each_weight([&](const ParameterInfo&, VectorView<double> value, VectorView<double>) {
      std::copy(values[next].begin(), values[next].end(), value.begin());
      ++next;
    });
  }
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 3), dy = random_matrix<float>(kRows, kOut, 4);
  Matrix<double> wide_x = to_double(x), wide_dy = to_double(dy);
  const Numbers got = run(narrow_registry, *narrow.sites[0], narrow_context, x, dy);
  const Numbers want = run(wide_registry, *wide.sites[0], wide_context, wide_x, wide_dy);
  const double tolerance = 72 * 0x1p-24 * 0x1p11;
  for (Index i = 0; i < got.y.size(); ++i) REQUIRE(std::abs(got.y.data()[i] - want.y.data()[i]) < tolerance);
  for (Index i = 0; i < got.dx.size(); ++i) REQUIRE(std::abs(got.dx.data()[i] - want.dx.data()[i]) < tolerance);
  for (std::size_t p = 0; p < got.grads.size(); ++p) {
    INFO(got.grads[p].first);
    for (std::size_t i = 0; i < got.grads[p].second.size(); ++i) {
      REQUIRE(std::abs(got.grads[p].second[i] - want.grads[p].second[i]) < tolerance);
    }
  }
}

const ModuleSelector kBoth = {"q_proj", "v_proj"};
LoraConfig lora(float dropout) {
  return {.r = 3, .lora_alpha = 4, .target_modules = kBoth, .lora_dropout = dropout, .init_lora_weights = false};
}
LoraConfig dora(float dropout) {
  LoraConfig config = lora(dropout);
  config.use_dora = true;
  return config;
}
LoraConfig biased() {
  LoraConfig config = lora(0.0f);
  config.lora_bias = true;
  config.bias = "lora_only";
  return config;
}

}  // namespace

TEST_CASE("Gradients of every method are the central differences") {
  const VeraConfig vera{.r = 5, .target_modules = kBoth, .vera_dropout = 0.3f};
  const AdaLoraConfig adalora{.init_r = 3, .total_step = 10, .target_modules = kBoth, .lora_dropout = 0.3f};
  const Ia3Config feedforward{.target_modules = kBoth, .feedforward_modules = kBoth};
  LokrConfig factored{.r = 1, .alpha = 2, .target_modules = kBoth};
  factored.decompose_both = true;
  factored.decompose_factor = 2;
  for (const bool dropout : {false, true}) {
    check({{1.0, dora(0.3f)}}, dropout);
    check({{1.0, biased()}}, dropout);
    check({{1.0, vera}}, dropout);
    check({{1.0, adalora}}, dropout);
  }
  check({{1.0, Ia3Config{.target_modules = kBoth}}}, false);
  check({{1.0, feedforward}}, false);
  check({{1.0, LohaConfig{.r = 2, .alpha = 3, .target_modules = kBoth}}}, false);
  check({{1.0, LohaConfig{.r = 4, .alpha = 3, .target_modules = kBoth}}}, false);  // ΔW itself
  check({{1.0, LokrConfig{.r = 8, .alpha = 3, .target_modules = kBoth}}}, false);
  check({{1.0, factored}}, false);
  check({{1.0, FullConfig{}}}, false);
}

TEST_CASE("Gradients of several methods on one module, each with its weight, are the central differences") {
  const Ia3Config output{.target_modules = kBoth}, input{.target_modules = kBoth, .feedforward_modules = kBoth};
  const LohaConfig loha{.r = 2, .alpha = 3, .target_modules = kBoth};
  const LokrConfig lokr{.r = 8, .alpha = 3, .target_modules = kBoth};
  for (const bool dropout : {false, true}) {
    check({{1.0, lora(0.2f)}, {-0.5, dora(0.4f)}, {0.75, dora(0.0f)}}, dropout);
    check({{0.5, output}, {1.0, lora(0.2f)}, {2.0, output}, {1.0, dora(0.4f)}}, dropout);
    check({{0.5, input}, {1.0, lora(0.2f)}, {-1.0, input}, {0.5, lokr}}, dropout);
  }
  check({{0.5, loha}, {2.0, lokr}, {1.0, biased()}}, false);
  check({{0.5, FullConfig{}}, {0.25, FullConfig{}}, {1.0, lora(0.0f)}}, false);  // trained copies mixed by weight
  check({{1.0, FullConfig{}}, {1.0, dora(0.0f)}}, false);                        // DoRA over a trained copy
}

TEST_CASE("A gain and a mix of trained copies mean nothing together, and are refused") {
  Layers<double> layers;
  AdapterRegistry<double> registry;
  const Selection<double> selection = attach(registry, layers, {{0.5, FullConfig{}}, {1.0, dora(0.0f)}});
  const Matrix<double> x = random_matrix<double>(kRows, kIn, 3);
  Matrix<double> y(kRows, kOut);
  REQUIRE_THROWS_WITH(layers.sites[0]->forward(x.view(), y.view(), selection, ExecutorRef()),
                      Catch::Contains("block.q_proj") && Catch::Contains("select one of them"));
}
