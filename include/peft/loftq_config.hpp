#pragma once
/// How init_lora_weights = "loftq" quantises and alternates (PEFT's LoftQConfig).

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

struct LoftqConfig {
  Index loftq_bits = 4;  ///< of the base's weights: 4 or 8
  Index loftq_iter = 1;  ///< quantisations, each followed by a decomposition of what it left

  friend bool operator==(const LoftqConfig&, const LoftqConfig&) = default;
};

PEFT_END_NAMESPACE
