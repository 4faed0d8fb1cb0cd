// The host with virtual tokens against itself without: a prefix or prompt that is made from a text does what the text does.
#include "hosts/virtual_tokens.hpp"

#include "golden/prompt_learning/tiny_host.hpp"
#include "hosts/generate.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/train/parameter_tensors.hpp"
#include "peft/train/trainer.hpp"
#include "peft/train/virtual_tokens.hpp"

using namespace prompt_test;
using peft_examples::KvCache;
using peft_examples::generate;
using peft_examples::GenerateOptions;

static_assert(KvCacheLike<KvCache<float>> && KvCacheLike<peft_examples::KvPrefix<bf16>>);
static_assert(WritableKvCache<KvCache<float>, float>);

namespace {

const PromptHost kHost{2, 32, 4, 2, 8};
const std::vector<std::int32_t> kText{11, 40, 3, 77, 40};

/// The text's keys and values, as the host computes them.
template <Scalar T>
KvCache<T> read_text(Llama<T>& model, const std::vector<std::int32_t>& ids) {
  KvCache<T> cache(model.config(), static_cast<Index>(ids.size()));
  KvCache<T>* caches[] = {&cache};
  const auto count = static_cast<Index>(ids.size());
  Matrix<Accumulator<T>> logits(1, kVocabulary);
  model.infer({ids.data(), count}, {&count, 1}, caches, logits);
  return cache;
}

template <Scalar T>
std::shared_ptr<PrefixCache<T>> prefix_of_text(Llama<T>& model) {
  auto prefix = std::make_shared<PrefixCache<T>>(
      PrefixTuningConfig{.num_virtual_tokens = static_cast<Index>(kText.size())}.fit_to(model.prompt_host()));
  prefix->assign(read_text(model, kText));
  return prefix;
}

template <Scalar T>
std::shared_ptr<PromptEmbedding<T>> prompt_of_text(Llama<T>& model) {
  auto prompt = std::make_shared<PromptEmbedding<T>>(static_cast<Index>(kText.size()), model.config().hidden_size);
  prompt->set_from_tokens(kText, model.embedding());
  return prompt;
}

/// The batch with the text before every sequence, as rows of its own.
PackedBatch behind_text(const PackedBatch& batch) {
  PackedBatch result;
  insert_virtual_tokens(batch, static_cast<Index>(kText.size()), result);
  for (Index s = 0; s < result.sequences(); ++s) {
    std::copy(kText.begin(), kText.end(), result.ids.begin() + result.offsets[static_cast<std::size_t>(s)]);
  }
  return result;
}

/// Two LoRAs on q and v, one at half its weight, one turned about.
void select_two_loras(Llama<double>& model, AdapterRegistry<double>& registry) {
  for (const char* name : {"a", "b"}) {
    registry.add_adapter(name, {.r = 2, .target_modules = {"q_proj", "v_proj"}, .init_lora_weights = false}, model.sites(),
                         name[0] == 'a' ? 1u : 2u);
  }
  registry.set_adapters({{"a", 0.5}, {"b", -1.0}});
  model.select(registry.selection());
}

template <class M>
std::vector<double> gradients(M& model) {
  std::vector<double> all;
  model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) { all.insert(all.end(), grad.begin(), grad.end()); });
  return all;
}

}  // namespace

TEST_CASE("a prefix or prompt made from a text does to every sequence what the text does before it") {
  Llama<double> model = tiny_llama<double>();
  const PackedBatch batch = tiny_batch(), whole = behind_text(batch);
  Matrix<double> expected(whole.tokens(), kVocabulary), got(batch.tokens(), kVocabulary);
  model.logits(whole, expected);
  const auto check = [&] {
    model.logits(batch, got);
    for (Index s = 0; s < batch.sequences(); ++s) {
      const auto at = static_cast<std::size_t>(s);
      const Index length = batch.offsets[at + 1] - batch.offsets[at];
      for (Index i = 0; i < length; ++i) {
        for (Index j = 0; j < kVocabulary; ++j) {
          REQUIRE(got(batch.offsets[at] + i, j) == Approx(expected(whole.offsets[at + 1] - length + i, j)).margin(1e-12));
        }
      }
    }
  };
  model.set_prefix(prefix_of_text(model));
  check();
  model.set_prefix(nullptr);
  model.set_prompt(prompt_of_text(model));
  check();
}

