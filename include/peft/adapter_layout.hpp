#pragma once
/// Where AdapterHub hangs adapters in a model, as the keys of its files say it:
///   BERT    encoder.layer.N.attention.output.adapters.NAME. and encoder.layer.N.output.adapters.NAME.
///   Llama   layers.N.attention_adapters.adapters.NAME.      and layers.N.output_adapters.adapters.NAME.
/// AdapterFusion: the same with adapter_fusion_layer for adapters. A model with a head has its body's name in front
/// ("bert.", "model."), which is no part of the names here.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "peft/adapter_config.hpp"

PEFT_BEGIN_NAMESPACE

enum class AdapterLayout : std::uint8_t { kBert, kLlama };

namespace detail {

struct AdapterHubModel {
  std::string_view model_type;
  AdapterLayout layout;
  std::string_view body;        ///< name of the body in a model with a head
  std::string_view body_class;  ///< Python's class of the body alone
};

inline constexpr AdapterHubModel kAdapterHubModels[] = {
    {"bert", AdapterLayout::kBert, "bert.", "BertModel"},
    {"roberta", AdapterLayout::kBert, "roberta.", "RobertaModel"},
    {"xlm-roberta", AdapterLayout::kBert, "roberta.", "XLMRobertaModel"},
    {"electra", AdapterLayout::kBert, "electra.", "ElectraModel"},
    {"llama", AdapterLayout::kLlama, "model.", "LlamaModel"},
    {"mistral", AdapterLayout::kLlama, "model.", "MistralModel"},
};

inline const AdapterHubModel* adapterhub_model(std::string_view model_type) noexcept {
  for (const AdapterHubModel& model : kAdapterHubModels) {
    if (model.model_type == model_type) return &model;
  }
  return nullptr;
}

/// "encoder.layer.", then the number, then one of the two.
struct LayoutParts {
  std::string_view layers, attention, output;
};
constexpr LayoutParts parts_of(AdapterLayout layout) noexcept {
  if (layout == AdapterLayout::kBert) return {"encoder.layer.", ".attention.output.", ".output."};
  return {"layers.", ".attention_adapters.", ".output_adapters."};
}

}  // namespace detail

/// The layout of transformers' `model_type`, or nothing where it is not known here.
inline std::optional<AdapterLayout> adapter_layout_of(std::string_view model_type) noexcept {
  const auto* model = detail::adapterhub_model(model_type);
  return model != nullptr ? std::optional(model->layout) : std::nullopt;
}

/// A place in a model and whose: an adapter's, or an AdapterFusion layer's.
struct AdapterPlace {
  Index layer = 0;
  AdapterSite site = AdapterSite::kOutput;
  std::string name;
  bool fusion = false;

  /// What the names of its parameters begin with, with the dot.
  std::string prefix(AdapterLayout layout) const {
    const detail::LayoutParts parts = detail::parts_of(layout);
    std::string text(parts.layers);
    text += std::to_string(layer);
    text += site == AdapterSite::kAttention ? parts.attention : parts.output;
    text += fusion ? "adapter_fusion_layer." : "adapters.";
    return text + name + ".";
  }
  friend bool operator==(const AdapterPlace&, const AdapterPlace&) = default;
};

/// A key taken apart; see the head of this file.
struct AdapterKey {
  AdapterPlace place;
  std::string body;       ///< what stands in front of the layers: "", "bert.", "model."
  std::string parameter;  ///< "adapter_up.weight"
};

/// Takes a key of `layout` apart. `name` is the adapter's, which may have dots in it. Nothing where it is no such key.
inline std::optional<AdapterKey> parse_adapter_key(AdapterLayout layout, std::string_view key, std::string_view name,
                                                   bool fusion = false) {
  const detail::LayoutParts parts = detail::parts_of(layout);
  const std::size_t at = key.find(parts.layers);
  // "bert.encoder.layer." or "encoder.layer.", not "xencoder.layer.".
  if (at == std::string_view::npos || (at > 0 && key[at - 1] != '.')) return std::nullopt;
  AdapterKey result;
  result.body = key.substr(0, at);
  std::string_view rest = key.substr(at + parts.layers.size());
  std::size_t digits = 0;
  while (digits < rest.size() && digits < 9 && rest[digits] >= '0' && rest[digits] <= '9') {
    result.place.layer = result.place.layer * 10 + (rest[digits++] - '0');
  }
  if (digits == 0 || (digits > 1 && rest[0] == '0')) return std::nullopt;
  rest.remove_prefix(digits);
  const bool attention = rest.starts_with(parts.attention);
  if (!attention && !rest.starts_with(parts.output)) return std::nullopt;
  result.place.site = attention ? AdapterSite::kAttention : AdapterSite::kOutput;
  rest.remove_prefix(attention ? parts.attention.size() : parts.output.size());
  const std::string_view kind = fusion ? "adapter_fusion_layer." : "adapters.";
  if (!rest.starts_with(kind)) return std::nullopt;
  rest.remove_prefix(kind.size());
  if (!rest.starts_with(name) || rest.size() < name.size() + 2 || rest[name.size()] != '.') return std::nullopt;
  result.place.name = name;
  result.place.fusion = fusion;
  result.parameter = rest.substr(name.size() + 1);
  return result;
}

PEFT_END_NAMESPACE
