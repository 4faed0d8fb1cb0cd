#pragma once
/// Adapters as files hold them. A LoRA adapter: the configuration, per module A [r,in] and B [out,r], and what else the
/// configuration brings (DoRA's lengths, biases, trained copies). One of any method: the configuration and the tensors.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/any_config.hpp"
#include "peft/io/tensor_ref.hpp"
#include "peft/lora_config.hpp"
#include "peft/target_modules.hpp"

PEFT_BEGIN_NAMESPACE

/// The two matrices of one module.
struct LoraTensors {
  std::string module;  ///< path in the host: "model.layers.0.self_attn.q_proj"
  TensorRef a;         ///< named by the parameter: module + ".lora_A.weight"
  TensorRef b;         ///< module + ".lora_B.weight"

  Index r() const noexcept { return a.rows(); }
  Index in_features() const noexcept { return a.cols(); }
  Index out_features() const noexcept { return b.rows(); }
};

/// An adapter; its tensors view the mapped file. Modules are sorted by path.
struct PeftAdapter {
  LoraConfig config;
  std::filesystem::path path;  ///< the folder that it was read from
  std::vector<LoraTensors> modules;
  std::vector<TensorRef> others;  ///< named by the parameter, sorted

  /// The module of that path, or nullptr.
  const LoraTensors* find(std::string_view module) const noexcept {
    const auto less = [](const LoraTensors& entry, std::string_view name) { return entry.module < name; };
    const auto place = std::lower_bound(modules.begin(), modules.end(), module, less);
    return place != modules.end() && place->module == module ? &*place : nullptr;
  }
  Index parameter_count() const noexcept {
    Index count = 0;
    for (const LoraTensors& entry : modules) count += entry.a.elements() + entry.b.elements();
    for (const TensorRef& tensor : others) count += tensor.elements();
    return count;
  }
};

/// An adapter of any method; its tensors view the mapped file and are named by the parameter: the key without
/// "base_model.model.", or the whole key where it begins otherwise.
struct AnyPeftAdapter {
  AnyConfig config;
  std::filesystem::path path;
  std::vector<TensorRef> tensors;
};