TEST_CASE("the gradient of a prompt computed once equals the sum over rows before every sequence") {
  // LoRA on k and v of both sees the virtual rows too.
  Llama<double> model = tiny_llama<double>();
  AdapterRegistry<double> registry;
  const auto sites = model.sites();
  registry.add_adapter("default", {.r = 2, .target_modules = {"k_proj", "v_proj", "up_proj"}, .init_lora_weights = false},
                       sites, 5);
  registry.set_adapter("default");
  model.select(registry.selection());
  const PackedBatch batch = tiny_batch(), whole = behind_text(batch);
  zero_grads(model);
  LossSum expected_sum, sum;
  model.forward_backward(whole, 1.0, 0, 0, expected_sum);
  const std::vector<double> expected = gradients(model);
  auto prompt = prompt_of_text(model);
  model.set_prompt(prompt);
  zero_grads(model);
  model.forward_backward(batch, 1.0, 0, 0, sum);
  CHECK(sum.loss == Approx(expected_sum.loss).epsilon(1e-12));
  const std::vector<double> got = gradients(model);
  REQUIRE(got.size() == expected.size() + static_cast<std::size_t>(prompt->prompt_embeddings().rows * 32));
  for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(got[i] == Approx(expected[i]).margin(1e-11));

  // Frozen, the prompt changes nothing in the others' gradients, and is not visited.
  prompt->set_trainable(false);
  zero_grads(model);
  LossSum frozen;
  model.forward_backward(batch, 1.0, 0, 0, frozen);
  const std::vector<double> others = gradients(model);
  REQUIRE(others.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(others[i] == Approx(expected[i]).margin(1e-11));
}

TEST_CASE("two LoRAs beside a prefix: the forward is that of the sum, gradients of each are there") {
  Llama<double> model = tiny_llama<double>();
  AdapterRegistry<double> registry;
  select_two_loras(model, registry);
  auto prefix = std::make_shared<PrefixCache<double>>(PrefixTuningConfig{.num_virtual_tokens = 4}.fit_to(kHost), 3);
  model.set_prefix(prefix);
  const PackedBatch batch = tiny_batch();
  Matrix<double> got(batch.tokens(), kVocabulary), expected(batch.tokens(), kVocabulary);
  model.logits(batch, got);
  // Naively: one adapter whose A stacks both, B beside each other with weight and scale in it.
  AdapterRegistry<double> sum;
  auto stacked = sum.add_adapter("sum", {.r = 4, .lora_alpha = 4, .target_modules = {"q_proj", "v_proj"}}, model.sites(), 0);
  stacked->for_each_module([&](const std::string& module, Lora<double>& lora) {
    const ModuleId id(module);
    const auto selection = registry.selection();
    for (int which = 0; which < 2; ++which) {
      const auto& active = selection.active()[static_cast<std::size_t>(which)];
      const Lora<double>& part = *active.adapter->find(id);
      for (Index q = 0; q < 2; ++q) {
        for (Index k = 0; k < lora.in_features(); ++k) lora.a()(2 * which + q, k) = part.a()(q, k);
        for (Index j = 0; j < lora.out_features(); ++j) {
          lora.b()(j, 2 * which + q) = active.weight * part.scaling() * part.b()(j, q);
        }
      }
    }
  });
  sum.set_adapter("sum");
  model.select(sum.selection());
  model.logits(batch, expected);
  CHECK(distance(got.flat(), expected.flat()) <= 1e-13);
  model.select(registry.selection());
  zero_grads(model);
  LossSum loss;
  model.forward_backward(batch, 1.0, 0, 0, loss);
  std::size_t parameters = 0;
  model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    INFO(info.name);
    double largest = 0;
    for (const double g : grad) largest = std::max(largest, std::fabs(g));
    CHECK(largest > 1e-9);
    ++parameters;
  });
  CHECK(parameters == 2 * 2 * 2 * 2 + 1);
}

