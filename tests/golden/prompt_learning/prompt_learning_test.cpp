// Prefix tuning, prompt tuning and P-tuning against peft 0.21.2 on a tiny Llama: see make_prompt_learning.py.
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "golden/prompt_learning/tiny_host.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/trainable_model.hpp"
#include "unit/io/scratch.hpp"

using namespace prompt_test;

namespace {

const char* const kCases[] = {"prefix", "prefix_projection", "prompt_random", "prompt_text", "p_tuning_mlp", "p_tuning_lstm"};

/// A host with the case's method, at the start of its training.
template <Scalar T>
struct Case {
  using A = Accumulator<T>;

  explicit Case(const std::string& name)
      : folder(kFolder + name),
        file(SafetensorsFile::open(folder + "/golden.safetensors")),
        json(read_json(folder + "/golden.json")),
        model(tiny_llama<T>()) {
    PromptLearningConfig config = load_prompt_learning(folder).config;
    std::visit([](auto& c) { c.inference_mode = false; }, config);
    if (const auto* c = std::get_if<PrefixTuningConfig>(&config)) model.set_prefix(std::make_shared<PrefixCache<T>>(*c));
    if (const auto* c = std::get_if<PromptTuningConfig>(&config)) {
      const std::vector<std::int32_t> text{5, 17, 60};
      model.set_prompt(std::make_shared<PromptEmbedding<T>>(*c, model.embedding(), text));
    }
    if (const auto* c = std::get_if<PromptEncoderConfig>(&config)) model.set_prompt(std::make_shared<PromptEmbedding<T>>(*c));
    if (name == "prompt_text") return;  // its start is the text's embeddings
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      const Matrix<A> start = matrix<A>(file, "start." + key(info));
      REQUIRE(start.rows() * start.cols() == value.size);
      std::copy_n(start.data(), value.size, value.data);
    });
  }

  /// peft's name of a parameter.
  static std::string key(const ParameterInfo& info) {
    return info.name == "prompt_embeddings" ? "prompt_encoder.embedding.weight" : std::string(info.name);
  }
  MatrixView<const A> rows() {
    return model.prefix() ? model.prefix()->prompt_embeddings() : model.prompt()->prompt_embeddings();
  }

  std::string folder;
  SafetensorsFile file;
  nlohmann::json json;
  Llama<T> model;
  PackedBatch batch = tiny_batch();
};

template <Scalar T>
double logits_distance(Llama<T>& model, const PackedBatch& batch, const SafetensorsFile& file, const std::string& name) {
  Matrix<Accumulator<T>> logits(batch.tokens(), kVocabulary);
  model.logits(batch, logits);
  const Matrix<float> expected = file.find(name)->to_matrix();
  return distance(logits.flat(), expected.flat());
}

}  // namespace

// Both sides run in float32: two layers of sums of up to 48 products, a few hundred roundings one after another.
constexpr double kTolerance = 300 * 0x1p-24;

TEMPLATE_TEST_CASE("virtual tokens equal peft's: logits, loss, every gradient, five steps", "", float, double) {
  using T = TestType;
  for (const char* name : kCases) {
    INFO(name);
    Case<T> golden(name);
    const double label_tokens = golden.json["label_tokens"].template get<double>();
    const auto losses = golden.json["losses"].template get<std::vector<double>>();
    CHECK(logits_distance(golden.model, golden.batch, golden.file, "logits") <= kTolerance);
    CHECK(distance(VectorView<const Accumulator<T>>(golden.rows().data, golden.rows().rows * golden.rows().cols),
                   golden.file.find("prompt_embeddings")->to_matrix().flat()) <= kTolerance);
    LossSum sum;
    golden.model.evaluate(golden.batch, sum);
    CHECK(sum.tokens == static_cast<Index>(label_tokens));
    CHECK(sum.mean() == Approx(losses[0]).epsilon(1e-6));

    zero_grads(golden.model);
    LossSum trained;
    golden.model.forward_backward(golden.batch, 1.0 / label_tokens, 0, 0, trained);
    std::size_t seen = 0;
    golden.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
      INFO(info.name);
      CHECK(distance(grad, matrix<float>(golden.file, "grad." + Case<T>::key(info)).flat()) <= kTolerance);
      ++seen;
    });
    std::size_t in_file = 0;
    for (const TensorRef& tensor : golden.file.tensors()) in_file += tensor.name.starts_with("grad.") ? 1 : 0;
    CHECK(seen == in_file);

    AdamWConfig config;
    config.weight_decay = 0.01;
    AdamW<Accumulator<T>> optimizer(config);
    for (int step = 0; step < 5; ++step) {
      zero_grads(golden.model);
      LossSum loss;
      golden.model.forward_backward(golden.batch, 1.0 / label_tokens, 0, static_cast<std::uint32_t>(step), loss);
      INFO("step " << step);
      CHECK(loss.mean() == Approx(losses[static_cast<std::size_t>(step)]).epsilon(1e-5));
      optimizer.step(golden.model, 1e-2, 1.0);
    }
    golden.model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
      INFO(info.name);
      // Against the way that the parameter has gone. AdamW divides by the gradient's size, so an element whose gradient
      // is no larger than its rounding errors may step the other way once in five steps: 2/5 of one element's way.
      const Matrix<float> after = matrix<float>(golden.file, "after." + Case<T>::key(info));
      const Matrix<float> start = matrix<float>(golden.file, "start." + Case<T>::key(info));
      const double one_element = 0.4 / std::sqrt(static_cast<double>(value.size));
      CHECK(distance(value, after.flat()) <= (2e-3 + one_element) * distance(start.flat(), after.flat()));
    });
    CHECK(logits_distance(golden.model, golden.batch, golden.file, "after.logits") <= 1e-4);
  }
}

