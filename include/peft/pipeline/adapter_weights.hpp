#pragma once
/// An adapter's weights as its file has them.

#include <algorithm>
#include <cstddef>
#include <list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adalora_config.hpp"
#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/named_adapter.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// An adapter's weights without gradients, which an adapter that only serves never gets.
template <Scalar T>
struct AdapterWeights {
  NamedAdapter<T>& adapter;

  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    adapter.for_each_weight(visit);
  }
};

}  // namespace detail

/// The tensors of one adapter, named by parameter. They are in the adapter's own memory, but for an AdaLoRA's that has lost
/// columns: what its rank_pattern has cut is left out, as PEFT saves it.
template <Scalar T>
class SavedWeights {
 public:
  using A = Accumulator<T>;

  explicit SavedWeights(NamedAdapter<T>& adapter) {
    detail::AdapterWeights<T> weights{adapter};
    tensors_ = adapter_tensors(weights);
    const AdaLoraConfig* config = adapter.template config_as<AdaLoraConfig>();
    if (config == nullptr || config->rank_pattern.empty()) return;
    adapter.for_each_weight([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      for (const auto& [key, kept] : config->rank_pattern) {
        const std::string_view module = std::string_view(key).substr(0, key.rfind('.') + 1);
        if (!info.name.starts_with(module)) continue;
        const std::string_view part = info.name.substr(module.size());
        if (part == "lora_A" || part == "lora_E" || part == "lora_B") cut(info, value, kept, part == "lora_B");
      }
    });
  }
  SavedWeights(const SavedWeights&) = delete;
  SavedWeights& operator=(const SavedWeights&) = delete;

  std::span<const TensorRef> tensors() const noexcept { return tensors_; }

 private:
  /// One that was cut already (loaded from a file) has no column more.
  void cut(const ParameterInfo& info, VectorView<A> value, const std::vector<bool>& kept, bool columns) {
    if ((columns ? info.cols : info.rows) != static_cast<Index>(kept.size())) return;
    const Index left = std::count(kept.begin(), kept.end(), true);
    Matrix<A> own(columns ? info.rows : left, columns ? left : info.cols);
    for (Index i = 0, row = 0; i < info.rows; ++i) {
      if (!columns && !kept[static_cast<std::size_t>(i)]) continue;
      for (Index j = 0, col = 0; j < info.cols; ++j) {
        if (!columns || kept[static_cast<std::size_t>(j)]) own(row, col++) = value[i * info.cols + j];
      }
      ++row;
    }
    memory_.push_back(std::move(own));
    for (TensorRef& tensor : tensors_) {
      if (tensor.name == info.name) tensor = tensor_ref<A>(tensor.name, std::as_const(memory_.back()).view());
    }
  }

  std::vector<TensorRef> tensors_;
  std::list<Matrix<A>> memory_;
};

PEFT_END_NAMESPACE
