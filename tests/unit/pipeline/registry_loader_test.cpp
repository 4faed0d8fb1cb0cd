// Adapters between PEFT's folders and a registry: what PEFT saved computes the same here.

#include "peft/pipeline/registry_loader.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "peft/dense_linear.hpp"
#include "support/catch.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace io_test;

namespace {

const std::filesystem::path kGoldens = std::filesystem::path(PEFT_GOLDEN_DIR) / "checkpoint";

/// The linear layers of the model that the golden script adapts, with weights of zero: what comes out is the update.
template <class T>
struct Host {
  std::vector<AdaptedLinear<T>> layers;
  std::vector<AdaptedLinear<T>*> sites;
  AdapterRegistry<T> registry;

  explicit Host(int blocks = 2) {
    const auto add = [this](const std::string& name, Index in, Index out) {
      layers.emplace_back(name, DenseLinear<Accumulator<T>>(Matrix<Accumulator<T>>::zeros(out, in)));
    };
    for (int block = 0; block < blocks; ++block) {
      const std::string prefix = "model.layers." + std::to_string(block);
      for (const char* name : {"q_proj", "o_proj"}) add(prefix + ".self_attn." + name, 32, 32);
      for (const char* name : {"k_proj", "v_proj"}) add(prefix + ".self_attn." + name, 32, 16);
      for (const char* name : {"gate_proj", "up_proj"}) add(prefix + ".mlp." + name, 32, 48);
      add(prefix + ".mlp.down_proj", 48, 32);
    }
    add("lm_head", 32, 64);
    for (auto& layer : layers) sites.push_back(&layer);
  }
  std::span<AdaptedLinear<T>* const> all() const { return sites; }

  std::vector<double> run(const AdaptedLinear<T>& layer) const {
    Matrix<T> x(1, layer.in_features()), y(1, layer.out_features());
    for (Index i = 0; i < x.cols(); ++i) x.flat()[i] = static_cast<T>(static_cast<float>((i * 7) % 13 - 6) / 8.0f);
    layer.forward(std::as_const(x).view(), y.view(), registry.selection(), ExecutorRef());
    return {y.flat().begin(), y.flat().end()};
  }
};

const Json& golden() {
  static const Json json = parse_json(read_file(kGoldens / "peft_lora.json"), "golden");
  return json;
}

template <class T>
void check_updates(Host<T>& host, const char* name, double tolerance) {
  host.registry.set_adapter(name);
  const Json& expected = golden()[name]["update"];
  std::size_t adapted = 0;
  for (const AdaptedLinear<T>& layer : host.layers) {
    INFO(name << ", " << layer.name());
    const std::vector<double> y = host.run(layer);
    if (!expected.contains(layer.name())) {
      for (const double value : y) CHECK(value == 0.0);
      continue;
    }
    ++adapted;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto wanted = expected[layer.name()][i].template get<double>();
      CHECK(std::abs(y[i] - wanted) <= tolerance * (1 + std::abs(wanted)));
    }
  }
  CHECK(adapted == expected.size());
}

}  // namespace

TEMPLATE_TEST_CASE("registry: what PEFT saved is loaded side by side and computes the same", "", float, double) {
  Host<TestType> host;
  for (const char* name : {"default", "second", "half", "brain"}) {
    const auto folder = std::string_view(name) == "default" ? kGoldens / "peft_lora" : kGoldens / "peft_lora" / name;
    const auto adapter = load_adapter<TestType>(host.registry, folder, name, host.all());
    CHECK(adapter->name() == name);
    const Json& scaling = golden()[name]["scaling"];
    CHECK(adapter->module_count() == static_cast<Index>(scaling.size()));
    adapter->for_each_module([&](const std::string& module, Lora<TestType>& lora) {
      CHECK(lora.scaling() == Approx(scaling[module].template get<double>()).epsilon(1e-14));
      CHECK(lora.dropout() == adapter->config().lora_dropout);
    });
    CHECK(host.registry.active_adapters().size() <= 1);  // loading does not switch
  }
  CHECK(host.registry.names() == std::vector<std::string>{"default", "second", "half", "brain"});
  for (const char* name : {"second", "brain", "default", "half"}) {
    check_updates(host, name, 1e-6);  // PEFT multiplies B by A in float
  }
}

TEST_CASE("registry: what is saved is loaded again, bit for bit, and is PEFT's own file") {
  Host<float> host;
  const ScratchFolder folder;
  load_adapter<float>(host.registry, kGoldens / "peft_lora", "default", host.all());
  load_adapter<float>(host.registry, kGoldens / "peft_lora/second", "second", host.all());
  save_pretrained(host.registry, "default", folder.path());
  save_pretrained(host.registry, "second", folder.path());
  for (const char* name : {"adapter_model.safetensors", "second/adapter_model.safetensors"}) {
    CHECK(read_file(folder / name) == read_file(kGoldens / "peft_lora" / name));
  }
  Host<float> other;
  load_adapter<float>(other.registry, folder.path(), "default", other.all());
  load_adapter<float>(other.registry, folder / "second", "second", other.all());
  for (const char* name : {"default", "second"}) {
    CHECK(other.registry.adapter(name)->config() == host.registry.adapter(name)->config());
    check_updates(other, name, 1e-6);
  }
  CHECK_THROWS_AS(save_pretrained(host.registry, "third", folder.path()), ConfigError);

  // A model in double saves doubles, which come back whole.
  Host<double> exact;
  const auto adapter = exact.registry.add_adapter("default", LoraConfig{.r = 2, .target_modules = {"q_proj"}},
                                                  exact.all(), 3);
  const ModuleId module("model.layers.1.self_attn.q_proj");
  adapter->find(module)->b().flat()[5] = 1.0 / 3.0;
  save_pretrained(*adapter, folder / "exact");
  Host<double> again;
  const auto loaded = load_adapter<double>(again.registry, folder / "exact", "copy", again.all());
  CHECK(loaded->find(module)->b().flat()[5] == 1.0 / 3.0);
  Host<float> narrow;
  const auto rounded = load_adapter<float>(narrow.registry, folder / "exact", "copy", narrow.all());
  CHECK(rounded->find(module)->b().flat()[5] == 1.0f / 3.0f);
}

