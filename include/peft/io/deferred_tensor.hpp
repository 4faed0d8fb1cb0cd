#pragma once
/// A tensor that is made when its turn to be written comes: a model need not stand in memory a second time.

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "peft/io/tensor_ref.hpp"

PEFT_BEGIN_NAMESPACE

struct DeferredTensor {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<Index> shape;
  /// The tensor's bytes; they stay valid until the next one's are asked for.
  std::function<std::span<const std::byte>()> make;

  /// Of the bytes that make() gives. Throws ShapeError for a size that cannot be addressed.
  Index byte_size() const {
    const std::optional<Index> count = detail::element_count(shape);
    const std::optional<Index> size = count ? detail::byte_count(type, *count) : std::nullopt;
    if (size) return *size;
    fail<ShapeError>("tensor {}: {} of shape {}; expected whole blocks and a size that can be addressed", quote_text(name),
                     name_of(type), detail::shape_text(shape));
  }
};

PEFT_END_NAMESPACE
