// What belongs to LoRA's family beside the layers, against peft 0.21.2: starts of A and B, adapters made of others,
// AdaLoRA's allocator and regulariser, LoRA+, where aLoRA acts, and every field of every configuration.
#include "golden/lora_family/toy.hpp"
#include "peft/activated_lora.hpp"
#include "peft/adalora_allocator.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/lora_eva.hpp"
#include "peft/lora_initialization.hpp"
#include "peft/pipeline/mutated_lora.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "peft/train/adamw.hpp"
#include "peft/weighted_adapter.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace peft_test;

namespace {

template <class X>
void check_values(VectorView<X> got, const Json& want, double tolerance) {
  REQUIRE(got.size == static_cast<Index>(want.size()));
  for (Index i = 0; i < got.size; ++i) {
    const double expected = want[static_cast<std::size_t>(i)].get<double>();
    if (!(std::abs(static_cast<double>(got[i]) - expected) <= tolerance)) {
      CAPTURE(i, got[i], expected);
      FAIL("differs from peft's");
    }
  }
}

/// s·B·A.
template <class T>
Matrix<double> delta_of(const Lora<T>& lora) {
  Matrix<double> result = Matrix<double>::zeros(lora.out_features(), lora.in_features());
  for (Index j = 0; j < result.rows(); ++j) {
    for (Index q = 0; q < lora.r(); ++q) {
      for (Index k = 0; k < result.cols(); ++k) {
        result(j, k) += lora.scaling() * static_cast<double>(lora.b()(j, q)) * static_cast<double>(lora.a()(q, k));
      }
    }
  }
  return result;
}

const ModuleSelector kBoth = {"q_proj", "v_proj"};

}  // namespace

TEST_CASE("PiSSA and OLoRA start as PEFT's: the product and what is left of the base") {
  const Json golden = read_golden("initialisations.json");
  for (const char* kind : {"pissa", "pissa_rs", "pissa_niter_8", "olora"}) {
    INFO(kind);
    const std::string name = kind;
    LoraConfig config{.r = 4, .lora_alpha = 6, .target_modules = kBoth};
    config.use_rslora = name == "pissa_rs";
    config.init_lora_weights = name == "pissa_rs" ? std::string("pissa") : name;
    Toy<float> toy;
    const auto adapter = toy.registry.add_adapter("default", config, toy.sites(), 1);
    AdaptedLinear<float>& q = *toy.linear("layers.0.q_proj");
    Matrix<float> before(q.out_features(), q.in_features()), now(q.out_features(), q.in_features());
    q.base().read_weight_rows(0, before.view());
    auto undo = initialize_lora<float>(*adapter, toy.linear_sites);
    const Lora<float>& lora = *adapter->find(q.module());
    REQUIRE(lora.scaling() == Approx(golden[kind]["scaling"].get<double>()));
    // Singular values below 3, gaps of a tenth: float32 there and double here agree to 1e-5. Eight iterations from another
    // random start leave (σ₅/σ₄)^17 of what is cut off, with σ₅/σ₄ about 0.75: 1e-2.
    const double tolerance = name == "pissa_niter_8" ? 2e-2 : 2e-5;
    check_values(VectorView<const double>(delta_of(lora).flat()), golden[kind]["delta"], tolerance);
    q.base().read_weight_rows(0, now.view());
    check_values(now.flat(), golden[kind]["base"], tolerance);
    // Base and update together are the base before; the undo gives every bit back.
    const Matrix<double> delta = delta_of(lora);
    for (Index i = 0; i < now.size(); ++i) {
      REQUIRE(std::abs(static_cast<double>(now.data()[i]) + delta.data()[i] - static_cast<double>(before.data()[i])) < 1e-6);
    }
    const io_test::ScratchFolder folder;
    save_pretrained(*adapter, folder.path());
    Toy<float> other;
    REQUIRE_THROWS_WITH(load_adapter<float>(other.registry, folder.path(), "default", other.sites()),
                        Catch::Contains("took the first singular or QR part out of the base"));
    unmerge_adapter(undo);
    q.base().read_weight_rows(0, now.view());
    REQUIRE(std::memcmp(now.data(), before.data(), static_cast<std::size_t>(now.size()) * sizeof(float)) == 0);
  }
}

