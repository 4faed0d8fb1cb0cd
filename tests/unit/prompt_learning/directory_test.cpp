// Folders of prefixes and prompts: what is broken is refused, with the field or key and what to do.
#include "peft/pipeline/prompt_learning_loader.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"
#include "unit/prompt_learning/refusals.hpp"

using namespace peft;
using prompt_test::has;
using prompt_test::thrown;
using io_test::ScratchFolder;

namespace {

struct Saved {
  ScratchFolder scratch;
  std::filesystem::path folder = scratch / "adapter";
  Saved() {
    PrefixCache<float> prefix(PrefixTuningConfig{.num_virtual_tokens = 2, .token_dim = 6, .num_layers = 3, .num_attention_heads = 2}, 1);
    save_pretrained(prefix, folder);
  }
  /// Changes the configuration's text.
  void replace(const std::string& from, const std::string& to) const {
    std::string text = io_test::read_file(folder / "adapter_config.json");
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    io_test::write_file(folder / "adapter_config.json", text.replace(at, from.size(), to));
  }
  void write(const std::vector<TensorRef>& tensors) const {
    std::filesystem::remove(folder / "adapter_model.safetensors");
    FileWriter file(folder / "adapter_model.safetensors", "test");
    write_safetensors(file, tensors);
    file.finish();
  }
};

}  // namespace

TEST_CASE("a prefix comes back bit for bit, under a name too") {
  ScratchFolder scratch;
  PrefixCache<float> prefix(PrefixTuningConfig{.num_virtual_tokens = 2, .token_dim = 6, .num_layers = 3,
                                               .num_attention_heads = 2, .encoder_hidden_size = 4, .prefix_projection = true}, 1);
  save_pretrained(prefix, scratch / "a", "second");
  CHECK(std::filesystem::exists(scratch / "a/second/adapter_config.json"));
  const auto back = load_prefix_cache<float>(scratch / "a", "second");
  CHECK(!back->is_trainable());
  CHECK(back->config().prefix_projection);
  for (Index i = 0; i < 2 * 36; ++i) REQUIRE(back->prompt_embeddings().data[i] == prefix.prompt_embeddings().data[i]);
  CHECK_THROWS_AS(back->set_trainable(true), ConfigError);
  const auto half = load_prefix_cache<f16>(scratch / "a", "second");
  CHECK(static_cast<float>(half->keys(1)(1, 2)) == static_cast<float>(f16(prefix.keys(1)(1, 2))));
  const auto wide = load_prefix_cache<double>(scratch / "a", "second");
  CHECK(wide->keys(1)(1, 2) == static_cast<double>(prefix.keys(1)(1, 2)));
  CHECK(has(thrown<IoError>([&] { load_prefix_cache<float>(scratch / "a"); }), "second"));

  PromptEmbedding<float> prompt(PromptTuningConfig{.num_virtual_tokens = 3, .token_dim = 4, .tokenizer_name_or_path = "é"}, 1);
  save_pretrained(prompt, scratch / "b");
  const auto again = load_prompt_embedding<float>(scratch / "b");
  CHECK(std::get<PromptTuningConfig>(again->config()).tokenizer_name_or_path == "é");
  again->set_trainable(true);
  for (Index i = 0; i < 12; ++i) REQUIRE(again->prompt_embeddings().data[i] == prompt.prompt_embeddings().data[i]);
}

