#pragma once
/// A model whose layers' linears go to four bits, tensor by tensor as they are written.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/stored_values.hpp"
#include "hosts/model_source.hpp"
#include "hosts/weight_reader.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/quantization_error.hpp"

namespace peft_examples {

/// Scales of all weights are kept; codes, eight times as large and more, are made when they are written, out of the files.
template <peft::FourBitCode kCode>
class QuantizedModel {
 public:
  struct Layer {
    std::string name;  ///< of the weight
    peft::QuantizationError error;
  };

  /// Reads and quantises every linear of the layers once; `on_layer(done, total)` after each. `others`: type of the other tensors.
  /// Throws ConfigError where the model's weights have four bits already, and what reading and quantising throw.
  QuantizedModel(const ModelSource& source, const peft::FourBitConfig& config, peft::StoredType others,
                 const std::function<void(Index, Index)>& on_layer)
      : source_(source), config_(config) {
    if (!source.four_bit.empty()) {
      peft::fail<peft::ConfigError>("{}: its weights are in four bits already; expected the model that they were made of",
                                    source.where);
    }
    check_tensors(source);
    Index total = 0;
    for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
      total += is_layer_weight(name, shape) ? 1 : 0;
    });
    for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
      if (is_layer_weight(name, shape)) {
        add_quantized(name);
        on_layer(static_cast<Index>(layers_.size()), total);
      } else {
        add_stored(name, shape, others);
      }
    });
  }
  QuantizedModel(const QuantizedModel&) = delete;
  QuantizedModel& operator=(const QuantizedModel&) = delete;

  /// Everything that is written. This must outlive them; one is valid until the next is made.
  const std::vector<peft::DeferredTensor>& tensors() const noexcept { return tensors_; }
  const std::vector<Layer>& layers() const noexcept { return layers_; }
  peft::QuantizationError error() const noexcept {
    peft::QuantizationError total;
    for (const Layer& layer : layers_) total += layer.error;
    return total;
  }

 private:
  /// llama.cpp's order of rows is undone in q and k.
  Index head_dim_of(std::string_view name) const noexcept {
    const bool has_heads = name.find(".self_attn.q_proj.") != name.npos || name.find(".self_attn.k_proj.") != name.npos;
    return source_.permuted_heads && has_heads ? source_.config.head_dim : 0;
  }
  Matrix<float> weight(const std::string& name) const {
    return detail::copy_matrix<float>(source_.tensor(name), head_dim_of(name), peft::default_executor());
  }
  peft::FourBitTensor<kCode> quantized(const Matrix<float>& weight) const {
    return peft::FourBitTensor<kCode>::quantize(weight.view(), config_);
  }

  void add_quantized(const std::string& name) {
    const Matrix<float> values = weight(name);
    const auto tensor = quantized(values);
    layers_.push_back({name, peft::quantization_error(values.view(), tensor)});
    const peft::Bnb4BitTensors<kCode> parts(name, tensor);
    for (const peft::TensorRef& part : parts.tensors()) {
      if (part.name == name) {
        tensors_.push_back({name, part.type, part.shape, [this, name] {
                              codes_ = quantized(weight(name));
                              const auto& codes = codes_.storage().codes;
                              return std::as_bytes(std::span(codes.data, static_cast<std::size_t>(codes.size)));
                            }});
      } else {
        auto bytes = std::make_shared<std::vector<std::byte>>(part.bytes.begin(), part.bytes.end());
        tensors_.push_back({part.name, part.type, part.shape, [bytes] { return std::span<const std::byte>(*bytes); }});
      }
    }
  }
  void add_stored(const std::string& name, const std::vector<Index>& shape, peft::StoredType type) {
    tensors_.push_back({name, type, shape, [this, name, type] {
                          const peft::TensorRef& tensor = source_.tensor(name);
                          if (tensor.shape.size() == 1) {
                            vector_ = read_vector<float>(tensor, tensor.shape[0], head_dim_of(name));
                            return stored_(std::as_const(vector_).view(), type);
                          }
                          matrix_ = weight(name);
                          return stored_(std::as_const(matrix_).flat(), type);
                        }});
  }

  const ModelSource& source_;
  peft::FourBitConfig config_;
  std::vector<peft::DeferredTensor> tensors_;
  std::vector<Layer> layers_;
  // Of the tensor whose turn it is.
  peft::FourBitTensor<kCode> codes_;
  Matrix<float> matrix_;
  peft::Buffer<float> vector_;
  StoredValues stored_;
};

}  // namespace peft_examples
