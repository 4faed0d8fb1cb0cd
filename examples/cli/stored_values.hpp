#pragma once
/// Floats as the bytes of the type that is written.

#include <cstddef>
#include <cstdint>
#include <span>

#include "hosts/names.hpp"
#include "peft/error.hpp"
#include "peft/io/stored_type.hpp"
#include "peft/kernels/convert.hpp"

namespace peft_examples {

class StoredValues {
 public:
  /// `values` as F32, F16 or BF16; valid until the next call, and as long as `values`. Throws NumericError for a value that F16
  /// cannot hold.
  std::span<const std::byte> operator()(VectorView<const float> values, peft::StoredType type) {
    const auto size = static_cast<std::size_t>(values.size);
    if (type == peft::StoredType::kF32) return std::as_bytes(std::span(values.data, size));
    narrow_.resize_discard(values.size);
    const auto target = type == peft::StoredType::kBF16 ? peft::DType::kBF16 : peft::DType::kF16;
    peft::kernels::convert(values.size, values.data, peft::DType::kF32, narrow_.data(), target);
    for (Index i = 0; type == peft::StoredType::kF16 && i < values.size; ++i) {
      if ((narrow_[i] & 0x7C00u) == 0x7C00u) {
        peft::fail<peft::NumericError>("writing the model: a weight is {}, too large for f16; write --dtype bf16 or f32", values[i]);
      }
    }
    return std::as_bytes(std::span<const std::uint16_t>(narrow_.data(), size));
  }

 private:
  peft::Buffer<std::uint16_t> narrow_;
};

}  // namespace peft_examples
