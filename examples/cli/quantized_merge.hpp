#pragma once
/// A merged model whose layers' linears go to four bits: their values are decoded where they have four bits already, the update
/// is added in float, and the sum is quantised.

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cli/merged_model.hpp"
#include "cli/quantized_tensors.hpp"
#include "hosts/model_source.hpp"

namespace peft_examples {

/// Adds the model's tensors to `files`. A base in four bits keeps its own form (blocks, whether quantised twice), and where the
/// adapter changes nothing its bytes; others are quantised as `config` says. `model` and `source` must outlive `files`. Throws
/// ConfigError where the base is in other four bits than kCode.
template <peft::FourBitCode kCode>
void add_merged(MergedModel& model, const ModelSource& source, const peft::FourBitConfig& config, peft::StoredType others,
                QuantizedTensors<kCode>& files) {
  using Tensor = peft::FourBitTensor<kCode>;
  const std::vector<peft::DeferredTensor> plain = model.tensors(others), wide = model.tensors(peft::StoredType::kF32);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const std::string& name = plain[i].name;
    if (!is_layer_weight(name, plain[i].shape)) {
      files.add(plain[i]);
      continue;
    }
    const auto values = [make = wide[i].make, rows = plain[i].shape[0], cols = plain[i].shape[1]] {
      return MatrixView<const float>(reinterpret_cast<const float*>(make().data()), rows, cols);
    };
    const auto packed = source.four_bit.find(name);
    if (packed == source.four_bit.end()) {
      files.add_quantized(name, values, [config](MatrixView<const float> sum) { return Tensor::quantize(sum, config); });
      continue;
    }
    const Tensor* const own = std::get_if<Tensor>(&packed->second);
    if (own == nullptr) {
      peft::fail<peft::ConfigError>("peft merge: {} is in other four bits than {}; expected --dtype as the base has it, or f32, bf16, f16",
                                    name, peft::name_of(kCode));
    }
    if (model.changes(name)) {
      files.add_quantized(name, values, [own](MatrixView<const float> sum) { return own->requantized(sum); });
    } else {
      files.add_packed(name, *own);
    }
  }
}

}  // namespace peft_examples
