#pragma once
/// The bytes of a tensor in four bits and who keeps them: what a FourBitTensor is made from and stands on. The layout is
/// bitsandbytes':
///   codes   ⌈n/2⌉ bytes, elements flat and row-major, the first of a byte in its upper half
///   absmax  one float for every `block_size` elements, counted flat: blocks may run over the end of a row
/// or, quantised twice, in place of absmax (with m = ⌈n/block_size⌉):
///   nested_codes   m bytes;  absmax[b] = nested_map[nested_codes[b]]·nested_absmax[b/256] + nested_offset
///   nested_map     256 floats
///   nested_absmax  ⌈m/256⌉ floats

#include <memory>
#include <vector>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

struct FourBitStorage {
  std::vector<Index> shape;  ///< row-major, outermost first
  DType dtype = DType::kF32;  ///< of what was quantised: kF32, kF16 or kBF16
  Index block_size = 64;
  VectorView<const std::uint8_t> codes;
  VectorView<const float> absmax;  ///< empty where quantised twice
  VectorView<const std::uint8_t> nested_codes;
  VectorView<const float> nested_map;
  VectorView<const float> nested_absmax;
  float nested_offset = 0;
  std::shared_ptr<const void> keep_alive;  ///< owns what the views see: buffers or a mapped file
};

PEFT_END_NAMESPACE