TEST_CASE("A trained PiSSA or OLoRA is saved as the plain LoRA that PEFT makes of it, for the unchanged base") {
  const Json golden = read_golden("conversions.json");
  for (const char* name : {"pissa_converted", "olora_converted"}) {
    INFO(name);
    LoraConfig config{.r = 4, .lora_alpha = 6, .target_modules = kBoth, .init_lora_weights = "pissa"};
    if (std::string(name) == "olora_converted") {
      config.r = 3;
      config.init_lora_weights = "olora";
      config.rank_pattern = {{"v_proj", 2}};
      config.alpha_pattern = {{"v_proj", 5}};
    }
    Toy<float> toy;
    const auto adapter = toy.registry.add_adapter("default", config, toy.sites(), 1);
    const auto set = [&](const Json& values) {
      adapter->for_each_weight([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
        const Json& own = values[std::string(info.name)];
        REQUIRE(static_cast<Index>(own.size()) == value.size);
        for (Index i = 0; i < value.size; ++i) value[i] = own[static_cast<std::size_t>(i)].get<float>();
      });
    };
    set(golden[name]["start"]);
    const MutatedLora<float> mutated(adapter);
    set(golden[name]["trained"]);
    const io_test::ScratchFolder folder;
    const auto plain = mutated.plain_tensors();
    save_peft_adapter(folder.path(), AnyConfig(mutated.plain_config()), plain.tensors());
    CHECK(io_test::read_file(folder / "adapter_model.safetensors") ==
          io_test::read_file(kFamily / "saved" / name / "adapter_model.safetensors"));
    const Json ours = Json::parse(io_test::read_file(folder / "adapter_config.json"));
    const Json theirs = Json::parse(io_test::read_file(kFamily / "saved" / name / "adapter_config.json"));
    for (const char* field : {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights", "use_rslora"}) {
      INFO(field);
      CHECK(ours[field] == theirs[field]);
    }
    // On the unchanged base: PEFT's results on the remainder. Sums of 12 products below 4·3, and of 2·r more: 2^-24·20·12.
    Toy<float> base;
    load_adapter<float>(base.registry, folder.path(), "default", base.sites());
    base.registry.set_adapter("default");
    for (const auto& [path, site] : golden[name]["sites"].items()) {
      INFO(path);
      AdaptedLinear<float>& layer = *base.linear(path);
      Matrix<float> y(5, layer.out_features());
      layer.forward(matrix_of<float>(site["x"], 5, layer.in_features()).view(), y.view(), base.registry.selection(), ExecutorRef());
      check_values(y.flat(), site["y"], 2e-5);
    }
  }
  // With √2 for the root of the rank, and rslora's scale, the scale stays.
  LoraConfig rooted{.r = 4, .lora_alpha = 6, .target_modules = kBoth, .init_lora_weights = "pissa"};
  rooted.use_rslora = true;
  rooted.alpha_pattern = {{"v_proj", 3}};
  Toy<float> toy;
  const LoraConfig plain = MutatedLora<float>(make_adapter<float>("default", rooted, toy.sites(), 1)).plain_config();
  for (const char* module : {"layers.0.q_proj", "layers.0.v_proj"}) CHECK(scaling_for(plain, module) == Approx(scaling_for(rooted, module)).epsilon(1e-15));
}

TEST_CASE("The orthogonal start: neither A nor B is zero, their product is; a seed is a start") {
  const Json golden = read_golden("initialisations.json")["orthogonal"];
  REQUIRE(golden["largest_ba"].get<double>() < 1e-5);
  LoraConfig config{.r = 4, .lora_alpha = 6, .target_modules = kBoth, .init_lora_weights = "orthogonal"};
  Toy<float> toy;
  const auto adapter = toy.registry.add_adapter("default", config, toy.sites(), 1);
  const auto changed = initialize_lora<float>(*adapter, toy.linear_sites, 7);
  REQUIRE(changed.sites.empty());  // the base stays
  const Lora<float>& lora = *adapter->find(ModuleId("layers.0.q_proj"));
  double largest = 0, squares = 0;
  const Matrix<double> delta = delta_of(lora);
  for (const double value : delta.flat()) largest = std::max(largest, std::abs(value));
  for (const float value : lora.a().flat()) squares += static_cast<double>(value) * static_cast<double>(value);
  REQUIRE(largest < 1e-6);
  // 48 numbers of deviation about 0.1·√(1/2): within a factor of 1.6 of PEFT's 48.
  const double deviation = std::sqrt(squares / 48.0);
  REQUIRE(deviation < 1.6 * golden["a_std"].get<double>());
  REQUIRE(deviation > golden["a_std"].get<double>() / 1.6);
  config.r = 3;
  const auto odd = toy.registry.add_adapter("odd", config, toy.sites(), 1);
  REQUIRE_THROWS_WITH(initialize_lora<float>(*odd, toy.linear_sites), Catch::Contains("needs an even rank; got r = 3"));
}

TEST_CASE("EVA's components, ranks and scales are PEFT's") {
  const Json golden = read_golden("eva.json");
  std::vector<std::unique_ptr<AdaptedLinear<double>>> layers;
  layers.push_back(std::make_unique<AdaptedLinear<double>>("one", DenseLinear<double>(Matrix<double>::zeros(6, 8))));
  layers.push_back(std::make_unique<AdaptedLinear<double>>("two", DenseLinear<double>(Matrix<double>::zeros(7, 6))));
  const std::vector<AdaptedLinear<double>*> sites{layers[0].get(), layers[1].get()};
  LoraConfig config{.r = 2, .lora_alpha = 4, .target_modules = {"one", "two"}, .init_lora_weights = "eva"};
  config.eva_config = {.rho = 2.0, .tau = 0.9999};
  const auto adapter = make_adapter<double>("default", config, sites, 1);
  EvaCollector<double> collector(adapter);
  const std::size_t batches = golden["inputs"]["one"].size();
  bool done = false;
  for (std::size_t i = 0; i < 200 && !done; ++i) {
    for (const char* name : {"one", "two"}) {
      const Index width = std::string(name) == "one" ? 8 : 6;
      if (collector.wants(name)) collector.add(name, matrix_of<double>(golden["inputs"][name][i % batches], 24, width).view());
    }
    done = collector.end_of_batch();
  }
  REQUIRE(done);
  const auto started = collector.finish(sites);
  for (const char* name : {"one", "two"}) {
    INFO(name);
    const Json& want = golden["layers"][name];
    const Index r = want["r"].get<Index>();
    REQUIRE(collector.rank_of(name) == r);
    const Lora<double>* lora = started->find(ModuleId(name));
    REQUIRE((lora != nullptr && lora->r() == r));
    REQUIRE(lora->scaling() == Approx(want["scaling"].get<double>()));
    const Index n = lora->in_features();
    Matrix<double> projector = Matrix<double>::zeros(n, n);
    for (Index q = 0; q < r; ++q) {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < n; ++j) projector(i, j) += lora->a()(q, i) * lora->a()(q, j);
      }
    }
    check_values(projector.flat(), want["projector"], 2e-3);  // converged to cos ≥ 0.9999 there and here
    for (const double value : lora->b().flat()) REQUIRE(value == 0.0);
  }
  REQUIRE_THROWS_AS(EvaCollector<double>(make_adapter<double>("x", LoraConfig{.target_modules = {"one"}}, sites, 1)), ConfigError);
}

