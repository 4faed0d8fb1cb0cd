#pragma once
/// A model whose layers' linears go to four bits, tensor by tensor as they are written.

#include <functional>
#include <string>
#include <vector>

#include "cli/quantized_tensors.hpp"
#include "cli/source_tensors.hpp"
#include "hosts/model_source.hpp"

namespace peft_examples {

template <peft::FourBitCode kCode>
class QuantizedModel {
 public:
  /// Reads and quantises every linear of the layers once; `on_layer(done, total)` after each. `others`: type of the other tensors.
  /// Throws ConfigError where the model's weights have four bits already, and what reading and quantising throw.
  QuantizedModel(const ModelSource& source, const peft::FourBitConfig& config, peft::StoredType others,
                 const std::function<void(Index, Index)>& on_layer)
      : tensors_(source) {
    if (!source.four_bit.empty()) {
      peft::fail<peft::ConfigError>("{}: its weights are in four bits already; expected the model that they were made of",
                                    source.where);
    }
    check_tensors(source);
    Index total = 0, done = 0;
    for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
      total += is_layer_weight(name, shape) ? 1 : 0;
    });
    for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
      if (!is_layer_weight(name, shape)) return files_.add(tensors_.stored(name, shape, others));
      files_.add_quantized(
          name, [this, name] { return tensors_.matrix(name); },
          [config](MatrixView<const float> values) { return peft::FourBitTensor<kCode>::quantize(values, config); });
      on_layer(++done, total);
    });
  }
  QuantizedModel(const QuantizedModel&) = delete;
  QuantizedModel& operator=(const QuantizedModel&) = delete;

  const QuantizedTensors<kCode>& files() const noexcept { return files_; }

 private:
  SourceTensors tensors_;
  QuantizedTensors<kCode> files_;
};

}  // namespace peft_examples
