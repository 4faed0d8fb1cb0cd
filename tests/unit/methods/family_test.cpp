// LoRA's relatives by name: fresh adapters leave the model as it is, bad configurations and bases are refused, merges are
// safe.
#include <cstring>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/dense_linear.hpp"
#include "peft/merge.hpp"
#include "support/catch.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;

namespace {

constexpr Index kIn = 24, kOut = 18, kRows = 5, kVocabulary = 11;

/// Two linears, a norm with a bias, an embedding.
struct Model {
  std::vector<std::unique_ptr<AdaptedLinear<float>>> linears;
  std::vector<AdaptedLinear<float>*> linear_sites;
  Matrix<float> table = random_matrix<float>(kVocabulary, kIn, 9), norm_weight = random_matrix<float>(1, kIn, 10),
                norm_bias = random_matrix<float>(1, kIn, 11);
  AdaptedNorm<float> norm{"block.norm", std::as_const(norm_weight).flat(), std::as_const(norm_bias).flat()};
  AdaptedEmbedding<float> embedding{"embed_tokens", std::as_const(table).view(), nullptr};
  AdaptedNorm<float>* norm_sites[1] = {&norm};
  AdaptedEmbedding<float>* embedding_sites[1] = {&embedding};
  AdapterRegistry<float> registry;

  Model() {
    for (const char* name : {"block.q_proj", "block.v_proj"}) {
      Buffer<float> bias(kOut);
      for (Index j = 0; j < kOut; ++j) bias[j] = 0.1f * static_cast<float>(j) - 0.7f;
      linears.push_back(std::make_unique<AdaptedLinear<float>>(
          name, DenseLinear<float>(random_matrix<float>(kOut, kIn, 20 + linears.size(), 0.2f), std::move(bias))));
      linear_sites.push_back(linears.back().get());
    }
  }
  AdapterSites<float> sites() { return {linear_sites, embedding_sites, norm_sites, nullptr}; }
};

const ModuleSelector kBoth = {"q_proj", "v_proj"};

Matrix<float> run(const AdaptedLinear<float>& layer, const Selection<float>& selection) {
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 1);
  Matrix<float> y(kRows, kOut);
  layer.forward(x.view(), y.view(), selection, ExecutorRef());
  return y;
}

double difference(const Matrix<float>& x, const Matrix<float>& y) {
  double largest = 0;
  for (Index i = 0; i < x.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(x.data()[i]) - static_cast<double>(y.data()[i])));
  }
  return largest;
}

LoraConfig dora() {
  LoraConfig config{.r = 4, .lora_alpha = 8, .target_modules = kBoth};
  config.use_dora = true;
  return config;
}
AdaLoraConfig adalora() { return {.init_r = 3, .total_step = 10, .target_modules = kBoth}; }

template <class Visit>
void for_each_method(Visit&& visit) {
  LoraConfig biased{.r = 4, .target_modules = kBoth};
  biased.lora_bias = true;
  biased.bias = "all";
  LoraConfig saved{.r = 4, .target_modules = {"q_proj"}, .modules_to_save = {"v_proj", "norm", "embed_tokens"}};
  LoraConfig tokens{.r = 4, .target_modules = {"q_proj", "embed_tokens"}};
  tokens.trainable_token_indices = {{"", {3, 7}}};
  visit("lora", LoraConfig{.r = 4, .target_modules = kBoth});
  visit("biased", biased);
  visit("saved", saved);
  visit("tokens", tokens);
  visit("dora", dora());
  visit("ia3", Ia3Config{.target_modules = kBoth});
  visit("ia3_in", Ia3Config{.target_modules = kBoth, .feedforward_modules = {"v_proj"}});
  visit("vera", VeraConfig{.r = 6, .target_modules = kBoth});
  visit("loha", LohaConfig{.r = 2, .target_modules = kBoth});
  visit("lokr", LokrConfig{.r = 2, .target_modules = kBoth});
  visit("adalora", adalora());
  visit("norms", LnTuningConfig{.target_modules = {"norm"}});
  visit("full", FullConfig{});
  visit("bitfit", FullConfig{.bias_only = true});
}

}  // namespace