TEST_CASE("add_weighted_adapter's eleven kinds are PEFT's") {
  const Json golden = read_golden("weighted.json");
  Toy<double> toy;
  for (const auto& [name, alpha] : {std::pair<const char*, double>{"default", 6.0}, {"second", 9.0}}) {
    const auto adapter = toy.registry.add_adapter(
        name, LoraConfig{.r = 3, .lora_alpha = alpha, .target_modules = kBoth}, toy.sites(), 1);
    adapter->for_each_weight([&, &which = name](const ParameterInfo& info, VectorView<double> value, VectorView<double>) {
      std::string key(info.name);  // ….lora_A.weight → ….lora_A.default.weight
      key.insert(key.rfind('.'), std::string(".") + which);
      const Json& values = golden["factors"][key];
      REQUIRE(static_cast<Index>(values.size()) == value.size);
      for (Index i = 0; i < value.size; ++i) value[i] = values[static_cast<std::size_t>(i)].get<double>();
    });
  }
  std::size_t number = 0;
  for (const Json& test : golden["cases"]) {
    INFO(test["kind"].get<std::string>() << " " << test["method"]);
    CombinationOptions options;
    options.combination_type = test["kind"].get<std::string>();
    options.majority_sign_method = test["method"].get<std::string>();
    options.density = 0.4;
    const bool by_product = options.combination_type.ends_with("svd");
    if (by_product) options.svd_rank = 4;
    // Drawn there module by module in the model's order, and within one A's of all adapters before B's: as here.
    for (const Json& mask : test["masks"]) options.masks.push_back(mask.get<std::vector<std::uint8_t>>());
    const std::string name = "mixed" + std::to_string(number++);
    const auto mixed = add_weighted_adapter<double>(
        toy.registry, {{"default", test["weights"][0].get<double>()}, {"second", test["weights"][1].get<double>()}}, name, options);
    for (const auto& [path, want] : test["modules"].items()) {
      INFO(path);
      const Lora<double>& lora = *mixed->find(ModuleId(path));
      REQUIRE(lora.r() == want["r"].get<Index>());
      REQUIRE(lora.scaling() == want["scaling"].get<double>());
      check_values(VectorView<const double>(delta_of(lora).flat()), want["delta"], 2e-5);
      if (by_product) continue;
      check_values(lora.a().flat(), want["a"], 2e-6);
      check_values(lora.b().flat(), want["b"], 2e-6);
    }
    // What the configuration says makes the same modules.
    REQUIRE(make_adapter<double>("again", mixed->config(), toy.sites(), 1)->module_count() == mixed->module_count());
  }
  const auto refused = [&](CombinationOptions options, const char* text) {
    REQUIRE_THROWS_WITH(add_weighted_adapter<double>(toy.registry, {{"default", 1.0}}, "x", options), Catch::Contains(text));
  };
  refused({.combination_type = "sum"}, "combination_type is \"sum\"");
  refused({.combination_type = "ties"}, "density is not set");
  refused({.combination_type = "ties", .density = 1.5}, "density is 1.5");
  refused({.svd_rank = 0}, "svd_rank is 0");
  refused({.svd_clamp = 2.0}, "svd_clamp is 2");
  REQUIRE_THROWS_WITH(add_weighted_adapter<double>(toy.registry, {{"third", 1.0}}, "x"), Catch::Contains("third"));
  toy.registry.add_adapter("wide", LoraConfig{.r = 5, .target_modules = kBoth}, toy.sites(), 1);
  REQUIRE_THROWS_WITH(add_weighted_adapter<double>(toy.registry, {{"default", 1.0}, {"wide", 1.0}}, "x", {.combination_type = "linear"}),
                      Catch::Contains("ranks 3 and 5"));
  CombinationOptions cat{.combination_type = "cat"};
  REQUIRE(add_weighted_adapter<double>(toy.registry, {{"default", 1.0}, {"wide", 1.0}}, "both", cat)->config().r == 8);
}

