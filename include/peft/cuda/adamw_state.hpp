#pragma once
/// Where the moments of an optimizer on the GPU lie: one run of bytes, a stretch per parameter at multiples of 256 bytes,
///   in 32 bits  m [n] · v [n]
///   in 8 bits   codes of m [n] · codes of v [n] · maxima of m [n/256] · maxima of v [n/256]
/// Both halves, as maxima, begin at multiples of 16 bytes. Zero bytes mean moments of zero.

#include <string>
#include <vector>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Elements that share a maximum in 8 bits.
inline constexpr Index kMomentBlock = 256;

/// A parameter's stretch, and where its parts begin, in bytes from the run's begin.
struct AdamWPlace {
  std::string name;
  Index rows = 0, cols = 0, size = 0;
  bool is_8bit = false;
  Index m = 0, v = 0, m_absmax = 0, v_absmax = 0;
  Index end = 0;

  Index blocks() const noexcept { return (size + kMomentBlock - 1) / kMomentBlock; }
  Index bytes() const noexcept { return end - m; }
};

/// Sets the parts' places, one parameter behind the other; returns the bytes of all.
inline Index place_moments(std::vector<AdamWPlace>& places) noexcept {
  const auto padded = [](Index bytes, Index to) { return (bytes + to - 1) / to * to; };
  Index at = 0;
  for (AdamWPlace& place : places) {
    const Index half = padded(place.size * (place.is_8bit ? 1 : 4), 16);
    place.m = at;
    place.v = place.m + half;
    place.m_absmax = place.v + half;
    place.v_absmax = place.m_absmax + (place.is_8bit ? padded(place.blocks() * 4, 16) : 0);
    place.end = place.v_absmax + (place.is_8bit ? padded(place.blocks() * 4, 16) : 0);
    at = padded(place.end, 256);
  }
  return at;
}

}  // namespace cuda
PEFT_END_NAMESPACE
