#pragma once
/// The element-wise non-linearities of ops/activation.hpp in float, f and f'. All of them have f(0) = 0, which the padding
/// of tiles relies on.

#include <type_traits>

#include "peft/core/activation.hpp"
#include "peft/cuda/kernels/device.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// σ(x), and 1 − σ(x) besides, without the difference: where σ is 1 but for a rounding, slopes multiply it by x.
PEFT_DEVICE float sigmoid(float x, float& rest) {
  const float e = exp_(min(-x, 88.0f));  // finite, or `rest` would be ∞·0
  const float sigma = div_rn(1.0f, 1.0f + e);
  rest = e * sigma;
  return sigma;
}

/// Φ(x), and e^(−x²/2) besides. With z = |x|/√2 and t = 1/(1 + z/2), e^(z²)·erfc(z) = t·Q(t): the CPU's polynomial, which
/// keeps the relative precision of the lower tail.
PEFT_DEVICE float normal_distribution(float x, float& bell) {
  const float t = div_rn(1.0f, fma(abs_(x), 0.35355339f, 1.0f));
  bell = exp_(x * x * -0.5f);
  float q = -5.884702131152153e-2f;
  q = fma(q, t, 2.834872305393219e-1f);
  q = fma(q, t, -4.849361181259155e-1f);
  q = fma(q, t, 2.7546215057373047e-1f);
  q = fma(q, t, -2.481902949512005e-2f);
  q = fma(q, t, 2.0191648602485657e-1f);
  q = fma(q, t, 2.4330024421215057e-1f);
  q = fma(q, t, 2.8234800696372986e-1f);
  q = fma(q, t, 2.820879817008972e-1f);
  const float tail = 0.5f * bell * (t * q);  // Φ(−|x|)
  return x > 0.0f ? 1.0f - tail : tail;
}

/// 2u with u = √(2/π)·(x + 0.044715·x³): gelu_tanh is x·σ(2u).
PEFT_DEVICE float gelu_gate(float x) { return 1.5957691216f * x * fma(x * x, 0.044715f, 1.0f); }

template <Activation kKind>
PEFT_DEVICE float activate(float x) {
  float other;
  if constexpr (kKind == Activation::kRelu) return x > 0.0f ? x : 0.0f;
  if constexpr (kKind == Activation::kGelu) return x * normal_distribution(x, other);
  if constexpr (kKind == Activation::kGeluTanh) return x * sigmoid(gelu_gate(x), other);
  if constexpr (kKind == Activation::kSilu) return x * sigmoid(x, other);
  if constexpr (kKind == Activation::kTanh) return tanh_(x);
  return x > 0.0f ? x : 0.01f * x;
}

/// f'(x), and f(x) besides; at 0 the slope of relu is 0 and that of leaky_relu 0.01.
template <Activation kKind>
PEFT_DEVICE float activation_slope(float x, float& f) {
  float other;
  if constexpr (kKind == Activation::kRelu) {
    f = x > 0.0f ? x : 0.0f;
    return x > 0.0f ? 1.0f : 0.0f;
  } else if constexpr (kKind == Activation::kGelu) {
    const float phi = normal_distribution(x, other);
    f = x * phi;
    return fma(x * 0.39894228f, other, phi);
  } else if constexpr (kKind == Activation::kGeluTanh) {
    const float gate = sigmoid(gelu_gate(x), other);
    const float inner = 1.5957691216f * fma(x * x, 0.134145f, 1.0f);
    f = x * gate;
    return fma(x * inner * gate, other, gate);
  } else if constexpr (kKind == Activation::kSilu) {
    const float sigma = sigmoid(x, other);
    f = x * sigma;
    return sigma * fma(x, other, 1.0f);
  } else if constexpr (kKind == Activation::kTanh) {
    f = tanh_(x);
    return 1.0f - f * f;
  } else {
    f = x > 0.0f ? x : 0.01f * x;
    return x > 0.0f ? 1.0f : 0.01f;
  }
}

/// f(std::integral_constant of kind): for code that is chosen once and not at every element.
template <class F>
PEFT_DEVICE void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kTanh:
      return f(std::integral_constant<Activation, Activation::kTanh>{});
    case Activation::kLeakyRelu:
      return f(std::integral_constant<Activation, Activation::kLeakyRelu>{});
  }
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