TEST_CASE("AdaLoRA's regulariser and allocator are PEFT's, step by step; a finished adapter loads") {
  const Json golden = read_golden("adalora_allocator.json");
  AdaLoraConfig config{.target_r = 2, .init_r = 4, .tinit = 2, .tfinal = 4, .deltaT = 2, .total_step = 14, .lora_alpha = 4,
                       .target_modules = kBoth};
  Toy<float> toy;
  const auto adapter = toy.registry.add_adapter("default", config, toy.sites(), 1);
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    const Json& start = golden["start"][std::string(info.name)];
    for (Index i = 0; i < value.size; ++i) value[i] = start[static_cast<std::size_t>(i)].get<float>();
  });
  AdaLoraAllocator<float> allocator(*adapter);
  REQUIRE(allocator.add_regularization(0.5) == Approx(golden["regularisation"]["loss"].get<double>()).epsilon(1e-5));
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
    INFO(info.name);
    check_values(grad, golden["regularisation"]["grads"][std::string(info.name)], 1e-5);
  });
  Index step = 0;
  for (const Json& want : golden["steps"]) {
    INFO("step " << ++step);
    adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float> grad) {
      const Json& given = want["grads"][std::string(info.name)];
      for (Index i = 0; i < value.size; ++i) {
        grad[i] = given[static_cast<std::size_t>(i)].get<float>();
        value[i] -= 0.0625f * grad[i];
      }
    });
    allocator.update_and_allocate(step);
    adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
      if (want["e"].contains(std::string(info.name))) check_values(value, want["e"][std::string(info.name)], 1e-5);
    });
    const auto& pattern = adapter->config_as<AdaLoraConfig>()->rank_pattern;
    REQUIRE(want["rank_pattern"].is_null() == pattern.empty());
    for (const auto& [key, kept] : pattern) {
      INFO(key);
      REQUIRE(kept == want["rank_pattern"][key].get<std::vector<bool>>());
    }
  }
  // PEFT saves the columns that are left; a module may have none.
  Toy<float> other;
  const auto finished = load_adapter<float>(other.registry, kFamily / "saved" / "adalora_finished", "default", other.sites());
  REQUIRE(finished->find<AdaLora<float>>(ModuleId("layers.1.v_proj"))->rank() == 0);
  REQUIRE(finished->find<AdaLora<float>>(ModuleId("layers.0.q_proj"))->rank() == 4);
  Matrix<float> x(3, 12), with(3, 8), without(3, 8), full(3, 8);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  for (const char* name : {"layers.0.v_proj", "layers.1.v_proj"}) {
    other.linear(name)->forward(x.view(), with.view(), other.registry.selection_of("default"), ExecutorRef());
    toy.linear(name)->forward(x.view(), full.view(), toy.registry.selection_of("default"), ExecutorRef());
    for (Index i = 0; i < with.size(); ++i) REQUIRE(with.data()[i] == Approx(full.data()[i]).margin(1e-5));
  }
}

