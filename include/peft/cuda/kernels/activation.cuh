#pragma once
/// The element-wise non-linearities of ops/activation.hpp in float, f and f'. All of them have f(0) = 0, which the padding
/// of tiles relies on.

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

PEFT_DEVICE float activate(Activation kind, float x) {
  float other;
  switch (kind) {
    case Activation::kRelu:
      return x > 0.0f ? x : 0.0f;
    case Activation::kGelu:
      return x * normal_distribution(x, other);
    case Activation::kGeluTanh:
      return x * sigmoid(gelu_gate(x), other);
    case Activation::kSilu:
      return x * sigmoid(x, other);
    case Activation::kTanh:
      return tanh_(x);
    case Activation::kLeakyRelu:
      return x > 0.0f ? x : 0.01f * x;
  }
  return x;
}

/// f'(x); at 0 that of relu is 0 and of leaky_relu 0.01.
PEFT_DEVICE float activation_slope(Activation kind, float x) {
  float other;
  switch (kind) {
    case Activation::kRelu:
      return x > 0.0f ? 1.0f : 0.0f;
    case Activation::kGelu: {
      const float phi = normal_distribution(x, other);
      return fma(x * 0.39894228f, other, phi);
    }
    case Activation::kGeluTanh: {
      const float gate = sigmoid(gelu_gate(x), other);
      const float inner = 1.5957691216f * fma(x * x, 0.134145f, 1.0f);
      return fma(x * inner * gate, other, gate);
    }
    case Activation::kSilu: {
      const float sigma = sigmoid(x, other);
      return sigma * fma(x, other, 1.0f);
    }
    case Activation::kTanh: {
      const float t = tanh_(x);
      return 1.0f - t * t;
    }
    case Activation::kLeakyRelu:
      return x > 0.0f ? 1.0f : 0.01f;
  }
  return 1.0f;
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
