// Compositions against the sums that they stand for, their gradients, AdapterFusion's options, bad setups.
#include "peft/adapter_composition.hpp"
#include "support/central_differences.hpp"
#include "unit/adapter/adapter_reference.hpp"

using namespace adapter_test;
using Setup = AdapterSetup;

namespace {

constexpr Index kHidden = 6;

template <class T>
Adapter<T> make(const AdapterConfig& config, std::uint64_t seed) {
  Adapter<T> adapter(kHidden, config);
  randomise(adapter, seed);
  return adapter;
}

AdapterConfig config_of(const char* name) {
  AdapterConfig config = AdapterConfig::named(name);
  config.non_linearity = "tanh";
  config.reduction_factor = 2;
  return config;
}

void randomise_fusion(AdapterFusion<double>& fusion, std::uint64_t seed) {
  Philox random(seed);
  fusion.for_each_parameter([&](const ParameterInfo&, VectorView<double> value, VectorView<double>) {
    for (double& v : value) v = static_cast<double>(0.6f * random.normal());
  });
}

constexpr double kStep = 2e-5, kTolerance = 1e-6;  // as adapter_gradient_test.cpp

double weighted(const Matrix<double>& y, const Matrix<double>& c) {
  double sum = 0;
  for (Index i = 0; i < y.size(); ++i) sum += y.flat()[i] * c.flat()[i];
  return sum;
}

void check_composition(const Setup& setup, const char* kind, NormKind norm_kind, bool dropout,
                       const AdapterFusionConfig& fusion_config = {}) {
  INFO(setup.text() << " of " << kind << " norm " << static_cast<int>(norm_kind));
  AdapterConfig config = config_of(kind);
  if (dropout) config.dropout = 0.3f;
  auto a = make<double>(config, 1), b = make<double>(config, 2), c = make<double>(config, 3);
  AdapterFusion<double> fusion(kHidden, fusion_config, dropout ? 0.4f : 0.0f);
  randomise_fusion(fusion, 4);
  const std::vector<Index> offsets{0, 3, 6, 9, 12};
  auto h = random<double>(12, kHidden, 5), r = random<double>(12, kHidden, 6);
  const auto g = random<double>(12, kHidden, 7);
  const AdapterComposition<double> composition(setup, {{"a", &a}, {"b", &b}, {"c", &c}}, {{"a,b", &fusion}, {"b,c", &fusion}});
  const TestNorm block(norm_kind, kHidden, 8);
  const DropoutKey key{1, 2, 3, 4};
  block.with<double>([&](const auto& norm) {
    Matrix<double> y(12, kHidden), dh(12, kHidden), dr(12, kHidden);
    const auto loss = [&] {
      AdapterComposition<double>::Saved fresh;
      Matrix<double> out(12, kHidden);
      composition.forward(h.view(), r.view(), norm, offsets, out.view(), fresh, dropout ? &key : nullptr);
      return weighted(out, g);
    };
    AdapterComposition<double>::Saved saved;
    composition.forward(h.view(), r.view(), norm, offsets, y.view(), saved, dropout ? &key : nullptr);
    composition.backward(g.view(), h.view(), r.view(), norm, offsets, saved, dh.view(), dr.view());
    peft_test::check_fourth_order(h.flat(), dh.flat(), kStep, kTolerance, loss);
    peft_test::check_fourth_order(r.flat(), dr.flat(), kStep, kTolerance, loss);
    const auto check = [&](const ParameterInfo&, VectorView<double> value, VectorView<double> grad) {
      peft_test::check_fourth_order(value, grad, kStep, kTolerance, loss);
    };
    for (Adapter<double>* adapter : {&a, &b, &c}) adapter->for_each_parameter(check);
    fusion.for_each_parameter(check);
  });
}

}  // namespace

TEST_CASE("Gradients of compositions are the central differences") {
  const Setup setups[] = {
      Setup::stack({"a", "b", "c"}),
      Setup::average({"a", "b"}, {1, 3}),
      Setup::average({Setup::stack({"a", "b"}), "c"}),
      Setup::batch_split({"a", Setup::stack({"b", "c"})}, {3, 1}),
      Setup::parallel({"a", "b"}),
      Setup::parallel({"a", "elsewhere"}),
      Setup::split({"a", "b"}, {1, 2}),
      Setup::stack({"a", "elsewhere", Setup::split({"b", "c"}, {2, 1})}),
      Setup::batch_split({"a", Setup::average({"b", "c"})}, {1, 3}),
      Setup::fuse({"a", "b"}),
      Setup::fuse({Setup::stack({"c", "a"}), "b"}),
      Setup::stack({"a", Setup::fuse({"b", "c"})}),
      Setup("b"),
  };
  for (const Setup& setup : setups) {
    for (const char* kind : {"seq_bn", "double_seq_bn", "par_bn"}) {
      check_composition(setup, kind, NormKind::kLayer, false);
      check_composition(setup, kind, NormKind::kNone, true);
    }
  }
  AdapterFusionConfig options;
  for (unsigned bits = 0; bits < 64; ++bits) {
    options.key = (bits & 1) != 0;
    options.query = (bits & 2) != 0;
    options.value = (bits & 4) != 0 || (!options.key && !options.query);
    options.query_before_ln = (bits & 8) != 0;
    options.residual_before = (bits & 16) != 0;
    options.value_before_softmax = (bits & 32) != 0;
    options.temperature = bits % 3 == 0;
    check_composition(Setup::fuse({"a", "b"}), "seq_bn", NormKind::kRms, bits % 2 == 0, options);
  }
}

