// Prefix tuning, prompt tuning, P-tuning, LN-tuning and bottleneck adapters in a BERT with its head, against Python PEFT
// (make_bert_methods.py) and AdapterHub (make_bert_adapters.py): logits, losses, every gradient, five steps, and the folders
// that Python saved after them.

#include <cstdlib>
#include <filesystem>
#include <map>

#include "golden/bert/tiny_bert.hpp"
#include "peft/pipeline/adapterhub_loader.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "peft/pipeline/saved_adapter.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace bert_test;

namespace {

// A tiny BERT beside the goldens of one case.
template <Scalar T>
struct Case : Tiny<T> {
  explicit Case(const std::string& name, const std::optional<ClassificationHeadConfig>& head = {})
      : Tiny<T>(head), folder(kFolder + name) {
    this->file = SafetensorsFile::open(folder + "/golden.safetensors");
    std::ifstream(folder + "/golden.json") >> of_case;
  }
  // Through the start that Python made: logits, gradients of `count` parameters, five steps.
  void check(int count) {
    this->assign_all("start.");
    check_close(this->model.predict(this->batch), this->golden("logits", 4, 3), 5e-6);
    CHECK(this->check_gradients("grad.") == count);
    this->check_steps(of_case["losses"].template get<std::vector<double>>(), SchedulerType::kConstant, 0.0);
  }
  FullConfig head_training() const {
    const auto& own = this->model.head_config();
    return own ? own->training() : BertForSequenceClassification<T>::train_head();
  }
  // The head that a folder holds beside its method.
  void attach_head(const std::vector<TensorRef>& tensors) {
    const AnyPeftAdapter head{head_training(), folder, tensors};
    this->registry.add_adapter(make_adapter<T>("head", head, this->model.adapter_sites()));
    this->model.select(this->registry.selection_of("head"));
  }
  void check_after() { check_close(this->model.predict(this->batch), this->golden("after.logits", 4, 3), 5e-6); }

  std::string folder;
  nlohmann::json of_case;
};

template <Scalar T>
void put(BertForSequenceClassification<T>& model, PrefixTuningConfig config) {
  config.inference_mode = false;
  model.set_prefix(std::make_shared<PrefixCache<T>>(config.fit_to(model.prompt_host()), 3));
}
template <Scalar T, class Config>
void put(BertForSequenceClassification<T>& model, Config config) {
  config.inference_mode = false;
  model.set_prompt(std::make_shared<PromptEmbedding<T>>(config.fit_to(model.prompt_host()), 3));
}

template <Scalar T>
void check_prompt_learning(const std::string& name, int count) {
  INFO(name);
  Case<T> trained("methods/" + name);
  const PromptLearningAdapter adapter = load_prompt_learning(trained.folder);
  std::visit([&](const auto& config) { put<T>(trained.model, config); }, adapter.config);
  trained.attach(BertForSequenceClassification<T>::train_head());
  trained.check(count);
  Case<T> loaded("methods/" + name);
  if (std::holds_alternative<PrefixTuningConfig>(adapter.config)) {
    loaded.model.set_prefix(make_prefix_cache<T>(adapter));
  } else {
    loaded.model.set_prompt(make_prompt_embedding<T>(adapter));
  }
  loaded.attach_head(adapter.modules);
  loaded.check_after();
}

template <Scalar T>
std::shared_ptr<AdapterSet<T>> new_adapters(const AdapterConfig& config, const std::string& name = "task") {
  return std::make_shared<AdapterSet<T>>(name, AdapterLayout::kBert, config, 32, 2, 3);
}

template <Scalar T>
void check_adapters(const std::string& name, int count) {
  INFO(name);
  const AdapterHubHead head = load_adapterhub_head(kFolder + "adapters/" + name);
  Case<T> trained("adapters/" + name, head.own);
  const AdapterHubAdapter adapter = load_adapterhub_adapter(trained.folder);
  trained.model.set_adapters(new_adapters<T>(adapter.config));
  trained.attach(trained.head_training());
  trained.check(count);
  Case<T> loaded("adapters/" + name, head.own);
  loaded.model.set_adapters(load_adapterhub<T>(trained.folder, 2));
  CHECK(head.labels == std::vector<std::string>{"heart", "lung", "rare"});
  CHECK(head.hidden_size == 32);
  loaded.attach_head(head.tensors);
  loaded.check_after();
}

}  // namespace

