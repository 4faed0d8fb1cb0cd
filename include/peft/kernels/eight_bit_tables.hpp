#pragma once
/// The tables of both dynamic maps; eight_bit.hpp says how a code is found in them.

#include <bit>
#include <cstdint>

#include "peft/kernels/dynamic_map.hpp"
#include "peft/kernels/eight_bit.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

namespace detail {

inline std::uint32_t eight_bit_word(const DynamicMap& map, std::uint32_t first, int shift, bool negative) noexcept {
  const std::uint32_t rest = (1u << shift) - 1;
  const auto number = [negative](std::uint32_t bits) {
    const float size = std::bit_cast<float>(bits);
    return negative ? -size : size;
  };
  const std::uint32_t lower = negative ? first + rest : first;
  const std::uint32_t code = nearest_in(map, number(lower));
  std::uint32_t missing = 0;  // a threshold beyond the bucket: no sum carries
  if (nearest_in(map, number(first + rest - (lower - first))) != code) {
    const std::uint32_t threshold = std::bit_cast<std::uint32_t>(threshold_above(map, static_cast<int>(code))) & 0x7FFFFFFFu;
    // Past it is what is larger by one; negative numbers are counted from the bucket's far end.
    missing = negative ? threshold - first : rest - (threshold - first);
  }
  return code << shift | missing;
}

inline EightBitTable make_eight_bit_table(const DynamicMap& map, bool has_sign) noexcept {
  EightBitTable table{};
  for (std::size_t i = 0; i < map.size(); ++i) table.value[i] = map[i];
  const int shift = has_sign ? EightBitTable::kSignedShift : EightBitTable::kUnsignedShift;
  const std::uint32_t buckets = has_sign ? EightBitTable::kSignedBuckets : EightBitTable::kBuckets;
  for (std::uint32_t i = 0; i < buckets; ++i) {
    const std::uint32_t first = EightBitTable::kFirst + (i << shift);
    table.word[i] = eight_bit_word(map, first, shift, false);
    if (has_sign) table.word[buckets + i] = eight_bit_word(map, first, shift, true);
  }
  return table;
}

}  // namespace detail

inline const EightBitTable& signed_eight_bit_table() noexcept {
  static const EightBitTable table = detail::make_eight_bit_table(dynamic_map(), true);
  return table;
}
inline const EightBitTable& unsigned_eight_bit_table() noexcept {
  static const EightBitTable table = detail::make_eight_bit_table(unsigned_dynamic_map(), false);
  return table;
}

}  // namespace kernels
PEFT_END_NAMESPACE