TEST_CASE("A composition of one adapter is the adapter; an average is the mean; each child sees its rows") {
  auto a = make<float>(config_of("double_seq_bn"), 1), b = make<float>(config_of("double_seq_bn"), 2);
  const auto h = random<float>(4, kHidden, 3), r = random<float>(4, kHidden, 4);
  const std::vector<Index> offsets{0, 1, 4};
  const auto run = [&](const Setup& setup) {
    AdapterComposition<float>::Saved saved;
    Matrix<float> y(4, kHidden);
    AdapterComposition<float>(setup, {{"a", &a}, {"b", &b}})
        .forward(h.view(), r.view(), ops::NoNorm(), offsets, y.view(), saved);
    return y;
  };
  Matrix<float> ya(4, kHidden), yb(4, kHidden);
  a.forward(h.view(), r.view(), ya.view());
  b.forward(h.view(), r.view(), yb.view());
  const auto alone = run("a"), mean = run(Setup::average({"a", "b"}, {1, 3})), parts = run(Setup::batch_split({"a", "b"}, {1, 1}));
  for (Index j = 0; j < kHidden; ++j) {
    for (Index i = 0; i < 4; ++i) {
      // h + u + r in another order.
      CHECK(alone(i, j) == Approx(ya(i, j)).margin(1e-6));
      CHECK(mean(i, j) == Approx(0.25f * ya(i, j) + 0.75f * yb(i, j)).margin(2e-6));
      CHECK(parts(i, j) == Approx(i < 1 ? ya(i, j) : yb(i, j)).margin(1e-6));
    }
  }
}

TEST_CASE("AdapterFusion: with equal updates it is their projection; starts, temperature, regularisation") {
  AdapterFusion<float> fusion(kHidden, AdapterFusionConfig::dynamic_fusion(), 0.1f, 3);
  CHECK(fusion.dropout() == 0.1f);
  const auto query = random<float>(5, kHidden, 1), u = random<float>(5, kHidden, 2), r = random<float>(5, kHidden, 3);
  const std::vector<MatrixView<const float>> updates{u.view(), u.view(), u.view()};
  Matrix<float> y(5, kHidden);
  AdapterFusion<float>::Saved saved;
  fusion.forward(query.view(), updates, r.view(), y.view(), saved);
  for (Index i = 0; i < y.size(); ++i) {
    CHECK(y.flat()[i] == Approx(u.flat()[i] + r.flat()[i]).margin(4e-5));  // the value's matrix starts as I + 1e-6
  }
  for (Index i = 0; i < saved.p.size(); ++i) CHECK(saved.p.flat()[i] == Approx(1.0 / 3).margin(1e-6));
  // 30 numbers of 1e-6 beside the diagonal.
  CHECK(fusion.regularization_loss() == Approx(0.01 * 30 * 1e-12).epsilon(1e-3));
  fusion.for_each_parameter([](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    if (info.name == "value.weight") value[1] += 0.5f;
  });
  CHECK(fusion.regularization_loss() == Approx(0.01 * 0.25).epsilon(1e-3));
  fusion.add_regularization_gradient(2.0);
  fusion.for_each_parameter([](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
    if (info.name == "value.weight") CHECK(grad[1] == Approx(2 * 0.02 * 0.5).epsilon(1e-3));
  });
  CHECK(fusion.temperature() == 1.0);
  fusion.anneal();
  CHECK(fusion.temperature() == 1.0);
  AdapterFusionConfig warm;
  warm.temperature = true;
  warm.dropout_prob = 0.25f;
  AdapterFusion<float> annealed(kHidden, warm, 0.1f);
  CHECK(annealed.dropout() == 0.25f);
  CHECK(annealed.temperature() == 50.0);
  annealed.anneal();
  CHECK(annealed.temperature() == Approx(49.95));
  for (int i = 0; i < 2000; ++i) annealed.anneal();
  CHECK(annealed.temperature() == 1.0);
  // 16-bit activations.
  AdapterFusion<bf16> half(kHidden, AdapterFusionConfig::dynamic_fusion(), 0.0f, 3);
  Matrix<bf16> q16(5, kHidden), u16(5, kHidden), r16(5, kHidden), y16(5, kHidden);
  for (Index i = 0; i < y.size(); ++i) {
    q16.flat()[i] = bf16(query.flat()[i]);
    u16.flat()[i] = bf16(u.flat()[i]);
    r16.flat()[i] = bf16(r.flat()[i]);
  }
  const std::vector<MatrixView<const bf16>> updates16{std::as_const(u16).view(), std::as_const(u16).view()};
  AdapterFusion<bf16>::Saved saved16;
  half.forward(std::as_const(q16).view(), updates16, std::as_const(r16).view(), y16.view(), saved16);
  for (Index i = 0; i < y.size(); ++i) {
    CHECK(static_cast<float>(y16.flat()[i]) == Approx(u.flat()[i] + r.flat()[i]).margin(0.03));
  }
}