TEMPLATE_TEST_CASE("virtual tokens in a BERT equal Python PEFT's", "", float, double) {
  check_prompt_learning<TestType>("prefix", 3);
  check_prompt_learning<TestType>("prefix_projection", 5 + 2);
  check_prompt_learning<TestType>("prompt", 3);
  check_prompt_learning<TestType>("p_tuning", 7 + 2);
}

TEMPLATE_TEST_CASE("LN-tuning of a BERT with its head equals Python PEFT's", "", float, double) {
  using T = TestType;
  Case<T> trained("methods/ln_tuning");
  const AnyPeftAdapter file = load_any_peft_adapter(trained.folder);
  LnTuningConfig config = *file.config.get_if<LnTuningConfig>();
  config.modules_to_save = {"classifier"};
  trained.attach(config);
  trained.check(5 * 2 + 2);
  Case<T> loaded("methods/ln_tuning");
  // Python wrote "classifier" and "score"; of the two the model has one.
  CHECK(file.config.get_if<LnTuningConfig>()->modules_to_save.size() >= 2);
  load_adapter<T>(loaded.registry, loaded.folder, "default", loaded.model.adapter_sites());
  loaded.model.select(loaded.registry.selection_of("default"));
  loaded.check_after();
}

TEMPLATE_TEST_CASE("bottleneck adapters in a BERT equal AdapterHub's", "", float, double) {
  using T = TestType;
  check_adapters<T>("seq_bn", 2 * 4 + 2);
  check_adapters<T>("double_seq_bn", 4 * 4 + 2);
  check_adapters<T>("par_bn", 2 * 5 + 2);
  check_adapters<T>("leave_out", 2 * 4 + 2);
  check_adapters<T>("own_head", 4 * 4 + 4);
  check_adapters<T>("own_head_gelu", 4 + 4);
  check_adapters<T>("own_head_one_layer", 4 + 2);
  Case<T> split("adapters/batch_split");
  AdapterConfig config = AdapterConfig::seq_bn();
  config.reduction_factor = 8;
  split.model.set_adapters(AdapterSetup::batch_split({"a", "b"}, {1, 3}), {new_adapters<T>(config, "a"), new_adapters<T>(config, "b")});
  split.attach(BertForSequenceClassification<T>::train_head());
  split.check(2 * 2 * 4 + 2);
}

TEMPLATE_TEST_CASE("a BERT trained in full with AdapterHub's head equals adapters': five steps and what they came to", "", float, double) {
  using T = TestType;
  Case<T> full("adapters/own_head_full", ClassificationHeadConfig{.name = "task"});
  full.registry.add_adapter("base", FullConfig{}, full.model.base_sites(), 0);
  full.registry.add_adapter("head", full.head_training(), full.model.adapter_sites(), 0);
  full.model.select(full.registry.selection_of({{"base", 1.0}, {"head", 1.0}}));
  Index count = 0;
  full.model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    count += value.size;
    if (info.name.starts_with("heads.")) full.assign("start." + std::string(info.name), value);
  });
  CHECK(count == full.model.parameter_count());  // without the pooler, which the head does not read
  full.check_steps(full.of_case["losses"].template get<std::vector<double>>(), SchedulerType::kConstant, 0.0);
  // Five of Adam's steps of 1e-2 over every parameter, each on a gradient's sign where that is small.
  check_close(full.model.predict(full.batch), full.golden("after.logits", 4, 3), 2e-2);
}

