#pragma once
/// A model's tensors as they are written without a change but of type.

#include <string>
#include <utility>
#include <vector>

#include "cli/stored_values.hpp"
#include "hosts/model_source.hpp"
#include "hosts/weight_reader.hpp"
#include "peft/io/deferred_tensor.hpp"

namespace peft_examples {

/// `source` must outlive it, and it what it gives; of that one is valid until the next is made.
class SourceTensors {
 public:
  explicit SourceTensors(const ModelSource& source) : source_(source) {}
  SourceTensors(const SourceTensors&) = delete;
  SourceTensors& operator=(const SourceTensors&) = delete;

  /// A matrix in float, rows in Hugging Face's order.
  MatrixView<const float> matrix(const std::string& name) {
    matrix_ = original_weight(source_, name);
    return std::as_const(matrix_).view();
  }
  /// A tensor stored as `type`: F32, F16 or BF16.
  peft::DeferredTensor stored(const std::string& name, const std::vector<Index>& shape, peft::StoredType type) {
    return {name, type, shape, [this, name, type] {
              const peft::TensorRef& tensor = source_.tensor(name);
              if (tensor.shape.size() == 1) {
                vector_ = read_vector<float>(tensor, tensor.shape[0], head_dim_of(source_, name));
                return stored_(std::as_const(vector_).view(), type);
              }
              matrix(name);
              return stored_(std::as_const(matrix_).flat(), type);
            }};
  }

 private:
  const ModelSource& source_;
  // Of the tensor whose turn it is.
  Matrix<float> matrix_;
  peft::Buffer<float> vector_;
  StoredValues stored_;
};

}  // namespace peft_examples
