#pragma once
/// How a model's rotary frequencies differ from θ^(−2j/d), so that it reads further than it was first trained to:
///   linear   f_j / factor                                                          (kaiokendev, 2023)
///   llama3   f_j where the wavelength is short, f_j / factor where it is long, a ramp between   (Llama 3.1, 2024)
///   yarn     a ramp between both by dimension, and cosines and sines times attention_factor    (Peng et al., 2023)
///   factors  f_j / frequency_factors[j]: llama3 as a GGUF stores it
/// Names are those of Hugging Face's rope_parameters; float runs as transformers does it, in float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/error.hpp"
#include "peft/ops/rope.hpp"

namespace peft_examples {

using peft::Index;

struct RopeScaling {
  enum class Type : std::uint8_t { kNone, kLinear, kLlama3, kYarn, kFactors };

  Type type = Type::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  Index original_max_position_embeddings = 0;            ///< llama3, yarn: the context of the first training
  double attention_factor = 1.0;                         ///< yarn
  double beta_fast = 32.0, beta_slow = 1.0;              ///< yarn: turns within the original context
  bool truncate = true;                                  ///< yarn: the ramp begins and ends at whole dimensions
  std::vector<float> frequency_factors;                  ///< factors: head_dim / 2 of them

  /// YaRN's own attention factor for a scaling factor: 0.1·ln(factor) + 1.
  static double yarn_attention_factor(double factor, double mscale = 1.0) noexcept {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
  }

  /// Throws ConfigError where the numbers do not fit together.
  void validate(Index head_dim) const {
    const auto need = [](bool right, const char* name, double value, const char* expected) {
      if (!right) peft::fail<peft::ConfigError>("rotary scaling: {} is {}; expected {}", name, value, expected);
    };
    if (type == Type::kNone) return;
    if (type == Type::kFactors) {
      const auto count = static_cast<Index>(frequency_factors.size());
      need(count == head_dim / 2, "the number of frequency factors", static_cast<double>(count), "head_dim / 2");
      for (const float f : frequency_factors) need(f > 0 && std::isfinite(f), "a frequency factor", static_cast<double>(f), "more than 0");
      return;
    }
    need(factor > 0 && std::isfinite(factor), "factor", factor, "more than 0");
    if (type == Type::kLinear) return;
    need(original_max_position_embeddings > 0, "original_max_position_embeddings",
         static_cast<double>(original_max_position_embeddings), "at least 1");
    if (type == Type::kLlama3) {
      need(low_freq_factor > 0, "low_freq_factor", low_freq_factor, "more than 0");
      need(high_freq_factor > low_freq_factor, "high_freq_factor", high_freq_factor, "more than low_freq_factor");
    } else {
      need(attention_factor > 0 && std::isfinite(attention_factor), "attention_factor", attention_factor, "more than 0");
      need(beta_slow > 0, "beta_slow", beta_slow, "more than 0");
      need(beta_fast >= beta_slow, "beta_fast", beta_fast, "at least beta_slow");
    }
  }
};

namespace detail {

template <class A>
void scale_llama3(const RopeScaling& s, peft::Buffer<A>& frequencies) {
  const A factor = static_cast<A>(s.factor), context = static_cast<A>(s.original_max_position_embeddings);
  const A low = static_cast<A>(s.low_freq_factor), high = static_cast<A>(s.high_freq_factor);
  for (A& f : frequencies) {
    const A wavelength = static_cast<A>(2 * std::numbers::pi) / f;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      f = f / factor;
    } else {
      const A smooth = (context / wavelength - low) / (high - low);
      f = (A(1) - smooth) * f / factor + smooth * f;
    }
  }
}

/// The ramp goes over the dimensions that turn between beta_fast and beta_slow times within the original context.
template <class A>
void scale_yarn(const RopeScaling& s, double theta, peft::Buffer<A>& frequencies) {
  const auto dim = static_cast<double>(2 * frequencies.size());
  const auto dimension_of = [&](double turns) {
    const auto context = static_cast<double>(s.original_max_position_embeddings);
    return dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = dimension_of(s.beta_fast), high = dimension_of(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (Index j = 0; j < frequencies.size(); ++j) {
    const A ramp = std::clamp((static_cast<A>(j) - static_cast<A>(low)) / static_cast<A>(high - low), A(0), A(1));
    const A keep = A(1) - ramp;
    frequencies[j] = frequencies[j] / static_cast<A>(s.factor) * (A(1) - keep) + frequencies[j] * keep;
  }
}

}  // namespace detail

/// The head_dim / 2 frequencies of a model. Throws ConfigError, ShapeError.
template <class A>
peft::Buffer<A> scaled_frequencies(Index head_dim, double theta, const RopeScaling& scaling) {
  scaling.validate(head_dim);
  peft::Buffer<A> result = peft::ops::rope_frequencies<A>(head_dim, theta);
  switch (scaling.type) {
    case RopeScaling::Type::kNone:
      break;
    case RopeScaling::Type::kLinear:
      for (A& f : result) f /= static_cast<A>(scaling.factor);
      break;
    case RopeScaling::Type::kLlama3:
      detail::scale_llama3(scaling, result);
      break;
    case RopeScaling::Type::kYarn:
      detail::scale_yarn(scaling, theta, result);
      break;
    case RopeScaling::Type::kFactors:
      for (Index j = 0; j < result.size(); ++j) {
        result[j] /= static_cast<A>(scaling.frequency_factors[static_cast<std::size_t>(j)]);
      }
      break;
  }
  return result;
}

/// What llama.cpp divides the frequencies by (rope_freqs.weight): a llama3 scaling as factors. Throws ConfigError.
inline std::vector<float> frequency_factors(Index head_dim, double theta, const RopeScaling& scaling) {
  const peft::Buffer<double> plain = peft::ops::rope_frequencies<double>(head_dim, theta);
  const peft::Buffer<double> scaled = scaled_frequencies<double>(head_dim, theta, scaling);
  std::vector<float> factors;
  for (Index j = 0; j < plain.size(); ++j) factors.push_back(static_cast<float>(plain[j] / scaled[j]));
  return factors;
}

/// The llama3 scaling that gives these factors: Llama 3's low_freq_factor 1 and high_freq_factor 4, with any factor and
/// original context that is a power of two. Throws ConfigError where there is none.
inline RopeScaling llama3_of_factors(Index head_dim, double theta, const RopeScaling& factors) {
  factors.validate(head_dim);
  RopeScaling s;
  s.type = RopeScaling::Type::kLlama3;
  s.factor = static_cast<double>(*std::max_element(factors.frequency_factors.begin(), factors.frequency_factors.end()));
  if (std::fabs(s.factor - std::round(s.factor)) <= 1e-5 * s.factor) s.factor = std::round(s.factor);  // it was stored rounded
  for (Index context = 2; context <= Index{1} << 24; context *= 2) {
    s.original_max_position_embeddings = context;
    const std::vector<float> tried = frequency_factors(head_dim, theta, s);
    if (std::equal(tried.begin(), tried.end(), factors.frequency_factors.begin(),
                   [](float a, float b) { return std::fabs(a - b) <= 1e-5f * b; })) {
      return s;
    }
  }
  peft::fail<peft::ConfigError>("rotary scaling: these {} frequency factors (the largest is {}) are not Llama 3's; "
                                "config.json has no way to say them",
                                factors.frequency_factors.size(), s.factor);
}

}  // namespace peft_examples