TEST_CASE("gradients of a BERT's methods with every dropout by central differences in double") {
  const auto check = [](const auto& method, int count, const std::optional<ClassificationHeadConfig>& head = {}) {
    Tiny<double> tiny(head);
    method(tiny.model);
    tiny.attach(head ? head->training() : BertForSequenceClassification<double>::train_head());
    tiny.attach(FullConfig{.target_modules = {"output.LayerNorm", "word_embeddings"}});
    tiny.model.encoder().set_dropout(0.15f, 0.25f, 0.3f);
    tiny.batch.first_row = 40;
    tiny.batch.first_sequence = 9;
    const int of_head = head && head->layers == 2 ? 4 : 2;
    CHECK(tiny.check_differences(7) == count + of_head + 2 * 2 * 2 + 1);
  };
  const auto adapters = [](AdapterConfig config) {
    config.reduction_factor = 8;
    config.dropout = 0.2f;
    return [config](auto& model) { model.set_adapters(new_adapters<double>(config)); };
  };
  check([](auto& model) { put<double>(model, PrefixTuningConfig{.num_virtual_tokens = 3}); }, 1);
  check([](auto& model) { put<double>(model, PromptTuningConfig{.num_virtual_tokens = 4}); }, 1);
  check([](auto& model) { put<double>(model, PromptEncoderConfig{.num_virtual_tokens = 2, .encoder_hidden_size = 6}); }, 7);
  check(adapters(AdapterConfig::seq_bn()), 2 * 4);
  check(adapters(AdapterConfig::double_seq_bn()), 4 * 4);
  check(adapters(AdapterConfig::par_bn()), 2 * 4);
  check(adapters(AdapterConfig::seq_bn()), 2 * 4, ClassificationHeadConfig{});
  check(adapters(AdapterConfig::seq_bn()), 2 * 4, ClassificationHeadConfig{.activation_function = "silu", .dropout_prob = 0.4f});
  check([](auto&) {}, 0, ClassificationHeadConfig{.layers = 1});
}

TEST_CASE("AdapterHub's head: dropout before each of its linears, in training only; its own probability goes before the model's") {
  const auto losses = [](ClassificationHeadConfig head, float of_model) {
    Tiny<double> tiny(head);
    tiny.model.encoder().set_dropout(0, 0, of_model);
    std::vector<double> seen;
    for (const std::uint32_t step : {1u, 2u}) {
      LossSum sum;
      tiny.model.forward_backward(tiny.batch, 0.25, 5, step, sum);
      seen.push_back(sum.mean() - tiny.loss());
    }
    return seen;
  };
  for (const Index layers : {1, 2}) {
    const ClassificationHeadConfig plain{.layers = layers}, own{.layers = layers, .dropout_prob = 0.3f},
        none{.layers = layers, .dropout_prob = 0.0f};
    CHECK(losses(plain, 0.0f) == std::vector<double>{0, 0});
    CHECK(losses(none, 0.5f) == std::vector<double>{0, 0});
    const std::vector<double> of_model = losses(plain, 0.3f);
    CHECK(of_model[0] != of_model[1]);
    CHECK(of_model[0] != 0);
    CHECK(losses(own, 0.5f) == of_model);
  }
}

TEST_CASE("a BERT's methods alone: what lies below the lowest is not run, gradients are the same") {
  // With nothing but a method and the head trained, backward stops early; with the tables trained too it does not.
  const auto gradients = [](const auto& method, bool all) {
    Tiny<double> tiny;
    method(tiny.model);
    tiny.attach(BertForSequenceClassification<double>::train_head());
    if (all) tiny.attach(FullConfig{.target_modules = {"embeddings", "query"}});
    tiny.zero_gradients();
    LossSum sum;
    tiny.model.forward_backward(tiny.batch, 0.25, 5, 3, sum);
    std::map<std::string, std::vector<double>> result;
    tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
      result.emplace(std::string(info.name), std::vector<double>(grad.begin(), grad.end()));
    });
    return result;
  };
  const auto check = [&](const auto& method) {
    const auto few = gradients(method, false), all = gradients(method, true);
    CHECK(all.size() > few.size());
    for (const auto& [name, values] : few) {
      INFO(name);
      REQUIRE(all.at(name).size() == values.size());
      for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == Approx(all.at(name)[i]).epsilon(1e-12).margin(1e-15));
    }
  };
  AdapterConfig top = AdapterConfig::double_seq_bn();
  top.reduction_factor = 8;
  top.leave_out = {0};
  check([&](auto& model) { model.set_adapters(new_adapters<double>(top)); });
  top.mh_adapter = false;
  check([&](auto& model) { model.set_adapters(new_adapters<double>(top)); });
  check([](auto& model) { put<double>(model, PrefixTuningConfig{.num_virtual_tokens = 3}); });
  check([](auto&) {});
}

