// PrefixCache and PromptEmbedding by themselves: starts, foreign caches, bad input.
#include <cmath>

#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "support/catch.hpp"
#include "unit/prompt_learning/refusals.hpp"

using namespace peft;
using prompt_test::has;
using prompt_test::thrown;

namespace {

/// A host's cache in f16, rows apart, that takes floats: it has what KvCacheLike and WritableKvCache ask and nothing else.
struct ForeignCache {
  using value_type = f16;
  static constexpr Index kStride = 13, kRows = 9;

  explicit ForeignCache(Index layers) : memory(static_cast<std::size_t>(2 * layers * kRows * kStride)), filled(static_cast<std::size_t>(layers), 0) {}
  Index layers() const { return static_cast<Index>(filled.size()); }
  Index length() const { return filled.back(); }
  MatrixView<const f16> keys(Index layer) const { return part(2 * layer); }
  MatrixView<const f16> values(Index layer) const { return part(2 * layer + 1); }
  void write(Index layer, MatrixView<const float> keys, MatrixView<const float> values) {
    Index& from = filled[static_cast<std::size_t>(layer)];
    for (Index i = 0; i < keys.rows; ++i) {
      for (Index j = 0; j < keys.cols; ++j) {
        at(2 * layer)[(from + i) * kStride + j] = f16(keys(i, j));
        at(2 * layer + 1)[(from + i) * kStride + j] = f16(values(i, j));
      }
    }
    from += keys.rows;
  }

  Index width = 6;
  std::vector<f16> memory;
  std::vector<Index> filled;

 private:
  f16* at(Index index) { return memory.data() + index * kRows * kStride; }
  MatrixView<const f16> part(Index index) const {
    return {memory.data() + index * kRows * kStride, length(), width, kStride};
  }
};
static_assert(KvCacheLike<ForeignCache> && WritableKvCache<ForeignCache, float>);
static_assert(KvCacheLike<PrefixCache<float>> && KvCacheLike<PrefixCache<bf16>> && !WritableKvCache<PrefixCache<float>, float>);
struct NoCache {
  using value_type = float;
  Index layers() const { return 1; }
};
static_assert(!KvCacheLike<NoCache> && !KvCacheLike<int>);

const PrefixTuningConfig kPrefix{.num_virtual_tokens = 4, .token_dim = 6, .num_layers = 3, .num_attention_heads = 2};

}  // namespace

TEST_CASE("a prefix goes into a foreign f16 cache and comes back as it stands there") {
  PrefixCache<float> prefix(kPrefix, 1);
  ForeignCache cache(3);
  prefix.write_to(cache);
  CHECK(cache.length() == 4);
  PrefixCache<float> back(kPrefix, 2);
  back.assign(cache);
  for (Index l = 0; l < 3; ++l) {
    for (Index i = 0; i < 4; ++i) {
      for (Index j = 0; j < 6; ++j) {
        REQUIRE(back.keys(l)(i, j) == static_cast<float>(f16(prefix.keys(l)(i, j))));
        REQUIRE(back.values(l)(i, j) == static_cast<float>(f16(prefix.values(l)(i, j))));
      }
    }
  }
  prefix.write_to(cache);  // appended
  CHECK(cache.length() == 8);
  back.assign(cache, 4);
  CHECK(back.keys(2)(0, 0) == static_cast<float>(f16(prefix.keys(2)(0, 0))));
  PrefixCache<double> wide(4, 3, 2, 3);
  wide.assign(cache, 2);
  CHECK(wide.values(0)(1, 5) == static_cast<double>(static_cast<float>(f16(prefix.values(0)(3, 5)))));

  CHECK(has(thrown<ShapeError>([&] { back.assign(cache, 5); }), "3 layers and 8 rows; expected 3 layers and at least 4 rows from row 5"));
  CHECK_THROWS_AS(back.assign(cache, -1), ShapeError);
  ForeignCache other(2);
  CHECK(has(thrown<ShapeError>([&] { prefix.write_to(other); }), "2 layers; expected 3"));
  CHECK(has(thrown<ShapeError>([&] { back.assign(other); }), "2 layers"));
  cache.width = 5;
  CHECK(has(thrown<ShapeError>([&] { back.assign(cache); }), "5 wide; expected 6, the prefix's 2 key/value heads of 3"));
}