TEST_CASE("two LoRAs, a prefix and bottleneck adapters at once do what the weights do that they were added to by hand") {
  Llama<double> model = tiny_llama<double>();
  AdapterRegistry<double> registry;
  select_two_loras(model, registry);
  auto prefix = std::make_shared<PrefixCache<double>>(PrefixTuningConfig{.num_virtual_tokens = 4}.fit_to(kHost), 3);
  model.set_prefix(prefix);
  // A bottleneck whose ReLU is open for every input, and whose upper bias takes the constant away: h + s·U·D·h.
  AdapterConfig config = AdapterConfig::seq_bn();
  config.original_ln_before = false;
  config.reduction_factor = 4;
  config.scaling = 1.5;
  auto adapters = std::make_shared<AdapterSet<double>>("task", AdapterLayout::kLlama, config, kHost.hidden_size, kHost.num_layers, 7);
  std::vector<Matrix<double>> down, up;
  Philox random(8);
  for (Index i = 0; i < kHost.num_layers; ++i) {
    const Index bottleneck = kHost.hidden_size / 4;
    constexpr double kOpen = 64.0;
    down.emplace_back(bottleneck, kHost.hidden_size);
    up.emplace_back(kHost.hidden_size, bottleneck);
    for (double& value : down.back().flat()) value = random.uniform(-0.3f, 0.3f);
    for (double& value : up.back().flat()) value = random.uniform(-0.3f, 0.3f);
    adapters->find(i, AdapterSite::kOutput)->for_each_parameter([&](const ParameterInfo& info, VectorView<double> value, auto) {
      if (info.name == "adapter_down.0.weight") std::copy_n(down.back().data(), value.size, value.data);
      if (info.name == "adapter_up.weight") std::copy_n(up.back().data(), value.size, value.data);
      if (info.name == "adapter_down.0.bias") std::fill(value.begin(), value.end(), kOpen);
      if (info.name != "adapter_up.bias") return;
      for (Index j = 0; j < value.size; ++j) {
        value[j] = 0;
        for (Index q = 0; q < bottleneck; ++q) value[j] -= up.back()(j, q) * kOpen;
      }
    });
  }
  model.set_adapters(adapters);
  const PackedBatch batch = tiny_batch();
  Matrix<double> got(batch.tokens(), kVocabulary), expected(batch.tokens(), kVocabulary), base(batch.tokens(), kVocabulary);
  model.logits(batch, got);

  Llama<double> by_hand = tiny_llama<double>([&](Index layer, const std::string& name, Matrix<double>& weight) {
    const Matrix<double> old = weight.clone();
    if (name == "mlp.down_proj") {
      const auto at = static_cast<std::size_t>(layer);
      for (Index j = 0; j < weight.rows(); ++j) {
        for (Index q = 0; q < down[at].rows(); ++q) {
          for (Index h = 0; h < weight.rows(); ++h) {
            const double factor = 1.5 * up[at](j, q) * down[at](q, h);
            for (Index k = 0; k < weight.cols(); ++k) weight(j, k) += factor * old(h, k);
          }
        }
      }
    }
    if (name != "self_attn.q_proj" && name != "self_attn.v_proj") return;
    for (const auto& active : registry.selection().active()) {
      const Lora<double>& part = *active.adapter->find(ModuleId("model.layers." + std::to_string(layer) + "." + name));
      for (Index j = 0; j < weight.rows(); ++j) {
        for (Index k = 0; k < weight.cols(); ++k) {
          for (Index q = 0; q < 2; ++q) weight(j, k) += active.weight * part.scaling() * part.b()(j, q) * part.a()(q, k);
        }
      }
    }
  });
  by_hand.set_prefix(prefix);
  by_hand.logits(batch, expected);
  // The constant that was added and taken away is 64 times 0.3 in a number of about 1.
  CHECK(distance(got.flat(), expected.flat()) <= 1e-11);
  tiny_llama<double>().logits(batch, base);
  CHECK(distance(got.flat(), base.flat()) > 0.1);
}