TEST_CASE("a BERT refuses methods that do not fit") {
  Tiny<float> tiny;
  LossSum sum;
  CHECK_THROWS_WITH(tiny.model.set_adapters(std::make_shared<AdapterSet<float>>("task", AdapterLayout::kLlama,
                                                                               AdapterConfig::seq_bn(), 32, 2)),
                    Catch::Contains("Bert: adapter \"task\"") && Catch::Contains("kBert"));
  CHECK_THROWS_WITH(tiny.model.set_adapters(std::make_shared<AdapterSet<float>>("task", AdapterLayout::kBert,
                                                                               AdapterConfig::seq_bn(), 32, 3)),
                    Catch::Contains("3 layers of 32 units; expected 2 of 32"));
  CHECK_THROWS_WITH(tiny.model.set_prefix(std::make_shared<PrefixCache<float>>(4, 3, 4, 8)), Catch::Contains("num_layers"));
  tiny.model.set_prompt(std::make_shared<PromptEmbedding<float>>(29, 32));
  CHECK_THROWS_WITH(tiny.model.evaluate(tiny.batch, sum), Catch::Contains("12 tokens") && Catch::Contains("at most 11") &&
                                                              Catch::Contains("virtual tokens"));
  CHECK_THROWS_WITH(tiny.model.set_prefix(std::make_shared<PrefixCache<float>>(4, 2, 4, 8)), Catch::Contains("has a prompt"));
}

TEST_CASE("a folder of virtual tokens with a head: what is saved is read again; no half of it goes unread") {
  const io_test::ScratchFolder scratch;
  Tiny<float> tiny;
  PromptTuningConfig config{.num_virtual_tokens = 4};
  config.modules_to_save = {"classifier"};
  config.task_type = "SEQ_CLS";
  const auto prompt = std::make_shared<PromptEmbedding<float>>(config.fit_to(tiny.model.prompt_host()), 3);
  const auto head = tiny.registry.add_adapter("head", BertForSequenceClassification<float>::train_head(), tiny.model.adapter_sites(), 0);
  SavedAdapter<float> saved(prompt);
  CHECK(saved.parameter_count() == 4 * 32);
  saved.set_classes({"heart", "lung", "ra\"re"}, head);
  CHECK(saved.parameter_count() == 4 * 32 + 3 * 33);
  const std::filesystem::path folder = scratch / "prompt";
  AtomicDirectory set(folder);
  saved.write(set);
  set.commit();
  CHECK(load_class_labels(folder) == std::vector<std::string>{"heart", "lung", "ra\"re"});
  const PromptLearningAdapter file = load_prompt_learning(folder);
  REQUIRE(file.modules.size() == 2);
  CHECK(file.modules[0].name == "classifier.bias");
  CHECK(file.modules[1].rows() == 3);
  CHECK(std::get<PromptTuningConfig>(file.config).modules_to_save == std::vector<std::string>{"classifier"});
  CHECK_THROWS_WITH(load_prompt_embedding<float>(folder), Catch::Contains("classifier.bias") && Catch::Contains("head"));
  // A head beside parts has its place among them.
  SavedAdapter<float> parts(head);
  CHECK_THROWS_WITH(parts.set_classes({"a", "b"}, head), Catch::Contains("modules_to_save"));
  // Labels that are no labels.
  io_test::write_file(folder / "labels.json", R"({"id2label": {"0": "a", "2": "b"}})");
  CHECK_THROWS_WITH(load_class_labels(folder), Catch::Contains("nothing under \"1\""));
  io_test::write_file(folder / "labels.json", R"({"label": 3})");
  CHECK_THROWS_WITH(load_class_labels(folder), Catch::Contains("no id2label"));
}

