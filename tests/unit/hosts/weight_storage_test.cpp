// A model whose weights stay as the file has them, or are quantised while they are read: what each layer is made of, and the
// same losses, gradients and answers as over the same weights in float.
#include <cmath>
#include <cstring>
#include <vector>

#include "hosts/open_model.hpp"
#include "hosts/page_weights.hpp"
#include "peft/adapter_registry.hpp"
#include "support/catch.hpp"
#include "support/tiny_gguf.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace peft_examples;
using peft_test::TinyGguf;

namespace {

struct Place {
  io_test::ScratchFolder folder;
  std::filesystem::path path = folder / "blocks.gguf";
  Place() {
    io_test::write_file(path, TinyGguf{.hidden = 64, .intermediate = 96, .in_blocks = true}.bytes());
  }
  template <class T = float>
  Llama<T> load(WeightStorage::Kind kind, Index block = 64, bool twice = true) const {
    return load_llama<T>(open_model(path), {kind, block, twice});
  }
};
using Kind = WeightStorage::Kind;

/// More tokens than products of few rows have.
PackedBatch batch_of(Index tokens) {
  PackedBatch batch;
  for (Index i = 0; i < tokens; ++i) {
    batch.ids.push_back(static_cast<std::int32_t>((i * 37 + 5) % 256));
    batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.targets.push_back(i % 3 == 0 ? -1 : static_cast<std::int32_t>((i * 11 + 1) % 256));
  }
  batch.offsets = {0, tokens};
  return batch;
}

struct Pass {
  double loss = 0, trained_loss = 0;
  std::vector<double> gradient;
};

/// Loss as it is, and one pass of LoRA on every linear.
template <class T>
Pass run(Llama<T>& model, Index tokens) {
  const PackedBatch batch = batch_of(tokens);
  Pass result;
  LossSum plain, trained;
  model.evaluate(batch, plain);
  result.loss = plain.loss;
  AdapterRegistry<T> registry;
  LoraConfig config{.r = 4, .lora_alpha = 8, .target_modules = "all-linear"};
  registry.add_adapter("a", config, model.adapter_sites(), 1);
  registry.set_adapter("a");
  model.select(registry.selection());
  std::uint64_t stream = 0;
  model.for_each_parameter([&](const ParameterInfo&, auto value, auto) {
    Philox random(9, stream++);
    for (auto& number : value) number = 0.1f * random.normal();
  });
  model.forward_backward(batch, 1.0, 0, 0, trained);
  result.trained_loss = trained.loss;
  model.for_each_parameter([&](const ParameterInfo&, auto, auto grad) {
    for (const auto number : grad) result.gradient.push_back(static_cast<double>(number));
  });
  model.select({});
  return result;
}

template <class L>
bool holds(const AdaptedLinear<float>& site) {
  return site.base().get_if<L>() != nullptr;
}

}  // namespace

TEST_CASE("Weights kept as the file has them: blocks, halves, embedding and tied head; the same numbers") {
  const Place place;
  auto dense = place.load(Kind::kActivations), native = place.load(Kind::kFile);
  for (auto* site : native.sites()) {
    INFO(site->name());
    CHECK(holds<DenseLinear<f16>>(*site) == site->name().ends_with("v_proj"));
    CHECK(holds<GgufLinear>(*site) != site->name().ends_with("v_proj"));
  }
  CHECK_FALSE(native.embedding().is_in_memory());
  CHECK(native.is_tied());
  CHECK(native.parameter_count() == dense.parameter_count());
  CHECK(holds<GgufLinear>(*native.adapter_sites().linears.back()));
  // Above a few rows both multiply the same panels, bit for bit; the head has few.
  const Pass want = run(dense, 30), got = run(native, 30);
  CHECK(want.loss == got.loss);
  CHECK(want.trained_loss == got.trained_loss);
  CHECK(want.gradient == got.gradient);
  const Pass few = run(dense, 5), decoded = run(native, 5);
  CHECK(decoded.loss == Approx(few.loss).epsilon(1e-5));
  CHECK(decoded.trained_loss == Approx(few.trained_loss).epsilon(1e-5));
  // Activations of 16 bits, rounded alike.
  auto narrow = place.load<bf16>(Kind::kFile);
  CHECK(run(narrow, 30).loss == Approx(want.loss).epsilon(0.02));
}

TEST_CASE("Weights quantised while they are read are those of the tensor, in the order of the model's rows") {
  const Place place;
  auto dense = place.load(Kind::kActivations);
  for (const auto& [kind, block, twice] : {std::tuple{Kind::kNf4, 64, true}, {Kind::kNf4, 32, false}, {Kind::kFp4, 128, true}}) {
    auto quantized = place.load(kind, block, twice);
    const auto sites = quantized.sites(), dense_sites = dense.sites();
    for (std::size_t i = 0; i < sites.size(); ++i) {
      INFO(sites[i]->name());
      const auto& w = *dense_sites[i]->base().get_if<DenseLinear<float>>();
      Matrix<float> want(w.out_features(), w.in_features()), got(w.out_features(), w.in_features());
      const auto check = [&, block = block, twice = twice]<FourBitCode kCode>() {
        const auto* layer = sites[i]->base().template get_if<FourBitLinear<kCode>>();
        REQUIRE(layer != nullptr);
        CHECK(layer->weight().block_size() == block);
        CHECK(layer->weight().is_double_quantized() == twice);
        FourBitTensor<kCode>::quantize(w.weight(), {.block_size = block, .double_quant = twice}).dequantize(want.view());
      };
      kind == Kind::kNf4 ? check.template operator()<FourBitCode::kNf4>() : check.template operator()<FourBitCode::kFp4>();
      sites[i]->base().read_weight_rows(0, got.view());
      CHECK(std::memcmp(got.data(), want.data(), static_cast<std::size_t>(got.size()) * sizeof(float)) == 0);
    }
    // Embedding and head are the file's.
    CHECK_FALSE(quantized.embedding().is_in_memory());
    CHECK(quantized.is_tied());
    CHECK(std::abs(run(quantized, 30).loss / run(dense, 30).loss - 1) < 0.05);
  }
  CHECK(io_test::message_of<ConfigError>([&] { place.load(Kind::kNf4, 48); }).find("the block size is 48") != std::string::npos);
}

TEST_CASE("Weights paged from their file: the same numbers; what was converted stays and counts") {
  const Place place;
  const auto pass = [&](Kind kind, Index budget) {
    auto model = place.load(kind);
    if (budget > 0) page_weights(model, budget);
    return run(model, 30);
  };
  const auto least = [&](Kind kind) {
    const std::string message = io_test::message_of<ConfigError>([&] { pass(kind, 1); });
    return static_cast<Index>(std::stoll(message.substr(message.rfind(' '))));
  };
  const Pass want = pass(Kind::kFile, 0), paged = pass(Kind::kFile, least(Kind::kFile));
  CHECK(paged.loss == want.loss);
  CHECK(paged.trained_loss == want.trained_loss);
  CHECK(paged.gradient == want.gradient);
  // Quantised while they are read, the linears are in memory.
  CHECK_NOTHROW(pass(Kind::kNf4, least(Kind::kNf4)));
  auto model = place.load(Kind::kActivations);
  Index linears = 0;
  for (const auto* site : model.sites()) linears += site->in_features() * site->out_features();
  CHECK(least(Kind::kActivations) >= linears * 4);
}