TEST_CASE("cutting a batch changes neither loss nor gradients") {
  const PackedBatch batch = tiny_batch();
  for (const bool prompt : {false, true}) {
    Llama<double> model = tiny_llama<double>();
    if (prompt) {
      model.set_prompt(std::make_shared<PromptEmbedding<double>>(
          PromptEncoderConfig{.num_virtual_tokens = 3,
                              .encoder_reparameterization_type = PromptEncoderReparameterizationType::kLstm,
                              .encoder_hidden_size = 5,
                              .encoder_dropout = 0.3f}.fit_to(kHost), 1));
    } else {
      model.set_prefix(std::make_shared<PrefixCache<double>>(
          PrefixTuningConfig{.num_virtual_tokens = 3, .prefix_projection = true}.fit_to(kHost), 1));
    }
    zero_grads(model);
    LossSum whole, parts;
    model.forward_backward(batch, 1.0, 3, 4, whole);
    const std::vector<double> expected = gradients(model);
    zero_grads(model);
    for (std::size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
      PackedBatch one;
      for (Index i = batch.offsets[s]; i < batch.offsets[s + 1]; ++i) {
        const auto at = static_cast<std::size_t>(i);
        one.ids.push_back(batch.ids[at]);
        one.positions.push_back(batch.positions[at]);
        one.targets.push_back(batch.targets[at]);
      }
      one.offsets.push_back(one.tokens());
      one.first_row = batch.offsets[s];
      one.first_sequence = static_cast<Index>(s);
      model.forward_backward(one, 1.0, 3, 4, parts);
    }
    CHECK(parts.loss == Approx(whole.loss).epsilon(1e-12));
    const std::vector<double> got = gradients(model);
    for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(got[i] == Approx(expected[i]).margin(1e-11));
  }
}

TEMPLATE_TEST_CASE("any number of threads gives the same bits", "", float, bf16, f16) {
  using T = TestType;
  for (int kind = 0; kind < 4; ++kind) {
    Llama<T> model = tiny_llama<T>();
    if (kind == 0) {
      model.set_prefix(std::make_shared<PrefixCache<T>>(PrefixTuningConfig{.num_virtual_tokens = 5}.fit_to(kHost), 1));
    } else if (kind == 1) {
      model.set_prefix(std::make_shared<PrefixCache<T>>(
          PrefixTuningConfig{.num_virtual_tokens = 5, .prefix_projection = true}.fit_to(kHost), 1));
    } else {
      PromptEncoderConfig config{.num_virtual_tokens = 5, .encoder_hidden_size = 24};
      if (kind == 3) config.encoder_reparameterization_type = PromptEncoderReparameterizationType::kLstm;
      model.set_prompt(std::make_shared<PromptEmbedding<T>>(config.fit_to(kHost), 1));
    }
    const PackedBatch batch = tiny_batch();
    std::vector<double> bits;
    double loss = 0;
    for (const int threads : {1, 2, 3, 7}) {
      ThreadPool pool(threads);
      model.set_executor(pool);
      zero_grads(model);
      LossSum sum;
      model.forward_backward(batch, 1.0, 5, 1, sum);
      const std::vector<double> now = gradients(model);
      if (threads == 1) bits = now, loss = sum.loss;
      CHECK(bits == now);
      CHECK(loss == sum.loss);
    }
    model.set_executor(default_executor());
    // Rows, keys and activations are rounded to 8, 11 or 24 bits; the double host has the same parameters.
    Llama<double> exact = tiny_llama<double>();
    if (model.prefix()) {
      auto prefix = std::make_shared<PrefixCache<double>>(5, 2, 2, 8);
      Matrix<double> rows(5, 64);
      for (Index i = 0; i < rows.size(); ++i) rows.flat()[i] = static_cast<double>(model.prefix()->prompt_embeddings().data[i]);
      prefix->set_prompt_embeddings(rows);
      exact.set_prefix(prefix);
    } else {
      auto prompt = std::make_shared<PromptEmbedding<double>>(5, 32);
      Matrix<double> rows(5, 32);
      for (Index i = 0; i < rows.size(); ++i) rows.flat()[i] = static_cast<double>(model.prompt()->prompt_embeddings().data[i]);
      prompt->set_prompt_embeddings(rows);
      exact.set_prompt(prompt);
    }
    LossSum near;
    exact.evaluate(batch, near);
    const double unit = std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-24;
    CHECK(std::fabs(loss - near.loss) <= 6 * unit * near.loss);
  }
}

