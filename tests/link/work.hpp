#pragma once
/// A bit of everything that the library does at run time, as one number: the same in every translation unit, whatever its
/// flags, and in every shared object. Included by sources that are compiled with different flags: all in an unnamed
/// namespace.

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "peft/core/parallel.hpp"
#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "peft/ops/rms_norm.hpp"
#include "peft/ops/swiglu.hpp"

namespace {

/// A training step of LoRA with dropout on the default executor, as a hash of all it computes.
inline std::uint64_t work(std::uint64_t seed) {
  constexpr peft::Index kIn = 96, kOut = 150, kRows = 130;
  peft::Matrix<peft::bf16> weight(kOut, kIn);
  peft::Matrix<float> x(kRows, kIn), y(kRows, kOut), dx(kRows, kIn), norm(1, kIn);
  peft::Philox random(seed, 1);
  for (peft::bf16& value : weight.flat()) value = static_cast<peft::bf16>(random.uniform(-0.2f, 0.2f));
  for (float& value : x.flat()) value = random.uniform(-1.0f, 1.0f);
  for (float& value : norm.flat()) value = random.uniform(0.5f, 1.5f);
  const peft::DenseLinear<peft::bf16> base(std::move(weight));
  peft::Lora<float> lora(kIn, kOut,
                         peft::LoraConfig{.r = 6, .lora_alpha = 12, .target_modules = {"x"}, .lora_dropout = 0.1f,
                                          .init_lora_weights = false},
                         seed);
  peft::Lora<float>::Saved saved;
  peft::ops::rms_norm_forward<float>(x.view(), norm.flat(), 1e-5f, x.view());
  lora.forward(base, x.view(), y.view(), saved, peft::DropoutKey{seed, 3, 1, 0});
  peft::ops::swiglu_forward<float>(y.view(), y.view(), y.view());
  lora.backward(base, y.view(), x.view(), saved, dx.view());
  std::uint64_t hash = 0xCBF29CE484222325ull;
  const auto add = [&hash](std::span<const float> values) {
    for (const float value : values) hash = (hash ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001B3ull;
  };
  for (const peft::Matrix<float>* one : {&y, &dx, &lora.grad_a(), &lora.grad_b()}) {
    add({one->data(), static_cast<std::size_t>(one->size())});
  }
  return hash;
}

}  // namespace
