#pragma once
/// What a run trains and saves, whatever the method: an adapter of parts (saved as it is, or as the plain LoRA that it comes
/// to: MutatedLora), a prefix, a prompt, bottleneck adapters, or AdapterFusion; of a classifier with its head, which may be
/// AdapterHub's own, and the names of its classes.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "peft/adapter_fusion_set.hpp"
#include "peft/adapter_set.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/checkpoint/adapterhub_directory.hpp"
#include "peft/checkpoint/adapterhub_head.hpp"
#include "peft/checkpoint/class_labels.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/prompt_learning_directory.hpp"
#include "peft/classification_head_config.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/named_adapter.hpp"
#include "peft/pipeline/adapter_weights.hpp"
#include "peft/pipeline/mutated_lora.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// A classification head that is trained beside a method which does not attach to it, and the classes' names.
struct SavedHead {
  std::span<const TensorRef> tensors;
  const std::vector<std::string>& labels;
};

// One overload of each for what may be saved.

template <Scalar T>
Json saved_config(NamedAdapter<T>& adapter) {
  return adapter_config_to_json(with_inference_mode(adapter.any_config(), false));
}
template <Scalar T>
void write_saved(AtomicDirectory& set, NamedAdapter<T>& adapter, const SavedHead& head) {
  const SavedWeights<T> weights(adapter);
  write_peft_adapter(set, adapter.any_config(), weights.tensors());
  if (!head.labels.empty()) write_class_labels(set, head.labels);
}
template <Scalar T>
Index saved_parameter_count(NamedAdapter<T>& adapter) {
  return adapter.parameter_count();
}

/// For a training it is the LoRA that it is; saved, the plain one.
template <Scalar T>
Json saved_config(MutatedLora<T>& lora) {
  return saved_config(lora.adapter());
}
template <Scalar T>
void write_saved(AtomicDirectory& set, MutatedLora<T>& lora, const SavedHead& head) {
  const auto plain = lora.plain_tensors();
  write_peft_adapter(set, AnyConfig(lora.plain_config()), plain.tensors());
  if (!head.labels.empty()) write_class_labels(set, head.labels);
}
template <Scalar T>
Index saved_parameter_count(MutatedLora<T>& lora) {
  return lora.adapter().parameter_count();
}

template <Scalar T>
PromptLearningConfig prompt_learning_config(const PrefixCache<T>& prefix) {
  return prefix.config();
}
template <Scalar T>
PromptLearningConfig prompt_learning_config(const PromptEmbedding<T>& prompt) {
  return std::visit([](const auto& config) { return PromptLearningConfig(config); }, prompt.config());
}
/// A prefix or a prompt.
template <class Method>
  requires requires(Method& method) { prompt_learning_config(method); }
Json saved_config(Method& method) {
  PromptLearningConfig config = prompt_learning_config(method);
  std::visit([](auto& own) { own.inference_mode = false; }, config);
  return prompt_learning_config_to_json(config);
}
template <class Method>
  requires requires(Method& method) { prompt_learning_config(method); }
void write_saved(AtomicDirectory& set, Method& method, const SavedHead& head) {
  method.encode();
  write_prompt_learning<typename Method::accumulator_type>(set, prompt_learning_config(method), method.prompt_embeddings(),
                                                           head.tensors);
  if (!head.labels.empty()) write_class_labels(set, head.labels);
}
template <class Method>
  requires requires(Method& method) { prompt_learning_config(method); }
Index saved_parameter_count(Method& method) {
  using A = typename Method::accumulator_type;
  Index count = 0;
  method.for_each_parameter([&count](const ParameterInfo&, VectorView<A> value, VectorView<A>) { count += value.size; });
  method.encode();  // visiting made it stale
  return count;
}

/// Bottleneck adapters with the model that they are of, which is in their files.
template <Scalar T>
struct HubAdapters {
  std::shared_ptr<AdapterSet<T>> set;
  AdapterHubInfo info;
};
template <Scalar T>
Json saved_config(HubAdapters<T>& adapters) {
  return hub_config_json(adapters.info, bottleneck_config_to_json(adapters.set->config()));
}
template <Scalar T>
void write_saved(AtomicDirectory& files, HubAdapters<T>& adapters, const SavedHead& head) {
  write_adapterhub_adapter(files, adapters.set->config(), adapters.info, adapterhub_tensors(*adapters.set));
  if (!head.tensors.empty()) write_adapterhub_head(files, adapters.info, head.labels, head.tensors);
}
template <Scalar T>
Index saved_parameter_count(HubAdapters<T>& adapters) {
  return adapters.set->parameter_count();
}

/// AdapterFusion's layers; the adapters that they mix are saved once, by whoever fuses them.
template <Scalar T>
struct HubFusion {
  std::shared_ptr<AdapterFusionSet<T>> set;
  AdapterHubInfo info;
};
template <Scalar T>
Json saved_config(HubFusion<T>& fusion) {
  return hub_config_json(fusion.info, adapter_fusion_config_to_json(fusion.set->config()));
}
template <Scalar T>
void write_saved(AtomicDirectory& files, HubFusion<T>& fusion, const SavedHead&) {
  write_adapterhub_fusion(files, fusion.set->config(), fusion.info, fusion.set->adapter_names(), adapterhub_tensors(*fusion.set));
}
template <Scalar T>
Index saved_parameter_count(HubFusion<T>& fusion) {
  return fusion.set->parameter_count();
}

}  // namespace detail

