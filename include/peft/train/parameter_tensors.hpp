#pragma once
/// A model's parameters as named matrices: what a state is written from and read back into. Matched by name, checked
/// before anything is changed.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/view.hpp"
#include "peft/error.hpp"
#include "peft/parameter.hpp"
#include "peft/train/clip.hpp"

PEFT_BEGIN_NAMESPACE

/// A named matrix [rows, cols] in memory that someone else owns.
template <std::floating_point A>
struct NamedTensor {
  std::string name;  ///< the parameter's
  Index rows = 0;
  Index cols = 0;
  VectorView<const A> values;
};

/// The same with memory of its own.
template <std::floating_point A>
struct OwnedTensor {
  std::string name;
  Index rows = 0;
  Index cols = 0;
  Buffer<A> values;

  NamedTensor<A> view() const { return {name, rows, cols, values.view()}; }
};

template <std::floating_point A>
using NamedTensors = std::vector<NamedTensor<A>>;

/// Copies the values.
template <std::floating_point A>
Buffer<A> clone_values(VectorView<const A> values) {
  Buffer<A> result(values.size);
  std::copy(values.begin(), values.end(), result.begin());
  return result;
}

/// The parameters of `model`, in its own memory.
template <class Model>
auto parameter_tensors(Model& model) {
  using A = typename Model::accumulator_type;
  NamedTensors<A> result;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    result.push_back({std::string(info.name), info.rows, info.cols, value});
  });
  return result;
}

/// The tensor of parameter `name`. Throws ConfigError where there is none; `what` says of what kind it is.
template <std::floating_point A>
const NamedTensor<A>& find_tensor(const NamedTensors<A>& tensors, std::string_view name, std::string_view what) {
  for (const NamedTensor<A>& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  fail<ConfigError>("the state has no {} of parameter {}; it belongs to another adapter or model", what, name);
}

/// Throws ConfigError unless `tensors` are those of the model's parameters, by name and shape.
template <class Model>
void check_tensors(Model& model, std::string_view what, const NamedTensors<typename Model::accumulator_type>& tensors) {
  using A = typename Model::accumulator_type;
  std::size_t count = 0;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    ++count;
    const NamedTensor<A>& tensor = find_tensor(tensors, info.name, what);
    if (tensor.rows != info.rows || tensor.cols != info.cols || tensor.values.size != value.size) {
      fail<ConfigError>("the state's {} of parameter {} is [{}, {}]; expected [{}, {}], as the model has it", what,
                        info.name, tensor.rows, tensor.cols, info.rows, info.cols);
    }
  });
  if (tensors.size() != count) {
    fail<ConfigError>("the state has {} tensors of kind {}; expected {}, one per parameter of the model",
                      tensors.size(), what, count);
  }
}

/// Throws ConfigError unless `tensors` have the names and sizes of `own`.
template <std::floating_point A>
void check_same_tensors(std::string_view what, const NamedTensors<A>& own, const NamedTensors<A>& tensors) {
  if (tensors.size() != own.size()) {
    fail<ConfigError>("the state has {} tensors of kind {}; expected {}", tensors.size(), what, own.size());
  }
  for (const NamedTensor<A>& wanted : own) {
    const NamedTensor<A>& tensor = find_tensor(tensors, wanted.name, what);
    if (tensor.rows != wanted.rows || tensor.cols != wanted.cols || tensor.values.size != wanted.values.size) {
      fail<ConfigError>("the state's {} of {} is [{}, {}]; expected [{}, {}]", what, wanted.name, tensor.rows, tensor.cols,
                        wanted.rows, wanted.cols);
    }
  }
}

/// Sets the model's parameters to `tensors`, which check_tensors has passed.
template <class Model>
void assign_parameters(Model& model, const NamedTensors<typename Model::accumulator_type>& tensors) {
  using A = typename Model::accumulator_type;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    const NamedTensor<A>& tensor = find_tensor(tensors, info.name, "parameters");
    std::copy(tensor.values.begin(), tensor.values.end(), value.begin());
  });
}

/// The name of the first parameter whose values (`gradients`: whose gradient) are not all finite.
template <class Model>
std::optional<std::string> first_non_finite(Model& model, bool gradients) {
  using A = typename Model::accumulator_type;
  std::optional<std::string> found;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) {
    if (found) return;
    if (!is_finite(detail::squared_norm(VectorView<const A>(gradients ? grad : value)))) found = info.name;
  });
  return found;
}

PEFT_END_NAMESPACE