TEST_CASE("registry: an adapter that does not fit is refused by key, and nothing is kept") {
  Host<float> host, one_block(1), three_blocks(3);
  const ScratchFolder folder;
  const auto refused = [&](Host<float>& target, const std::filesystem::path& from, const char* expected,
                           const char* name = "default") {
    const auto before = target.registry.names();
    const std::string message =
        message_of<Error>([&] { load_adapter<float>(target.registry, from, name, target.all()); });
    INFO(message);
    CHECK(message.find(expected) != std::string::npos);
    CHECK(target.registry.names() == before);
  };
  refused(one_block, kGoldens / "peft_lora",
          "4 of its 8 keys match no parameter of the model: model.layers.1.self_attn");
  refused(three_blocks, kGoldens / "peft_lora",
          "4 parameters of the model have no key in it: model.layers.2.self_attn.q_proj.lora_A.weight");
  AdapterMatching matching;
  matching.allow_unused_keys = true;
  CHECK(load_adapter<float>(one_block.registry, kGoldens / "peft_lora", "a", one_block.all(), matching)
            ->module_count() == 2);
  matching = {};
  matching.allow_missing_keys = true;
  load_adapter<float>(three_blocks.registry, kGoldens / "peft_lora", "default", three_blocks.all(), matching);
  check_updates(three_blocks, "default", 1e-6);  // the third block's gets none

  const auto spoilt = [&](const std::string& module, Index in, Index out, float value) {
    const Matrix<float> a = Matrix<float>::zeros(4, in);
    Matrix<float> b = Matrix<float>::zeros(out, 4);
    b.flat()[7] = value;
    const std::vector<TensorRef> tensors{tensor_ref("base_model.model." + module + ".lora_A.weight", a.view()),
                                         tensor_ref("base_model.model." + module + ".lora_B.weight",
                                                    std::as_const(b).view())};
    write_file(folder / "adapter_config.json",
               R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["model.layers.0.mlp.up_proj"]})");
    write_safetensors(folder / "adapter_model.safetensors", tensors);
  };
  const std::string up = "model.layers.0.mlp.up_proj";
  spoilt(up, 32, 48, 1.0f);
  load_adapter<float>(host.registry, folder.path(), "good", host.all());
  spoilt(up, 32, 47, 1.0f);
  refused(host, folder.path(), "model.layers.0.mlp.up_proj.lora_B.weight is [47, 4], the model's is [48, 4]");
  spoilt(up, 31, 48, 1.0f);
  refused(host, folder.path(), "lora_A.weight is [4, 31], the model's is [4, 32]");
  spoilt(up, 32, 48, std::numeric_limits<float>::infinity());
  refused(host, folder.path(), "lora_B.weight holds inf at [1, 3]");
  spoilt("transformer.h.0.c_attn", 32, 48, 1.0f);
  refused(host, folder.path(), "2 of its 2 keys match no parameter of the model: transformer.h.0.c_attn");
  write_file(folder / "adapter_config.json", R"({"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"]})");
  refused(host, folder.path(), "matches none of");
  spoilt(up, 32, 48, 1.0f);
  refused(host, folder.path(), "there is an adapter \"good\" already", "good");
  refused(host, folder / "none", "there is no such folder");

  write_file(folder / "adapter_config.json",
             R"({"peft_type": "LORA", "r": 4, "target_modules": ["up_proj"], "use_qalora": true})");
  refused(host, folder.path(), "it sets use_qalora to true; QA-LoRA is not supported");
  write_file(folder / "adapter_config.json",
             R"({"peft_type": "LORA", "r": 4, "target_modules": ["up_proj"], "use_dora": true})");
  refused(host, folder.path(), "4 parameters of the model have no key in it: model.layers.0.mlp.up_proj.lora_magnitude_vector");
  write_file(folder / "adapter_config.json", R"({"peft_type": "BOFT", "target_modules": ["up_proj"]})");
  refused(host, folder.path(), "peft_type is \"BOFT\"; expected one of LORA, IA3, VERA");
}

TEST_CASE("registry: a save on a full disk or without permission leaves the old adapter") {
  Host<float> host;
  const ScratchFolder folder;
  const auto adapter = load_adapter<float>(host.registry, kGoldens / "peft_lora", "default", host.all());
  save_pretrained(*adapter, folder.path());
  const std::string old = read_file(folder / "adapter_model.safetensors");
  for (Index i = 0; i < 8; ++i) adapter->find(ModuleId("model.layers.0.self_attn.q_proj"))->a().flat()[i] = 7.0f;
  for (const int error : {ENOSPC, EACCES}) {
    const std::string failing = error == ENOSPC ? "write" : "mkdir";
    FaultyCalls calls([&](int, const std::string& call) { return call == failing ? error : 0; });
    CHECK_THROWS_WITH(save_pretrained(*adapter, folder.path()),
                      Catch::Contains(error_text(error)) && Catch::Contains(folder.path().string()));
  }
  CHECK(read_file(folder / "adapter_model.safetensors") == old);
  CHECK(names_in(folder.path()).size() == 2);
  save_pretrained(*adapter, folder.path());
  CHECK(read_file(folder / "adapter_model.safetensors") != old);
}
