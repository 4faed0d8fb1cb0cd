// Directories of AdapterHub: those that adapters 1.3.0 saved, those that it loads (tests/golden/check_adapter.py), those
// that are broken, and saves that fail.
#include "peft/checkpoint/adapterhub_directory.hpp"

#include <cstdlib>
#include <functional>

#include "peft/adapter_fusion.hpp"
#include "peft/adapter_set.hpp"
#include "support/catch.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace io_test;

namespace {

const std::filesystem::path kSaved = std::filesystem::path(PEFT_GOLDEN_DIR) / "adapter" / "saved";
const std::filesystem::path kOurs = std::filesystem::path(PEFT_GOLDEN_DIR) / "adapter" / "ours";
constexpr Index kHidden = 8, kLayers = 2;

nlohmann::json json_of(const std::filesystem::path& path) { return nlohmann::json::parse(read_file(path)); }

/// Values that tell parameters and places apart, exact in float: parameter `number` of the sorted names.
float pattern(Index i, Index number) { return static_cast<float>((i * 37 + number * 11) % 101 - 50) / 256.0f; }

template <class Target>
void fill(Target& target) {
  std::vector<std::string> names;
  target.for_each_parameter([&](const ParameterInfo& info, auto, auto) { names.emplace_back(info.name); });
  std::sort(names.begin(), names.end());
  target.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    const auto number = std::find(names.begin(), names.end(), info.name) - names.begin();
    for (Index i = 0; i < value.size; ++i) value[i] = pattern(i, static_cast<Index>(number));
  });
}

template <class Target>
std::vector<std::vector<float>> values_of(Target& target) {
  std::vector<std::vector<float>> values;
  target.for_each_parameter([&](const ParameterInfo&, auto value, auto) { values.emplace_back(value.begin(), value.end()); });
  return values;
}

/// The AdapterFusion layers of a model, with the names of its files.
struct Fusions {
  std::vector<std::pair<std::string, AdapterFusion<float>>> layers;
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (auto& [prefix, layer] : layers) layer.for_each_parameter(visit, prefix);
  }
};
Fusions fusions_of(const AdapterFusionConfig& config, const std::string& name) {
  Fusions result;
  for (Index layer = 0; layer < kLayers; ++layer) {
    const AdapterPlace place{layer, AdapterSite::kOutput, name, true};
    result.layers.emplace_back(place.prefix(AdapterLayout::kBert), AdapterFusion<float>(kHidden, config));
  }
  return result;
}

std::string message(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  FAIL("expected an error");
  return {};
}