TEST_CASE("AdapterHub's head beside its adapter: written as read; broken ones are refused by name") {
  const io_test::ScratchFolder scratch;
  Tiny<float> tiny;
  const auto head = tiny.registry.add_adapter("head", BertForSequenceClassification<float>::train_head(), tiny.model.adapter_sites(), 0);
  SavedAdapter<float> saved(new_adapters<float>(AdapterConfig::seq_bn()), {"task", "bert", "BertForSequenceClassification", "tiny", 32});
  saved.set_classes({"heart", "lung", "rare"}, head);
  const std::filesystem::path folder = scratch / "adapter";
  AtomicDirectory set(folder);
  saved.write(set);
  set.commit();
  // Python's file of the same model, but for the weights.
  CHECK(io_test::read_file(folder / "head_config.json") == io_test::read_file(kFolder + "adapters/seq_bn/head_config.json"));
  CHECK(has_adapterhub_head(folder));
  CHECK(load_adapterhub_head(folder).tensors.size() == 2);
  CHECK(load_adapterhub<float>(folder, 2)->parameter_count() == saved.parameter_count() - 3 * 33);
  const std::string good = io_test::read_file(folder / "head_config.json");
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& words) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    io_test::write_file(folder / "head_config.json", text);
    INFO(from);
    CHECK_THROWS_WITH(load_adapterhub_head(folder), Catch::Contains(words));
  };
  refused("\"config\": null", "\"config\": {\"head_type\": \"classification\"}", "name");
  refused("\"lung\": 1", "\"lung\": 2", "label2id gives");
  refused("\"label2id\"", "\"labels\"", "no label2id");
}

namespace {

std::map<std::string, std::vector<float>> tensors_of(const std::filesystem::path& path) {
  std::map<std::string, std::vector<float>> result;
  const SafetensorsFile file = SafetensorsFile::open(path);
  for (const TensorRef& tensor : file.tensors()) {
    std::vector<float>& values = result[tensor.name + tensor.shape_text()];
    values.resize(static_cast<std::size_t>(tensor.elements()));
    tensor.read_f32(values.data());
  }
  return result;
}

}  // namespace

