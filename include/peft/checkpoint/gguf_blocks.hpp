#pragma once
/// A tensor of a GGUF file as the matrix that layers compute on, without a copy.

#include <optional>

#include "peft/gguf_tensor.hpp"
#include "peft/io/tensor_ref.hpp"

PEFT_BEGIN_NAMESPACE

/// The blocks that kernels know by that type; none for a type that is not in blocks, or in others.
constexpr std::optional<BlockFormat> block_format_of(StoredType type) noexcept {
  switch (type) {
    case StoredType::kQ4_0:
      return BlockFormat::kQ4_0;
    case StoredType::kQ4_1:
      return BlockFormat::kQ4_1;
    case StoredType::kQ5_0:
      return BlockFormat::kQ5_0;
    case StoredType::kQ5_1:
      return BlockFormat::kQ5_1;
    case StoredType::kQ8_0:
      return BlockFormat::kQ8_0;
    case StoredType::kQ4K:
      return BlockFormat::kQ4K;
    case StoredType::kQ5K:
      return BlockFormat::kQ5K;
    case StoredType::kQ6K:
      return BlockFormat::kQ6K;
    default:
      return std::nullopt;
  }
}

namespace detail {

constexpr bool block_formats_agree() {
  int found = 0;
  for (const StoredTypeInfo& info : kStoredTypes) {
    const auto format = block_format_of(info.type);
    if (!format) continue;
    const BlockFormatInfo& own = info_of(*format);
    if (own.name != info.name || own.elements != info.block_elements || own.bytes != info.block_bytes) return false;
    ++found;
  }
  return found == static_cast<int>(kBlockFormats.size());
}
static_assert(block_formats_agree());

}  // namespace detail

/// `tensor` seen as a matrix, over its own bytes. Throws FormatError for a type that is not one of BlockFormat's, ShapeError
/// where the bytes do not fit.
inline GgufTensor gguf_tensor(const TensorRef& tensor) {
  const auto format = block_format_of(tensor.type);
  if (!format) {
    fail<FormatError>("computing on the blocks of {}: its type is {}; expected Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
                      tensor.where(), name_of(tensor.type));
  }
  return GgufTensor(*format, tensor.rows(), tensor.cols(),
                    {reinterpret_cast<const std::uint8_t*>(tensor.bytes.data()), static_cast<Index>(tensor.bytes.size())},
                    tensor.file, tensor.where());
}

PEFT_END_NAMESPACE