TEST_CASE("LoRA+ steps as PEFT's optimizer does") {
  const Json golden = read_golden("loraplus.json");
  Toy<float> toy;
  const auto adapter = toy.registry.add_adapter(
      "default", LoraConfig{.r = 2, .lora_alpha = 4, .target_modules = {"embed_tokens", "q_proj"}}, toy.sites(), 1);
  const auto set = [&](const Json& values, bool gradients) {
    adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float> grad) {
      const Json& given = values[std::string(info.name)];
      REQUIRE(static_cast<Index>(given.size()) == value.size);
      for (Index i = 0; i < value.size; ++i) (gradients ? grad : value)[i] = given[static_cast<std::size_t>(i)].get<float>();
    });
  };
  set(golden["start"], false);
  AdamW<float> optimizer({.weight_decay = 0.1, .loraplus_lr_ratio = 16.0, .loraplus_embedding_ratio = 0.1});
  for (const Json& grads : golden["grads"]) {
    set(grads, true);
    optimizer.step(*adapter, 0.01);
  }
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    INFO(info.name);
    check_values(value, golden["end"][std::string(info.name)], 1e-6);
  });
}

TEST_CASE("aLoRA acts from its invocation tokens on, where PEFT's does") {
  const Json golden = read_golden("alora.json");
  LoraConfig config{.r = 3, .lora_alpha = 6, .target_modules = kBoth, .init_lora_weights = false};
  config.alora_invocation_tokens = golden["tokens"].get<std::vector<Index>>();
  LoraConfig plain = config;
  plain.alora_invocation_tokens.clear();
  Toy<float> toy;
  toy.registry.add_adapter("activated", config, toy.sites(), 1);
  toy.registry.add_adapter("plain", plain, toy.sites(), 1);  // the same numbers
  std::vector<std::int32_t> ids;
  std::vector<Index> offsets{0};
  for (const Json& sequence : golden["sequences"]) {
    for (const Json& id : sequence) ids.push_back(id.get<std::int32_t>());
    offsets.push_back(static_cast<Index>(ids.size()));
  }
  const VectorView<const std::int32_t> view{ids.data(), static_cast<Index>(ids.size())};
  const Selection<float> selection = activate_invoked(toy.registry.selection_of("activated"), view, offsets);
  AdaptedLinear<float>& layer = *toy.linear("layers.0.q_proj");
  Matrix<float> x(view.size, 12), y(view.size, 10), base(view.size, 10), with(view.size, 10);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = 0.25f * static_cast<float>((i * 5) % 9) - 1.0f;
  layer.forward(x.view(), y.view(), selection, ExecutorRef());
  layer.forward(x.view(), base.view(), Selection<float>(), ExecutorRef());
  layer.forward(x.view(), with.view(), toy.registry.selection_of("plain"), ExecutorRef());
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const Json& offset = golden["offsets"][s];
    const Index start = offset.is_null() ? offsets[s + 1] : offsets[s + 1] - offset.get<Index>();
    for (Index row = offsets[s]; row < offsets[s + 1]; ++row) {
      const Matrix<float>& want = row < start ? base : with;
      for (Index j = 0; j < 10; ++j) REQUIRE(y(row, j) == Approx(want(row, j)).margin(1e-5));
    }
  }
  // Gradients are those of the rows where it acts, under dropout too.
  for (const bool dropout : {false, true}) {
    const TrainContext<float> all{.selection = selection, .seed = 3, .step = 4, .first_row = 0, .dropout = dropout};
    AdaptedLinear<float>::Saved saved;
    const auto adapter = toy.registry.adapter("activated");
    adapter->zero_grad();
    Matrix<float> dx(view.size, 12), plain_dx(view.size, 12), dy = y.clone();
    layer.forward(x.view(), y.view(), saved, all, ExecutorRef());
    layer.backward(dy.view(), x.view(), saved, dx.view(), Accumulate::kOverwrite, all, ExecutorRef());
    const Matrix<float> grad = adapter->find(layer.module())->grad_a().clone();
    adapter->zero_grad();
    Matrix<float> cut = dy.clone();  // dy without the other rows, through the adapter alone
    const auto& rows = *selection.active().front().rows;
    for (Index i = 0; i < cut.rows(); ++i) {
      for (Index j = 0; j < cut.cols() && rows[static_cast<std::size_t>(i)] == 0; ++j) cut(i, j) = 0.0f;
    }
    const TrainContext<float> everywhere{toy.registry.selection_of("activated"), 3, 4, 0, dropout};
    layer.forward(x.view(), y.view(), saved, everywhere, ExecutorRef());
    layer.backward(cut.view(), x.view(), saved, plain_dx.view(), Accumulate::kOverwrite, everywhere, ExecutorRef());
    const Matrix<float>& want = adapter->find(layer.module())->grad_a();
    for (Index i = 0; i < grad.size(); ++i) REQUIRE(grad.data()[i] == Approx(want.data()[i]).margin(1e-4));
  }
  REQUIRE_THROWS_WITH(merged_layer(layer, selection), Catch::Contains("acts from its invocation tokens on"));
  const std::vector<Index> wrong{0, 3};
  REQUIRE_THROWS_AS(activate_invoked(selection, view, wrong), ShapeError);
  Matrix<float> few(2, 12), out(2, 10);
  REQUIRE_THROWS_WITH(layer.forward(few.view(), out.view(), selection, ExecutorRef()), Catch::Contains("whether an adapter acts"));
}