TEMPLATE_TEST_CASE("peft's folders load: the same logits as there", "", float, double) {
  using T = TestType;
  for (const char* name : kCases) {
    INFO(name);
    Case<T> golden(name);
    golden.model.set_prefix(nullptr);
    golden.model.set_prompt(nullptr);
    if (std::string(name).starts_with("prefix")) {
      golden.model.set_prefix(load_prefix_cache<T>(golden.folder));
      CHECK_THROWS_AS(load_prompt_embedding<T>(golden.folder), ConfigError);
    } else {
      golden.model.set_prompt(load_prompt_embedding<T>(golden.folder));
      CHECK_THROWS_AS(load_prefix_cache<T>(golden.folder), ConfigError);
    }
    CHECK(logits_distance(golden.model, golden.batch, golden.file, "after.logits") <= kTolerance);
    std::size_t parameters = 0;
    golden.model.for_each_parameter([&](const ParameterInfo&, auto, auto) { ++parameters; });
    CHECK(parameters == 0);  // loaded to be used
  }
}

/// What is written of a configuration, without the order of its fields.
template <class Config>
nlohmann::json written(const Config& config) {
  return prompt_learning_config_to_json(config);
}

TEST_CASE("configurations read and write as peft's, field by field") {
  for (const char* name : kCases) {
    INFO(name);
    const nlohmann::json theirs = read_json(kFolder + name + "/adapter_config.json");
    CHECK(written(prompt_learning_config_from_json(theirs, "test")) == theirs);
  }
  // What peft takes from the model, fit_to takes too.
  const PromptHost host{2, 32, 4, 2, 8};
  PrefixTuningConfig prefix{.num_virtual_tokens = 5, .task_type = "CAUSAL_LM"};
  prefix = prefix.fit_to(host);
  prefix.inference_mode = true;
  CHECK(written(prefix) == read_json(kFolder + "prefix/adapter_config.json"));
  PromptTuningConfig prompt{.num_virtual_tokens = 6, .task_type = "CAUSAL_LM"};
  prompt = prompt.fit_to(host);
  prompt.inference_mode = true;
  CHECK(written(prompt) == read_json(kFolder + "prompt_random/adapter_config.json"));
}

// What this library saves, for check_prompt_learning.py to load in Python: values that both sides compute, and the logits.
// PEFT_UPDATE_GOLDEN=1 writes the files again.
TEST_CASE("what is saved is what the committed folders hold, which peft loads") {
  const bool update = std::getenv("PEFT_UPDATE_GOLDEN") != nullptr;
  io_test::ScratchFolder scratch;
  const std::filesystem::path committed = kFolder + "ours";
  const std::filesystem::path out = update ? committed : scratch / "ours";
  const auto fill = [](auto& method) {
    Matrix<float> rows(method.prompt_embeddings().rows, method.prompt_embeddings().cols);
    for (Index i = 0; i < rows.size(); ++i) rows.flat()[i] = static_cast<float>((i * 37) % 101 - 50) / 64;
    method.set_prompt_embeddings(rows);
  };
  const PackedBatch batch = tiny_batch();
  const auto check = [&](const std::string& name, auto& method, auto set) {
    INFO(name);
    Llama<float> model = tiny_llama<float>();
    fill(*method);
    set(model);
    std::filesystem::create_directories(out);
    save_pretrained(*method, out / name);
    Matrix<float> logits(batch.tokens(), kVocabulary);
    model.logits(batch, logits);
    if (update) {
      const std::filesystem::path path = out / (name + "_logits.safetensors");
      std::filesystem::remove(path);  // a FileWriter makes new files only
      FileWriter file(path, path);
      write_safetensors(file, std::vector<TensorRef>{tensor_ref<float>("logits", std::as_const(logits).view())});
      file.finish();
    }
    for (const char* part : {"adapter_config.json", "adapter_model.safetensors"}) {
      CHECK(io_test::read_file(out / name / part) == io_test::read_file(committed / name / part));
    }
    const SafetensorsFile file = SafetensorsFile::open(committed / (name + "_logits.safetensors"));
    CHECK(distance(logits.flat(), file.find("logits")->to_matrix().flat()) <= kTolerance);
  };
  const PromptHost host{2, 32, 4, 2, 8};
  auto prefix = std::make_shared<PrefixCache<float>>(
      PrefixTuningConfig{.num_virtual_tokens = 3, .task_type = "CAUSAL_LM", .base_model_name_or_path = "tiny"}.fit_to(host));
  check("prefix", prefix, [&](auto& model) { model.set_prefix(prefix); });
  auto prompt = std::make_shared<PromptEmbedding<float>>(PromptTuningConfig{
      .num_virtual_tokens = 4, .task_type = "CAUSAL_LM", .base_model_name_or_path = "tiny"}.fit_to(host));
  check("prompt", prompt, [&](auto& model) { model.set_prompt(prompt); });
  // P-tuning's rows have an encoder while they are trained; the file holds rows alone.
  auto encoded = std::make_shared<PromptEmbedding<float>>(PromptEncoderConfig{.num_virtual_tokens = 2,
                                                                             .encoder_hidden_size = 8,
                                                                             .task_type = "CAUSAL_LM",
                                                                             .base_model_name_or_path = "tiny",
                                                                             .inference_mode = true}.fit_to(host));
  check("p_tuning", encoded, [&](auto& model) { model.set_prompt(encoded); });
}
