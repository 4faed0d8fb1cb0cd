#include "hosts/generate.hpp"
#include "hosts/llama.hpp"

#include <fstream>
#include <nlohmann/json.hpp>

#include "peft/core/thread_pool.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/train/adamw.hpp"
#include "peft/train/clip.hpp"
#include "peft/train/trainable_model.hpp"
#include "support/catch.hpp"

using namespace peft;
using peft_examples::KvCache;
using peft_examples::Llama;
using peft_examples::LlamaConfig;
using peft_examples::LlamaLayerWeights;

namespace {

const std::string kFolder = std::string(PEFT_GOLDEN_DIR) + "/llama/";

template <Scalar T>
Matrix<T> weight(const SafetensorsFile& file, const std::string& name) {
  const TensorRef* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  const Matrix<float> values = tensor->to_matrix();
  Matrix<T> result(values.rows(), values.cols());
  for (Index i = 0; i < values.size(); ++i) result.flat()[i] = static_cast<T>(values.flat()[i]);
  return result;
}

template <Scalar T>
Buffer<Accumulator<T>> vector(const SafetensorsFile& file, const std::string& name) {
  const Matrix<Accumulator<T>> values = weight<Accumulator<T>>(file, name);
  Buffer<Accumulator<T>> result(values.size());
  std::copy_n(values.data(), values.size(), result.data());
  return result;
}

// The tiny model of make_llama.py with its adapter.
template <Scalar T>
struct Tiny {
  using A = Accumulator<T>;

  Tiny() : file(SafetensorsFile::open(kFolder + "tiny.safetensors")), model(make()) {
    std::ifstream(kFolder + "tiny.json") >> json;
    const std::vector<AdaptedLinear<T>*> sites = model.sites();
    LoraConfig config;
    config.r = 4;
    config.lora_alpha = 8;
    config.target_modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    registry.add_adapter("default", config, sites, 0);
    registry.for_each_parameter("default", [&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      const Matrix<A> start = weight<A>(file, "adapter." + std::string(info.name));
      REQUIRE(start.size() == value.size);
      std::copy_n(start.data(), value.size, value.data);
    });
    registry.set_adapter("default");
    model.select(registry.selection());
    batch.ids = json["ids"].get<std::vector<std::int32_t>>();
    batch.targets = json["targets"].get<std::vector<std::int32_t>>();
    for (const Index n : json["lengths"].get<std::vector<Index>>()) {
      for (Index i = 0; i < n; ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.offsets.push_back(batch.offsets.back() + n);
    }
  }

  Llama<T> make() {
    LlamaConfig config;
    config.vocab_size = 96;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 8;
    config.max_position_embeddings = 64;
    auto embedding = std::make_shared<const Matrix<T>>(weight<T>(file, "base.model.embed_tokens.weight"));
    std::vector<LlamaLayerWeights<T>> layers;
    for (int i = 0; i < 2; ++i) {
      const std::string path = "base.model.layers." + std::to_string(i) + ".";
      const auto linear = [&](const std::string& name) {
        return AnyLinear<T>(DenseLinear<T>(weight<T>(file, path + name + ".weight")));
      };
      layers.push_back({vector<T>(file, path + "input_layernorm.weight"),
                        vector<T>(file, path + "post_attention_layernorm.weight"), linear("self_attn.q_proj"),
                        linear("self_attn.k_proj"), linear("self_attn.v_proj"), linear("self_attn.o_proj"),
                        linear("mlp.gate_proj"), linear("mlp.up_proj"), linear("mlp.down_proj")});
    }
    const MatrixView<const T> head = *embedding;
    return Llama<T>(config, embedding, std::move(layers), vector<T>(file, "base.model.norm.weight"),
                    DenseLinear<T>(head, embedding));
  }

  SafetensorsFile file;
  Llama<T> model;
  AdapterRegistry<T> registry;
  PackedBatch batch;
  nlohmann::json json;
};

}  // namespace

static_assert(TrainableModel<Llama<float>> && TrainableModel<Llama<double>> && TrainableModel<Llama<bf16>>);

TEMPLATE_TEST_CASE("a tiny Llama with LoRA equals transformers and peft: logits, loss, gradients, ten steps", "", float,
                   double) {
  using T = TestType;
  Tiny<T> tiny;
  const double label_tokens = tiny.json["label_tokens"].template get<double>();
  const auto expected_losses = tiny.json["losses"].template get<std::vector<double>>();

  // Both run in float32: logits of size ~1 through two layers of sums of up to 48 products.
  Matrix<T> logits(tiny.batch.tokens(), 96);
  tiny.model.logits(tiny.batch, logits);
  const Matrix<float> expected = tiny.file.find("logits")->to_matrix();
  for (Index i = 0; i < logits.size(); ++i) {
    REQUIRE(std::fabs(static_cast<double>(logits.flat()[i]) - static_cast<double>(expected.flat()[i])) <= 2e-5);
  }

  LossSum sum;
  tiny.model.evaluate(tiny.batch, sum);
  CHECK(sum.tokens == static_cast<Index>(label_tokens));
  CHECK(sum.loss / label_tokens == Approx(expected_losses[0]).epsilon(1e-5));

  const auto zero_grads = [&] {
    tiny.model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill_n(grad.data, grad.size, typename Tiny<T>::A(0)); });
  };
  zero_grads();
  LossSum trained;
  tiny.model.forward_backward(tiny.batch, 1.0 / label_tokens, 0, 0, trained);
  CHECK(trained.loss == Approx(sum.loss).epsilon(1e-6));
  std::size_t seen = 0;
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    const Matrix<float> golden = tiny.file.find("grad." + std::string(info.name))->to_matrix();
    double norm = 0, difference = 0;
    for (Index i = 0; i < grad.size; ++i) {
      const double want = static_cast<double>(golden.flat()[i]);
      norm += want * want;
      difference += (static_cast<double>(grad[i]) - want) * (static_cast<double>(grad[i]) - want);
    }
    INFO(info.name);
    // Two float32 backward passes of a few hundred roundings each.
    CHECK(std::sqrt(difference) <= 300 * 0x1p-24 * std::sqrt(norm));
    ++seen;
  });
  CHECK(seen == 2 * 7 * 2);

  AdamW<typename Tiny<T>::A> optimizer{AdamWConfig{}};
  for (int step = 0; step < 10; ++step) {
    zero_grads();
    LossSum loss;
    tiny.model.forward_backward(tiny.batch, 1.0 / label_tokens, 0, static_cast<std::uint32_t>(step), loss);
    INFO("step " << step);
    CHECK(loss.loss / label_tokens == Approx(expected_losses[static_cast<std::size_t>(step)]).epsilon(1e-5));
    double squares = 0;
    tiny.model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) {
      for (Index i = 0; i < grad.size; ++i) squares += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
    });
    const double scale = std::min(1.0, 1.0 / (std::sqrt(squares) + 1e-6));
    optimizer.step(tiny.model, 1e-2 * (10 - step) / 10.0, scale);
  }
}

