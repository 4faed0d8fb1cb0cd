#pragma once
/// An adapter's files ↔ an adapter's parameters, through the one visitor:
///   adapter.for_each_parameter([](const ParameterInfo&, VectorView<A> value, VectorView<A> grad) { … })

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/checkpoint/peft_adapter.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/core/view.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// What may differ between an adapter's file and the modules that it is loaded into. Both are errors unless allowed:
/// Python PEFT only warns.
struct AdapterMatching {
  bool allow_unused_keys = false;   ///< the file adapts modules that are not there
  bool allow_missing_keys = false;  ///< modules keep what they have where the file says nothing of them
  /// For an adapter that started from PiSSA or OLoRA: the base is what that start left (initialize_lora).
  bool base_is_residual = false;
};

namespace detail {

/// "a, b, c and 17 more".
inline std::string first_names(const std::vector<std::string>& names) {
  constexpr std::size_t kMost = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kMost) text += fmt::format(" and {} more", names.size() - kMost);
  return text;
}

inline void copy_values(const TensorRef& tensor, VectorView<float> value) { tensor.read_f32(value.data); }
inline void copy_values(const TensorRef& tensor, VectorView<double> value) {
  if (tensor.type == StoredType::kF64) {
    std::memcpy(value.data, tensor.bytes.data(), tensor.bytes.size());
  } else {
    const Matrix<float> narrow = tensor.to_matrix();
    std::copy(narrow.flat().begin(), narrow.flat().end(), value.begin());
  }
}

}  // namespace detail

/// Sets the parameters of `target` (a NamedAdapter, a model…) to the tensors, by name. `where` begins messages. Everything
/// is checked before anything is changed. Throws ConfigError naming keys that match no parameter and parameters without
/// key (the first few and how many), ShapeError with both shapes, NumericError with the place of a value that is not
/// finite.
template <class Target>
void assign_tensors(std::span<const TensorRef> tensors, Target& target, const AdapterMatching& matching,
                    const std::string& where) {
  std::map<std::string_view, const TensorRef*> keys;
  for (const TensorRef& tensor : tensors) keys.emplace(tensor.name, &tensor);
  std::map<std::string_view, const TensorRef*> unused = keys;
  std::vector<std::string> missing;
  std::vector<std::string> wrong_shapes;
  std::string example;
  target.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    if (example.empty()) example = info.name;
    const auto found = keys.find(info.name);
    if (found == keys.end()) {
      missing.emplace_back(info.name);
      return;
    }
    unused.erase(info.name);
    const TensorRef& tensor = *found->second;
    if (tensor.rows() != info.rows || tensor.cols() != info.cols || tensor.elements() != value.size) {
      wrong_shapes.push_back(fmt::format("{} is {}, the model's is [{}, {}]", info.name, tensor.shape_text(), info.rows,
                                         info.cols));
    }
  });
  std::string text;
  if (!unused.empty() && !matching.allow_unused_keys) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : unused) names.emplace_back(name);
    text += fmt::format("; {} of its {} keys match no parameter of the model: {}", names.size(), keys.size(),
                        detail::first_names(names));
  }
  if (!missing.empty() && !matching.allow_missing_keys) {
    text += fmt::format("; {} parameters of the model have no key in it: {}", missing.size(),
                        detail::first_names(missing));
  }
  if (!text.empty()) {
    fail<ConfigError>("{} does not fit the model{}; {}", where, text,
                      example.empty() ? "the model has no adapted modules" : "the model's keys look like " + example);
  }
  if (!wrong_shapes.empty()) {
    fail<ShapeError>("{} does not fit the model: {} of its {} keys have another shape: {}", where, wrong_shapes.size(),
                     keys.size(), detail::first_names(wrong_shapes));
  }
  for (const auto& [name, tensor] : keys) {
    if (!unused.contains(name)) detail::check_finite(*tensor, where);
  }
  target.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    if (const auto found = keys.find(info.name); found != keys.end()) detail::copy_values(*found->second, value);
  });
}

/// The same with a file's adapter.
template <class Target>
void assign_adapter(const AnyPeftAdapter& adapter, Target& target, const AdapterMatching& matching = {}) {
  assign_tensors(adapter.tensors, target, matching, "adapter " + adapter.path.string());
}
template <class Target>
void assign_adapter(const PeftAdapter& adapter, Target& target, const AdapterMatching& matching = {}) {
  std::vector<TensorRef> tensors = adapter.others;
  for (const LoraTensors& entry : adapter.modules) {
    tensors.push_back(entry.a);
    tensors.push_back(entry.b);
  }
  assign_tensors(tensors, target, matching, "adapter " + adapter.path.string());
}

/// The parameters of `source` as tensors to be written, in its own memory: save before training goes on.
template <class Source>
std::vector<TensorRef> adapter_tensors(Source& source) {
  std::vector<TensorRef> tensors;
  source.for_each_parameter([&]<class A>(const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
    tensors.push_back(tensor_ref<A>(std::string(info.name), MatrixView<const A>(value.data, info.rows, info.cols)));
    if (info.dimensions == 1) tensors.back().shape = {value.size};
  });
  return tensors;
}

PEFT_END_NAMESPACE