TEST_CASE("Every field of every configuration of PEFT is supported or refused by name") {
  const Json golden = read_golden("config_fields.json");
  std::size_t configurations = 0;
  const auto walk = [&](const Json& fields, const char* type, auto&& supported) {
    ++configurations;
    Json plain = fields;
    plain["peft_type"] = type;
    plain["target_modules"] = Json::array({"q_proj"});
    if (plain.contains("total_step")) plain["total_step"] = 100;
    REQUIRE(adapter_config_from_json(plain, "test").peft_type() == type);
    for (const auto& [name, standard] : fields.items()) {
      INFO(type << " " << name);
      if (name == "peft_type" || name == "auto_mapping" || name == "peft_version" || supported(name)) continue;
      bool refused = false;
      for (const char* other : {"true", "8", R"("other")", "[1]", R"({"a": 1})"}) {
        Json changed = plain;
        changed[name] = Json::parse(other);
        if (changed[name] == standard) continue;
        try {
          adapter_config_from_json(changed, "test");
          FAIL("taken without being supported");
        } catch (const ConfigError& error) {
          refused = std::string(error.what()).find(name) != std::string::npos;
          REQUIRE(refused);
        }
      }
      REQUIRE(refused);
    }
  };
  const auto by_fields = [&]<class Config>() {
    if (!golden.contains(std::string(Config::kName == "LnTuningConfig" ? "LNTuningConfig"
                                     : Config::kName == "Ia3Config"    ? "IA3Config"
                                     : Config::kName == "LohaConfig"   ? "LoHaConfig"
                                     : Config::kName == "LokrConfig"   ? "LoKrConfig"
                                                                       : Config::kName))) {
      return;
    }
    const std::string name(Config::kName == "LnTuningConfig" ? "LNTuningConfig"
                           : Config::kName == "Ia3Config"    ? "IA3Config"
                           : Config::kName == "LohaConfig"   ? "LoHaConfig"
                           : Config::kName == "LokrConfig"   ? "LoKrConfig"
                                                             : Config::kName);
    std::vector<std::string> known;
    Config config;
    Config::for_each_field(config, [&](std::string_view field, auto&) { known.emplace_back(field); });
    for (const std::string& field : known) REQUIRE(golden[name].contains(field));
    walk(golden[name], std::string(Config::kPeftType).c_str(),
         [&](const std::string& field) { return std::find(known.begin(), known.end(), field) != known.end(); });
  };
  detail::for_each_config_type(by_fields);
  const std::vector<std::string> lora{
      "task_type", "base_model_name_or_path", "revision", "inference_mode", "r", "target_modules", "exclude_modules",
      "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save", "init_lora_weights",
      "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias", "use_dora",
      "trainable_token_indices", "alora_invocation_tokens", "eva_config", "loftq_config"};
  walk(golden["LoraConfig"], "LORA",
       [&](const std::string& field) { return std::find(lora.begin(), lora.end(), field) != lora.end(); });
  REQUIRE(configurations == golden.size());
}
