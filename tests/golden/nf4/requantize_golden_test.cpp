// Quantised weights that change, against peft 0.21.2 over bitsandbytes 0.50.2 (make_requantize.py): LoRA merged into four bits,
// rows in int8, LoftQ's start.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/int8_linear.hpp"
#include "peft/io/json.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/lora_initialization.hpp"
#include "peft/nf4_linear.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;

namespace {

const std::string kData = PEFT_GOLDEN_DIR "/requantize/";

struct Golden {
  SafetensorsFile file = SafetensorsFile::open(kData + "cases.safetensors");
  Json cases = parse_json(io_test::read_file(kData + "cases.json"), "cases.json");
};

template <FourBitCode kCode>
FourBitTensor<kCode> read(const Golden& golden, const std::string& name, Index out, Index in) {
  FourBitStorage storage;
  storage.shape = {out, in};
  const TensorRef &codes = golden.file.tensor(name), &absmax = golden.file.tensor(name + ".absmax");
  storage.codes = {reinterpret_cast<const std::uint8_t*>(codes.bytes.data()), codes.elements()};
  auto maxima = std::make_shared<Buffer<float>>(absmax.elements());
  absmax.read_f32(maxima->data());
  storage.absmax = std::as_const(*maxima).view();
  storage.keep_alive = maxima;
  return FourBitTensor<kCode>(std::move(storage), name);
}

template <FourBitCode kCode>
void check_merge(const Golden& golden, const std::string& name) {
  INFO(name);
  const Json& c = golden.cases[name];
  const Index out = c["out"].get<Index>(), in = c["inner"].get<Index>();
  const FourBitTensor<kCode> before = read<kCode>(golden, name + ".before", out, in);
  const FourBitTensor<kCode> expected = read<kCode>(golden, name + ".after", out, in);
  const Matrix<float> a = golden.file.tensor(name + ".a").to_matrix(), b = golden.file.tensor(name + ".b").to_matrix();
  FourBitLinear<kCode> layer(before);
  const MergeTerm term{a.view(), b.view(), static_cast<float>(c["scale"].get<double>())};
  const Matrix<float> sum = merged_weight(layer, {&term, 1}, default_executor());
  (void)layer.merge({&term, 1});
  const FourBitTensor<kCode>& got = layer.weight();
  REQUIRE_FALSE(std::memcmp(got.storage().codes.data, before.storage().codes.data, static_cast<std::size_t>(out * in / 2)) == 0);
  // Where one product is added that needed no rounding, the sum is rounded once whoever adds, and every bit is theirs. Sums of
  // several products are rounded in another order: a maximum may differ by these roundings, and a code where its number stands
  // so near a threshold; it is then the neighbour's.
  const bool exact = c["exact"].get<bool>();
  const double slack = exact ? 0.0 : 8 * 0x1p-24;
  for (Index block = 0; block < got.block_count(); ++block) {
    REQUIRE(std::abs(static_cast<double>(got.absmax(block)) - static_cast<double>(expected.absmax(block))) <=
            slack * 4 * static_cast<double>(expected.absmax(block)));
  }
  const kernels::FourBitTable& table = kernels::table_of(kCode);
  Index different = 0;
  for (Index i = 0; i < out * in; ++i) {
    const auto code = [i](const FourBitTensor<kCode>& tensor) {
      const std::uint8_t both = tensor.storage().codes[i / 2];
      return i % 2 == 0 ? both >> 4 : both & 15;
    };
    if (code(got) == code(expected)) continue;
    ++different;
    const double scaled = static_cast<double>(sum.data()[i]) / static_cast<double>(expected.absmax(i / 64));
    double nearest = 1;
    for (int k = 0; k < 15; ++k) nearest = std::min(nearest, std::abs(scaled - static_cast<double>(table.threshold[k])));
    CAPTURE(i, scaled);
    REQUIRE(nearest <= slack * 8);
  }
  CHECK(different <= (exact ? 0 : 4));
}

}  // namespace

TEST_CASE("LoRA merged into four bits gives PEFT's codes and maxima") {
  const Golden golden;
  check_merge<FourBitCode::kNf4>(golden, "exact");
  check_merge<FourBitCode::kNf4>(golden, "rank4");
  check_merge<FourBitCode::kFp4>(golden, "fp4");
  check_merge<FourBitCode::kNf4>(golden, "tail");
}