TEST_CASE("the flattened row is peft's: [virtual tokens, 2·layers, kv_heads, head_dim]") {
  PrefixCache<float> prefix(2, 3, 2, 4);
  Matrix<float> rows(2, 3 * 2 * 8);
  for (Index i = 0; i < rows.size(); ++i) rows.flat()[i] = static_cast<float>(i);
  prefix.set_prompt_embeddings(rows);
  for (Index l = 0; l < 3; ++l) {
    CHECK(prefix.keys(l)(1, 5) == static_cast<float>(48 + (2 * l) * 8 + 5));
    CHECK(prefix.values(l)(1, 5) == static_cast<float>(48 + (2 * l + 1) * 8 + 5));
    CHECK(prefix.grad_values(l).data - prefix.grad_keys(l).data == 8);
  }
  CHECK(prefix.kv_heads() == 2);
  CHECK(prefix.head_dim() == 4);
  std::vector<std::string> names;
  prefix.for_each_parameter([&](const ParameterInfo& info, auto value, auto grad) {
    names.emplace_back(info.name);
    CHECK((info.rows == 2 && info.cols == 48 && value.size == 96 && grad.size == 96));
  }, "x.");
  CHECK(names == std::vector<std::string>{"x.prompt_embeddings"});
  CHECK_THROWS_AS(prefix.set_prompt_embeddings(Matrix<float>::zeros(2, 47)), ShapeError);
  CHECK_THROWS_AS(prefix.set_prompt_embeddings(Matrix<float>::zeros(3, 48)), ShapeError);
}

TEST_CASE("starts: standard normal, zero, by seed; encoders as torch's modules") {
  const auto moments = [](VectorView<const float> values) {
    double sum = 0, squares = 0;
    for (const float v : values) sum += static_cast<double>(v), squares += static_cast<double>(v) * static_cast<double>(v);
    const auto n = static_cast<double>(values.size);
    return std::pair(sum / n, squares / n);
  };
  PrefixTuningConfig config{.num_virtual_tokens = 50, .token_dim = 16, .num_layers = 4, .num_attention_heads = 2};
  const auto all = [](const auto& rows) { return VectorView<const float>(rows.data, rows.rows * rows.cols); };
  PrefixCache<float> one(config, 7), same(config, 7), other(config, 8);
  const auto [mean, square] = moments(all(one.prompt_embeddings()));
  CHECK(std::fabs(mean) < 5 / std::sqrt(6400.0));  // five standard deviations
  CHECK(std::fabs(square - 1) < 5 * std::sqrt(2 / 6400.0));
  CHECK(std::equal(all(one.prompt_embeddings()).begin(), all(one.prompt_embeddings()).end(), same.prompt_embeddings().data));
  CHECK(!std::equal(all(one.prompt_embeddings()).begin(), all(one.prompt_embeddings()).end(), other.prompt_embeddings().data));
  config.init_weights = "zero";
  config.prefix_projection = true;
  config.encoder_hidden_size = 12;
  PrefixCache<float> zero(config, 7);
  for (const float v : all(zero.prompt_embeddings())) REQUIRE(v == 0.0f);
  zero.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    const auto [m, s] = moments(value);
    INFO(info.name);
    if (info.name == "prompt_encoder.embedding.weight") CHECK(std::fabs(s - 1) < 5 * std::sqrt(2.0 / 800));
    if (info.name == "prompt_encoder.transform.0.weight") CHECK(std::fabs(s - 1.0 / 16 / 3) < 0.006);  // uniform in ±1/√16
    if (info.name.starts_with("prompt_encoder.transform.2")) CHECK(s == 0.0);
    CHECK(info.decay == !info.name.ends_with("bias"));
    (void)m;
  });

  Matrix<bf16> table(11, 3);
  for (Index i = 0; i < table.size(); ++i) table.flat()[i] = bf16(static_cast<float>(i));
  const std::vector<std::int32_t> text{4, 9};
  PromptTuningConfig prompt{.num_virtual_tokens = 5, .token_dim = 3, .prompt_tuning_init = PromptTuningInit::kText,
                            .prompt_tuning_init_text = "a b", .tokenizer_name_or_path = "x"};
  const PromptEmbedding<float> repeated(prompt, std::as_const(table).view(), text);
  for (Index i = 0; i < 5; ++i) CHECK(repeated.rows()(i, 1) == static_cast<float>(3 * text[static_cast<std::size_t>(i % 2)] + 1));
  prompt.num_virtual_tokens = 1;
  const PromptEmbedding<float> cut(prompt, std::as_const(table).view(), text);
  CHECK(cut.rows()(0, 0) == 12.0f);
  CHECK(has(thrown<ConfigError>([&] { PromptEmbedding<float>(prompt, std::as_const(table).view()); }), "no tokens"));
  CHECK(has(thrown<ConfigError>([&] { PromptEmbedding<float>(prompt, std::uint64_t{1}); }), "the model's embeddings; pass them"));
  const std::vector<std::int32_t> outside{11};
  CHECK_THROWS_AS(PromptEmbedding<float>(prompt, std::as_const(table).view(), outside), ShapeError);
  prompt = {.num_virtual_tokens = 200, .token_dim = 3, .prompt_tuning_init = PromptTuningInit::kSampleVocab};
  const PromptEmbedding<float> sampled(prompt, std::as_const(table).view(), {}, 3);
  std::vector<int> drawn(11, 0);
  for (Index i = 0; i < 200; ++i) {
    const auto id = static_cast<std::size_t>(sampled.rows()(i, 0)) / 3;
    REQUIRE(id < 11);
    REQUIRE(sampled.rows()(i, 2) == static_cast<float>(3 * id + 2));
    ++drawn[id];
  }
  for (const int count : drawn) CHECK(count > 0);
  prompt.token_dim = 4;
  CHECK_THROWS_AS(PromptEmbedding<float>(prompt, std::as_const(table).view()), ShapeError);
}

