#pragma once
/// A bottleneck adapter, or an AdapterFusion layer, as AdapterHub's files hold it, and what has to fit for it to be one.

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter_layout.hpp"
#include "peft/checkpoint/adapterhub_config_json.hpp"
#include "peft/checkpoint/peft_adapter.hpp"
#include "peft/io/tensor_ref.hpp"

PEFT_BEGIN_NAMESPACE

/// Which model an adapter belongs to, and its name: the outer fields of AdapterHub's configurations.
struct AdapterHubInfo {
  std::string name;                     ///< the adapter's; a part of the keys
  std::string model_type = "bert";      ///< transformers': bert, roberta, xlm-roberta, electra, llama, mistral
  std::string model_class = "BertModel";  ///< Python's; decides whether the body's name stands in the keys
  std::string model_name;
  Index hidden_size = 0;
};

/// An adapter. Tensors are named without the body's name in front ("encoder.layer.0.output.adapters.task.adapter_up.weight"),
/// sorted, and view the mapped file.
struct AdapterHubAdapter {
  AdapterConfig config;
  AdapterHubInfo info;
  std::filesystem::path path;
  std::vector<TensorRef> tensors;
};

/// An AdapterFusion layer of the adapters `adapter_names`, in this order.
struct AdapterHubFusion {
  AdapterFusionConfig config;
  AdapterHubInfo info;
  std::vector<std::string> adapter_names;
  std::filesystem::path path;
  std::vector<TensorRef> tensors;
};

