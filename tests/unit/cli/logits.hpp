#pragma once
/// What models of the command's tests say to one sequence, and how far two answers are apart.

#include <cmath>
#include <cstdint>

#include "hosts/llama.hpp"
#include "support/catch.hpp"

namespace cli_test {

inline peft::Matrix<float> logits(peft_examples::Llama<float>& model) {
  peft::PackedBatch batch;
  for (std::int32_t i = 0; i < 24; ++i) {
    batch.ids.push_back((7 * i + 3) % 400);
    batch.positions.push_back(i);
  }
  batch.targets.assign(24, -1);
  batch.offsets.push_back(24);
  peft::Matrix<float> result(24, model.config().vocab_size);
  model.logits(batch, result);
  return result;
}

/// Relative to the norm of b.
inline double distance(const peft::Matrix<float>& a, const peft::Matrix<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (peft::Index i = 0; i < a.size(); ++i) {
    const auto want = static_cast<double>(b.flat()[i]), off = static_cast<double>(a.flat()[i]) - want;
    difference += off * off;
    norm += want * want;
  }
  return std::sqrt(difference / norm);
}

}  // namespace cli_test
