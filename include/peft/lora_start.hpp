#pragma once
/// What a start of LoRA from the base's weights is told, and tells: see lora_initialization.hpp.

#include <cstdint>
#include <functional>

#include "peft/adapted_linear.hpp"
#include "peft/core/buffer.hpp"
#include "peft/quantization_error.hpp"

PEFT_BEGIN_NAMESPACE

template <Scalar T>
struct LoraStart {
  /// What is left of one weight W by a base that is quantised.
  struct Error {
    QuantizationError before;  ///< W − the base's weight, as it was
    QuantizationError after;   ///< W − (the base's new weight + s·B·A)
  };

  std::uint64_t seed = 0;
  /// The weight [out, in] that a site's quantised base was made of; not asked for other sites. Where there is none the start is
  /// from the base's own values, which "loftq" refuses.
  std::function<Matrix<Accumulator<T>>(const AdaptedLinear<T>&)> original{};
  /// Called after each site over a quantised base.
  std::function<void(const AdaptedLinear<T>&, const Error&)> on_site{};
};

PEFT_END_NAMESPACE
