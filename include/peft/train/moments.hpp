#pragma once
/// The moments of one parameter, as they are saved and given back: views of an optimizer's memory or of a file's.

#include <concepts>
#include <cstdint>
#include <string>

#include "peft/core/view.hpp"
#include "peft/kernels/eight_bit.hpp"

PEFT_BEGIN_NAMESPACE

/// A moment in 8 bits: a code per element and the largest absolute value per block of 256 elements.
struct EightBitMoment {
  VectorView<const std::uint8_t> codes;
  VectorView<const float> absmax;
};

/// Either m and v or the two in 8 bits; A: type of parameters, gradients and moments.
template <std::floating_point A>
struct Moments {
  std::string name;  ///< the parameter's
  Index rows = 0;
  Index cols = 0;
  VectorView<const A> m{};        ///< torch's exp_avg
  VectorView<const A> v{};        ///< torch's exp_avg_sq
  EightBitMoment m_8bit{};        ///< bitsandbytes' state1 and absmax1, on the signed dynamic map
  EightBitMoment v_8bit{};        ///< state2 and absmax2, on the unsigned one

  bool is_8bit() const noexcept { return !m_8bit.codes.empty() || !v_8bit.codes.empty(); }
};

PEFT_END_NAMESPACE