TEST_CASE("configurations refuse what they cannot be, by the field's name") {
  const auto prefix_text = [](auto change) {
    PrefixTuningConfig config = kPrefix;
    change(config);
    return thrown<ConfigError>([&] { PrefixCache<float>{config}; });
  };
  CHECK(has(prefix_text([](auto& c) { c.num_virtual_tokens = 0; }), "num_virtual_tokens is 0"));
  CHECK(has(prefix_text([](auto& c) { c.num_layers = 0; }), "num_layers is 0; expected at least 1; the configuration's fit_to(host)"));
  CHECK(has(prefix_text([](auto& c) { c.token_dim = -3; }), "token_dim is -3"));
  CHECK(has(prefix_text([](auto& c) { c.token_dim = 7; }), "token_dim is 7 with 2 heads"));
  CHECK(has(prefix_text([](auto& c) { c.num_transformer_submodules = 2; }), "num_transformer_submodules is 2"));
  CHECK(has(prefix_text([](auto& c) { c.modules_to_save = {"lm_head"}; }), "modules_to_save holds \"lm_head\""));
  CHECK(has(prefix_text([](auto& c) { c.init_weights = "ones"; }), "init_weights is \"ones\""));
  CHECK(has(prefix_text([](auto& c) { c.encoder_hidden_size = -1; }), "encoder_hidden_size is -1"));
  CHECK(has(thrown<ConfigError>([] { PromptEmbedding<float>(0, 4); }), "num_virtual_tokens is 0"));
  CHECK(has(thrown<ConfigError>([] { PromptEmbedding<float>(4, 0); }), "token_dim is 0"));
  CHECK(has(thrown<ConfigError>([] {
    PromptTuningConfig{.num_virtual_tokens = 2, .prompt_tuning_init = PromptTuningInit::kText}.validate();
  }), "prompt_tuning_init_text"));
  CHECK(has(thrown<ConfigError>([] { PromptTuningConfig{.num_virtual_tokens = 2, .tokenizer_kwargs = "{}"}.validate(); }),
            "tokenizer_kwargs"));
  const auto encoder_text = [](auto change) {
    PromptEncoderConfig config{.num_virtual_tokens = 2, .token_dim = 4};
    change(config);
    return thrown<ConfigError>([&] { PromptEmbedding<float>{config}; });
  };
  CHECK(has(encoder_text([](auto& c) { c.encoder_num_layers = 3; }), "encoder_num_layers is 3"));
  CHECK(has(encoder_text([](auto& c) { c.encoder_dropout = 0.1f; }), "encoder_dropout 0.1 with an MLP"));
  CHECK(has(encoder_text([](auto& c) { c.encoder_dropout = 1.0f; }), "encoder_dropout is 1"));
  CHECK(has(encoder_text([](auto& c) { c.encoder_num_layers = 0; }), "encoder_num_layers is 0"));
  CHECK(has(encoder_text([](auto& c) { c.token_dim = 0; }), "token_dim is 0"));
}

