#pragma once
/// A Llama host's gradients against central differences.

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "hosts/llama.hpp"
#include "support/catch.hpp"
#include "support/central_differences.hpp"
#include "support/tiny_llama.hpp"

namespace peft_test {

using namespace peft;

// Fourth order: h⁴/30 of the fifth derivative, which reaches 10^10 where a norm stands behind a short row of the embedding, and 2^-53·L/h of rounding, with L, a sum of six losses, below 64: 6e-11 + 4e-10.
inline constexpr double kStep = 2e-5, kTolerance = 1e-8;

/// The loss, with the dropout of step 3 of seed 5.
inline double loss_of(peft_examples::Llama<double>& model, const PackedBatch& batch) {
  LossSum sum;
  model.forward_backward(batch, 1.0, 5, 3, sum);
  return sum.loss;
}

/// Checks every number and returns the names of the parameters. The largest gradient is expected to be at least `most`: scores
/// before a softmax move less.
inline std::set<std::string> check_gradients(peft_examples::Llama<double>& model, double most = 0.1) {
  const PackedBatch batch = tiny_llama_batch();
  std::set<std::string> names;
  std::vector<std::vector<double>> gradients;
  model.for_each_parameter([](const ParameterInfo&, auto, auto grad) { std::fill(grad.begin(), grad.end(), 0.0); });
  loss_of(model, batch);
  double largest = 0;
  model.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    CHECK(names.insert(std::string(info.name)).second);
    gradients.emplace_back(grad.begin(), grad.end());
    double own = 0;
    for (const double value : grad) own = std::max(own, std::fabs(value));
    INFO(info.name);
    if (info.name.find(".adapter_fusion_layer.") != std::string_view::npos && info.name.ends_with(".key.bias")) {
      CHECK(own < 1e-9);  // the same is added to all scores of a softmax
    } else {
      CHECK(own > 1e-4);
    }
    largest = std::max(largest, own);
  });
  CHECK(largest > most);
  std::size_t parameter = 0;
  model.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    INFO(info.name);
    check_fourth_order(value, gradients[parameter++], kStep, kTolerance, [&] { return loss_of(model, batch); });
  });
  return names;
}

}  // namespace peft_test