namespace {

template <class T>
void check_rows(const Golden& golden, const std::string& name) {
  INFO(name);
  const TensorRef& stored = golden.file.tensor("int8." + name);
  REQUIRE(stored.has_view<T>());
  const Int8Tensor tensor = Int8Tensor::quantize(stored.view<T>());
  const TensorRef &codes = golden.file.tensor("int8." + name + ".codes"), &absmax = golden.file.tensor("int8." + name + ".absmax");
  REQUIRE(static_cast<std::size_t>(tensor.codes().size) == codes.bytes.size());
  CHECK(std::memcmp(tensor.codes().data, codes.bytes.data(), codes.bytes.size()) == 0);
  CHECK(std::memcmp(tensor.absmax().data, absmax.bytes.data(), absmax.bytes.size()) == 0);
  Matrix<float> values(tensor.rows(), tensor.cols());
  tensor.dequantize(values.view());
  const Matrix<float> expected = golden.file.tensor("int8." + name + ".values").to_matrix();
  CHECK(std::memcmp(values.data(), expected.data(), static_cast<std::size_t>(values.size()) * sizeof(float)) == 0);
}

}  // namespace

TEST_CASE("Rows in int8 are bitsandbytes' LLM.int8 rows, bit for bit: codes, maxima, values") {
  const Golden golden;
  check_rows<float>(golden, "f32");
  check_rows<f16>(golden, "f16");
  check_rows<bf16>(golden, "bf16");
}

namespace {

template <class T>
using Sites = std::vector<AdaptedLinear<T>*>;

double norm(const Matrix<float>& x) {
  double sum = 0;
  for (const float value : x.flat()) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}
Matrix<float> difference(const Matrix<float>& x, const Matrix<float>& y) {
  Matrix<float> result(x.rows(), x.cols());
  for (Index i = 0; i < x.size(); ++i) result.data()[i] = x.data()[i] - y.data()[i];
  return result;
}

/// A base layer with LoRA, and what a start made of them.
struct Start {
  std::unique_ptr<AdaptedLinear<float>> site;
  AdapterRegistry<float> registry;
  MergedAdapters<float> undo;
  LoraStart<float>::Error error;
  Matrix<float> base, update;  ///< the new base, and s·B·A

  template <class Layer>
  Start(Layer layer, const Matrix<float>& weight, LoraConfig config, bool with_original = true)
      : site(std::make_unique<AdaptedLinear<float>>("proj", std::move(layer))) {
    config.target_modules = {"proj"};
    AdapterSites<float> sites;
    AdaptedLinear<float>* linears[] = {site.get()};
    sites.linears = linears;
    const auto adapter = registry.add_adapter("default", config, sites, 1);
    LoraStart<float> start;
    if (with_original) start.original = [&](const AdaptedLinear<float>&) { return weight.clone(); };
    start.on_site = [&](const AdaptedLinear<float>&, const LoraStart<float>::Error& found) { error = found; };
    undo = initialize_lora<float>(*adapter, linears, start);
    base = values();
    const Lora<float>& lora = *adapter->find(site->module());
    update = Matrix<float>::zeros(base.rows(), base.cols());
    for (Index j = 0; j < base.rows(); ++j) {
      for (Index q = 0; q < lora.r(); ++q) {
        for (Index k = 0; k < base.cols(); ++k) update(j, k) += static_cast<float>(lora.scaling()) * lora.b()(j, q) * lora.a()(q, k);
      }
    }
  }
  Matrix<float> values() const {
    Matrix<float> result(site->out_features(), site->in_features());
    site->base().read_weight_rows(0, result.view());
    return result;
  }
  double left(const Matrix<float>& weight) const { return norm(difference(difference(weight, base), update)) / norm(weight); }
};

LoraConfig config_of(const char* kind, Index r, double alpha, Index iterations = 1) {
  LoraConfig config{.r = r, .lora_alpha = alpha};
  config.init_lora_weights = kind;
  config.loftq_config.loftq_iter = iterations;
  return config;
}

}  // namespace

TEST_CASE("LoftQ starts as PEFT's: the quantised base, and the product") {
  const Golden golden;
  const Matrix<float> weight = golden.file.tensor("loftq.weight").to_matrix();
  for (const Index iterations : {1, 3}) {
    CAPTURE(iterations);
    const std::string name = "loftq." + std::to_string(iterations);
    const Start start(Nf4Linear(Nf4Tensor::quantize(weight.view())), weight, config_of("loftq", 8, 8, iterations));
    const Matrix<float> values = golden.file.tensor(name + ".values").to_matrix();
    const Matrix<float> update = golden.file.tensor(name + ".update").to_matrix();
    Index different = 0;
    for (Index i = 0; i < values.size(); ++i) {
      const double distance = static_cast<double>(start.base.data()[i]) - static_cast<double>(values.data()[i]);
      different += std::abs(distance) > 1e-5 * std::abs(static_cast<double>(values.data()[i])) ? 1 : 0;
    }
    // The first quantisation sees the weight itself; later ones what float32 and double decompositions leave of it, where a
    // number beside a threshold falls to the other side now and then.
    CHECK(different <= (iterations == 1 ? 0 : 20));
    CHECK(norm(difference(start.update, update)) <= (iterations == 1 ? 1e-4 : 2e-2) * norm(update));
    CHECK(start.left(weight) == Approx(golden.cases[name]["left"].get<double>()).epsilon(iterations == 1 ? 1e-5 : 2e-3));
  }
}