/// Shares what it holds with whoever trains it.
template <Scalar T>
class SavedAdapter {
 public:
  using accumulator_type = Accumulator<T>;

  template <class Method>
    requires requires(AtomicDirectory& set, Method& method, const detail::SavedHead& head) {
      detail::write_saved(set, method, head);
    }
  SavedAdapter(std::shared_ptr<Method> method)  // NOLINT(google-explicit-constructor): an adapter is one
      : held_(std::move(method)) {}

  /// Bottleneck adapters of a model that `info` names; hidden_size and the adapter's name are taken from them.
  SavedAdapter(std::shared_ptr<AdapterSet<T>> adapters, AdapterHubInfo info) {
    info.name = adapters->name();
    info.hidden_size = adapters->hidden_size();
    held_ = std::make_shared<detail::HubAdapters<T>>(detail::HubAdapters<T>{std::move(adapters), std::move(info)});
  }

  /// AdapterFusion's layers, likewise.
  SavedAdapter(std::shared_ptr<AdapterFusionSet<T>> fusion, AdapterHubInfo info) {
    info.name = fusion->name();
    info.hidden_size = fusion->hidden_size();
    held_ = std::make_shared<detail::HubFusion<T>>(detail::HubFusion<T>{std::move(fusion), std::move(info)});
  }

  /// Of a classifier: the names of its classes, and the adapter that trains its head (named "classifier") where the method's
  /// own does not; nullptr where it does. The head then stands in the method's files: among a prefix's or prompt's
  /// modules_to_save, or as AdapterHub's head beside bottleneck adapters. Throws ConfigError for a head beside an adapter of
  /// parts, which has it as one of its own.
  void set_classes(std::vector<std::string> labels, std::shared_ptr<NamedAdapter<T>> head = nullptr) {
    if (head && (std::holds_alternative<std::shared_ptr<NamedAdapter<T>>>(held_) ||
                 std::holds_alternative<std::shared_ptr<MutatedLora<T>>>(held_))) {
      fail<ConfigError>("SavedAdapter: a head beside an adapter of parts has no place in its files; expected it among the "
                        "adapter's modules_to_save");
    }
    labels_ = std::move(labels);
    head_ = std::move(head);
    own_head_.reset();
  }
  /// The same where the head is AdapterHub's own, whatever the method: it stands in head_config.json and
  /// model_head.safetensors, with the names of the classes. `head` trains it; `info`: the model's.
  void set_own_head(std::vector<std::string> labels, std::shared_ptr<NamedAdapter<T>> head, ClassificationHeadConfig config,
                    AdapterHubInfo info) {
    config.validate();
    labels_ = std::move(labels);
    head_ = std::move(head);
    own_head_.emplace(OwnHead{std::move(config), std::move(info)});
  }

  /// The configuration as adapter_config.json says it, for a training: inference_mode says how a file was saved only.
  std::string config_text() const {
    return std::visit([](const auto& method) { return detail::saved_config(*method).dump(); }, held_);
  }
  /// Writes the adapter's files into a set that the caller commits. Throws as write_peft_adapter, write_prompt_learning,
  /// write_adapterhub_adapter, write_adapterhub_head and write_class_labels.
  void write(AtomicDirectory& set) const {
    std::optional<SavedWeights<T>> head;
    if (head_) head.emplace(*head_);
    const std::span<const TensorRef> tensors = head ? head->tensors() : std::span<const TensorRef>();
    const std::vector<std::string> none;
    const detail::SavedHead saved = own_head_ ? detail::SavedHead{{}, none} : detail::SavedHead{tensors, labels_};
    std::visit([&](const auto& method) { detail::write_saved(set, *method, saved); }, held_);
    if (own_head_) write_adapterhub_head(set, own_head_->info, own_head_->config, labels_, tensors);
  }
  /// Trainable numbers; of an encoder, where one makes the rows.
  Index parameter_count() const {
    const Index own = std::visit([](const auto& method) { return detail::saved_parameter_count(*method); }, held_);
    return own + (head_ ? head_->parameter_count() : 0);
  }

 private:
  struct OwnHead {
    ClassificationHeadConfig config;
    AdapterHubInfo info;
  };
  std::variant<std::shared_ptr<NamedAdapter<T>>, std::shared_ptr<MutatedLora<T>>, std::shared_ptr<PrefixCache<T>>,
               std::shared_ptr<PromptEmbedding<T>>, std::shared_ptr<detail::HubAdapters<T>>,
               std::shared_ptr<detail::HubFusion<T>>>
      held_;
  std::shared_ptr<NamedAdapter<T>> head_;
  std::optional<OwnHead> own_head_;
  std::vector<std::string> labels_;
};

PEFT_END_NAMESPACE
