#pragma once
/// A weight in four bits of random bytes, for shapes that are too large to quantise in a test.

#include <memory>
#include <vector>

#include "gpu_test.hpp"

namespace gpu_test {

/// Random codes and maxima, as checkpoints hold them; quantised twice or once.
inline FourBitStorage random_storage(Index out, Index in, Index block, bool nested, std::uint32_t seed) {
  struct Bytes {
    std::vector<std::uint8_t> codes, nested_codes;
    std::vector<float> absmax, map, nested_absmax;
  };
  auto bytes = std::make_shared<Bytes>();
  const Index n = out * in, blocks = (n + block - 1) / block;
  std::uint64_t state = seed * 2654435761u + 1;
  const auto next = [&state] {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::uint32_t>(state >> 33);
  };
  bytes->codes.resize(static_cast<std::size_t>((n + 1) / 2));
  for (std::uint8_t& code : bytes->codes) code = static_cast<std::uint8_t>(next());
  // The unused half of an odd tail is the code of zero, as quantisers leave it; here NF4's.
  if (n % 2 != 0) bytes->codes.back() = static_cast<std::uint8_t>((bytes->codes.back() & 0xF0) | 7);
  FourBitStorage storage;
  storage.shape = {out, in};
  storage.dtype = DType::kF16;
  storage.block_size = block;
  if (nested) {
    bytes->nested_codes.resize(static_cast<std::size_t>(blocks));
    for (std::uint8_t& code : bytes->nested_codes) code = static_cast<std::uint8_t>(next());
    for (int i = 0; i < 256; ++i) bytes->map.push_back(static_cast<float>(i - 127) / 128.0f);
    for (Index i = 0; i < (blocks + 255) / 256; ++i)
      bytes->nested_absmax.push_back(0.02f + 0.01f * hashed(seed, static_cast<std::uint64_t>(i)));
    storage.nested_offset = 0.06f;
  } else {
    for (Index i = 0; i < blocks; ++i) bytes->absmax.push_back(0.06f + 0.03f * hashed(seed, static_cast<std::uint64_t>(i)));
  }
  const auto size = [](const auto& v) { return static_cast<Index>(v.size()); };
  storage.codes = {bytes->codes.data(), size(bytes->codes)};
  storage.absmax = {bytes->absmax.data(), size(bytes->absmax)};
  storage.nested_codes = {bytes->nested_codes.data(), size(bytes->nested_codes)};
  storage.nested_map = {bytes->map.data(), size(bytes->map)};
  storage.nested_absmax = {bytes->nested_absmax.data(), size(bytes->nested_absmax)};
  storage.keep_alive = std::move(bytes);
  return storage;
}

}  // namespace gpu_test
