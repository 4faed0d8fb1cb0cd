// Gradients of a Llama host's bottleneck adapters by central differences in double, alone and with everything else that can
// be trained at once; and what they compute, with caches and written out.
#include "hosts/llama.hpp"

#include <string>

#include "gradient/hosts/llama_gradients.hpp"
#include "peft/prefix_cache.hpp"
#include "support/catch.hpp"
#include "support/tiny_llama.hpp"

using namespace peft;
using namespace peft_test;
using peft_examples::KvCache;
using peft_examples::Llama;

namespace {

template <Scalar T>
std::shared_ptr<AdapterSet<T>> adapters_of(AdapterConfig config, Index hidden = 8, Index layers = 2) {
  config.reduction_factor = 2;
  return std::make_shared<AdapterSet<T>>("task", AdapterLayout::kLlama, config, hidden, layers, 7);
}

AdapterConfig with_leave_out(AdapterConfig config, std::vector<Index> layers) {
  config.leave_out = std::move(layers);
  return config;
}

/// What the way of the configurations through the host depends on.
std::vector<AdapterConfig> configurations() {
  std::vector<AdapterConfig> result = {AdapterConfig::seq_bn(), AdapterConfig::double_seq_bn(), AdapterConfig::par_bn(),
                                       AdapterConfig::scaled_par_bn()};
  AdapterConfig one = AdapterConfig::seq_bn();
  one.output_adapter = false;
  one.mh_adapter = true;
  result.push_back(one);
  one = AdapterConfig::double_seq_bn();
  one.original_ln_after = false;
  one.non_linearity = "tanh";
  result.push_back(one);
  one = AdapterConfig::seq_bn();
  one.ln_before = one.ln_after = true;
  one.scaling = "channel";
  one.residual_before_ln = "post_add";
  one.non_linearity = "gelu";
  result.push_back(one);
  one = AdapterConfig::par_bn();
  one.mh_adapter = true;
  one.dropout = 0.25f;
  one.non_linearity = "silu";
  result.push_back(one);
  one = AdapterConfig::double_seq_bn();
  one.dropout = 0.5f;
  result.push_back(one);
  return result;
}

}  // namespace

TEST_CASE("bottleneck adapters at both sites, serial and parallel, with dropout") {
  for (const AdapterConfig& config : configurations()) {
    Llama<double> model = tiny_llama<double>();
    model.set_adapters(adapters_of<double>(config));
    perturb_parameters(model);
    check_gradients(model);
  }
}

TEST_CASE("AdapterFusion in a Llama: its layers alone are trained, through all that stands above them") {
  for (AdapterConfig config : {AdapterConfig::seq_bn(), AdapterConfig::double_seq_bn(), AdapterConfig::par_bn()}) {
    config.reduction_factor = 2;
    config.scaling = 1.0;
    config.non_linearity = "tanh";
    for (const AdapterFusionConfig& fusion : {AdapterFusionConfig::dynamic_fusion(), AdapterFusionConfig::static_fusion()}) {
      std::vector<std::shared_ptr<AdapterSet<double>>> sets;
      for (const char* name : {"a", "b"}) {
        sets.push_back(std::make_shared<AdapterSet<double>>(name, AdapterLayout::kLlama, config, 8, 2, sets.size() + 1));
      }
      Llama<double> model = tiny_llama<double>();
      for (auto& set : sets) {
        model.set_adapters(set);
        perturb_parameters(model, 0.6f);
      }
      sets[1]->for_each_parameter([](const ParameterInfo&, VectorView<double> value, auto) {
        for (Index i = 0; i < value.size; ++i) value[i] += i % 3 == 0 ? 0.35 : -0.2;  // two that differ
      });
      model.set_adapters(AdapterSetup::fuse({"a", "b"}), sets,
                         std::make_shared<AdapterFusionSet<double>>(std::vector<std::string>{"a", "b"}, AdapterLayout::kLlama,
                                                                    fusion, 8, 2, config.mh_adapter, config.output_adapter));
      Index trained = 0;
      model.for_each_parameter([&](const ParameterInfo& info, auto, auto) {
        CHECK(info.name.find(".adapter_fusion_layer.a,b.") != std::string_view::npos);
        ++trained;
      });
      CHECK(trained == (fusion.value ? 5 : 4) * (config.mh_adapter ? 4 : 2));
      perturb_parameters(model);
      model.for_each_parameter([](const ParameterInfo& info, VectorView<double> value, auto) {
        if (info.name.ends_with("value.weight")) return;
        for (double& one : value) one *= 2.5;  // scores that tell the adapters apart
      });
      check_gradients(model, 0.02);
    }
  }
}