TEST_CASE("the packed batch equals its sequences one by one") {
  Tiny<double> tiny;
  LossSum all;
  tiny.model.evaluate(tiny.batch, all);
  double total = 0;
  for (std::size_t s = 0; s + 1 < tiny.batch.offsets.size(); ++s) {
    PackedBatch one;
    for (Index i = tiny.batch.offsets[s]; i < tiny.batch.offsets[s + 1]; ++i) {
      const auto at = static_cast<std::size_t>(i);
      one.ids.push_back(tiny.batch.ids[at]);
      one.positions.push_back(tiny.batch.positions[at]);
      one.targets.push_back(tiny.batch.targets[at]);
    }
    one.offsets.push_back(one.tokens());
    LossSum sum;
    tiny.model.evaluate(one, sum);
    total += sum.loss;
  }
  CHECK(total == Approx(all.loss).epsilon(1e-13));
}

TEST_CASE("prefill and decode through the cache give the logits of the whole sequence") {
  Tiny<double> tiny;
  Matrix<double> expected(tiny.batch.tokens(), 96);
  tiny.model.logits(tiny.batch, expected);
  // Sequences 0 and 2 side by side: 4 and 9 tokens at once, then one each until the shorter one ends.
  KvCache<double> first(tiny.model.config(), 7), second(tiny.model.config(), 12);
  const auto ids = [&](Index sequence, Index from, Index count, std::vector<std::int32_t>& out) {
    const auto begin = tiny.batch.ids.begin() + tiny.batch.offsets[static_cast<std::size_t>(sequence)] + from;
    out.insert(out.end(), begin, begin + count);
  };
  const auto check = [&](const Matrix<double>& logits, Index row, Index sequence, Index position) {
    for (Index j = 0; j < 96; ++j) {
      REQUIRE(logits(row, j) == Approx(expected(tiny.batch.offsets[static_cast<std::size_t>(sequence)] + position, j)).margin(1e-12));
    }
  };
  KvCache<double>* caches[2] = {&first, &second};
  Index done[2] = {0, 0};
  for (const auto& counts : {std::vector<Index>{4, 9}, std::vector<Index>{1, 1}, std::vector<Index>{2, 2}}) {
    std::vector<std::int32_t> tokens;
    ids(0, done[0], counts[0], tokens);
    ids(2, done[1], counts[1], tokens);
    Matrix<double> logits(2, 96);
    tiny.model.infer({tokens.data(), static_cast<Index>(tokens.size())}, counts, caches, logits);
    for (std::size_t i = 0; i < 2; ++i) done[i] += counts[i];
    check(logits, 0, 0, done[0] - 1);
    check(logits, 1, 2, done[1] - 1);
  }
  const std::int32_t one = 3;
  const Index count = 1;
  Matrix<double> logits(1, 96);
  CHECK_THROWS_AS(tiny.model.infer({&one, 1}, {&count, 1}, {caches, 1}, logits), ShapeError);  // the cache is full
}

