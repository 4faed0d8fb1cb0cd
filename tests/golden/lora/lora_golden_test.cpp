// LoRA against Python PEFT 0.21.2 (make_lora.py): which modules a configuration adapts, and one layer's forward and
// gradients with and without an injected dropout mask.
#include <fstream>
#include <nlohmann/json.hpp>

#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "peft/target_modules.hpp"
#include "support/catch.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;
using Json = nlohmann::ordered_json;  // rank_pattern's first match counts: keep the file's order

namespace {

Json read(const std::string& name) {
  std::ifstream file(std::string(PEFT_GOLDEN_DIR) + "/lora/" + name);
  REQUIRE(file.good());
  return Json::parse(file);
}

ModuleSelector selector(const Json& value) {
  if (value.is_string()) return ModuleSelector(value.get<std::string>());
  return ModuleSelector(value.get<std::vector<std::string>>());
}

template <class T>
std::vector<T> one_or_many(const Json& value) {
  if (value.is_array()) return value.get<std::vector<T>>();
  return {value.get<T>()};
}

LoraConfig config_of(const Json& fields) {
  LoraConfig config;
  for (const auto& [key, value] : fields.items()) {
    if (key == "r") {
      config.r = value;
    } else if (key == "lora_alpha") {
      config.lora_alpha = value;
    } else if (key == "target_modules") {
      config.target_modules = selector(value);
    } else if (key == "exclude_modules") {
      config.exclude_modules = selector(value);
    } else if (key == "use_rslora") {
      config.use_rslora = value;
    } else if (key == "fan_in_fan_out") {
      config.fan_in_fan_out = value;
    } else if (key == "task_type") {
      config.task_type = value.get<std::string>();
    } else if (key == "layers_to_transform") {
      config.layers_to_transform = one_or_many<Index>(value);
    } else if (key == "layers_pattern") {
      config.layers_pattern = one_or_many<std::string>(value);
    } else if (key == "rank_pattern") {
      for (const auto& [name, rank] : value.items()) config.rank_pattern.emplace_back(name, rank);
    } else if (key == "alpha_pattern") {
      for (const auto& [name, alpha] : value.items()) config.alpha_pattern.emplace_back(name, alpha);
    } else {
      FAIL("the golden has a field that the test does not know: " << key);
    }
  }
  return config;
}

/// A tensor of the golden, as float (exact: nine digits) and as double.
Matrix<float> tensor(const Json& values, Index rows, Index cols) {
  Matrix<float> result(rows, cols);
  REQUIRE(static_cast<Index>(values.size()) == rows * cols);
  for (Index i = 0; i < rows * cols; ++i) result.data()[i] = values[static_cast<std::size_t>(i)].get<float>();
  return result;
}

/// Both sides round: ours and theirs, each by at most (length+4)·u·Σ|terms|.
void check_against_theirs(MatrixView<const float> ours, const Json& values, const Measured& exact, Index length) {
  const Matrix<float> theirs = tensor(values, ours.rows, ours.cols);
  check_close<float>(theirs.view(), exact, length);  // the reference is theirs
  check_close<float>(ours, exact, length);
}

}  // namespace

TEST_CASE("target_modules and its relatives mean what they mean in PEFT") {
  const Json golden = read("matching.json");
  REQUIRE(golden["cases"].size() >= 25);
  for (const Json& test : golden["cases"]) {
    INFO(test["model"].get<std::string>() << " " << test["config"].dump());
    const auto names = golden["models"][test["model"].get<std::string>()].get<std::vector<std::string>>();
    const auto matches = match_target_modules(config_of(test["config"]), names);
    std::vector<std::string> got, want;
    for (const TargetMatch& match : matches) got.push_back(names[match.module]);
    for (const Json& entry : test["adapted"]) want.push_back(entry[0]);
    REQUIRE(got == want);
    for (std::size_t i = 0; i < matches.size(); ++i) {
      REQUIRE(matches[i].r == test["adapted"][i][1].get<Index>());
      REQUIRE(matches[i].scaling == test["adapted"][i][2].get<double>());
    }
  }
}

TEST_CASE("Forward and gradients are PEFT's, over a dense base and over one that knows only backward_input") {
  const Json golden = read("layer.json");
  for (const Json& test : golden) {
    const Index rows = test["rows"], in = test["in"], out = test["out"], r = test["r"];
    const float p = test["dropout"];
    CAPTURE(rows, in, out, r, p);
    const Matrix<float> w = tensor(test["w"], out, in), a = tensor(test["a"], r, in), b = tensor(test["b"], out, r);
    const Matrix<float> x = tensor(test["x"], rows, in), dy = tensor(test["dy"], rows, out);
    Buffer<float> bias;
    LoraCase exact{to_double(w), to_double(a),   to_double(b), to_double(x), to_double(dy), Matrix<double>(rows, in),
                   {},           test["scaling"]};
    if (test.contains("bias")) {
      bias = Buffer<float>(out);
      for (Index j = 0; j < out; ++j) {
        bias[j] = test["bias"][static_cast<std::size_t>(j)].get<float>();
        exact.bias.push_back(static_cast<double>(bias[j]));
      }
    }
    for (double& value : exact.keep.flat()) value = 1.0;
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(rows * ((in + 7) / 8)), 0);
    kernels::MaskBits mask{};
    if (test.contains("mask")) {
      mask = {bits.data(), (in + 7) / 8, 1.0f / (1.0f - p)};
      for (Index i = 0; i < rows; ++i) {
        for (Index k = 0; k < in; ++k) {
          const bool kept = test["mask"][static_cast<std::size_t>(i * in + k)].get<int>() != 0;
          std::uint8_t& byte = bits[static_cast<std::size_t>(i * mask.stride_bytes + k / 8)];
          if (kept) byte |= static_cast<std::uint8_t>(1u << (k % 8));
          exact.keep(i, k) = kept ? 1.0 / (1.0 - static_cast<double>(p)) : 0.0;
        }
      }
    }
    const LoraResult want = lora_reference(exact);

    const auto check = [&](const auto& base) {
      Lora<float> lora(in, out, r, test["scaling"].get<double>(), p);
      std::copy(a.flat().begin(), a.flat().end(), lora.a().data());
      std::copy(b.flat().begin(), b.flat().end(), lora.b().data());
      Matrix<float> y(rows, out), dx(rows, in);
      Lora<float>::Saved saved;
      lora.forward(base, x.view(), y.view(), saved, mask);
      lora.backward(base, dy.view(), x.view(), saved, dx.view());
      check_against_theirs(y.view(), test["y"], want.y, 2 * in + r + 2);
      check_against_theirs(dx.view(), test["dx"], want.dx, 2 * out + r + 2);
      check_against_theirs(lora.grad_a().view(), test["da"], want.da, rows + out + 2);
      check_against_theirs(lora.grad_b().view(), test["db"], want.db, rows + in + 2);
    };
    check(DenseLinear<float>(w.clone(), bias.clone()));
    if (bias.empty()) {
      foreign::WithBackward<float> host(in, out, 1);
      std::copy(w.flat().begin(), w.flat().end(), host.w.data());
      check(host);
    }
  }
}
