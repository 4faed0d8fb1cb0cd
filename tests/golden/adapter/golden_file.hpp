#pragma once
/// The files of make_adapter.py: cases as JSON, their tensors by "case.name".

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "peft/checkpoint/adapterhub_config_json.hpp"
#include "peft/io/safetensors.hpp"
#include "support/catch.hpp"

namespace adapter_golden {

using namespace peft;

inline Json read_json(const std::string& name) {
  std::ifstream file(std::string(PEFT_GOLDEN_DIR) + "/adapter/" + name);
  REQUIRE(file.good());
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return parse_json(text, name);
}

/// A configuration of which the golden lists what differs from BnConfig's defaults.
inline AdapterConfig config_of(const Json& changes) {
  Json json = bottleneck_config_to_json(AdapterConfig{});
  json["original_ln_before"] = false;
  for (const auto& [name, value] : changes.items()) json[name] = value;
  return bottleneck_config_from_json(json, "golden");
}

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name)
      : file_(SafetensorsFile::open(std::string(PEFT_GOLDEN_DIR) + "/adapter/" + name)) {
    for (const TensorRef& tensor : file_.tensors()) tensors_.emplace(tensor.name, &tensor);
  }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  Index parts(const std::string& name) const { return tensors_.at(name)->shape.front(); }
  /// Tensors whose names begin so.
  std::size_t count(const std::string& prefix) const {
    std::size_t result = 0;
    for (const auto& [name, tensor] : tensors_) result += name.starts_with(prefix) ? 1 : 0;
    return result;
  }
  Matrix<float> whole(const std::string& name) const {
    INFO(name);
    REQUIRE(tensors_.contains(name));
    return tensors_.at(name)->to_matrix();
  }
  /// Part `part` of a tensor whose first dimension counts parts, as a matrix [rest, last].
  Matrix<float> part(const std::string& name, Index part) const {
    INFO(name);
    REQUIRE(tensors_.contains(name));
    const TensorRef& tensor = *tensors_.at(name);
    const Index parts = tensor.shape.front(), rows = tensor.rows() / parts;
    const bool flat = tensor.shape.size() == 2;  // [parts, size]: a vector each
    Matrix<float> result(flat ? 1 : rows, tensor.cols());
    tensor.read_rows_f32(part * result.rows(), result.rows(), result.data());
    return result;
  }

 private:
  SafetensorsFile file_;
  std::map<std::string, const TensorRef*> tensors_;
};

/// ‖ours − theirs‖ against ‖theirs‖, in Frobenius norms: both sides round, in other orders.
inline double distance(VectorView<const float> ours, const Matrix<float>& theirs) {
  REQUIRE(ours.size == theirs.size());
  double difference = 0, size = 0;
  for (Index i = 0; i < ours.size; ++i) {
    const double a = static_cast<double>(ours[i]), b = static_cast<double>(theirs.flat()[i]);
    difference += (a - b) * (a - b);
    size += b * b;
  }
  return std::sqrt(difference) / (std::sqrt(size) + 1e-6);
}

}  // namespace adapter_golden