TEMPLATE_TEST_CASE("16-bit hosts stay near the double one, and any number of threads gives the same bits", "", bf16, f16,
                   float) {
  using T = TestType;
  Tiny<T> tiny;
  Tiny<double> exact;
  LossSum got, expected;
  tiny.model.evaluate(tiny.batch, got);
  exact.model.evaluate(exact.batch, expected);
  // Weights and activations rounded to 8, 11 or 24 bits through ~30 layers' worth of operations.
  const double unit = std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-24;
  CHECK(std::fabs(got.loss - expected.loss) <= 6 * unit * expected.loss);
  std::vector<float> bits;
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    tiny.model.set_executor(pool);
    tiny.model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill_n(grad.data, grad.size, 0.0f); });
    LossSum sum;
    tiny.model.forward_backward(tiny.batch, 1.0, 5, 1, sum);
    std::vector<float> now;
    tiny.model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) { now.insert(now.end(), grad.begin(), grad.end()); });
    if (threads == 1) bits = now;
    CHECK(bits == now);
  }
}

// 24 aLoRA updates four times as large as the LoRA's above, so its bounds times four.
TEMPLATE_TEST_CASE("an aLoRA equals peft's: it acts from the last invocation on, in training and over a cache", "", float, double) {
  using T = TestType;
  using A = Accumulator<T>;
  Tiny<T> tiny;
  const SafetensorsFile golden = SafetensorsFile::open(kFolder + "alora.safetensors");
  nlohmann::json json;
  std::ifstream(kFolder + "alora.json") >> json;
  const auto adapter = tiny.registry.adapter("default");
  LoraConfig config = adapter->config();
  config.alora_invocation_tokens = json["tokens"].get<std::vector<Index>>();
  adapter->set_config(config);
  adapter->for_each_weight([](const ParameterInfo&, VectorView<A> value, VectorView<A>) {
    for (A& one : value) one *= A(4);
  });
  const auto sequences = json["sequences"].get<std::vector<std::vector<std::int32_t>>>();
  PackedBatch batch;
  for (const auto& ids : sequences) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      batch.ids.push_back(ids[i]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.targets.push_back(i + 1 < ids.size() ? ids[i + 1] : -1);
    }
    batch.offsets.push_back(batch.tokens());
  }
  Matrix<A> logits(batch.tokens(), 96);
  tiny.model.logits(batch, logits);
  const Matrix<float> expected = golden.find("logits")->to_matrix();
  for (Index i = 0; i < logits.size(); ++i) {
    REQUIRE(std::fabs(static_cast<double>(logits.flat()[i]) - static_cast<double>(expected.flat()[i])) <= 8e-5);
  }
  tiny.model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill_n(grad.data, grad.size, A(0)); });
  LossSum sum;
  const auto labels = static_cast<double>(batch.label_tokens());
  tiny.model.forward_backward(batch, 1.0 / labels, 0, 0, sum);
  CHECK(sum.loss / labels == Approx(json["loss"].get<double>()).epsilon(2e-5));
  tiny.model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    const Matrix<float> want = golden.find("grad." + std::string(info.name))->to_matrix();
    double norm = 0, difference = 0;
    for (Index i = 0; i < grad.size; ++i) {
      const double own = static_cast<double>(want.flat()[i]);
      norm += own * own;
      difference += (static_cast<double>(grad[i]) - own) * (static_cast<double>(grad[i]) - own);
    }
    INFO(info.name);
    CHECK(std::sqrt(difference) <= 1200 * 0x1p-24 * std::sqrt(norm));
  });
  // Answers token by token, all at once: each cache knows where its text was invoked.
  const auto answers = json["answers"].get<std::vector<std::vector<std::int32_t>>>();
  peft_examples::GenerateOptions options;
  options.max_tokens = 8;
  CHECK(peft_examples::generate<T>(tiny.model, sequences, options, 4) == answers);
  // A text that is read in pieces is the same; taken back and read again, too.
  Matrix<A> last(1, 96);
  KvCache<T> cache(tiny.model.config(), 16);
  KvCache<T>* caches[] = {&cache};
  for (int round = 0; round < 2; ++round) {
    const Index counts[] = {4, 1, 1, 1};
    Index first = 0;
    for (const Index count : counts) {
      tiny.model.infer({sequences[0].data() + first, count}, {&count, 1}, caches, last);
      first += count;
      for (Index j = 0; j < 96; ++j) {
        REQUIRE(std::fabs(static_cast<double>(last(0, j)) - static_cast<double>(expected(first - 1, j))) <= 8e-5);
      }
    }
    cache.rewind(0);
  }
  // On the head it is refused: that sees the rows of labels only.
  config.target_modules = {"lm_head"};
  tiny.registry.add_adapter("head", config, tiny.model.adapter_sites(), 0);
  tiny.model.select(tiny.registry.selection_of("head"));
  REQUIRE_THROWS_WITH(tiny.model.evaluate(batch, sum), Catch::Contains("lm_head"));
}