TEST_CASE("adapters of some layers only: the backward pass goes down to the lowest") {
  for (const std::vector<Index>& left_out : {std::vector<Index>{0}, {1}}) {
    for (const AdapterConfig& base : {AdapterConfig::seq_bn(), AdapterConfig::double_seq_bn()}) {
      Llama<double> model = tiny_llama<double>();
      model.set_adapters(adapters_of<double>(with_leave_out(base, left_out)));
      perturb_parameters(model);
      check_gradients(model);
    }
  }
}

TEST_CASE("adapters, LoRA, norms, embedding and a prefix are trained at once") {
  Llama<double> model = tiny_llama<double>({.biases = true});
  AdapterRegistry<double> registry;
  LoraConfig lora;
  lora.r = 2;
  lora.lora_dropout = 0.2f;
  lora.bias = "all";
  lora.target_modules = {"q_proj", "down_proj", "embed_tokens"};
  lora.modules_to_save = {"post_attention_layernorm"};
  registry.add_adapter("a", lora, model.adapter_sites(), 1);
  LnTuningConfig norms;
  norms.target_modules = {"input_layernorm"};
  registry.add_adapter("b", norms, model.adapter_sites(), 1);
  registry.set_adapters({{"a", 1.0}, {"b", 0.5}});
  model.select(registry.selection());
  AdapterConfig config = AdapterConfig::double_seq_bn();
  config.dropout = 0.1f;
  model.set_adapters(adapters_of<double>(with_leave_out(config, {1})));
  model.set_prefix(std::make_shared<PrefixCache<double>>(
      PrefixTuningConfig{.num_virtual_tokens = 3}.fit_to(model.prompt_host()), 4));
  perturb_parameters(model, 0.1f);
  CHECK(check_gradients(model).size() > 20);
}

TEST_CASE("what an adapter does is what its equation says, and with caches the same") {
  for (const AdapterConfig& config : configurations()) {
    Llama<double> model = tiny_llama<double>();
    model.set_adapters(adapters_of<double>(config));
    perturb_parameters(model);
    const PackedBatch batch = tiny_llama_batch();
    Matrix<double> whole(batch.tokens(), model.config().vocab_size), last(2, model.config().vocab_size);
    model.logits(batch, whole);
    KvCache<double> first(model.config(), 5), second(model.config(), 3);
    KvCache<double>* caches[] = {&first, &second};
    const std::vector<std::pair<std::vector<std::int32_t>, std::vector<Index>>> steps = {
        {{3, 1, 4, 9}, {3, 1}}, {{1, 2}, {1, 1}}};
    for (const auto& [ids, counts] : steps) {
      std::vector<std::int32_t> now = ids;
      model.infer({now.data(), static_cast<Index>(now.size())}, counts, caches, last);
    }
    for (Index j = 0; j < last.cols(); ++j) {
      CHECK(last(0, j) == Approx(whole(3, j)).margin(1e-12));
      CHECK(last(1, j) == Approx(whole(6, j)).margin(1e-12));
    }
  }
}

TEST_CASE("loading and dropping adapters between calls: without them the base's own numbers") {
  Llama<double> model = tiny_llama<double>();
  const PackedBatch batch = tiny_llama_batch();
  Matrix<double> before(batch.tokens(), 11), with(batch.tokens(), 11), after(batch.tokens(), 11);
  model.logits(batch, before);
  model.set_adapters(adapters_of<double>(AdapterConfig::double_seq_bn()));
  perturb_parameters(model);
  model.logits(batch, with);
  model.set_adapters(nullptr);
  model.logits(batch, after);
  CHECK(std::equal(before.flat().begin(), before.flat().end(), after.flat().begin()));
  CHECK_FALSE(std::equal(before.flat().begin(), before.flat().end(), with.flat().begin()));
}

TEST_CASE("adapters of another model are refused") {
  Llama<double> model = tiny_llama<double>();
  CHECK_THROWS_WITH(model.set_adapters(adapters_of<double>(AdapterConfig::seq_bn(), 8, 3)), Catch::Contains("3 layers"));
  CHECK_THROWS_WITH(model.set_adapters(adapters_of<double>(AdapterConfig::seq_bn(), 6)), Catch::Contains("6 units"));
  AdapterConfig config = AdapterConfig::seq_bn();
  CHECK_THROWS_AS(model.set_adapters(std::make_shared<AdapterSet<double>>("x", AdapterLayout::kBert, config, 8, 2)),
                  ConfigError);
  CHECK(model.adapters() == nullptr);
}