namespace detail {

inline constexpr std::string_view kLoraA = ".lora_A.weight";
inline constexpr std::string_view kLoraB = ".lora_B.weight";

/// Why a parameter that is no A or B of LoRA cannot be taken under this configuration; empty where it can.
inline std::string_view refusal_of_key(std::string_view name, const LoraConfig& config) noexcept {
  if (name.ends_with(".lora_B.bias")) {
    return config.lora_bias ? "" : "a bias on B, and the configuration does not set lora_bias";
  }
  if (name.ends_with(".lora_magnitude_vector")) {
    return config.use_dora ? "" : "a magnitude of DoRA, and the configuration does not set use_dora";
  }
  if (name.ends_with(".lora_magnitude_vector.weight")) return "a magnitude of DoRA under a key that PEFT does not write";
  if (name.find(".lora_A.") != std::string_view::npos || name.find(".lora_B.") != std::string_view::npos) {
    return "a key with an adapter's name in it: it was saved with torch.save of a whole state; save it with "
           "save_pretrained";
  }
  if (name.find(".lora_embedding_") != std::string_view::npos) {
    return name.ends_with(".lora_embedding_A") || name.ends_with(".lora_embedding_B")
               ? ""
               : "a key with an adapter's name in it: save it with save_pretrained";
  }
  if (name.ends_with(".bias") && config.bias != "none") return "";
  if (name.find(".base_layer.") != std::string_view::npos) {
    return name.ends_with(".base_layer.weight")
               ? ""
               : "a trained bias of the base layer, and the configuration's bias is \"none\"";
  }
  if (name.ends_with(".trainable_tokens_delta")) {
    return config.trainable_token_indices.empty() ? "rows of an embedding, and the configuration has no "
                                                    "trainable_token_indices"
                                                  : "";
  }
  if (name.ends_with(".weight") || name.ends_with(".bias")) {
    const bool may_be_embedding = name.find("embed") != std::string_view::npos || name.find("lm_head") != std::string_view::npos;
    return !config.modules_to_save.empty() || may_be_embedding
               ? ""
               : "a weight of a whole module, and the configuration has no modules_to_save";
  }
  return "no parameter of LoRA";
}

/// Throws FormatError for a tensor that cannot be read as numbers, ShapeError for more dimensions than a matrix has.
inline void check_readable(const TensorRef& tensor, std::string_view where) {
  if (tensor.shape.empty() || tensor.shape.size() > 2) {
    fail<ShapeError>("{}: {} has the shape {}; expected a vector or a matrix", where, quote_text(tensor.name),
                     tensor.shape_text());
  }
  if (!tensor.is_readable()) {
    fail<FormatError>("{}: {} is stored as {}; expected F32, F16 or BF16", where, quote_text(tensor.name),
                      name_of(tensor.type));
  }
}

/// Throws NumericError with the place of the first value that is not finite as a float.
inline void check_finite(const TensorRef& tensor, std::string_view where) {
  std::vector<float> row(static_cast<std::size_t>(tensor.cols()));
  for (Index i = 0; i < tensor.rows(); ++i) {
    tensor.read_rows_f32(i, 1, row.data());
    for (std::size_t j = 0; j < row.size(); ++j) {
      if (!is_finite(row[j])) {
        fail<NumericError>("{}: {} holds {} at [{}, {}]; expected finite numbers", where, tensor.name, row[j], i, j);
      }
    }
  }
}

/// Sorts parameters (names without "base_model.model.") into modules and checks them against the configuration: pairs
/// that are complete, matrices that fit each other, the rank that the configuration gives. What is no A or B goes to
/// `others`, where the configuration has a place for it. Throws FormatError, ShapeError.
inline std::vector<LoraTensors> collect_modules(std::vector<TensorRef> tensors, const LoraConfig& config,
                                                std::string_view where, std::vector<TensorRef>& others) {
  std::map<std::string, LoraTensors> modules;
  for (TensorRef& tensor : tensors) {
    const bool is_a = tensor.name.ends_with(kLoraA);
    if ((!is_a && !tensor.name.ends_with(kLoraB)) || tensor.name.size() == kLoraA.size()) {
      const std::string_view refusal = refusal_of_key(tensor.name, config);
      if (!refusal.empty()) fail<FormatError>("{}: {} is {}", where, quote_text(tensor.name), refusal);
      check_readable(tensor, where);
      others.push_back(std::move(tensor));
      continue;
    }
    if (tensor.shape.size() != 2 || tensor.elements() == 0) {
      fail<ShapeError>("{}: {} has the shape {}; expected a matrix", where, quote_text(tensor.name),
                       tensor.shape_text());
    }
    if (!tensor.is_readable()) {
      fail<FormatError>("{}: {} is stored as {}; expected F32, F16 or BF16", where, quote_text(tensor.name),
                        name_of(tensor.type));
    }
    const std::string module = tensor.name.substr(0, tensor.name.size() - kLoraA.size());
    LoraTensors& entry = modules[module];
    entry.module = module;
    (is_a ? entry.a : entry.b) = std::move(tensor);
  }
  const TargetMatcher matcher(config);
  std::vector<LoraTensors> result;
  for (auto& [module, entry] : modules) {
    if (entry.a.name.empty() || entry.b.name.empty()) {
      fail<FormatError>("{}: module {} has no {}; expected A and B", where, module,
                        entry.a.name.empty() ? "lora_A.weight" : "lora_B.weight");
    }
    if (entry.b.cols() != entry.a.rows()) {
      fail<ShapeError>("{}: module {} has A {} and B {}; expected A [r, in] and B [out, r]", where, module,
                       entry.a.shape_text(), entry.b.shape_text());
    }
    if (const Index rank = matcher.rank(module); rank != entry.r()) {
      fail<ShapeError>("{}: module {} has rank {} (A {}); its configuration gives {} (r = {}, rank_pattern of {})",
                       where, module, entry.r(), entry.a.shape_text(), rank, config.r, config.rank_pattern.size());
    }
    result.push_back(std::move(entry));
  }
  std::sort(others.begin(), others.end(), [](const TensorRef& x, const TensorRef& y) { return x.name < y.name; });
  return result;
}

}  // namespace detail

PEFT_END_NAMESPACE
