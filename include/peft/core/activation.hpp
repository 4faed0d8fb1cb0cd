#pragma once
/// The element-wise non-linearities by name. What they compute stands in ops/activation.hpp.

#include <cstdint>
#include <optional>
#include <string_view>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

enum class Activation : std::uint8_t { kRelu, kGelu, kGeluTanh, kSilu, kTanh, kLeakyRelu };

/// The name that transformers' ACT2FN, and so adapter_config.json, has for it.
constexpr std::string_view name_of(Activation kind) noexcept {
  switch (kind) {
    case Activation::kRelu:
      return "relu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_new";
    case Activation::kSilu:
      return "silu";
    case Activation::kTanh:
      return "tanh";
    case Activation::kLeakyRelu:
      return "leaky_relu";
  }
  return "unknown";
}

/// What `name` means, or nothing. Several names of ACT2FN are one function ("swish" is silu; "gelu_new", "gelu_fast",
/// "gelu_accurate", "gelu_pytorch_tanh" are gelu with tanh); "leakyrelu" is AdapterHub's.
constexpr std::optional<Activation> activation_named(std::string_view name) noexcept {
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu" || name == "gelu_python") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_accurate" || name == "gelu_pytorch_tanh" ||
      name == "gelu_python_tanh") {
    return Activation::kGeluTanh;
  }
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "leaky_relu" || name == "leakyrelu") return Activation::kLeakyRelu;
  return std::nullopt;
}

PEFT_END_NAMESPACE
