#include "hosts/open_model.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "support/catch.hpp"
#include "support/model_folder.hpp"
#include "support/resident.hpp"
#include "support/tiny_gguf.hpp"

using namespace peft_examples;
using io_test::GgufBuilder;
using io_test::read_file;
using io_test::ScratchFolder;
using io_test::write_file;
using peft::Json;
using peft::TensorRef;
using peft_test::model_folder;

namespace {

Json config_of(const std::string& model) {
  return Json::parse(read_file(std::string(PEFT_GOLDEN_DIR) + "/models/" + model + "/config.json"));
}
LlamaConfig read(const Json& json) { return read_llama_config(JsonFields(json, "config.json")); }

/// What read() says of `model`'s configuration with this change.
std::string refusal(const std::string& model, const Json& change) {
  Json json = config_of(model);
  json.update(change);
  return io_test::message_of<peft::Error>([&] { read(json); });
}

/// A GGUF's metadata, and the one tensor that they are read with.
class GgufConfig {
 public:
  GgufConfig() {
    for (const auto& [key, value] : {std::pair<const char*, std::uint32_t>{"embedding_length", 32}, {"feed_forward_length", 48},
                                     {"block_count", 2}, {"attention.head_count", 4}, {"context_length", 256}}) {
      put(key, 4, value);
    }
    put("attention.layer_norm_rms_epsilon", 6, 1e-5f);
  }
  template <class T>
  GgufConfig& put(const std::string& key, std::uint32_t type, T value) {
    values_.value("llama." + key, type, value);
    ++count_;
    return *this;
  }
  GgufConfig& put(const std::string& key, std::string_view text) {
    values_.text_value("llama." + key, text);
    ++count_;
    return *this;
  }
  GgufConfig& factors() {
    factors_ = true;
    return *this;
  }
  LlamaConfig read() const {
    GgufBuilder file;
    file.head(factors_ ? 2 : 1, count_ + 1).text_value("general.architecture", "llama").raw(values_.bytes());
    file.tensor("token_embd.weight", {32, 64}, 0, 0);
    if (factors_) file.tensor("rope_freqs.weight", {4}, 0, 64 * 32 * 4);
    file.align().zeros(64 * 32 * 4);
    for (int i = 0; factors_ && i < 8; ++i) file.number(1.0f + static_cast<float>(i));
    const ScratchFolder folder;
    write_file(folder / "model.gguf", file.bytes());
    return read_llama_config(peft::GgufFile::open(folder / "model.gguf"));
  }
  std::string refusal() const {
    return io_test::message_of<peft::Error>([&] { read(); });
  }

 private:
  GgufBuilder values_;
  std::uint64_t count_ = 0;
  bool factors_ = false;
};

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

/// The folder's weights again, in F32 and with a change.
void rewrite(const std::filesystem::path& folder, const std::function<void(std::vector<TensorRef>&)>& change) {
  std::vector<peft::Matrix<float>> values;
  std::vector<TensorRef> tensors;
  const auto file = peft::SafetensorsFile::open_folder(folder);
  for (const TensorRef& tensor : file.tensors()) {
    values.push_back(tensor.to_matrix());
    const auto bytes = std::as_bytes(std::span(values.back().data(), static_cast<std::size_t>(values.back().size())));
    tensors.push_back({tensor.name, peft::StoredType::kF32, tensor.shape, bytes, nullptr});
  }
  if (change) change(tensors);
  peft::write_safetensors(folder / "model.safetensors", std::span<const TensorRef>(tensors));
}

std::string loading(const std::filesystem::path& folder) {
  return io_test::message_of<peft::Error>([&] { load_llama<float>(open_model(folder)); });
}

}  // namespace