TEST_CASE("rows that an encoder makes are not set, and those whose encoder is gone are not trained") {
  PrefixTuningConfig config = kPrefix;
  config.prefix_projection = true;
  PrefixCache<float> made(config);
  CHECK(made.is_trainable());
  CHECK(has(thrown<ConfigError>([&] { made.set_prompt_embeddings(Matrix<float>::zeros(4, 36)); }), "prefix_projection"));
  CHECK_THROWS_AS(made.assign(ForeignCache(3)), ConfigError);
  config.inference_mode = true;
  PrefixCache<float> loaded(config);
  CHECK(!loaded.is_trainable());
  loaded.set_prompt_embeddings(Matrix<float>::zeros(4, 36));
  CHECK(has(thrown<ConfigError>([&] { loaded.set_trainable(true); }), "train state"));
  CHECK(!loaded.is_trainable());
  PromptEmbedding<float> encoder(PromptEncoderConfig{.num_virtual_tokens = 2, .token_dim = 4});
  CHECK_THROWS_AS(encoder.set_prompt_embeddings(Matrix<float>::zeros(2, 4)), ConfigError);
  PromptEmbedding<float> gone(PromptEncoderConfig{.num_virtual_tokens = 2, .token_dim = 4, .inference_mode = true});
  CHECK_THROWS_AS(gone.set_trainable(true), ConfigError);
  PromptEmbedding<float> plain(2, 4);
  plain.set_trainable(false);
  plain.set_trainable(true);
  Matrix<float> wrong(3, 4);
  CHECK_THROWS_AS(plain.write(wrong), ShapeError);
  CHECK_THROWS_AS(plain.add_gradient(std::as_const(wrong).view()), ShapeError);
  CHECK_THROWS_AS(plain.set_prompt_embeddings(std::as_const(wrong).view()), ShapeError);
}

TEST_CASE("rows follow their parameters when they are made again, and say when they may have changed") {
  PromptEmbedding<bf16> prompt(2, 4);
  CHECK(!prompt.is_stale());
  prompt.for_each_parameter([](const ParameterInfo&, auto value, auto) { std::fill(value.begin(), value.end(), 1.5f); });
  CHECK(prompt.is_stale());
  CHECK(static_cast<float>(prompt.rows()(1, 3)) == 0.0f);
  prompt.encode();
  CHECK(static_cast<float>(prompt.rows()(1, 3)) == 1.5f);
  CHECK(!prompt.is_stale());
  Matrix<bf16> dx(2, 4);
  for (bf16& v : dx.flat()) v = bf16(0.25f);
  prompt.add_gradient(std::as_const(dx).view());
  prompt.add_gradient(std::as_const(dx).view());
  prompt.backward();
  prompt.for_each_parameter([](const ParameterInfo&, auto, auto grad) { for (const float g : grad) CHECK(g == 0.5f); });
  prompt.zero_grad();
  prompt.for_each_parameter([](const ParameterInfo&, auto, auto grad) { for (const float g : grad) CHECK(g == 0.0f); });
}