TEST_CASE("a configuration with what is not known or not supported is refused by the field's name") {
  const auto text_after = [](const std::string& from, const std::string& to) {
    const Saved saved;
    saved.replace(from, to);
    return thrown<ConfigError>([&] { load_prompt_learning(saved.folder); });
  };
  CHECK(has(text_after("\"PREFIX_TUNING\"", "\"ADAPTION_PROMPT\""), "peft_type is \"ADAPTION_PROMPT\"; expected \"PREFIX_TUNING\", \"PROMPT_TUNING\" or \"P_TUNING\""));
  CHECK(has(text_after("\"PREFIX_TUNING\"", "\"LORA\""), "load_peft_adapter"));
  CHECK(has(text_after("\"peft_type\"", "\"peft_kind\""), "peft_type is missing"));
  CHECK(has(text_after("\"revision\": null", "\"num_ranks\": 3"), "sets \"num_ranks\" to 3"));
  CHECK(has(text_after("\"revision\": null", "\"prompt_tuning_init\": \"TEXT\""), "prompt_tuning_init"));
  CHECK(has(text_after("\"modules_to_save\": null", "\"modules_to_save\": [\"score\"]"), "modules_to_save holds \"score\""));
  CHECK(has(text_after("\"num_transformer_submodules\": null", "\"num_transformer_submodules\": 2"), "num_transformer_submodules is 2"));
  CHECK(has(text_after("\"num_virtual_tokens\": 2", "\"num_virtual_tokens\": \"2\""), "num_virtual_tokens is \"2\"; expected a whole number"));
  CHECK(has(text_after("\"num_virtual_tokens\": 2", "\"num_virtual_tokens\": 0"), "num_virtual_tokens is 0"));
  CHECK(has(text_after("\"num_virtual_tokens\": 2", "\"num_virtual_tokens\": 2.5"), "num_virtual_tokens is 2.5"));
  CHECK(has(text_after("\"num_virtual_tokens\": 2", "\"num_virtual_tokens\": null"), "num_virtual_tokens is 0"));
  CHECK(has(text_after("\"token_dim\": 6", "\"token_dim\": null"), "token_dim is 0"));
  CHECK(has(text_after("\"init_weights\": null", "\"init_weights\": 1"), "init_weights is 1; expected a text or null"));
  const Saved null_field;
  null_field.replace("\"revision\": null", "\"num_ranks\": null");  // not set
  CHECK_NOTHROW(load_prompt_learning(null_field.folder));
}

TEST_CASE("weights that are not the configuration's are refused with both sides") {
  {
    const Saved saved;
    saved.replace("\"num_layers\": 3", "\"num_layers\": 4");
    CHECK(has(thrown<ShapeError>([&] { load_prompt_learning(saved.folder); }), "[2, 36]; its configuration gives [2, 48]"));
  }
  const Matrix<float> rows = Matrix<float>::zeros(2, 36);
  Matrix<float> broken = Matrix<float>::zeros(2, 36);
  broken(1, 7) = std::numeric_limits<float>::quiet_NaN();
  const auto text_with = [&]<class E>(E*, const std::vector<TensorRef>& tensors) {
    const Saved saved;
    saved.write(tensors);
    return thrown<E>([&] { load_prompt_learning(saved.folder); });
  };
  const TensorRef good = tensor_ref<float>("prompt_embeddings", rows.view());
  CHECK(has(text_with(static_cast<FormatError*>(nullptr), {tensor_ref<float>("prompt", rows.view())}), "\"prompt\""));
  CHECK(has(text_with(static_cast<FormatError*>(nullptr), {}), "it has no prompt_embeddings"));
  CHECK(has(text_with(static_cast<FormatError*>(nullptr), {good, tensor_ref<float>("base_model.model.lm_head.weight", rows.view())}),
            "lm_head"));
  CHECK(has(text_with(static_cast<NumericError*>(nullptr), {tensor_ref<float>("prompt_embeddings", std::as_const(broken).view())}), "[1, 7]"));
  const Saved saved;
  std::filesystem::resize_file(saved.folder / "adapter_model.safetensors", 50);
  CHECK_THROWS_AS(load_prompt_learning(saved.folder), FormatError);
  std::filesystem::remove(saved.folder / "adapter_model.safetensors");
  CHECK_THROWS_AS(load_prompt_learning(saved.folder), IoError);
}

TEST_CASE("what cannot be saved leaves what stood there") {
  const Saved saved;
  const std::string config = io_test::read_file(saved.folder / "adapter_config.json");
  const std::string weights = io_test::read_file(saved.folder / "adapter_model.safetensors");
  PrefixTuningConfig other{.num_virtual_tokens = 2, .token_dim = 6, .num_layers = 3, .num_attention_heads = 2};
  const Matrix<float> narrow = Matrix<float>::zeros(2, 35);
  CHECK_THROWS_AS(save_prompt_learning<float>(saved.folder, other, narrow.view()), ShapeError);
  Matrix<float> infinite = Matrix<float>::zeros(2, 36);
  infinite(0, 0) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(save_prompt_learning<float>(saved.folder, other, std::as_const(infinite).view()), NumericError);
  other.task_type = "\xff";
  const Matrix<float> rows = Matrix<float>::zeros(2, 36);
  CHECK_THROWS_AS(save_prompt_learning<float>(saved.folder, other, rows.view()), ConfigError);
  CHECK(io_test::read_file(saved.folder / "adapter_config.json") == config);
  CHECK(io_test::read_file(saved.folder / "adapter_model.safetensors") == weights);
}