TEST_CASE("config.json: what would change the numbers and is not supported is refused by name") {
  CHECK(refusal("deepseek", Json::object()).empty());
  const std::pair<const char*, Json> wrong[] = {
      {"model_type", "gemma2"}, {"architectures", Json::array({"LlamaForSequenceClassification"})}, {"hidden_act", "gelu"},
      {"attention_dropout", 0.1}, {"partial_rotary_factor", 0.5}, {"rope_interleaved", true}, {"is_causal", false},
      {"quantization_config", {{"quant_method", "gptq"}}}, {"use_qk_norm", true}, {"logits_scaling", 8.0},
      {"hidden_size", "big"}, {"num_hidden_layers", nullptr}, {"num_attention_heads", 0}, {"num_attention_heads", 3},
      {"vocab_size", 1.5}, {"tie_word_embeddings", 1}, {"rms_norm_eps", "small"}, {"head_dim", 3}, {"attention_bias", "yes"},
      {"max_position_embeddings", -1}};
  for (const auto& [name, value] : wrong) {
    INFO(name << " = " << value);
    CHECK(has(refusal("deepseek", {{name, value}}), name == std::string("num_attention_heads") && value == 3 ? "multiple" : name));
  }
  CHECK(has(refusal("deepseek", {{"model_type", "gemma2"}}), "llama, mistral, qwen2 and qwen3"));
  // What transformers passes over as well.
  CHECK(refusal("deepseek", {{"use_cache", false}, {"torch_dtype", "float16"}, {"_name_or_path", "x"}, {"unsloth_version", 1},
                             {"rope_interleaved", false}, {"quantization_config", nullptr}, {"hidden_act", "swish"}})
            .empty());
}