TEST_CASE("AdapterHub's own head beside any method: written as adapters writes it, and read again") {
  const io_test::ScratchFolder scratch;
  const std::vector<std::string> labels{"heart", "lung", "rare"};
  const AdapterHubInfo info{"task", "bert", "BertAdapterModel", "tiny", 32};
  const std::string folder = kFolder + "adapters/own_head";
  const AdapterHubHead theirs = load_adapterhub_head(folder);
  REQUIRE(theirs.own == ClassificationHeadConfig{.name = "task"});
  Case<float> same("adapters/own_head", theirs.own);
  same.attach_head(theirs.tensors);
  const auto head = same.registry.adapter("head");
  const auto save = [&](const std::string& name, SavedAdapter<float> saved) {
    const Index without = saved.parameter_count();
    saved.set_own_head(labels, head, *theirs.own, info);
    CHECK(saved.parameter_count() == without + 32 * 33 + 3 * 33);
    AtomicDirectory set(scratch / name);
    saved.write(set);
    set.commit();
    INFO(name);
    CHECK(io_test::read_file(scratch / name / "head_config.json") == io_test::read_file(folder + "/head_config.json"));
    CHECK(tensors_of(scratch / name / "model_head.safetensors") == tensors_of(folder + "/model_head.safetensors"));
    CHECK_FALSE(std::filesystem::exists(scratch / name / "labels.json"));
  };
  // Python's folder, written again, is the same.
  save("adapter", {load_adapterhub<float>(folder, 2), info});
  CHECK(load_adapterhub_adapter(scratch / "adapter").info.model_class == "BertAdapterModel");
  CHECK(tensors_of(scratch / "adapter" / "adapter.safetensors") == tensors_of(folder + "/adapter.safetensors"));
  same.registry.add_adapter("base", FullConfig{.bias_only = true}, same.model.base_sites(), 0);
  save("bitfit", same.registry.adapter("base"));
  CHECK(load_any_peft_adapter(scratch / "bitfit").tensors.size() == 2 * 6 + 5);  // linears and norms
  save("prompt", std::make_shared<PromptEmbedding<float>>(PromptTuningConfig{.num_virtual_tokens = 4}.fit_to(same.model.prompt_host()), 3));
  CHECK(load_prompt_learning(scratch / "prompt").modules.empty());

  // Nothing that is no such head is written.
  const auto refused = [&](const ClassificationHeadConfig& config, const std::vector<std::string>& names, const std::string& words) {
    SavedAdapter<float> saved(load_adapterhub<float>(folder, 2), info);
    CHECK_THROWS_WITH((saved.set_own_head(names, head, config, info), [&] {
                        AtomicDirectory set(scratch / "refused");
                        saved.write(set);
                      }()),
                      Catch::Contains(words));
  };
  refused({.name = "my.task"}, labels, "without a point");
  refused({.name = "task", .layers = 3}, labels, "layers is 3; expected 1 or 2");
  refused({.name = "task", .dropout_prob = 1.0f}, labels, "dropout_prob is 1");
  refused({.name = "task", .layers = 1}, labels, "none of the head \"task\" with 1 layers");
  refused({.name = "other"}, labels, "none of the head \"other\"");
  refused({.name = "task"}, {"heart", "lung"}, "heads.task.4.bias\" is [3]; its configuration gives [2]");
  refused({.name = "task"}, {"heart", "lung", "lung"}, "no other class");
}

TEST_CASE("what AdapterHub loads with its own head: the committed folder is what is saved now (check_bert_adapters.py loads it)") {
  const std::filesystem::path committed = kFolder + "ours";
  const bool update = std::getenv("PEFT_UPDATE_GOLDEN") != nullptr;
  const io_test::ScratchFolder scratch;
  const ClassificationHeadConfig config{.name = "task", .activation_function = "relu"};
  Tiny<float> tiny(config);
  AdapterConfig bottleneck = AdapterConfig::seq_bn();
  bottleneck.reduction_factor = 16;
  const auto adapters = new_adapters<float>(bottleneck);
  const auto head = tiny.registry.add_adapter("head", config.training(), tiny.model.adapter_sites(), 0);
  tiny.model.set_adapters(adapters);
  tiny.model.select(tiny.registry.selection_of("head"));
  Index number = 0;
  tiny.model.for_each_parameter([&](const ParameterInfo&, auto value, auto) {
    for (Index i = 0; i < value.size; ++i) value[i] = static_cast<float>((i * 37 + number * 11) % 101 - 50) / 256.0f;
    ++number;
  });
  const auto save = [&](const std::filesystem::path& folder) {
    SavedAdapter<float> saved(adapters, {"task", "bert", "BertAdapterModel", "tiny", 32});
    saved.set_own_head({"heart", "lung", "rare"}, head, config, {"task", "bert", "BertAdapterModel", "tiny", 32});
    AtomicDirectory set(folder);
    saved.write(set);
    set.commit();
  };
  save(scratch.path());
  const Matrix<float>& logits = tiny.model.predict(tiny.batch);
  if (update) {
    save(committed);
    write_safetensors(committed / "outputs.safetensors", std::vector<TensorRef>{tensor_ref<float>("logits", logits.view())});
  }
  for (const char* file : {"adapter_config.json", "adapter.safetensors", "head_config.json", "model_head.safetensors"}) {
    INFO(file << "; PEFT_UPDATE_GOLDEN=1 writes it anew");
    CHECK(io_test::read_file(scratch / file) == io_test::read_file(committed / file));
  }
  const SafetensorsFile outputs = SafetensorsFile::open(committed / "outputs.safetensors");
  check_close(logits, outputs.find("logits")->to_matrix(), 1e-5);
}

