#pragma once
/// The tiny BERT of make_bert.py with its batch, and comparisons with what Python computes for it.

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_loader.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/clip.hpp"
#include "peft/train/schedule.hpp"
#include "support/catch.hpp"

namespace bert_test {

using namespace peft;
using peft_examples::BertForSequenceClassification;
using peft_examples::BertSource;

inline const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/bert/";

template <Scalar T>
struct Tiny {
  using A = Accumulator<T>;

  // With a new head of AdapterHub's own, or the file's.
  explicit Tiny(const std::optional<ClassificationHeadConfig>& head = {})
      : file(SafetensorsFile::open(kFolder + "tiny.safetensors")),
        source(peft_examples::open_bert_folder(kFolder + "tiny")),
        model(head ? peft_examples::load_bert_classifier<T>(source, *head, 3, 7)
                   : peft_examples::load_bert_classifier<T>(source, 0, 0)) {
    std::ifstream(kFolder + "tiny.json") >> json;
    const auto ids = json["ids"].get<std::vector<std::int32_t>>();
    const auto labels = json["labels"].get<std::vector<std::int32_t>>();
    const auto lengths = json["lengths"].get<std::vector<Index>>();
    auto next = ids.begin();
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (Index i = 0; i < lengths[s]; ++i) {
        batch.ids.push_back(*next++);
        batch.positions.push_back(static_cast<std::int32_t>(i));
        batch.targets.push_back(i == 0 ? labels[s] : -1);
      }
      batch.offsets.push_back(batch.tokens());
    }
  }