TEST_CASE("Starts over a quantised base: what is left of the weight falls with rank and alternation; the base comes back") {
  Philox rng(11);
  Matrix<float> weight(48, 80);
  for (float& value : weight.flat()) value = 0.02f * rng.normal();
  // A few directions that are larger than the others, as weights have them.
  for (Index i = 0; i < weight.rows(); ++i) {
    for (Index j = 0; j < weight.cols(); ++j) weight(i, j) += 0.05f * std::sin(0.3f * static_cast<float>(i)) * std::cos(0.2f * static_cast<float>(j));
  }
  const auto check = [&](auto make) {
    const auto plain = [&] {
      Matrix<float> values(weight.rows(), weight.cols());
      make().weight().dequantize(values.view());
      return norm(difference(weight, values)) / norm(weight);
    }();
    const bool four_bits = plain > 0.03;
    double last = plain;
    for (const Index r : {2, 4, 8, 16}) {
      CAPTURE(r, plain);
      const auto with = [&](const char* kind, double alpha, Index iterations = 1) {
        LoraConfig config = config_of(kind, r, alpha, iterations);
        config.loftq_config.loftq_bits = four_bits ? 4 : 8;
        return Start(make(), weight, config);
      };
      Start once = with("loftq", static_cast<double>(r)), five = with("loftq", static_cast<double>(r), 5);
      CHECK(once.left(weight) < last);
      CHECK(five.left(weight) < once.left(weight) * (r >= 4 ? 0.995 : 1.0));
      last = once.left(weight);
      // The error is told: before, of the weight alone; after, with the update.
      CHECK(once.error.before.relative_rms() == Approx(plain).epsilon(1e-5));
      CHECK(five.error.after.relative_rms() == Approx(five.left(weight)).epsilon(1e-3));
      CHECK(five.error.after.snr() > five.error.before.snr());
      // The scale is in the product.
      CHECK(with("loftq", 4.0 * static_cast<double>(r), 5).left(weight) == Approx(five.left(weight)).epsilon(1e-3));
      // PiSSA: what is quantised is smaller than the weight, and so is its error.
      const Start pissa = with("pissa", 2.0 * static_cast<double>(r)), iterated = with("pissa_niter_4", static_cast<double>(r));
      CHECK(pissa.left(weight) < plain);
      CHECK(iterated.left(weight) < plain);
      CHECK(pissa.left(weight) == Approx(pissa.error.after.relative_rms()).epsilon(1e-3));
      CHECK(pissa.undo.error().elements == weight.size());
      // Without the original it starts from the base's own values, and loses more.
      const Start own(make(), weight, config_of("pissa", r, 8), false);
      CHECK(own.left(weight) > pissa.left(weight));
      CHECK(own.error.before.noise == 0.0);
      // Back, bit for bit.
      Matrix<float> before(weight.rows(), weight.cols());
      make().weight().dequantize(before.view());
      unmerge_adapter(five.undo);
      const Matrix<float> after = five.values();
      CHECK(std::memcmp(after.data(), before.data(), static_cast<std::size_t>(after.size()) * sizeof(float)) == 0);
    }
  };
  check([&] { return Nf4Linear(Nf4Tensor::quantize(weight.view(), {.block_size = 64, .double_quant = true})); });
  check([&] { return Fp4Linear(Fp4Tensor::quantize(weight.view(), {.block_size = 32})); });
  check([&] { return Int8Linear(Int8Tensor::quantize(weight.view())); });

  const auto refused = [&](auto layer, LoraConfig config, bool with_original, const std::string& message) {
    REQUIRE_THROWS_WITH(Start(std::move(layer), weight, config, with_original), Catch::Contains(message));
  };
  const auto nf4 = [&] { return Nf4Linear(Nf4Tensor::quantize(weight.view())); };
  refused(DenseLinear<float>(weight.clone()), config_of("loftq", 4, 4), true, "is for a base whose weights are quantised");
  refused(nf4(), config_of("loftq", 4, 4), false, "needs the weight that the base was quantised from");
  refused(Int8Linear(Int8Tensor::quantize(weight.view())), config_of("loftq", 4, 4), true, "loftq_bits is 4; expected 8");
  refused(nf4(), config_of("loftq", 49, 4), true, "gives at most rank 48");
}
