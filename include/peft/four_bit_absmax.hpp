#pragma once
/// The second quantisation of weights in four bits: the maxima of blocks in 8 bits each, with a maximum of their own for 256 of
/// them, around an offset (Dettmers et al., "QLoRA", 2023, section 3).

#include <algorithm>
#include <cstdint>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/four_bit_config.hpp"
#include "peft/four_bit_storage.hpp"
#include "peft/kernels/block_scales.hpp"
#include "peft/kernels/dynamic_map.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Buffers behind a FourBitStorage.
struct FourBitBuffers {
  Buffer<std::uint8_t> codes, nested_codes;
  Buffer<float> absmax, nested_map, nested_absmax;
};

/// Replaces a storage's absmax (in `buffers`) by its quantised form.
inline void quantize_absmax(const FourBitConfig& config, FourBitBuffers& buffers, FourBitStorage& storage,
                            ExecutorRef executor) {
  const Buffer<float>& absmax = buffers.absmax;
  const Index count = absmax.size();
  float offset = config.nested_offset.value_or(0.0f);
  if (!config.nested_offset && count > 0) {
    double sum = 0;
    for (const float most : absmax) sum = rounded(sum + static_cast<double>(most));
    offset = static_cast<float>(quotient(sum, static_cast<double>(count)));
  }
  const kernels::DynamicMap& map = kernels::dynamic_map();
  const bool coarse = config.nested_lookup == NestedLookup::kBnbCompat;
  buffers.nested_codes = Buffer<std::uint8_t>(count);
  buffers.nested_absmax = Buffer<float>((count + kernels::kNestedBlock - 1) / kernels::kNestedBlock);
  buffers.nested_map = Buffer<float>(static_cast<Index>(map.size()));
  std::copy(map.begin(), map.end(), buffers.nested_map.begin());
  parallel_for_ranges(executor, count, kernels::kNestedBlock, [&](Index first, Index last) {
    float most = 0;
    for (Index i = first; i < last; ++i) {
      const float rest = rounded(absmax[i] - offset);
      most = std::max(most, rest < 0 ? -rest : rest);
    }
    buffers.nested_absmax[first / kernels::kNestedBlock] = most;
    const float inverse = most > 0 ? std::min(quotient(1.0f, most), 3.4028235e38f) : 0.0f;
    for (Index i = first; i < last; ++i) {
      const float scaled = std::clamp(rounded(rounded(absmax[i] - offset) * inverse), -1.0f, 1.0f);
      buffers.nested_codes[i] = !coarse        ? kernels::nearest_in(map, scaled)
                                : most > 0     ? kernels::coarse_in(map, scaled)
                                               : std::uint8_t{0};  // of 0/0, there
    }
  });
  buffers.absmax = {};
  storage.nested_offset = offset;
}

}  // namespace detail
PEFT_END_NAMESPACE
