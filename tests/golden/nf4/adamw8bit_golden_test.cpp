// AdamW with moments in 8 bits against bitsandbytes 0.50.2's AdamW8bit on a CPU (make_adamw8bit.py): both maps, three steps.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "peft/io/safetensors.hpp"
#include "peft/train/adamw8bit.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;

namespace {

const std::string kFolder = PEFT_GOLDEN_DIR "/adamw8bit/";

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  std::vector<float> result(static_cast<std::size_t>(file.tensor(name).elements()));
  file.tensor(name).read_f32(result.data());
  return result;
}
std::vector<std::uint8_t> bytes(const SafetensorsFile& file, const std::string& name) {
  const auto all = file.tensor(name).bytes;
  const auto* first = reinterpret_cast<const std::uint8_t*>(all.data());
  return {first, first + all.size()};
}

struct Two {
  std::vector<float> value[2], grad[2];
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (int i = 0; i < 2; ++i) {
      const auto n = static_cast<Index>(value[i].size());
      visit(ParameterInfo{i == 0 ? "matrix" : "few", ParameterRole::kOther, true, 1, n}, VectorView<float>(value[i].data(), n),
            VectorView<float>(grad[i].data(), n));
    }
  }
};

/// Codes that differ, which must be neighbours.
int different(VectorView<const std::uint8_t> got, const std::vector<std::uint8_t>& want) {
  REQUIRE(static_cast<std::size_t>(got.size) == want.size());
  int count = 0;
  for (Index i = 0; i < got.size; ++i) {
    const int distance = std::abs(int{got[i]} - int{want[static_cast<std::size_t>(i)]});
    REQUIRE(distance <= 1);
    count += distance;
  }
  return count;
}

void check_maxima(VectorView<const float> got, const std::vector<float>& want) {
  REQUIRE(static_cast<std::size_t>(got.size) == want.size());
  // A moment's sum of two products is rounded in another order: three roundings.
  for (Index i = 0; i < got.size; ++i) {
    const double expected = static_cast<double>(want[static_cast<std::size_t>(i)]);
    CHECK(std::abs(static_cast<double>(got[i]) - expected) <= 4 * 0x1p-24 * expected);
  }
}

}  // namespace

TEST_CASE("the dynamic maps are bitsandbytes', bit for bit") {
  const SafetensorsFile file = SafetensorsFile::open(kFolder + "steps.safetensors");
  const auto check = [](const kernels::DynamicMap& map, const std::vector<float>& want) {
    CHECK(std::vector<float>(map.begin(), map.end()) == want);
  };
  check(kernels::dynamic_map(), floats(file, "dynamic"));
  check(kernels::unsigned_dynamic_map(), floats(file, "udynamic"));
}

TEST_CASE("AdamW8bit goes bitsandbytes' steps: a tail, a block without gradients, a parameter in 32 bits") {
  const SafetensorsFile file = SafetensorsFile::open(kFolder + "steps.safetensors");
  Two model;
  const char* const names[2] = {"matrix", "few"};
  for (int i = 0; i < 2; ++i) model.value[i] = floats(file, std::string(names[i]) + ".before");
  AdamW8bit<> optimizer({.weight_decay = 0.1});
  for (int step = 0; step < 3; ++step) {
    CAPTURE(step);
    for (int i = 0; i < 2; ++i) model.grad[i] = floats(file, std::string(names[i]) + ".gradient" + std::to_string(step));
    optimizer.step(model, 1e-2);
    const Moments<float> own = optimizer.moments()[0];
    REQUIRE(own.is_8bit());
    REQUIRE_FALSE(optimizer.moments()[1].is_8bit());
    const std::string at = "nearest." + std::to_string(step) + ".";
    check_maxima(own.m_8bit.absmax, floats(file, at + "absmax1"));
    check_maxima(own.v_8bit.absmax, floats(file, at + "absmax2"));
    // Codes can differ where a moment's last bits decide: a handful of 4389.
    CHECK(different(own.m_8bit.codes, bytes(file, at + "state1")) <= 4);
    CHECK(different(own.v_8bit.codes, bytes(file, at + "state2")) <= 4);
    if (step > 0) continue;
    // Their own search in the first step, in which the moments are (1 - beta)·g and (1 - beta)·g²: it looks among 65536 numbers
    // in [-1, 1], and loses what is small.
    const auto as_theirs = [](const kernels::DynamicMap& map, const std::vector<float>& g, bool squared, double factor) {
      std::vector<std::uint8_t> codes(g.size());
      for (std::size_t first = 0; first < g.size(); first += 256) {
        const std::size_t last = std::min(first + 256, g.size());
        std::vector<float> x;
        float largest = 1e-38f;
        for (std::size_t i = first; i < last; ++i) {
          const float rest = static_cast<float>(factor);
          x.push_back(squared ? rounded(rounded(rest * g[i]) * g[i]) : rounded(rest * g[i]));
          largest = std::max(largest, std::abs(x.back()));
        }
        for (std::size_t i = first; i < last; ++i) {
          const float scaled = last - first == 256 ? rounded(x[i - first] * quotient(1.0f, largest)) : quotient(x[i - first], largest);
          codes[i] = kernels::coarse_in(map, std::min(1.0f, std::max(-1.0f, scaled)));
        }
      }
      return codes;
    };
    // Of elements with a gradient: where a block's maximum is 0, a code means nothing, and theirs is not that of 0.
    const auto count = [&](const std::vector<std::uint8_t>& a, const std::vector<std::uint8_t>& b) {
      int result = 0;
      for (std::size_t i = 0; i < a.size(); ++i) result += model.grad[0][i] != 0.0f && a[i] != b[i] ? 1 : 0;
      return result;
    };
    const auto theirs_m = bytes(file, "theirs.0.state1"), theirs_v = bytes(file, "theirs.0.state2");
    CHECK(count(as_theirs(kernels::dynamic_map(), model.grad[0], false, 1.0 - 0.9), theirs_m) <= 4);
    CHECK(count(as_theirs(kernels::unsigned_dynamic_map(), model.grad[0], true, 1.0 - 0.999), theirs_v) <= 4);
    CHECK(count(bytes(file, at + "state2"), theirs_v) > 1000);
  }
  for (int i = 0; i < 2; ++i) {
    const std::vector<float> want = floats(file, std::string("nearest.") + names[i] + ".after");
    double worst = 0.0;
    for (std::size_t j = 0; j < want.size(); ++j) worst = std::max(worst, std::abs(static_cast<double>(model.value[i][j] - want[j])));
    // Three steps of lr = 0.01: |update| <= 0.04 each, a dozen roundings each, of numbers below 1; a code that is its neighbour
    // moves a parameter by up to lr times the map's step of 1/128 twice more.
    CHECK(worst <= (i == 0 ? 2 * 0.04 / 128 : 36 * 0x1p-24));
  }
}
