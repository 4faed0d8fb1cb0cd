#pragma once
/// What a loss comes back as: sums over label tokens, from which means are taken once, at the end.

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// Sums over label tokens, added to by every batch.
struct LossSum {
  double loss = 0.0;  ///< sum of the tokens' cross-entropies, in nats
  Index tokens = 0;   ///< label tokens
  Index correct = 0;  ///< label tokens whose target has the largest logit

  /// Mean cross-entropy over the label tokens; 0 where there are none.
  double mean() const noexcept { return tokens > 0 ? quotient(loss, static_cast<double>(tokens)) : 0.0; }
  LossSum& operator+=(const LossSum& other) noexcept {
    loss += other.loss;
    tokens += other.tokens;
    correct += other.correct;
    return *this;
  }
};

PEFT_END_NAMESPACE