  void attach_lora(float dropout = 0.0f) {
    LoraConfig config;
    config.r = 4;
    config.lora_alpha = 8;
    config.lora_dropout = dropout;
    config.target_modules = {"query", "value"};
    config.modules_to_save = {"classifier"};
    attach(config);
    assign_all("lora.start.");
  }
  // Another adapter beside those that are attached.
  template <class Config>
  void attach(const Config& config) {
    registry.add_adapter(std::to_string(registry.names().size()), config, model.adapter_sites(), 0);
    std::vector<std::pair<std::string, double>> all;
    for (const std::string& name : registry.names()) all.emplace_back(name, 1.0);
    model.select(registry.selection_of(all));
  }
  // The golden's name of a parameter: a prompt's own rows are an embedding's in Python.
  static std::string name_of(const ParameterInfo& info) {
    return info.name == "prompt_embeddings" ? "prompt_encoder.embedding.weight" : std::string(info.name);
  }
  // What is trained begins as in Python.
  void assign_all(const std::string& prefix) {
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) { assign(prefix + name_of(info), value); });
  }
  void assign(const std::string& name, VectorView<A> value) const {
    const TensorRef* tensor = file.find(name);
    INFO(name);
    REQUIRE(tensor != nullptr);
    REQUIRE(tensor->elements() == value.size);
    Buffer<float> values(value.size);
    tensor->read_f32(values.data());
    for (Index i = 0; i < value.size; ++i) value[i] = static_cast<A>(values[i]);
  }
  Matrix<float> golden(const std::string& name, Index rows, Index cols) const {
    const TensorRef* tensor = file.find(name);
    INFO(name);
    REQUIRE(tensor != nullptr);
    REQUIRE(tensor->elements() == rows * cols);
    Matrix<float> result(rows, cols);
    tensor->read_f32(result.data());
    return result;
  }
  void zero_gradients() {
    model.for_each_parameter([](const ParameterInfo&, VectorView<A>, VectorView<A> grad) { std::fill(grad.begin(), grad.end(), A(0)); });
  }
  double loss() {
    LossSum sum;
    model.evaluate(batch, sum);
    CHECK(sum.tokens == 4);
    return sum.mean();
  }
  // Every gradient beside the golden of that name; returns how many there are.
  int check_gradients(const std::string& prefix) {
    zero_gradients();
    LossSum sum;
    model.forward_backward(batch, 0.25, 0, 0, sum);
    CHECK(sum.mean() == Approx(loss()).epsilon(1e-6));
    double largest = 0;
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A>) {
      const Matrix<float> want = golden(prefix + name_of(info), info.rows, info.cols);
      double norm = 0;
      for (const float value : want.flat()) norm += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::sqrt(norm));
    });
    int seen = 0;
    model.for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A> grad) {
      const Matrix<float> want = golden(prefix + name_of(info), info.rows, info.cols);
      double norm = 0, difference = 0;
      for (Index i = 0; i < grad.size; ++i) {
        const double expected = static_cast<double>(want.flat()[i]);
        norm += expected * expected;
        difference += (static_cast<double>(grad[i]) - expected) * (static_cast<double>(grad[i]) - expected);
      }
      INFO(info.name);
      // Two float32 backward passes of a few hundred roundings each. A key's bias moves all scores of a query alike, which
      // softmax does not see: its gradient is what is left of sums of the others' size.
      CHECK(std::sqrt(difference) <= 300 * 0x1p-24 * (std::sqrt(norm) + 0.01 * largest));
      ++seen;
    });
    return seen;
  }
  // The gradients of what is trained by central differences of the training pass's loss, whose masks of (seed, step) stay;
  // returns how many parameters there are. Every `share`-th part of a parameter is tried.
  int check_differences(Index share = 5) {
    const auto loss_of = [&] {
      LossSum sum;
      model.forward_backward(batch, 0.0, 5, 3, sum);
      return sum.loss;
    };
    zero_gradients();
    LossSum sum;
    model.forward_backward(batch, 1.0, 5, 3, sum);
    std::vector<Matrix<double>> gradients;
    model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
      gradients.emplace_back(info.rows, info.cols);
      std::copy(grad.begin(), grad.end(), gradients.back().data());
    });
    std::size_t at = 0;
    model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
      const Matrix<double>& gradient = gradients[at++];
      for (Index i = 0; i < value.size; i += 1 + value.size / share) {
        const double before = value[i], h = 1e-5;
        value[i] = before + h;
        const double up = loss_of();
        value[i] = before - h;
        const double down = loss_of();
        value[i] = before;
        INFO(info.name << "[" << i << "]");
        CHECK((up - down) / (2 * h) == Approx(gradient.flat()[i]).epsilon(1e-6).margin(1e-8));
      }
    });
    return static_cast<int>(at);
  }
  // Losses of five steps of AdamW, as make_bert.py takes them.
  void check_steps(const std::string& name) {
    check_steps(json[name].template get<std::vector<double>>(), SchedulerType::kLinear, 1.0);
  }
  void check_steps(const std::vector<double>& losses, SchedulerType type, double max_norm) {
    AdamW<A> optimizer{AdamWConfig{}};
    const LearningRateSchedule schedule(type, 1e-2, 5, 0);
    Index step = 0;
    for (const double expected : losses) {
      zero_gradients();
      LossSum sum;
      model.forward_backward(batch, 0.25, 0, 0, sum);
      INFO("step " << step);
      // Adam's first steps have the size of the learning rate whatever the gradient's, noise included.
      CHECK(sum.mean() == Approx(expected).epsilon(2e-4));
      optimizer.step(model, schedule.at(step++), max_norm > 0 ? clip_coefficient(gradient_norm(model), max_norm) : 1.0);
    }
  }

  SafetensorsFile file;
  BertSource source;
  BertForSequenceClassification<T> model;
  AdapterRegistry<T> registry;
  PackedBatch batch;
  nlohmann::json json;
};

template <class A>
void check_close(const Matrix<A>& got, const Matrix<float>& want, double bound) {
  REQUIRE(got.size() == want.size());
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(got.flat()[i]) - static_cast<double>(want.flat()[i])));
  }
  CHECK(worst <= bound);
}

}  // namespace bert_test