TEST_CASE("AdapterHub's own head: what it has and is not computed here is refused by name") {
  const io_test::ScratchFolder scratch;
  const std::string good = kFolder + "adapters/own_head/";
  std::filesystem::copy_file(good + "model_head.safetensors", scratch / "model_head.safetensors");
  const nlohmann::json fields = nlohmann::json::parse(io_test::read_file(good + "head_config.json"));
  const auto loaded = [&](const auto& change) {
    nlohmann::json json = fields;
    change(json);
    io_test::write_file(scratch / "head_config.json", json.dump());
    return load_adapterhub_head(scratch.path());
  };
  const auto refused = [&](const char* field, const nlohmann::json& value, const std::string& words) {
    INFO(field << " " << value);
    CHECK_THROWS_WITH(loaded([&](auto& json) { json["config"][field] = value; }), Catch::Contains(words));
  };
  refused("head_type", "multilabel_classification", "head_type is \"multilabel_classification\"; expected \"classification\"");
  refused("head_type", "tagging", "\"tagging\"");
  refused("layers", 3, "layers is 3; expected 1 or 2");
  refused("layers", "2", "layers is \"2\"; expected a whole number");
  refused("layers", 1, "heads.task.4.bias\" is none of the head \"task\" with 1 layers");
  refused("activation_function", "mish", "activation_function \"mish\" is not supported; expected tanh, relu");
  refused("activation_function", nullptr, "activation_function is null");
  refused("use_pooler", true, "use_pooler is true");
  refused("bias", false, "bias is false");
  refused("dropout_prob", 1.5, "dropout_prob is 1.5");
  refused("num_labels", 4, "num_labels is 4, label2id names 3 classes");
  refused("label2id", nullptr, "no label2id");
  refused("label2id", {{"heart", 0}, {"lung", 2}, {"rare", 2}}, "label2id gives");
  refused("label2id", {{"heart", 0}, {"lung", 1}}, "num_labels is 3");
  refused("gates", 2, "\"gates\" to 2, a field");
  const auto outer = [&](const char* field, const nlohmann::json& value, const std::string& words) {
    INFO(field << " " << value);
    CHECK_THROWS_WITH(loaded([&](auto& json) { json[field] = value; }), Catch::Contains(words));
  };
  outer("config", 3, "config is 3; expected an object");
  outer("name", nullptr, "no \"name\"");
  outer("name", "my.task", "without a point");
  outer("name", "other", "heads.task.1.bias\" is none of the head \"other\"");
  outer("hidden_size", 16, "is [32]; its configuration gives [16]");
  outer("model_type", "t5", "\"t5\"; expected bert");
  // What only a training needs is read; other activations are computed.
  CHECK(loaded([](auto& json) { json["config"]["dropout_prob"] = 0.25; }).own->dropout_prob == 0.25f);
  CHECK(loaded([](auto& json) { json["config"]["activation_function"] = "relu"; }).own->activation_function == "relu");
  const auto weights = [&](const auto& change) {
    std::vector<TensorRef> tensors = load_adapterhub_head(kFolder + "adapters/own_head").tensors;
    change(tensors);
    write_safetensors(scratch / "model_head.safetensors", tensors);
    return loaded([](auto&) {});
  };
  CHECK_THROWS_WITH(weights([](auto& all) { all.erase(all.begin()); }), Catch::Contains("it has no heads.task.1.bias"));
  CHECK_THROWS_WITH(weights([](auto& all) { all[0].name = "classifier.bias"; }), Catch::Contains("\"classifier.bias\" is none of the head"));
  CHECK_THROWS_WITH(weights([](auto& all) { all[1].shape = {16, 64}; }), Catch::Contains("is [16, 64]; its configuration gives [32, 32]"));
  CHECK_THROWS_WITH((Tiny<float>(ClassificationHeadConfig{.layers = 0})), Catch::Contains("layers is 0"));
}