TEST_CASE("generation behind virtual tokens equals generation behind the text, each request with its own") {
  Llama<double> model = tiny_llama<double>();
  const std::vector<std::vector<std::int32_t>> prompts{{72, 11, 8}, {40}, {90, 91, 92, 93}, {7, 7}};
  std::vector<std::vector<std::int32_t>> with_text;
  for (const auto& prompt : prompts) {
    with_text.push_back(kText);
    with_text.back().insert(with_text.back().end(), prompt.begin(), prompt.end());
  }
  GenerateOptions options;
  options.max_tokens = 6;
  const auto expected = generate<double>(model, with_text, options);
  CHECK(expected != generate<double>(model, prompts, options));
  auto prefix = prefix_of_text(model);
  model.set_prefix(prefix);
  for (const Index batch : {1, 3, 8}) CHECK(generate<double>(model, prompts, options, batch) == expected);
  const auto of_prefix = model.make_prefix();
  // Views: the trained rows themselves.
  CHECK(of_prefix->keys(1).data == prefix->keys(1).data);
  CHECK(of_prefix->keys(1).data == prefix->prompt_embeddings().data + 2 * 16);
  model.set_prefix(nullptr);
  model.set_prompt(prompt_of_text(model));
  for (const Index batch : {1, 3, 8}) CHECK(generate<double>(model, prompts, options, batch) == expected);
  const auto of_prompt = model.make_prefix();

  // One step of three sequences side by side: a prefix, a prompt read once, and nothing before.
  model.set_prompt(nullptr);
  const std::int32_t ids[] = {9, 9, 9};
  const Index counts[] = {1, 1, 1};
  KvCache<double> a(model.config(), 2, of_prefix), b(model.config(), 2, of_prompt), c(model.config(), 2);
  KvCache<double>* caches[] = {&a, &b, &c};
  Matrix<double> logits(3, kVocabulary);
  model.infer({ids, 3}, counts, caches, logits);
  std::vector<std::int32_t> whole = kText;
  whole.push_back(9);
  const auto last_logits = [&](const std::vector<std::int32_t>& sequence) {
    PackedBatch batch;
    batch.ids = sequence;
    for (Index i = 0; i < batch.tokens(); ++i) batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.targets.assign(sequence.size(), -1);
    batch.offsets.push_back(batch.tokens());
    Matrix<double> all(batch.tokens(), kVocabulary), last(1, kVocabulary);
    model.logits(batch, all);
    std::copy_n(all.row(batch.tokens() - 1), kVocabulary, last.data());
    return last;
  };
  const Matrix<double> behind = last_logits(whole), alone = last_logits({9});
  for (Index j = 0; j < kVocabulary; ++j) {
    REQUIRE(logits(0, j) == Approx(behind(0, j)).margin(1e-12));
    REQUIRE(logits(1, j) == Approx(behind(0, j)).margin(1e-12));
    REQUIRE(logits(2, j) == Approx(alone(0, j)).margin(1e-12));
  }
}