TEST_CASE("A fresh adapter of any method leaves the model as it is, and a changed one does not") {
  for_each_method([](const char* name, const auto& config) {
    INFO(name);
    Model model;
    const auto adapter = model.registry.add_adapter(name, config, model.sites(), 5);
    REQUIRE(adapter->any_config().peft_type() == std::decay_t<decltype(config)>::kPeftType);
    REQUIRE(adapter->parameter_count() > 0);
    const Selection<float> selection = model.registry.selection_of(name);
    const std::vector<std::int32_t> ids{3, 1, 7};
    const auto embedded = [&](const Selection<float>& active) {
      Matrix<float> rows(3, kIn);
      model.embedding.forward({ids.data(), 3}, rows.view(), active, ExecutorRef());
      return rows;
    };
    const auto norm_values = [&](const Selection<float>& active) {
      const auto values = model.norm.values(active);
      Matrix<float> result(2, kIn);
      std::copy(values.weight.begin(), values.weight.end(), result.row(0));
      std::copy(values.bias.begin(), values.bias.end(), result.row(1));
      return result;
    };
    const auto change = [&](const Selection<float>& active) {
      double largest = difference(embedded(active), embedded({}));
      largest = std::max(largest, difference(norm_values(active), norm_values({})));
      for (const AdaptedLinear<float>* layer : model.linear_sites) {
        largest = std::max(largest, difference(run(*layer, active), run(*layer, {})));
      }
      return largest;
    };
    REQUIRE(change(selection) < 1e-5);  // sums of 24 products of a few units
    adapter->for_each_weight([seed = std::uint64_t{1}](const ParameterInfo&, VectorView<float> value, VectorView<float>) mutable {
      Philox random(seed++);
      for (float& number : value) number += 0.5f + 0.1f * random.normal();
    });
    REQUIRE(change(selection) > 0.01);
    // Two of them, each at its half, and none of them at weight 0.
    REQUIRE(change(model.registry.selection_of({{name, 0.0}})) < 1e-5);
    // Merged and back.
    std::vector<Matrix<float>> before, adapted;
    for (const AdaptedLinear<float>* layer : model.linear_sites) {
      before.push_back(run(*layer, {}));
      adapted.push_back(run(*layer, selection));
    }
    auto merged = merge_adapter<float>(model.linear_sites, selection);
    for (std::size_t i = 0; i < 2; ++i) REQUIRE(difference(run(*model.linear_sites[i], selection), adapted[i]) < 1e-3);
    unmerge_adapter(merged);
    for (std::size_t i = 0; i < 2; ++i) {
      const Matrix<float> after = run(*model.linear_sites[i], {});
      REQUIRE(std::memcmp(after.data(), before[i].data(), static_cast<std::size_t>(after.size()) * sizeof(float)) == 0);
    }
    // A broken number is refused, and nothing changes.
    bool on_linear = false;
    adapter->for_each_part([&](const std::string&, AnyPart<float>& part) {
      if (on_linear || part.update() == nullptr) return;
      part.for_each_weight([&](const ParameterInfo&, VectorView<float> value, VectorView<float>) {
        if (!on_linear) value[0] = std::numeric_limits<float>::quiet_NaN();
        on_linear = true;
      }, "");
    });
    if (!on_linear) return;
    REQUIRE_THROWS_AS(merge_adapter<float>(model.linear_sites, selection), NumericError);
    for (std::size_t i = 0; i < 2; ++i) {
      const Matrix<float> after = run(*model.linear_sites[i], {});
      REQUIRE(std::memcmp(after.data(), before[i].data(), static_cast<std::size_t>(after.size()) * sizeof(float)) == 0);
      REQUIRE_FALSE(model.linear_sites[i]->is_merged());
    }
  });
}

