#pragma once
/// A Llama whose base is larger than memory: its weights stay in their mapped files, a layer at a time in memory.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <vector>

#include "hosts/llama.hpp"
#include "hosts/names.hpp"
#include "peft/dense_linear.hpp"
#include "peft/gguf_linear.hpp"
#include "peft/int8_linear.hpp"
#include "peft/io/paged_weights.hpp"
#include "peft/nf4_linear.hpp"

namespace peft_examples {

namespace detail {

using ByteParts = std::vector<std::span<const std::byte>>;

template <class V>
void add_bytes(ByteParts& parts, const V* data, Index count) {
  if (count > 0) parts.push_back(std::as_bytes(std::span(data, static_cast<std::size_t>(count))));
}
template <class W>
void add_weight(ByteParts& parts, const peft::DenseLinear<W>& layer) {
  const MatrixView<const W> w = layer.weight();
  if (w.rows > 0) add_bytes(parts, w.data, (w.rows - 1) * w.stride + w.cols);
}
template <peft::FourBitCode kCode>
void add_weight(ByteParts& parts, const peft::FourBitLinear<kCode>& layer) {
  const peft::FourBitStorage& s = layer.weight().storage();
  add_bytes(parts, s.codes.data, s.codes.size);
  add_bytes(parts, s.nested_codes.data, s.nested_codes.size);
  for (const auto& scales : {s.absmax, s.nested_absmax, s.nested_map}) add_bytes(parts, scales.data, scales.size);
}
inline void add_weight(ByteParts& parts, const peft::Int8Linear& layer) {
  add_bytes(parts, layer.weight().codes().data, layer.weight().codes().size);
  add_bytes(parts, layer.weight().absmax().data, layer.weight().absmax().size);
}
inline void add_weight(ByteParts& parts, const peft::GgufLinear& layer) {
  add_bytes(parts, layer.weight().bytes().data, layer.weight().byte_size());
}

/// The bytes of a layer's weight, whichever of the loader's it is. Throws ConfigError for another's.
template <Scalar T>
void add_weight_of(ByteParts& parts, const AdaptedLinear<T>& linear) {
  bool is_known = false;
  const auto as = [&]<class L>() {
    const L* layer = linear.base().template get_if<L>();
    if (layer == nullptr) return;
    add_weight(parts, *layer);
    is_known = true;
  };
  as.template operator()<peft::DenseLinear<T>>();
  if constexpr (!std::same_as<T, double>) {
    if (!std::same_as<T, float>) as.template operator()<peft::DenseLinear<float>>();
    if (!std::same_as<T, peft::bf16>) as.template operator()<peft::DenseLinear<peft::bf16>>();
    if (!std::same_as<T, peft::f16>) as.template operator()<peft::DenseLinear<peft::f16>>();
    as.template operator()<peft::Nf4Linear>();
    as.template operator()<peft::Fp4Linear>();
    as.template operator()<peft::Int8Linear>();
    as.template operator()<peft::GgufLinear>();
  }
  if (!is_known) peft::fail<peft::ConfigError>("page_weights: {} is a layer of another kind than the loader makes", linear.name());
}

}  // namespace detail

/// From now on at most `budget` bytes of the base's linears and embedding are in memory, whichever pass runs; norms and biases
/// are copies and do not count. The numbers stay what they are. Throws ConfigError where the budget is too small, naming the
/// least that works: the largest of the layers and the head, and what the loader converted.
template <Scalar T>
void page_weights(Llama<T>& model, Index budget) {
  const peft::RowTable<T>& table = model.embedding();
  std::vector<peft::PagedWeights::Stage> stages;
  stages.push_back({{}, true});
  detail::add_bytes(stages.back().parts, static_cast<const std::byte*>(table.address()), table.byte_size());
  for (Index i = 0; i < model.config().num_hidden_layers; ++i) {
    stages.emplace_back();
    for (const AdaptedLinear<T>* linear : model.layer(i).linears()) detail::add_weight_of(stages.back().parts, *linear);
  }
  stages.emplace_back();
  detail::add_weight_of(stages.back().parts, *model.adapter_sites().linears.back());
  model.set_paged_weights(peft::PagedWeights(stages, static_cast<std::size_t>(std::max<Index>(0, budget))));
}

}  // namespace peft_examples
