// Every method of LoRA's family against peft 0.21.2 on the toy model: what a saved adapter holds, forward in evaluation and
// in training (with peft's own dropout masks), every gradient, the merged layer, five AdamW steps, and the saved file.
//
// Tolerance: every number is a sum of at most 12 + 36 products; |x|, |dy| < 4, |w| < 2, adapters' numbers < 1.5, gains < 3,
// so that Σ|terms| < 48·4·2·3 = 1152 in the worst case and below 60 for all but a few: (48 + 8)·2^-24·60 = 2e-4. A wrong
// term changes results by 1e-2 and more.
#include <cstdlib>

#include "golden/lora_family/toy.hpp"
#include "peft/merge.hpp"
#include "peft/pipeline/registry_loader.hpp"
#include "peft/train/adamw.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace peft_test;
using io_test::read_file;
using io_test::ScratchFolder;

namespace {

constexpr double kTolerance = 2e-4;

template <class X>
void check_values(VectorView<X> got, const Json& want, double tolerance) {
  REQUIRE(got.size == static_cast<Index>(want.size()));
  for (Index i = 0; i < got.size; ++i) {
    const double expected = want[static_cast<std::size_t>(i)].get<double>();
    if (!(std::abs(static_cast<double>(got[i]) - expected) <= tolerance)) {
      CAPTURE(i, got[i], expected);
      FAIL("differs from peft's");
    }
  }
}

template <class T>
struct Run {
  using A = Accumulator<T>;
  const Json& golden;
  Toy<T>& toy;
  Selection<T> selection;

  /// Forward in training and, where `check`, all comparisons of forward; then backward.
  void train(bool check) {
    for (const auto& [path, site] : golden["sites"].items()) {
      INFO(path);
      if (path == "embed_tokens") {
        embedding(site, check);
      } else if (AdaptedNorm<T>* norm_site = toy.norm(path)) {
        norm(*norm_site, site, check);
      } else {
        linear(*toy.linear(path), site, check);
      }
    }
  }

  void linear(AdaptedLinear<T>& layer, const Json& site, bool check) {
    constexpr Index kRows = 5;
    const Index in = layer.in_features(), out = layer.out_features();
    const Matrix<T> x = matrix_of<T>(site["x"], kRows, in), dy = matrix_of<T>(site["dy"], kRows, out);
    Matrix<T> y(kRows, out), dx(kRows, in);
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(kRows * ((in + 7) / 8)), 0);
    auto active = layer.updates_of(selection);
    for (auto& one : active) {
      if (!site.contains("mask")) continue;
      kernels::MaskBits mask{bits.data(), (in + 7) / 8, 1.0f / 0.75f};
      for (Index i = 0; i < kRows * in; ++i) {
        if (site["mask"][static_cast<std::size_t>(i)].get<int>() == 0) continue;
        bits[static_cast<std::size_t>(i / in * mask.stride_bytes + i % in / 8)] |= static_cast<std::uint8_t>(1u << (i % in % 8));
      }
      one.dropout = DropoutMask(mask);
    }
    const detail::UpdatePass<T> pass(layer.base(), active, layer.name(), ExecutorRef());
    std::vector<UpdateSaved<T>> saved;
    PassSaved<T> of_pass;
    pass.forward(x.view(), y.view(), saved, of_pass, true);
    if (check) check_values(y.flat(), site["y"], kTolerance);
    pass.backward(dy.view(), x.view(), saved, of_pass, dx.view(), Accumulate::kOverwrite);
    if (check) check_values(dx.flat(), site["dx"], kTolerance);
    if (!check) return;
    layer.forward(x.view(), y.view(), selection, ExecutorRef());
    check_values(y.flat(), site["y_eval"], kTolerance);
  }

  void embedding(const Json& site, bool check) {
    const auto ids = site["x"].get<std::vector<std::int32_t>>();
    const VectorView<const std::int32_t> view{ids.data(), static_cast<Index>(ids.size())};
    AdaptedEmbedding<T>& embed = *toy.embedding_sites.front();
    Matrix<T> y(view.size, embed.width());
    embed.forward(view, y.view(), selection, ExecutorRef());
    if (check) check_values(y.flat(), site["y"], kTolerance);
    embed.backward(view, matrix_of<T>(site["dy"], view.size, embed.width()).view(), selection, ExecutorRef());
  }

  void norm(AdaptedNorm<T>& layer, const Json& site, bool check) {
    const Index n = layer.weight().size;
    const Matrix<T> x = matrix_of<T>(site["x"], 5, n), dy = matrix_of<T>(site["dy"], 5, n);
    Matrix<T> deviation, hat = normalised(x, deviation), y(5, n);
    const auto values = layer.values(selection);
    Buffer<A> dweight = Buffer<A>::zeros(n), dbias = Buffer<A>::zeros(n);
    for (Index i = 0; i < 5; ++i) {
      for (Index j = 0; j < n; ++j) {
        y(i, j) = hat(i, j) * values.weight[j] + values.bias[j];
        dweight[j] += dy(i, j) * hat(i, j);
        dbias[j] += dy(i, j);
      }
    }
    if (check) check_values(y.flat(), site["y"], kTolerance);
    layer.add_gradients(selection, std::as_const(dweight).view(), std::as_const(dbias).view());
  }
};

