#pragma once
/// Perplexity of a text under a model.

#include <cmath>

#include "peft/error.hpp"
#include "peft/loss_sum.hpp"

PEFT_BEGIN_NAMESPACE

/// exp(mean cross-entropy per label token); 1: every token was certain. +∞ where the mean is too large for a double.
/// Throws ConfigError where no token was counted.
inline double perplexity(const LossSum& sum) {
  if (sum.tokens <= 0) fail<ConfigError>("perplexity: the loss is over {} label tokens; expected at least one", sum.tokens);
  return std::exp(sum.mean());
}

PEFT_END_NAMESPACE