namespace detail {

/// The parameters of one adapter and their shapes.
inline std::map<std::string, std::vector<Index>> adapter_shapes(const AdapterConfig& config, Index hidden, Index layer) {
  const Index b = config.bottleneck_size(hidden, layer);
  const std::string down = config.ln_before ? "adapter_down.1." : "adapter_down.0.";
  std::map<std::string, std::vector<Index>> shapes{{down + "weight", {b, hidden}},
                                                   {down + "bias", {b}},
                                                   {"adapter_up.weight", {hidden, b}},
                                                   {"adapter_up.bias", {hidden}}};
  const auto norm = [&](std::string_view name) {
    for (const char* part : {".weight", ".bias"}) shapes[std::string(name) + part] = {hidden};
  };
  if (config.ln_before) norm("adapter_norm_before");
  if (config.ln_after) norm("adapter_norm_after");
  if (config.is_scaling_trained()) shapes["scaling"] = {std::get<std::string>(config.scaling) == "channel" ? hidden : 1};
  return shapes;
}
inline std::map<std::string, std::vector<Index>> fusion_shapes(const AdapterFusionConfig& config, Index hidden) {
  std::map<std::string, std::vector<Index>> shapes;
  for (const auto& [name, wanted] : {std::pair("query", config.query), std::pair("key", config.key)}) {
    if (!wanted) continue;
    shapes[std::string(name) + ".weight"] = {hidden, hidden};
    shapes[std::string(name) + ".bias"] = {hidden};
  }
  if (config.value) shapes["value.weight"] = {hidden, hidden};
  return shapes;
}

/// What a key's last part means where an adapter of this configuration has no such parameter.
inline std::string_view meaning_of_adapter_part(std::string_view part) noexcept {
  if (part.starts_with("gate.")) return "a gate (use_gating), which is not supported";
  if (part.find(".phm_rule") != std::string_view::npos || part.find(".W_left") != std::string_view::npos ||
      part.find(".W_right") != std::string_view::npos) {
    return "a hypercomplex layer of Compacter, which is not supported";
  }
  if (part == "scaling") return "a trained scaling, which its configuration does not have";
  if (part.find("norm") != std::string_view::npos) return "a norm that its configuration does not have";
  return "no parameter of a bottleneck adapter of this configuration";
}

inline std::string_view meaning_of_hub_key(std::string_view key) noexcept {
  const auto has = [&](std::string_view part) { return key.find(part) != std::string_view::npos; };
  if (has(".loras.")) return "LoRA of AdapterHub, which is not read here";
  if (has("prefix_tunings.") || has("prefix_gates.")) return "prefix tuning of AdapterHub, which is not read here";
  if (has("prompt_tunings.")) return "prompt tuning of AdapterHub, which is not read here";
  if (has("invertible_adapters.")) return "an invertible adapter, which is not supported";
  if (has(".refts.")) return "ReFT, which is not supported";
  if (has("shared_parameters.")) return "a shared parameter of Compacter, which is not supported";
  return "no key of the model's layout";
}

/// ln_before's norm has two names in AdapterHub, as the adapter's norm and as the first of adapter_down: brings the file's
/// to the first. Both may stand there, with the same numbers.
inline void fold_norm_names(std::map<std::string, TensorRef>& parts, std::string_view where) {
  for (const char* part : {"weight", "bias"}) {
    const std::string other = std::string("adapter_down.0.") + part, own = std::string("adapter_norm_before.") + part;
    const auto alias = parts.find(other);
    if (alias == parts.end()) continue;
    const auto found = parts.find(own);
    if (found == parts.end()) {
      parts[own] = alias->second;
    } else if (!std::equal(found->second.bytes.begin(), found->second.bytes.end(), alias->second.bytes.begin(),
                           alias->second.bytes.end())) {
      fail<FormatError>("{}: {} and {} are one parameter, but differ", where, quote_text(found->second.name),
                        quote_text(alias->second.name));
    }
    parts.erase(other);
  }
}

inline AdapterLayout require_layout(const AdapterHubInfo& info, std::string_view where) {
  if (const auto layout = adapter_layout_of(info.model_type)) return *layout;
  fail<ConfigError>("{}: its model is a {}; expected bert, roberta, xlm-roberta, electra, llama or mistral", where,
                    quote_text(info.model_type));
}
inline void check_info(const AdapterHubInfo& info, std::string_view where) {
  require_layout(info, where);
  if (info.name.empty() || info.name.front() == '.' || info.name.back() == '.') {
    fail<ConfigError>("{}: the adapter's name is {}; expected one without a point at its ends", where,
                      quote_text(info.name));
  }
  for (const std::string& text : {info.name, info.model_type, info.model_class, info.model_name}) {
    if (!is_utf8(text)) fail<ConfigError>("{}: {} is not UTF-8", where, quote_text(text));
  }
  constexpr Index kMost = 1 << 24;
  if (info.hidden_size < 1 || info.hidden_size > kMost) {
    fail<ConfigError>("{}: hidden_size is {}; expected 1 to {}", where, info.hidden_size, kMost);
  }
}

/// Sorts the tensors by place and checks them: every key understood, every parameter there with its shape. `shapes(place)`
/// are the parameters of a place, or none where nothing may stand. Returns them with the names of this library.
template <class Shapes>
std::vector<TensorRef> collect_hub_tensors(std::vector<TensorRef> tensors, const AdapterHubInfo& info, bool fusion,
                                           std::string_view where, Shapes&& shapes) {
  const AdapterLayout layout = require_layout(info, where);
  std::map<std::pair<Index, AdapterSite>, std::map<std::string, TensorRef>> places;
  for (TensorRef& tensor : tensors) {
    const auto key = parse_adapter_key(layout, tensor.name, info.name, fusion);
    if (!key) {
      fail<FormatError>("{}: the key {} is {} ({}), or not of {} {}", where, quote_text(tensor.name),
                        meaning_of_hub_key(tensor.name), info.model_type, fusion ? "the AdapterFusion" : "the adapter",
                        quote_text(info.name));
    }
    if (!tensor.is_readable()) {
      fail<FormatError>("{}: {} is stored as {}; expected F32, F16 or BF16", where, quote_text(tensor.name),
                        name_of(tensor.type));
    }
    auto& parts = places[{key->place.layer, key->place.site}];
    if (!parts.emplace(key->parameter, std::move(tensor)).second) {
      fail<FormatError>("{}: layer {} has {} twice", where, key->place.layer, quote_text(key->parameter));
    }
  }
  if (places.empty()) fail<FormatError>("{}: it holds no weights", where);
  std::vector<TensorRef> result;
  for (auto& [at, parts] : places) {
    const AdapterPlace place{at.first, at.second, info.name, fusion};
    const std::map<std::string, std::vector<Index>> expected = shapes(place);
    if (expected.empty()) {
      fail<FormatError>("{}: the key {} stands where its configuration has no adapter (mh_adapter, output_adapter, "
                        "leave_out)",
                        where, quote_text(parts.begin()->second.name));
    }
    if (expected.contains("adapter_norm_before.weight")) fold_norm_names(parts, where);
    for (auto& [part, tensor] : parts) {
      const auto wanted = expected.find(part);
      if (wanted == expected.end()) {
        fail<FormatError>("{}: the key {} is {}", where, quote_text(tensor.name), meaning_of_adapter_part(part));
      }
      if (tensor.shape != wanted->second) {
        fail<ShapeError>("{}: {} is {}; its configuration gives {}", where, quote_text(tensor.name), tensor.shape_text(),
                         shape_text(wanted->second));
      }
      tensor.name = place.prefix(layout) + part;
      result.push_back(tensor);
    }
    for (const auto& [part, shape] : expected) {
      if (!parts.contains(part)) fail<FormatError>("{}: it has no {}{}", where, place.prefix(layout), part);
    }
  }
  std::sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return result;
}

inline std::vector<TensorRef> collect_adapter(std::vector<TensorRef> tensors, const AdapterConfig& config,
                                              const AdapterHubInfo& info, std::string_view where) {
  check_info(info, where);
  std::set<Index> layers;
  std::set<std::pair<Index, AdapterSite>> seen;
  auto result = collect_hub_tensors(std::move(tensors), info, false, where, [&](const AdapterPlace& place) {
    layers.insert(place.layer);
    seen.emplace(place.layer, place.site);
    return config.has_adapter(place.site, place.layer) ? adapter_shapes(config, info.hidden_size, place.layer)
                                                       : std::map<std::string, std::vector<Index>>{};
  });
  // How many layers the model has stands nowhere; up to the last one that has an adapter none may be missing.
  for (Index layer = 0; layer <= *layers.rbegin(); ++layer) {
    for (const AdapterSite site : {AdapterSite::kAttention, AdapterSite::kOutput}) {
      if (config.has_adapter(site, layer) && !seen.contains({layer, site})) {
        fail<FormatError>("{}: its configuration has an adapter at {}…, it has none", where,
                          AdapterPlace{layer, site, info.name, false}.prefix(require_layout(info, where)));
      }
    }
  }
  return result;
}

inline std::vector<TensorRef> collect_fusion(std::vector<TensorRef> tensors, const AdapterFusionConfig& config,
                                             const AdapterHubInfo& info, std::string_view where) {
  check_info(info, where);
  return collect_hub_tensors(std::move(tensors), info, true, where,
                             [&](const AdapterPlace&) { return fusion_shapes(config, info.hidden_size); });
}

}  // namespace detail

PEFT_END_NAMESPACE