template <class T>
void check_case(const std::string& name) {
  INFO(name << (std::is_same_v<T, double> ? " in double" : " in float"));
  const Json golden = read_golden(name + ".json");
  Toy<T> toy;
  const auto adapter = load_adapter<T>(toy.registry, kFamily / "saved" / name, "default", toy.sites());
  using A = Accumulator<T>;
  std::size_t parameters = 0;
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    ++parameters;
    INFO(info.name);
    REQUIRE(golden["start"].contains(std::string(info.name)));
    check_values(value, golden["start"][std::string(info.name)], 0.0);
    const auto shape = golden["shapes"][std::string(info.name)].get<std::vector<Index>>();
    REQUIRE(static_cast<int>(shape.size()) == info.dimensions);
    if (shape.size() == 2) REQUIRE((shape[0] == info.rows && shape[1] == info.cols));
  });
  REQUIRE(parameters == golden["start"].size());

  Run<T> run{golden, toy, toy.registry.selection_of("default")};
  run.train(true);
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<A>, VectorView<A> grad) {
    INFO("gradient of " << info.name);
    check_values(grad, golden["grads"][std::string(info.name)], kTolerance);
  });
  for (const auto& [path, merged] : golden["merged"].items()) {
    INFO("merged " << path);
    AdaptedLinear<T>& layer = *toy.linear(path);
    const MergedLayer<T> own = merged_layer(layer, run.selection);
    check_values(own.weight.flat(), merged["weight"], kTolerance);
    // PEFT leaves a trained bias where it is: in the base layer, merged or not.
    if (merged.contains("bias")) check_values(own.bias.view(), merged["bias"], kTolerance);
    // In place: forward is the adapted one's, and the undo brings every bit back.
    const Json& site = golden["sites"][path];
    const Matrix<T> x = matrix_of<T>(site["x"], 5, layer.in_features());
    Matrix<T> before(5, layer.out_features()), y(5, layer.out_features()), after(5, layer.out_features());
    layer.forward(x.view(), before.view(), Selection<T>(), ExecutorRef());
    AdaptedLinear<T>* one[] = {&layer};
    auto undo = merge_adapter<T>(one, run.selection);
    layer.forward(x.view(), y.view(), run.selection, ExecutorRef());
    check_values(y.flat(), site["y_eval"], kTolerance);
    unmerge_adapter(undo);
    layer.forward(x.view(), after.view(), Selection<T>(), ExecutorRef());
    for (Index i = 0; i < after.size(); ++i) REQUIRE(after.data()[i] == before.data()[i]);
  }

  // The file: the tensors byte for byte, and every field that is written as PEFT wrote it.
  if constexpr (std::is_same_v<T, float>) {
    const ScratchFolder scratch;
    const bool update = std::getenv("PEFT_UPDATE_GOLDEN") != nullptr;
    const auto folder = update ? kFamily / "ours" / name : scratch.path();
    save_pretrained(*adapter, folder);
    CHECK(read_file(folder / "adapter_model.safetensors") == read_file(kFamily / "saved" / name / "adapter_model.safetensors"));
    const Json ours = Json::parse(read_file(folder / "adapter_config.json"));
    const Json theirs = Json::parse(read_file(kFamily / "saved" / name / "adapter_config.json"));
    for (const auto& [field, value] : ours.items()) {
      if (field == "auto_mapping") continue;  // which Python class the base was
      INFO(field);
      CHECK(theirs.contains(field));
      CHECK(value == theirs[field]);
    }
    if (!update) CHECK(read_file(kFamily / "ours" / name / "adapter_config.json") == read_file(folder / "adapter_config.json"));
  }

  AdamW<A> optimizer({.weight_decay = 0.0});
  for (int step = 0; step < 5; ++step) {
    adapter->zero_grad();
    run.train(false);
    optimizer.step(*adapter, 0.01);
  }
  // A step's length is lr·m/√v: a gradient's relative error enters it, and gradients may be small.
  adapter->for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    INFO("after five steps: " << info.name);
    check_values(value, golden["stepped"][std::string(info.name)], 1e-3);
  });
}

const char* const kCases[] = {"rslora", "lora_bias", "bias_lora_only", "bias_all", "dora", "dora_dropout", "embedding",
                              "modules_to_save", "save_embedding", "tokens", "ia3", "ln_tuning", "vera", "loha", "loha_whole",
                              "lokr", "lokr_factored", "adalora"};

}  // namespace

TEST_CASE("Every method is PEFT's, in float: file, forward, gradients, merge, five steps") {
  for (const char* name : kCases) check_case<float>(name);
}

TEST_CASE("Every method is PEFT's, in double") {
  for (const char* name : kCases) check_case<double>(name);
}