TEST_CASE("What a configuration asks for and the host does not have is refused by name") {
  Model model;
  const auto refused = [&](const auto& config, const char* text) {
    REQUIRE_THROWS_WITH(model.registry.add_adapter("x", config, model.sites(), 1), Catch::Contains(text));
    REQUIRE(model.registry.names().empty());
  };
  refused(Ia3Config{.target_modules = {"q_proj"}, .feedforward_modules = {"v_proj"}}, "feedforward_modules names \"v_proj\"");
  refused(Ia3Config{.target_modules = {"query"}}, "Ia3Config: target_modules = [\"query\"] matches none");
  refused(Ia3Config{}, "Ia3Config: target_modules is null");
  refused(VeraConfig{.r = 0, .target_modules = kBoth}, "VeraConfig: r is 0");
  refused(VeraConfig{.target_modules = kBoth, .save_projection = false}, "save_projection is false");
  refused(LohaConfig{.rank_dropout = 0.1, .target_modules = kBoth}, "LohaConfig: rank_dropout is 0.1");
  refused(LokrConfig{.module_dropout = 0.1, .target_modules = kBoth}, "LokrConfig: module_dropout is 0.1");
  refused(LokrConfig{.decompose_factor = 0, .target_modules = kBoth}, "decompose_factor is 0");
  refused(AdaLoraConfig{.target_modules = kBoth}, "total_step is 0");
  refused(AdaLoraConfig{.tinit = 5, .tfinal = 5, .total_step = 10, .target_modules = kBoth}, "expected tinit < total_step - tfinal");
  refused(AdaLoraConfig{.beta1 = 1.0, .total_step = 10, .target_modules = kBoth}, "beta1 is 1");
  refused(LnTuningConfig{.target_modules = {"q_proj"}}, "LnTuningConfig: target_modules");
  refused(LoraConfig{.target_modules = kBoth, .modules_to_save = {"score"}}, "modules_to_save names \"score\"");
  refused(LoraConfig{.target_modules = kBoth, .modules_to_save = {"q_proj"}}, "in target_modules and in modules_to_save");
  LoraConfig config{.target_modules = {"q_proj", "embed_tokens"}};
  config.use_dora = true;
  refused(config, "use_dora is set, and target_modules means the embedding embed_tokens");
  config = LoraConfig{.target_modules = kBoth};
  config.trainable_token_indices = {{"", {kVocabulary}}};
  refused(config, "trainable_token_indices holds 11, and embed_tokens has 11 rows");
  config.trainable_token_indices = {{"other", {1}}};
  refused(config, "trainable_token_indices is of \"other\"");
  config.trainable_token_indices = {{"", {2, 2}}};
  refused(config, "token 2 is given twice");

  AdaptedLinear<float> plain("block.q_proj", foreign::ForwardOnly<float>(kIn, kOut, 1));
  AdaptedLinear<float>* sites[] = {&plain};
  LoraConfig on_plain{.target_modules = {"q_proj"}};
  on_plain.use_dora = true;
  REQUIRE_THROWS_WITH(model.registry.add_adapter("x", on_plain, sites, 1), Catch::Contains("peft::PanelSource"));
  model.registry.add_adapter("ia3", Ia3Config{.target_modules = {"q_proj"}}, sites, 1);
  REQUIRE_THROWS_WITH(merge_adapter<float>(sites, model.registry.selection_of("ia3")),
                      Catch::Contains("block.q_proj") && Catch::Contains("peft::RewritableLinear"));
  REQUIRE_THROWS_WITH(model.registry.adapter("ia3")->config(), Catch::Contains("it is of peft_type IA3; expected LORA"));
}

TEST_CASE("Rows that are trained in a tied embedding are rows of its head too") {
  Matrix<float> table = random_matrix<float>(kVocabulary, kIn, 9);
  AdaptedEmbedding<float> embedding("embed_tokens", std::as_const(table).view(), nullptr);
  AdaptedLinear<float> head("lm_head", DenseLinear<float>(std::as_const(table).view(), nullptr));
  AdaptedLinear<float> q("q_proj", DenseLinear<float>(random_matrix<float>(kOut, kIn, 4)));
  AdaptedLinear<float>* linears[] = {&q};
  AdaptedEmbedding<float>* embeddings[] = {&embedding};
  AdapterRegistry<float> registry;
  LoraConfig config{.r = 2, .target_modules = {"q_proj"}};
  config.trainable_token_indices = {{"embed_tokens", {4, 8}}};
  const auto adapter = registry.add_adapter("default", config, AdapterSites<float>(linears, embeddings, {}, &head), 1);
  const Selection<float> selection = registry.selection_of("default");
  TrainableTokens<float>& tokens = *adapter->find<TrainableTokens<float>>(embedding.module());
  for (float& value : tokens.rows().value().flat()) value += 0.5f;
  const Matrix<float> x = random_matrix<float>(kRows, kIn, 1), dy = random_matrix<float>(kRows, kVocabulary, 2);
  Matrix<float> y(kRows, kVocabulary), base(kRows, kVocabulary), dx(kRows, kIn);
  AdaptedLinear<float>::Saved saved;
  const TrainContext<float> context{.selection = selection};
  head.forward(x.view(), y.view(), saved, context, ExecutorRef());
  head.forward(x.view(), base.view(), Selection<float>(), ExecutorRef());
  for (Index i = 0; i < kRows; ++i) {
    for (Index token = 0; token < kVocabulary; ++token) {
      float want = base(i, token);
      const Index place = tokens.shared()->place_of(static_cast<std::int32_t>(token));
      if (place >= 0) {
        want = 0;
        for (Index k = 0; k < kIn; ++k) want += x(i, k) * tokens.rows().value()(place, k);
      }
      REQUIRE(y(i, token) == Approx(want).margin(1e-4));
    }
  }
  head.backward(dy.view(), x.view(), saved, dx.view(), Accumulate::kOverwrite, context, ExecutorRef());
  for (Index place = 0; place < 2; ++place) {
    for (Index k = 0; k < kIn; ++k) {
      float want = 0;
      for (Index i = 0; i < kRows; ++i) want += dy(i, place == 0 ? 4 : 8) * x(i, k);
      REQUIRE(tokens.rows().grad()(place, k) == Approx(want).margin(1e-4));
    }
  }
}
