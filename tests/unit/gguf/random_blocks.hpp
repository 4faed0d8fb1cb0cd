#pragma once
/// Rows of blocks of random codes and scales, with halves of the size that weights have.

#include <cstring>
#include <memory>
#include <utility>

#include "peft/core/rng.hpp"
#include "peft/gguf_tensor.hpp"

namespace gguf_test {

inline peft::GgufTensor random_blocks(peft::BlockFormat format, peft::Index rows, peft::Index cols, peft::Philox& rng) {
  using peft::BlockFormat;
  const peft::BlockFormatInfo& info = peft::info_of(format);
  auto bytes = std::make_shared<peft::Buffer<std::uint8_t>>(rows * cols / info.elements * info.bytes);
  for (std::uint8_t& byte : *bytes) byte = static_cast<std::uint8_t>(rng.uniform(0.0f, 256.0f));
  const bool has_least = format == BlockFormat::kQ4_1 || format == BlockFormat::kQ5_1 || format == BlockFormat::kQ4K ||
                         format == BlockFormat::kQ5K;
  for (peft::Index b = 0; b < bytes->size(); b += info.bytes) {
    const auto put = [&](peft::Index at) {
      const peft::f16 half(0.01f * rng.normal());
      std::memcpy(bytes->data() + b + at, &half.bits, sizeof(half.bits));
    };
    put(format == BlockFormat::kQ6K ? 208 : 0);
    if (has_least) put(2);
  }
  const peft::VectorView<const std::uint8_t> view = std::as_const(*bytes).view();
  return peft::GgufTensor(format, rows, cols, view, std::move(bytes));
}

}  // namespace gguf_test