/// What the files hold, as a map of bytes: theirs have no metadata, so whole files differ.
std::map<std::string, std::string> contents(const std::filesystem::path& weights) {
  std::map<std::string, std::string> result;
  const SafetensorsFile file = SafetensorsFile::open(weights);
  for (const TensorRef& tensor : file.tensors()) {
    result[tensor.name + tensor.shape_text() + std::string(name_of(tensor.type))] =
        std::string(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return result;
}

AdapterConfig ln_before_config() {
  AdapterConfig config = AdapterConfig::double_seq_bn();
  config.ln_before = config.ln_after = true;
  config.reduction_factor = {{"0", 2}, {"default", 4}};
  config.non_linearity = "gelu";
  config.dropout = 0.1f;
  return config;
}
AdapterHubInfo info_of(const char* name, const char* type, const char* model_class) {
  return {name, type, model_class, "", kHidden};
}

}  // namespace

TEST_CASE("What AdapterHub saved is loaded, fits a set of adapters, and is saved again as it was") {
  for (const char* name : {"bert_seq_bn", "bert_head_double", "bert_channel", "llama_seq_bn", "llama_head_par"}) {
    INFO(name);
    const AdapterHubAdapter adapter = load_adapterhub_adapter(kSaved / name);
    AdapterSet<float> set(adapter.info.name, *adapter_layout_of(adapter.info.model_type), adapter.config,
                          adapter.info.hidden_size, kLayers);
    fill(set);
    assign_adapter(adapter, set);
    const ScratchFolder folder;
    save_adapterhub_adapter(folder.path(), adapter.config, adapter.info, adapterhub_tensors(set));
    CHECK(contents(folder / "adapter.safetensors") == contents(kSaved / name / "adapter.safetensors"));
    CHECK(json_of(folder / "adapter_config.json") == json_of(kSaved / name / "adapter_config.json"));
    const AdapterHubAdapter again = load_adapterhub_adapter(folder.path());
    CHECK(again.config == adapter.config);
    CHECK(again.tensors.size() == adapter.tensors.size());
  }
  CHECK(load_adapterhub_adapter(kSaved / "bert_head_double").info.name == "my_task");
  CHECK(load_adapterhub_adapter(kSaved / "llama_head_par").config.dropout == 0.1f);
  for (const char* name : {"static", "dynamic"}) {
    INFO(name);
    const std::filesystem::path place = kSaved / (std::string("fusion_") + name);
    const AdapterHubFusion fusion = load_adapterhub_fusion(place);
    CHECK(fusion.adapter_names == std::vector<std::string>{"a", "b"});
    Fusions layers = fusions_of(fusion.config, name);
    assign_adapter(fusion, layers);
    const ScratchFolder folder;
    save_adapterhub_fusion(folder.path(), fusion.config, fusion.info, fusion.adapter_names, adapterhub_tensors(layers));
    CHECK(contents(folder / "model_adapter_fusion.safetensors") == contents(place / "model_adapter_fusion.safetensors"));
    CHECK(json_of(folder / "adapter_fusion_config.json") == json_of(place / "adapter_fusion_config.json"));
  }
}

TEST_CASE("What AdapterHub loads: the committed folders are what is saved now (check_adapter.py loads them)") {
  const bool update = std::getenv("PEFT_UPDATE_GOLDEN") != nullptr;
  const ScratchFolder folder;
  const auto compare = [&](const std::string& name, const std::vector<std::string>& files, const auto& save) {
    save(folder / name);
    if (update) save(kOurs / name);
    for (const std::string& file : files) {
      INFO(name << "/" << file << "; PEFT_UPDATE_GOLDEN=1 writes it anew");
      CHECK(read_file(folder / name / file) == read_file(kOurs / name / file));
    }
  };
  const std::vector<std::string> files{"adapter_config.json", "adapter.safetensors"};
  AdapterSet<float> bert("task", AdapterLayout::kBert, ln_before_config(), kHidden, kLayers);
  fill(bert);
  compare("bert_ln_before", files, [&](const std::filesystem::path& place) {
    save_adapterhub_adapter(place, ln_before_config(), info_of("task", "bert", "BertModel"), adapterhub_tensors(bert));
  });
  AdapterSet<float> llama("my.task", AdapterLayout::kLlama, AdapterConfig::scaled_par_bn(), kHidden, kLayers);
  fill(llama);
  compare("llama_scaled_par_bn", files, [&](const std::filesystem::path& place) {
    save_adapterhub_adapter(place, AdapterConfig::scaled_par_bn(), info_of("my.task", "llama", "LlamaForCausalLM"),
                            adapterhub_tensors(llama));
  });
  Fusions fusions = fusions_of({}, "a,b");
  fill(fusions);
  compare("fusion", {"adapter_fusion_config.json", "model_adapter_fusion.safetensors"},
          [&](const std::filesystem::path& place) {
            save_adapterhub_fusion(place, {}, info_of("a,b", "bert", "BertModel"), {"a", "b"}, adapterhub_tensors(fusions));
          });

  // What the first layer's sites make of made-up rows, for check_adapter.py to compare with AdapterHub's.
  Matrix<float> h(6, kHidden), r(6, kHidden), weight(1, kHidden), bias(1, kHidden), y_bert(6, kHidden), y_llama(6, kHidden);
  for (Index i = 0; i < h.size(); ++i) {
    h.flat()[i] = static_cast<float>(i * 29 % 83 - 41) / 64.0f;
    r.flat()[i] = static_cast<float>((i * 31 + 7) % 89 - 44) / 64.0f;
  }
  for (Index j = 0; j < kHidden; ++j) {
    weight.flat()[j] = 1.0f + static_cast<float>(j * 13 % 7 - 3) / 16.0f;
    bias.flat()[j] = static_cast<float>(j * 5 % 11 - 5) / 16.0f;
  }
  const ops::LayerNormView<float> norm{std::as_const(weight).flat(), std::as_const(bias).flat(), 1e-12f};
  bert.find(0, AdapterSite::kAttention)->forward(h.view(), r.view(), norm, y_bert.view());
  llama.find(0, AdapterSite::kOutput)->forward(h.view(), r.view(), y_llama.view());
  const std::vector<TensorRef> outputs{tensor_ref<float>("bert", std::as_const(y_bert).view()),
                                       tensor_ref<float>("llama", std::as_const(y_llama).view())};
  if (update) write_safetensors(kOurs / "outputs.safetensors", outputs);
  const SafetensorsFile committed = SafetensorsFile::open(kOurs / "outputs.safetensors");
  for (const TensorRef& tensor : committed.tensors()) {
    const Matrix<float>& now = tensor.name == "bert" ? y_bert : y_llama;
    const Matrix<float> before = tensor.to_matrix();
    // Another instruction set sums in another order.
    for (Index i = 0; i < now.size(); ++i) CHECK(now.flat()[i] == Approx(before.flat()[i]).margin(1e-5));
  }
}

TEST_CASE("ln_before's norm has two names: both are written, either is read, and they may not differ") {
  AdapterSet<float> set("task", AdapterLayout::kBert, ln_before_config(), kHidden, kLayers), other = AdapterSet<float>(
      "task", AdapterLayout::kBert, ln_before_config(), kHidden, kLayers);
  fill(set);
  const AdapterHubInfo info = info_of("task", "bert", "BertModel");
  const ScratchFolder folder;
  save_adapterhub_adapter(folder.path(), ln_before_config(), info, adapterhub_tensors(set));
  const std::filesystem::path weights = folder / "adapter.safetensors";
  const SafetensorsFile file = SafetensorsFile::open(weights);
  const std::vector<TensorRef> all(file.tensors().begin(), file.tensors().end());
  CHECK(all.size() == adapterhub_tensors(set).size() + 8);
  for (const std::string dropped : {"adapter_norm_before.", "adapter_down.0."}) {
    std::vector<TensorRef> some;
    for (const TensorRef& tensor : all) {
      if (tensor.name.find(dropped) == std::string::npos) some.push_back(tensor);
    }
    const ScratchFolder place;
    std::filesystem::copy(folder / "adapter_config.json", place / "adapter_config.json");
    write_safetensors(place / "adapter.safetensors", some);
    const AdapterHubAdapter loaded = load_adapterhub_adapter(place.path());
    assign_adapter(loaded, other);
    CHECK(values_of(other) == values_of(set));
  }
  std::vector<TensorRef> differing = all;
  const std::vector<float> wrong(kHidden, 0.25f);
  for (TensorRef& tensor : differing) {
    if (tensor.name.ends_with("layer.1.output.adapters.task.adapter_down.0.bias")) {
      tensor.bytes = std::as_bytes(std::span(wrong));
    }
  }
  const ScratchFolder place;
  std::filesystem::copy(folder / "adapter_config.json", place / "adapter_config.json");
  write_safetensors(place / "adapter.safetensors", differing);
  CHECK(message([&] { load_adapterhub_adapter(place.path()); }).find("are one parameter, but differ") != std::string::npos);
}

TEST_CASE("Broken directories are refused, naming what is wrong") {
  const AdapterHubAdapter good = load_adapterhub_adapter(kSaved / "bert_seq_bn");
  const auto fields = json_of(kSaved / "bert_seq_bn" / "adapter_config.json");
  const auto with = [&](const std::function<void(nlohmann::json&)>& change,
                        const std::function<void(std::vector<TensorRef>&)>& change_tensors = {}) {
    const ScratchFolder folder;
    nlohmann::json json = fields;
    change(json);
    write_file(folder / "adapter_config.json", json.dump());
    std::vector<TensorRef> tensors = good.tensors;
    if (change_tensors) change_tensors(tensors);
    write_safetensors(folder / "adapter.safetensors", tensors);
    return message([&] { load_adapterhub_adapter(folder.path()); });
  };
  const auto same = [](nlohmann::json&) {};
  const auto has = [](const std::string& text, std::string_view part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  has(with([](auto& j) { j["config"]["use_gating"] = true; }), "use_gating to true; gates");
  has(with([](auto& j) { j["config"]["inv_adapter"] = "nice"; }), "inv_adapter to \"nice\"; invertible");
  has(with([](auto& j) { j["config"]["phm_layer"] = true; }), "phm_layer");
  has(with([](auto& j) { j["config"]["cross_adapter"] = true; }), "cross_adapter");
  has(with([](auto& j) { j["config"]["stochastic_depth"] = 0.1; }), "stochastic_depth to 0.1");
  has(with([](auto& j) { j["config"]["new_field"] = 1; }), "\"new_field\" to 1, a field that AdapterHub's BnConfig does not");
  has(with([](auto& j) { j["config"]["architecture"] = "lora"; }), "architecture is \"lora\"");
  has(with([](auto& j) { j["config"].erase("mh_adapter"); }), "no mh_adapter");
  has(with([](auto& j) { j["config"]["reduction_factor"] = "16"; }), "reduction_factor is \"16\"");
  has(with([](auto& j) { j["config"]["scaling"] = nlohmann::json::array(); }), "scaling is []");
  has(with([](auto& j) { j["config"]["ln_before"] = 1; }), "ln_before is 1; expected true or false");
  has(with([](auto& j) { j["config"] = 3; }), "config is 3");
  has(with([](auto& j) { j["model_type"] = "t5"; }), "\"t5\"; expected bert, roberta");
  has(with([](auto& j) { j.erase("hidden_size"); }), "no \"hidden_size\"");
  has(with([](auto& j) { j["hidden_size"] = -8; }), "hidden_size is -8");
  has(with([](auto& j) { j["name"] = "other"; }), "or not of the adapter \"other\"");
  has(with([](auto& j) { j["model_type"] = "llama"; }), "no key of the model's layout (llama)");
  // The weights against the configuration.
  has(with([](auto& j) { j["config"]["reduction_factor"] = 4; }), "adapter_down.0.bias\" is [4]; its configuration gives [2]");
  has(with([](auto& j) { j["hidden_size"] = 16; }), "its configuration gives");
  has(with([](auto& j) { j["config"]["leave_out"] = {1}; }), "stands where its configuration has no adapter");
  has(with([](auto& j) { j["config"]["mh_adapter"] = true; }), "encoder.layer.0.attention.output.adapters.task.…, it has none");
  has(with([](auto& j) { j["config"]["ln_after"] = true; }), "it has no encoder.layer.0.output.adapters.task.adapter_norm_after");
  has(with(same, [](auto& t) { t.erase(t.begin()); }), "it has no encoder.layer.0.output.adapters.task.adapter_down.0.bias");
  has(with(same, [](auto& t) { t.erase(t.begin(), t.begin() + 4); }), "encoder.layer.0.output.adapters.task.…, it has none");
  has(with(same, [](auto& t) { t.clear(); }), "it holds no weights");
  has(with(same, [](auto& t) { t[0].name = "encoder.layer.0.output.adapters.task.gate.weight"; }), "a gate (use_gating)");
  has(with(same, [](auto& t) { t[0].name = "encoder.layer.0.attention.self.loras.task.lora_A"; }), "LoRA of AdapterHub");
  has(with(same, [](auto& t) { t[0].name = "encoder.layer.01.output.adapters.task.adapter_up.bias"; }), "no key of the model's");
  has(with(same, [](auto& t) { t[0].name = "bert." + t[1].name; }), "twice");
  has(with(same, [](auto& t) { t[1].shape = {8, 4}; }), "is [8, 4]; its configuration gives [4, 8]");

  const ScratchFolder folder;
  has(message([&] { load_adapterhub_adapter(folder / "nowhere"); }), "there is no such folder");
  has(message([&] { load_adapterhub_adapter(folder.path()); }), "it has no adapter_config.json");
  write_file(folder / "adapter_config.json", fields.dump());
  write_file(folder / "pytorch_adapter.bin", "");
  has(message([&] { load_adapterhub_adapter(folder.path()); }), "a Python pickle");
  has(message([&] { load_adapterhub_adapter(std::filesystem::path(PEFT_GOLDEN_DIR) / "checkpoint" / "ours"); }),
      "it is one of PEFT");
  write_file(folder / "adapter.safetensors", "short");
  CHECK_THROWS_AS(load_adapterhub_adapter(folder.path()), FormatError);
  write_file(folder / "adapter_config.json", "{");
  has(message([&] { load_adapterhub_adapter(folder.path()); }), "not valid JSON");
}

TEST_CASE("Files from before versions: gelu meant gelu_new") {
  const ScratchFolder folder;
  std::filesystem::copy(kSaved / "bert_seq_bn" / "adapter.safetensors", folder / "adapter.safetensors");
  auto json = json_of(kSaved / "bert_seq_bn" / "adapter_config.json");
  json["config"]["non_linearity"] = "gelu";
  const auto loaded = [&] {
    write_file(folder / "adapter_config.json", json.dump());
    return load_adapterhub_adapter(folder.path()).config.non_linearity;
  };
  CHECK(loaded() == "gelu");
  json.erase("version");
  CHECK(loaded() == "gelu_new");
  json["config"]["non_linearity"] = "gelu_orig";
  CHECK(loaded() == "gelu");
  json["config"]["non_linearity"] = "LeakyReLU";
  CHECK(loaded() == "leakyrelu");
}

TEST_CASE("An adapter that does not fit the model is refused, and the model keeps what it has") {
  const AdapterHubAdapter adapter = load_adapterhub_adapter(kSaved / "bert_seq_bn");
  const auto text = [&](auto& set, const AdapterMatching& matching = {}) {
    fill(set);
    const auto before = values_of(set);
    const std::string result = message([&] { assign_adapter(adapter, set, matching); });
    CHECK(values_of(set) == before);
    return result;
  };
  AdapterSet<float> more("task", AdapterLayout::kBert, adapter.config, kHidden, 3);
  CHECK(text(more).find("4 parameters of the model have no key in it: encoder.layer.2.output.adapters.task.adapter_down.0.weight") !=
        std::string::npos);
  AdapterSet<float> fewer("task", AdapterLayout::kBert, adapter.config, kHidden, 1);
  CHECK(text(fewer).find("4 of its 8 keys match no parameter") != std::string::npos);
  AdapterSet<float> renamed("other", AdapterLayout::kBert, adapter.config, kHidden, kLayers);
  CHECK(text(renamed).find("8 of its 8 keys") != std::string::npos);
  AdapterSet<float> wide("task", AdapterLayout::kBert, adapter.config, 2 * kHidden, kLayers);
  CHECK(text(wide).find("another shape") != std::string::npos);
  assign_adapter(adapter, more, {.allow_missing_keys = true});
  assign_adapter(adapter, fewer, {.allow_unused_keys = true});
  // Double parameters take the same numbers.
  AdapterSet<double> exact("task", AdapterLayout::kBert, adapter.config, kHidden, kLayers);
  assign_adapter(adapter, exact);
  AdapterSet<float> set("task", AdapterLayout::kBert, adapter.config, kHidden, kLayers);
  assign_adapter(adapter, set);
  const auto floats = values_of(set), doubles = values_of(exact);
  CHECK(floats == doubles);
}

TEST_CASE("A save that is refused or fails leaves the old adapter") {
  AdapterSet<float> set("task", AdapterLayout::kBert, AdapterConfig::seq_bn(), kHidden, kLayers);
  fill(set);
  const AdapterHubInfo info = info_of("task", "bert", "BertModel");
  const ScratchFolder folder;
  const auto save = [&] { save_adapterhub_adapter(folder / "a", AdapterConfig::seq_bn(), info, adapterhub_tensors(set)); };
  save();
  write_file(folder / "a/head_config.json", "kept");
  const std::string config = read_file(folder / "a/adapter_config.json"), weights = read_file(folder / "a/adapter.safetensors");
  const auto kept = [&] {
    CHECK(read_file(folder / "a/adapter_config.json") == config);
    CHECK(read_file(folder / "a/adapter.safetensors") == weights);
    CHECK(read_file(folder / "a/head_config.json") == "kept");
  };
  const auto first_value = [&](float value) {
    bool done = false;
    set.for_each_parameter([&](const ParameterInfo&, VectorView<float> v, VectorView<float>) {
      if (!done) v[1] = value;
      done = true;
    });
  };
  first_value(std::numeric_limits<float>::quiet_NaN());
  CHECK(message(save).find("[0, 1]") != std::string::npos);
  kept();
  first_value(0.75f);
  AdapterConfig other = AdapterConfig::seq_bn();
  other.reduction_factor = 2;
  CHECK_THROWS_AS(save_adapterhub_adapter(folder / "a", other, info, adapterhub_tensors(set)), ShapeError);
  CHECK_THROWS_AS(save_adapterhub_adapter(folder / "a", AdapterConfig::seq_bn(), info_of("task", "gpt2", "GPT2Model"),
                                          adapterhub_tensors(set)),
                  ConfigError);
  CHECK_THROWS_AS(save_adapterhub_adapter(folder / "a", AdapterConfig::seq_bn(), info_of("", "bert", "BertModel"),
                                          adapterhub_tensors(set)),
                  ConfigError);
  CHECK_THROWS_AS(save_adapterhub_adapter(folder / "a", AdapterConfig::seq_bn(), info_of("ta\xFFsk", "bert", "BertModel"),
                                          adapterhub_tensors(set)),
                  ConfigError);
  CHECK_THROWS_AS(save_adapterhub_adapter(folder / "a", AdapterConfig::seq_bn(), info, {}), FormatError);
  CHECK_THROWS_AS(save_adapterhub_fusion(folder / "a", {}, info, {"a"}, {}), ConfigError);
  kept();
  // A full disk at the write of either file.
  for (int file = 0; file < 2; ++file) {
    {
      int writes = 0;
      const FaultyCalls faults([&](int, const std::string& call) { return call == "write" && writes++ == file ? ENOSPC : 0; });
      CHECK_THROWS_AS(save(), IoError);
    }
    kept();
  }
}
