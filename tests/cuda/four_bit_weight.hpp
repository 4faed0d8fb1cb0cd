#pragma once
/// Weights in four bits for the tests of their CUDA kernels: random codes and maxima in bitsandbytes' order, the same packed, and
/// what they mean.

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "peft/cuda/kernels/four_bit_layout.cuh"
#include "peft/kernels/dynamic_map.hpp"
#include "peft/kernels/four_bit.hpp"

namespace four_bit_test {

namespace device = peft::cuda::kernels;
using peft::Index;
using peft_emulator::Buffer;

/// Half the distance from 1 to the next number: what rounding to T changes at most.
template <class T>
constexpr double kUnit = std::is_same_v<T, peft::f16> ? 0x1p-11 : std::is_same_v<T, peft::bf16> ? 0x1p-8 : 0x1p-24;

template <class T>
std::vector<T> random_values(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0.0f, 1.0f);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(draw(random));
  return values;
}

class Weight {
 public:
  Weight(Index out, Index in, int block, bool nested, peft::FourBitCode code = peft::FourBitCode::kNf4, unsigned seed = 1)
      : out_(out),
        in_(in),
        block_(block),
        blocks_((out * in + block - 1) / block),
        nested_(nested),
        table_(peft::kernels::table_of(code)),
        flat_codes_((out * in + 1) / 2),
        flat_absmax_(nested ? 0 : blocks_),
        flat_nested_codes_(nested ? blocks_ : 0),
        codes_(device::four_bit_code_bytes(out, in), "codes"),
        absmax_(nested ? 0 : device::four_bit_scale_count(out, in, block), "absmax"),
        nested_codes_(nested ? device::four_bit_scale_count(out, in, block) : 0, "nested codes"),
        nested_map_(256, "nested map"),
        nested_absmax_((blocks_ + 255) / 256, "nested absmax") {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> scale(0.01f, 0.2f);
    for (auto& byte : flat_codes_) byte = static_cast<std::uint8_t>(random());
    if (out * in % 2 != 0) {
      std::uint8_t& last = flat_codes_[flat_codes_.size() - 1];
      last = static_cast<std::uint8_t>((last & 0xF0u) | zero_code());
    }
    for (auto& value : flat_absmax_) value = scale(random);
    for (auto& value : flat_nested_codes_) value = static_cast<std::uint8_t>(random());
    for (int i = 0; i < 256; ++i) nested_map_[i] = peft::kernels::dynamic_map()[static_cast<std::size_t>(i)];
    for (auto& value : nested_absmax_) value = scale(random) / 4;
    device::four_bit_pack_host(pack_args());
  }

  Index out() const { return out_; }
  Index in() const { return in_; }
  const peft::kernels::FourBitTable& table() const { return table_; }
  std::uint32_t zero_code() const { return table_.value[7] == 0.0f ? 7u : 0u; }
  static constexpr float kOffset = 0.07f;

  device::FourBitPackArgs pack_args() {
    device::FourBitPackArgs args{};
    args.flat_codes = flat_codes_.data();
    args.flat_absmax = nested_ ? nullptr : flat_absmax_.data();
    args.flat_nested_codes = nested_ ? flat_nested_codes_.data() : nullptr;
    args.codes = codes_.data();
    args.absmax = nested_ ? nullptr : absmax_.data();
    args.nested_codes = nested_ ? nested_codes_.data() : nullptr;
    args.out = out_;
    args.in = in_;
    args.block_size = block_;
    args.zero_code = zero_code();
    return args;
  }

  device::FourBitPacked packed() const {
    device::FourBitPacked packed{};
    packed.codes = codes_.data();
    packed.absmax = nested_ ? nullptr : absmax_.data();
    packed.nested_codes = nested_ ? nested_codes_.data() : nullptr;
    packed.nested_map = nested_ ? nested_map_.data() : nullptr;
    packed.nested_absmax = nested_ ? nested_absmax_.data() : nullptr;
    packed.nested_offset = nested_ ? kOffset : 0.0f;
    packed.block_size = block_;
    packed.out = out_;
    packed.in = in_;
    for (int i = 0; i < 16; ++i) packed.value[i] = table_.value[i];
    return packed;
  }

  float value(Index row, Index column) const {
    const Index element = row * in_ + column;
    const std::uint8_t byte = flat_codes_[element / 2];
    return table_.value[element % 2 == 0 ? byte >> 4 : byte & 15];
  }
  float absmax(Index row, Index column) const {
    const Index block = (row * in_ + column) / block_;
    if (!nested_) return flat_absmax_[block];
    volatile float product = nested_map_[flat_nested_codes_[block]] * nested_absmax_[block / 256];
    return product + kOffset;
  }
  float operator()(Index row, Index column) const {
    volatile float product = value(row, column) * absmax(row, column);
    return product;
  }

  Buffer<std::uint8_t>& flat_codes() { return flat_codes_; }
  Buffer<float>& flat_absmax() { return flat_absmax_; }
  Buffer<std::uint8_t>& flat_nested_codes() { return flat_nested_codes_; }
  Buffer<std::uint8_t>& codes() { return codes_; }
  Buffer<float>& absmax() { return absmax_; }
  Buffer<std::uint8_t>& nested_codes() { return nested_codes_; }
  const Buffer<float>& nested_map() const { return nested_map_; }
  const Buffer<float>& nested_absmax() const { return nested_absmax_; }

 private:
  Index out_, in_;
  int block_;
  Index blocks_;
  bool nested_;
  const peft::kernels::FourBitTable& table_;
  Buffer<std::uint8_t> flat_codes_;
  Buffer<float> flat_absmax_;
  Buffer<std::uint8_t> flat_nested_codes_;
  Buffer<std::uint8_t> codes_;
  Buffer<float> absmax_;
  Buffer<std::uint8_t> nested_codes_;
  Buffer<float> nested_map_, nested_absmax_;
};

}  // namespace four_bit_test
