#pragma once
/// The blocks of weights that GGUF files hold and kernels compute on. A row of a weight is whole blocks, each with its own
/// scales; the layouts are in io/dequantize.hpp, the kernels in isa/blocks.inc.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

enum class BlockFormat : std::uint8_t { kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4K, kQ5K, kQ6K };

struct BlockFormatInfo {
  BlockFormat format;
  std::string_view name;  ///< as files and tools write it
  Index elements;         ///< of a block
  Index bytes;            ///< of a block
};

inline constexpr std::array kBlockFormats{
    BlockFormatInfo{BlockFormat::kQ4_0, "Q4_0", 32, 18}, BlockFormatInfo{BlockFormat::kQ4_1, "Q4_1", 32, 20},
    BlockFormatInfo{BlockFormat::kQ5_0, "Q5_0", 32, 22}, BlockFormatInfo{BlockFormat::kQ5_1, "Q5_1", 32, 24},
    BlockFormatInfo{BlockFormat::kQ8_0, "Q8_0", 32, 34}, BlockFormatInfo{BlockFormat::kQ4K, "Q4_K", 256, 144},
    BlockFormatInfo{BlockFormat::kQ5K, "Q5_K", 256, 176}, BlockFormatInfo{BlockFormat::kQ6K, "Q6_K", 256, 210}};

constexpr const BlockFormatInfo& info_of(BlockFormat format) noexcept {
  return kBlockFormats[static_cast<std::size_t>(format)];
}
constexpr std::string_view name_of(BlockFormat format) noexcept { return info_of(format).name; }

PEFT_END_NAMESPACE