TEST_CASE("Setups that cannot be, adapters that are not here and batches that do not fit are named") {
  auto a = make<float>(config_of("seq_bn"), 1), b = make<float>(config_of("seq_bn"), 2);
  AdapterFusion<float> fusion(kHidden, {}), wide(kHidden + 1, {});
  Adapter<float> other(kHidden + 2, AdapterConfig::seq_bn());
  const auto text = [](auto&& body) {
    try {
      body();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    FAIL("expected an error");
    return std::string();
  };
  using C = AdapterComposition<float>;
  const C::NamedAdapters both{{"a", &a}, {"b", &b}};
  const auto made = [&](const Setup& setup) { return text([&] { C(setup, both); }); };
  CHECK(made(Setup::stack({})).find("Stack is empty") != std::string::npos);
  CHECK(made(Setup::stack({Setup::stack({"a"}), "b"})).find("cannot stand in") != std::string::npos);
  CHECK(made(Setup::fuse({Setup::average({"a", "b"}), "b"})).find("Average[a, b] cannot stand in Fuse") != std::string::npos);
  CHECK(made(Setup::parallel({Setup::average({Setup::batch_split({"a", "b"}, {1, 1}), "b"}), "a"})).find("within two other") !=
        std::string::npos);
  CHECK(made(Setup::batch_split({"a", "b"}, {1})).find("1 sizes for 2") != std::string::npos);
  CHECK(made(Setup::split({"a", "b"}, {1, 0})).find("at least 1") != std::string::npos);
  CHECK(made(Setup::average({"a", "b"}, {1, -1})).find("weights") != std::string::npos);  // their sum is 0
  CHECK(made(Setup::stack({"x", "y"})).find("no adapter of Stack[x, y]") != std::string::npos);
  CHECK(made(Setup::average({"a", "x"})).find("\"x\"") != std::string::npos);
  CHECK(made(Setup::parallel({"x", "a"})).find("needs the adapter \"x\"") != std::string::npos);
  CHECK(made(Setup::fuse({"a", "b"})).find("AdapterFusion layer \"a,b\"") != std::string::npos);
  CHECK(text([&] { C(Setup::fuse({"a", "b"}), both, {{"a,b", &wide}}); }).find("7 units") != std::string::npos);
  CHECK(text([&] { C(Setup::stack({"a", "c"}), {{"a", &a}, {"c", &other}}); }).find("one hidden size") != std::string::npos);
  C(Setup::fuse({"a", "b"}, "mix"), both, {{"mix", &fusion}});

  const auto h = random<float>(4, kHidden, 3), r = random<float>(4, kHidden, 4);
  Matrix<float> y(4, kHidden);
  for (float& value : y.flat()) value = 7;
  const auto run = [&](const Setup& setup, std::vector<Index> offsets) {
    return text([&] {
      C::Saved saved;
      C(setup, both).forward(h.view(), r.view(), ops::NoNorm(), offsets, y.view(), saved);
    });
  };
  CHECK(run("a", {0, 3}).find("offsets") != std::string::npos);
  CHECK(run("a", {0, 3, 2, 4}).find("offsets") != std::string::npos);
  CHECK(run(Setup::batch_split({"a", "b"}, {1, 2}), {0, 2, 4}).find("3 sequences; the batch has 2") != std::string::npos);
  CHECK(run(Setup::parallel({"a", "b"}), {0, 1, 2, 4}).find("repeated 2 times") != std::string::npos);
  CHECK(run(Setup::split({"a", "b"}, {1, 1}), {0, 2, 3, 4}).find("sequence 1 has 1") != std::string::npos);
  CHECK(run(Setup::batch_split({"a", Setup::split({"a", "b"}, {1, 2})}, {1, 1}), {0, 2, 4}).find("sequences of 3 tokens") !=
        std::string::npos);
  for (float value : y.flat()) REQUIRE(value == 7.0f);

  AdapterFusionConfig config;
  config.key = config.query = config.value = false;
  CHECK_THROWS_AS(AdapterFusion<float>(kHidden, config), ConfigError);
  config.key = true;
  config.dropout_prob = 1.0f;
  CHECK_THROWS_AS(AdapterFusion<float>(kHidden, config), ConfigError);
  AdapterFusion<float>::Saved saved;
  CHECK_THROWS_AS(fusion.forward(h.view(), {}, r.view(), y.view(), saved), ShapeError);
  const std::vector<MatrixView<const float>> few{h.view().row_range(0, 3)};
  CHECK_THROWS_AS(fusion.forward(h.view(), few, r.view(), y.view(), saved), ShapeError);
}