TEST_CASE("config.json: rotary scaling in both spellings") {
  const Json llama3 = {{"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  Json old_file = config_of("llama3"), new_file = old_file;
  old_file.erase("rope_parameters");
  old_file["rope_theta"] = 500000.0;
  old_file["rope_scaling"] = llama3;
  old_file["rope_scaling"]["rope_type"] = "llama3";
  new_file["rope_parameters"] = old_file["rope_scaling"];
  new_file["rope_parameters"]["rope_theta"] = 500000.0;
  for (const Json& file : {old_file, new_file}) {
    const LlamaConfig c = read(file);
    CHECK(c.rope_theta == 500000.0);
    CHECK(c.rope_scaling.type == RopeScaling::Type::kLlama3);
    CHECK(c.rope_scaling.original_max_position_embeddings == 8192);
  }
  const auto rope = [](Json parameters) { return refusal("linear", {{"rope_scaling", std::move(parameters)}}); };
  CHECK(rope({{"rope_type", "default"}}).empty());
  CHECK(has(rope({{"rope_type", "dynamic"}, {"factor", 2.0}}), "dynamic"));
  CHECK(has(rope({{"type", "longrope"}, {"factor", 2.0}}), "llama3 or yarn"));
  CHECK(has(rope({{"type", "linear"}}), "has no factor"));
  CHECK(has(rope({{"type", "linear"}, {"factor", 0.0}}), "factor is 0"));
  CHECK(has(rope({{"type", "linear"}, {"factor", 2.0}, {"mrope_section", Json::array()}}), "mrope_section"));
  CHECK(has(rope({{"type", "llama3"}, {"factor", 2.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}}), "high_freq_factor"));
  CHECK(has(rope({{"type", "default"}, {"partial_rotary_factor", 0.5}}), "partial_rotary_factor"));
  CHECK(has(rope("linear"), "expected an object"));
  // YaRN: the attention factor as given, by the scales, or the paper's; the context beside it counts first.
  Json yarn = config_of("yarn");
  CHECK(read(yarn).rope_scaling.attention_factor == Approx(0.1 * std::log(4.0) + 1));
  yarn["original_max_position_embeddings"] = 32;
  yarn["rope_parameters"]["factor"] = nullptr;
  CHECK(read(yarn).rope_scaling.original_max_position_embeddings == 32);
  CHECK(read(yarn).rope_scaling.factor == 2.0);
  CHECK(read(config_of("yarn_factor")).rope_scaling.attention_factor == 0.8);
  CHECK(read(config_of("yarn_mscale")).rope_scaling.attention_factor ==
        Approx((0.07 * std::log(4.0) + 1) / (0.3 * std::log(4.0) + 1)));
}

TEST_CASE("config.json: a window makes the context shorter where a model attends through it") {
  const auto context = [](const std::string& model, const Json& change, std::initializer_list<const char*> without = {}) {
    Json json = config_of(model);
    json["max_position_embeddings"] = 10000;
    for (const char* name : without) json.erase(name);
    json.update(change);
    return read(json).context();
  };
  CHECK(context("mistral", {{"sliding_window", 512}}) == 512);
  CHECK(context("mistral", {{"sliding_window", nullptr}}) == 10000);
  CHECK(context("mistral", Json::object(), {"sliding_window"}) == 4096);
  CHECK(context("mistral", {{"sliding_window", 20000}}) == 10000);
  CHECK(context("deepseek", {{"sliding_window", 512}}) == 10000);
  const Json used = {{"use_sliding_window", true}, {"sliding_window", 512}};
  CHECK(context("qwen2", {{"use_sliding_window", false}, {"sliding_window", 512}}) == 10000);
  CHECK(context("qwen2", used) == 10000);  // its layer_types say full attention
  CHECK(context("qwen2", used, {"layer_types", "max_window_layers"}) == 10000);  // from layer 28 on: there is none
  Json first = used;
  first["max_window_layers"] = 1;
  CHECK(context("qwen2", first, {"layer_types"}) == 512);
  first["layer_types"] = {"full_attention", "sliding_attention"};
  CHECK(context("qwen3", first) == 512);
  CHECK(has(refusal("qwen3", {{"layer_types", {"full_attention", "chunked_attention"}}}), "layer_types"));
}

TEST_CASE("a folder's tensors are exactly those of its configuration") {
  const ScratchFolder scratch;
  const auto folder = model_folder(scratch, "deepseek");
  rewrite(folder, {});
  CHECK(loading(folder).empty());
  const std::vector<float> zeros(64 * 16);
  const auto extra = [&](const std::string& name, std::vector<Index> shape) {
    return [&zeros, name, shape](std::vector<TensorRef>& tensors) {
      const auto count = static_cast<std::size_t>(peft::detail::element_count(shape).value());
      tensors.push_back({name, peft::StoredType::kF32, shape, std::as_bytes(std::span(zeros.data(), count)), nullptr});
    };
  };
  rewrite(folder, extra("model.layers.0.self_attn.rotary_emb.inv_freq", {2}));
  CHECK(loading(folder).empty());
  rewrite(folder, extra("model.layers.1.self_attn.q_norm.weight", {4}));
  CHECK(has(loading(folder), "q_norm"));
  const auto again = model_folder(scratch, "deepseek");
  rewrite(again, [](std::vector<TensorRef>& tensors) { tensors.pop_back(); });
  CHECK(has(loading(again), "has no tensor"));
  model_folder(scratch, "deepseek");
  rewrite(again, [](std::vector<TensorRef>& tensors) { tensors.back().shape = {tensors.back().elements(), 1}; });
  CHECK(has(loading(again), "its shape is"));
  // A head beside tied embeddings: the same numbers or an error.
  const auto tied = model_folder(scratch, "linear");
  rewrite(tied, [](std::vector<TensorRef>& tensors) {
    TensorRef head = *std::find_if(tensors.begin(), tensors.end(), [](const TensorRef& t) { return t.name == "model.embed_tokens.weight"; });
    head.name = "lm_head.weight";
    tensors.push_back(head);
  });
  CHECK(loading(tied).empty());
  model_folder(scratch, "linear");
  rewrite(tied, extra("lm_head.weight", {64, 16}));
  CHECK(has(loading(tied), "tie_word_embeddings"));
  // Old checkpoints without safetensors; no folder at all.
  std::filesystem::remove(tied / "model.safetensors");
  CHECK(has(loading(tied), "model.safetensors"));
  std::filesystem::remove(tied / "config.json");
  CHECK(has(loading(tied), "config.json"));
}

TEST_CASE("a GGUF's metadata: scalings as stored, and what is not understood by name") {
  CHECK(GgufConfig().refusal().empty());
  const LlamaConfig linear = GgufConfig().put("rope.scaling.type", "linear").put("rope.scaling.factor", 6, 4.0f).read();
  CHECK(linear.rope_scaling.type == RopeScaling::Type::kLinear);
  CHECK(linear.rope_scaling.factor == 4.0);
  CHECK(GgufConfig().put("rope.scale_linear", 6, 4.0f).read().rope_scaling.type == RopeScaling::Type::kLinear);
  const LlamaConfig yarn = GgufConfig().put("rope.scaling.type", "yarn").put("rope.scaling.factor", 6, 4.0f)
                               .put("rope.scaling.original_context_length", 4, std::uint32_t{64})
                               .put("rope.scaling.attn_factor", 6, 0.5f).read();
  CHECK(yarn.rope_scaling.original_max_position_embeddings == 64);
  CHECK(yarn.rope_scaling.attention_factor == Approx(0.5 * (0.1 * std::log(4.0) + 1)));
  const LlamaConfig factors = GgufConfig().factors().read();
  CHECK(factors.rope_scaling.type == RopeScaling::Type::kFactors);
  CHECK(factors.rope_scaling.frequency_factors == std::vector<float>{1, 2, 3, 4});
  CHECK(GgufConfig().put("expert_count", 4, std::uint32_t{0}).refusal().empty());

  CHECK(has(GgufConfig().put("rope.scaling.type", "longrope").refusal(), "longrope"));
  CHECK(has(GgufConfig().put("rope.scaling.attn_factor", 6, 0.5f).refusal(), "attn_factor"));
  CHECK(has(GgufConfig().put("rope.scaling.type", "linear").put("rope.scaling.factor", 6, 4.0f).factors().refusal(), "rope_freqs"));
  CHECK(has(GgufConfig().put("expert_count", 4, std::uint32_t{8}).refusal(), "expert_count"));
  CHECK(has(GgufConfig().put("logit_scale", 6, 2.0f).refusal(), "logit_scale"));
  CHECK(has(GgufConfig().put("rope.dimension_count", 4, std::uint32_t{4}).refusal(), "of which 4 turn"));
}

TEST_CASE("weights stored as wanted stay in the file; others are converted and the file's pages given back") {
  const ScratchFolder scratch;
  const auto is_mapped = [](auto& linear) {
    using T = typename std::remove_reference_t<decltype(linear)>::value_type;
    return linear.base().template get_if<peft::DenseLinear<T>>()->is_mapped();
  };
  // F32 from a folder: everything in place, also when the source is gone.
  const auto folder = model_folder(scratch, "deepseek");
  rewrite(folder, {});
  auto model = load_llama<float>(open_model(folder));
  for (auto* site : model.sites()) CHECK(is_mapped(*site));
  const auto file = peft::SafetensorsFile::open_folder(folder);
  const auto embedding = file.tensor("model.embed_tokens.weight").to_matrix();
  CHECK(std::equal(embedding.data(), embedding.data() + embedding.size(), model.embedding().view().data));
  // BF16 as BF16: in place. As float: copied.
  const auto narrow = model_folder(scratch, "qwen3");
  auto as_stored = load_llama<peft::bf16>(open_model(narrow));
  auto widened = load_llama<float>(open_model(narrow));
  for (auto* site : as_stored.sites()) CHECK(is_mapped(*site));
  for (auto* site : widened.sites()) CHECK_FALSE(is_mapped(*site));
  // A llama's GGUF: q and k have other rows in the model.
  const auto path = scratch / "tiny.gguf";
  write_file(path, peft_test::TinyGguf{.hidden = 256, .intermediate = 2048}.bytes());
  auto of_gguf = load_llama<float>(open_model(path));
  for (auto* site : of_gguf.sites()) {
    const bool has_heads = site->name().ends_with("q_proj") || site->name().ends_with("k_proj");
    CHECK(is_mapped(*site) == !has_heads);
  }
  // Converted: of a file of megabytes only the edges of tensors stay, while it is still open.
  const auto open_path = scratch / "open.gguf";
  std::filesystem::copy_file(path, open_path);
  const auto gguf = peft::GgufFile::open(open_path);
  const auto converted = load_llama<peft::bf16>(open_gguf_model(gguf));
  for (const peft::TensorRef& tensor : gguf.tensors()) CHECK(tensor.file->path() == open_path);
  const auto resident = peft_test::resident_bytes(open_path);
  const auto size = static_cast<double>(std::filesystem::file_size(open_path));
  CHECK(size > 12e6);
  if (resident) CHECK(static_cast<double>(*resident) < 0.05 * size);
}