TEST_CASE("hosts refuse virtual tokens that are not theirs, naming both sides") {
  Llama<float> model = tiny_llama<float>();
  const auto text_of = [&](auto&& act) {
    try {
      act();
    } catch (const ShapeError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const std::string layers = text_of([&] { model.set_prefix(std::make_shared<PrefixCache<float>>(3, 5, 2, 8)); });
  CHECK(layers.find("num_layers is 5") != std::string::npos);
  CHECK(layers.find("is 2") != std::string::npos);
  const std::string heads = text_of([&] { model.set_prefix(std::make_shared<PrefixCache<float>>(3, 2, 4, 8)); });
  CHECK(heads.find("num_attention_heads is 4; the model's number of key/value heads is 2") != std::string::npos);
  const std::string width = text_of([&] { model.set_prefix(std::make_shared<PrefixCache<float>>(3, 2, 2, 16)); });
  CHECK(width.find("token_dim is 32") != std::string::npos);
  const std::string hidden = text_of([&] { model.set_prompt(std::make_shared<PromptEmbedding<float>>(3, 48)); });
  CHECK(hidden.find("token_dim is 48; the model's hidden size is 32") != std::string::npos);
  CHECK(model.num_virtual_tokens() == 0);

  model.set_prefix(std::make_shared<PrefixCache<float>>(3, 2, 2, 8));
  CHECK_THROWS_AS(model.set_prompt(std::make_shared<PromptEmbedding<float>>(3, 32)), ConfigError);
  CHECK(model.prompt() == nullptr);
  // A cache that leaves the prefix out would answer as if there were none.
  KvCache<float> cache(model.config(), 4);
  KvCache<float>* caches[] = {&cache};
  const std::int32_t id = 1;
  const Index count = 1;
  Matrix<float> logits(1, kVocabulary);
  CHECK_THROWS_AS(model.infer({&id, 1}, {&count, 1}, caches, logits), ConfigError);
  CHECK(cache.length() == 0);
  // Virtual tokens count in the model's context.
  model.set_prefix(std::make_shared<PrefixCache<float>>(60, 2, 2, 8));
  LossSum sum;
  CHECK_THROWS_AS(model.evaluate(tiny_batch(), sum), ShapeError);
}

TEST_CASE("a batch with virtual rows: positions, labels, where sequences and dropout rows begin") {
  PackedBatch batch = tiny_batch(), out;
  batch.first_row = 100;
  batch.first_sequence = 4;
  insert_virtual_tokens(batch, 3, out, 9);
  CHECK_NOTHROW(out.check());
  CHECK(out.offsets == std::vector<Index>{0, 10, 14, 29});
  CHECK(out.first_row == 112);
  CHECK(out.label_tokens() == batch.label_tokens());
  for (Index s = 0; s < 3; ++s) {
    const auto at = static_cast<std::size_t>(s);
    const Index begin = out.offsets[at], length = out.offsets[at + 1] - begin;
    for (Index i = 0; i < length; ++i) {
      const auto row = static_cast<std::size_t>(begin + i), of = static_cast<std::size_t>(batch.offsets[at] + i - 3);
      CHECK(out.positions[row] == i);
      CHECK(out.ids[row] == (i < 3 ? 9 : batch.ids[of]));
      CHECK(out.targets[row] == (i < 3 ? -1 : batch.targets[of]));
    }
  }
  insert_virtual_tokens(batch, 0, out);
  CHECK(out.ids == batch.ids);
  CHECK_THROWS_AS(insert_virtual_tokens(batch, -1, out), ShapeError);
  batch.targets.pop_back();
  CHECK_THROWS_AS(insert_virtual_tokens(batch, 1, out), ShapeError);
}

TEST_CASE("rows and sequences are numbered through the sub-batches") {
  struct Records {
    Index records() const { return 5; }
    Index tokens(Index) const { return 4; }
    Index label_tokens(Index) const { return 1; }
    void append(Index, PackedBatch& batch) const {
      for (int i = 0; i < 4; ++i) batch.ids.push_back(1), batch.positions.push_back(i), batch.targets.push_back(-1);
      batch.offsets.push_back(batch.tokens());
    }
  };
  const Records records;
  const std::vector<Index> order{0, 1, 2, 3, 4};
  SubBatches<Records> cut(records, order, 8);
  PackedBatch batch;
  std::vector<Index> sequences, rows;
  while (cut.next(batch)) sequences.push_back(batch.first_sequence), rows.push_back(batch.first_row);
  CHECK(sequences == std::vector<Index>{0, 2, 4});
  CHECK(rows == std::vector<Index>{0, 8, 16});
}

TEST_CASE("a train state keeps the encoder: what goes on from it has the same rows, which a folder does not") {
  Llama<float> model = tiny_llama<float>(), other = tiny_llama<float>();
  const auto config = PrefixTuningConfig{.num_virtual_tokens = 4, .prefix_projection = true}.fit_to(kHost);
  model.set_prefix(std::make_shared<PrefixCache<float>>(config, 1));
  other.set_prefix(std::make_shared<PrefixCache<float>>(config, 2));
  const auto tensors = parameter_tensors(model);
  CHECK(tensors.size() == 5);
  check_tensors(other, "parameters", tensors);
  assign_parameters(other, tensors);
  Matrix<float> a(tiny_batch().tokens(), kVocabulary), b(a.rows(), a.cols());
  model.logits(tiny_batch(), a);
  other.logits(tiny_batch(), b);
  CHECK(std::equal(a.flat().begin(), a.flat().end(), b.flat().begin()));
}
