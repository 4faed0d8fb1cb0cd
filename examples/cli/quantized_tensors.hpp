#pragma once
/// The tensors of a model whose layers' linears have four bits, as they are written.

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/names.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/quantization_error.hpp"

namespace peft_examples {

/// Scales of all weights are kept; codes, eight times as large and more, are made when they are written, out of values that are
/// made anew.
template <peft::FourBitCode kCode>
class QuantizedTensors {
 public:
  using Tensor = peft::FourBitTensor<kCode>;
  using Values = std::function<MatrixView<const float>()>;             ///< valid until the next tensor's
  using Quantize = std::function<Tensor(MatrixView<const float>)>;

  struct Layer {
    std::string name;  ///< of the weight
    peft::QuantizationError error;
  };

  QuantizedTensors() = default;
  QuantizedTensors(const QuantizedTensors&) = delete;
  QuantizedTensors& operator=(const QuantizedTensors&) = delete;

  /// One that stays as it is made.
  void add(peft::DeferredTensor tensor) { tensors_.push_back(std::move(tensor)); }
  /// A weight in four bits already, with the bytes that it has.
  void add_packed(const std::string& name, const Tensor& tensor) {
    const auto parts = std::make_shared<peft::Bnb4BitTensors<kCode>>(name, tensor);
    for (const peft::TensorRef& part : parts->tensors()) {
      tensors_.push_back({part.name, part.type, part.shape, [parts, bytes = part.bytes] { return bytes; }});
    }
  }
  /// A weight that `quantize` makes of its values: now for its scales and its error, and again when it is written.
  void add_quantized(const std::string& name, Values values, Quantize quantize) {
    const MatrixView<const float> now = values();
    const Tensor tensor = quantize(now);
    layers_.push_back({name, peft::quantization_error(now, tensor)});
    const peft::Bnb4BitTensors<kCode> parts(name, tensor);
    for (const peft::TensorRef& part : parts.tensors()) {
      if (part.name == name) {
        tensors_.push_back({name, part.type, part.shape, [this, values, quantize] {
                              codes_ = quantize(values());
                              const auto& codes = codes_.storage().codes;
                              return std::as_bytes(std::span(codes.data, static_cast<std::size_t>(codes.size)));
                            }});
      } else {
        auto bytes = std::make_shared<std::vector<std::byte>>(part.bytes.begin(), part.bytes.end());
        tensors_.push_back({part.name, part.type, part.shape, [bytes] { return std::span<const std::byte>(*bytes); }});
      }
    }
  }

  /// Everything that is written. This must outlive them; one is valid until the next is made.
  const std::vector<peft::DeferredTensor>& tensors() const noexcept { return tensors_; }
  /// Those that were quantised.
  const std::vector<Layer>& layers() const noexcept { return layers_; }
  peft::QuantizationError error() const noexcept {
    peft::QuantizationError total;
    for (const Layer& layer : layers_) total += layer.error;
    return total;
  }

 private:
  std::vector<peft::DeferredTensor> tensors_;
  std::vector<Layer> layers_;
  Tensor codes_;  // of the weight whose turn it is
};

}  // namespace peft_examples
