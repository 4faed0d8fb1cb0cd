#pragma once
/// A model with an adapter's update added to its weights, tensor by tensor as they are written.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/adapter_kind.hpp"
#include "cli/session.hpp"
#include "cli/stored_values.hpp"
#include "hosts/tensor_names.hpp"
#include "hosts/weight_reader.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/merge.hpp"
#include "peft/pipeline/registry_loader.hpp"

namespace peft_examples {

class MergedModel {
 public:
  /// Sums are f32, whatever is written. Throws IoError, FormatError, ConfigError (a method that is not in the weights, by
  /// name), ShapeError.
  MergedModel(const ModelSource& source, const std::string& adapter)
      : model_(load_llama<float>(source)), sites_(model_.adapter_sites().linears) {
    if (adapter_kind(adapter) != AdapterKind::kParts) {
      peft::fail<peft::ConfigError>("peft merge: adapter {} is {}, which has no place in the model's weights; run it with --adapter",
                                    adapter, name_of_kind(adapter_kind(adapter)));
    }
    load_method(adapter, model_, registry_);
    const auto refuse = [&](const std::string& what) {
      peft::fail<peft::ConfigError>("peft merge: adapter {} {}, for which the model's files have no place; run it with --adapter",
                                    adapter, what);
    };
    const AdaptedLinear<float>* tied_head = model_.adapter_sites().tied_head;
    if (tied_head != nullptr && embedding().is_adapted(model_.selection()) && !tied_head->is_adapted(model_.selection())) {
      refuse("changes " + embedding().name() + " apart from " + tied_head->name() + ", which is the same matrix");
    }
    for (const AdaptedLinear<float>* site : sites_) {
      if (!site->is_adapted(model_.selection())) continue;
      const bool is_embedding = site == tied_head;
      if (is_embedding && !follows_embedding(site->module())) {
        refuse("changes " + site->name() + " apart from " + embedding().name() + ", which is the same matrix");
      }
      if (is_embedding || site->merge_change(model_.selection()).bias.empty()) continue;
      changed_biases_.push_back(site);
      if (site->base().read_bias().empty()) refuse("gives " + site->name() + " a bias");
    }
    model_.selection().for_each_part<peft::TrainedEmbedding<float>>(embedding().module(), [&](auto& own, const auto&) {
      if (own.table().value().rows() != embedding().vocabulary()) refuse("has a vocabulary of another size");
    });
  }

  const LlamaConfig& config() const noexcept { return model_.config(); }
  /// Modules that the adapter changes.
  Index changed() const {
    const auto is_adapted = [&](const auto* site) { return site->is_adapted(model_.selection()); };
    const peft::AdapterSites<float> sites = model_.adapter_sites();
    return std::count_if(sites.linears.begin(), sites.linears.end(), is_adapted) +
           std::count_if(sites.embeddings.begin(), sites.embeddings.end(), is_adapted) +
           std::count_if(sites.norms.begin(), sites.norms.end(), is_adapted);
  }

  /// Whether the adapter changes the linear whose weight has this name.
  bool changes(std::string_view weight) const {
    return std::any_of(sites_.begin(), sites_.end(), [&](const AdaptedLinear<float>* site) {
      return weight == site->name() + ".weight" && site->is_adapted(model_.selection());
    });
  }

  /// All tensors under Hugging Face's names, stored as `type`: F32, F16 or BF16. This must outlive them. One is valid until
  /// the next is made; making one throws NumericError for a value that F16 cannot hold.
  std::vector<peft::DeferredTensor> tensors(peft::StoredType type) {
    std::vector<peft::DeferredTensor> result;
    const auto vector = [&](const std::string& name, VectorView<const float> values) {
      if (values.empty()) return;
      result.push_back({name, type, {values.size}, [this, type, values] { return stored_(values, type); }});
    };
    const auto norm = [&](const std::string& name) {
      for (const peft::AdaptedNorm<float>* site : model_.adapter_sites().norms) {
        if (site->name() != name) continue;
        result.push_back({name + ".weight", type, {site->weight().size}, [this, type, site] {
                            norm_ = site->values(model_.selection());
                            return stored_(norm_.weight, type);
                          }});
      }
    };
    const auto linear = [&](const AdaptedLinear<float>* site) {
      result.push_back({site->name() + ".weight", type, {site->out_features(), site->in_features()}, [this, type, site] {
                          merged_ = has_changed_bias(site) ? peft::merged_layer(*site, model_.selection()).weight
                                                           : peft::merged_weight(*site, model_.selection());
                          return stored_(std::as_const(merged_).flat(), type);
                        }});
    };
    result.push_back({embedding().name() + ".weight", type, {embedding().vocabulary(), embedding().width()},
                      [this, type] { return stored_(table(), type); }});
    for (Index i = 0; i < config().num_hidden_layers; ++i) {
      const auto& layer = model_.layer(i);
      const std::string path = fmt::format("model.layers.{}.", i);
      for (const char* name : {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"}) {
        norm(path + name);
      }
      for (const AdaptedLinear<float>* site : layer.linears()) {
        linear(site);
        const std::string bias = site->name() + ".bias";
        if (!has_changed_bias(site)) {
          vector(bias, LlamaLayer<float>::bias_of(*site));
        } else {
          result.push_back({bias, type, {site->out_features()}, [this, type, site] {
                              merged_bias_ = peft::merged_layer(*site, model_.selection()).bias;
                              return stored_(std::as_const(merged_bias_).view(), type);
                            }});
        }
      }
    }
    norm("model.norm");
    if (!model_.is_tied()) linear(sites_.back());
    return result;
  }

  /// The same as a GGUF has them: its names, vectors in F32, a llama's q and k with rows for neighbouring pairs.
  std::vector<peft::DeferredTensor> gguf_tensors(peft::StoredType type) {
    const bool permute = config().model_type == "llama" || config().model_type == "mistral";
    std::vector<peft::DeferredTensor> result;
    add_rope_factors(result);
    std::vector<peft::DeferredTensor> wide = tensors(peft::StoredType::kF32);
    for (peft::DeferredTensor& tensor : wide) {
      const bool has_heads = tensor.name.find(".self_attn.q_proj.") != std::string::npos ||
                             tensor.name.find(".self_attn.k_proj.") != std::string::npos;
      const bool is_matrix = tensor.shape.size() == 2;
      const Index rows = tensor.shape[0], cols = is_matrix ? tensor.shape[1] : 1;
      const peft::StoredType kept = is_matrix ? type : peft::StoredType::kF32;
      const auto make = [this, kept, rows, cols, permuted = permute && has_heads, inner = std::move(tensor.make)] {
        const std::span<const std::byte> bytes = inner();
        MatrixView<const float> values(reinterpret_cast<const float*>(bytes.data()), rows, cols);
        if (permuted) values = permuted_rows(values);
        return stored_(VectorView<const float>(values.data, rows * cols), kept);
      };
      result.push_back({gguf_tensor_name(tensor.name).value(), kept, tensor.shape, make});
    }
    return result;
  }

 private:
  static const char* name_of_kind(AdapterKind kind) noexcept {
    return kind == AdapterKind::kPrefix ? "a prefix" : kind == AdapterKind::kPrompt ? "a prompt" :
           kind == AdapterKind::kFusion ? "an AdapterFusion" : "a bottleneck adapter";
  }
  const peft::AdaptedEmbedding<float>& embedding() const { return *model_.adapter_sites().embeddings.front(); }
  /// Whether what stands on a tied head is the embedding's own.
  bool follows_embedding(const peft::ModuleId& head) const {
    bool any_other = false;
    for (const auto& active : model_.selection().active()) {
      active.adapter->for_each_on(head, [&](peft::AnyPart<float>& part) {
        const bool own = part.get_if<peft::TiedEmbedding<float>>() != nullptr || part.get_if<peft::TiedTokenRows<float>>() != nullptr;
        any_other = any_other || !own;
      });
    }
    return !any_other;
  }
  /// The embedding's table with the adapter's rows.
  VectorView<const float> table() {
    if (!embedding().is_adapted(model_.selection())) {
      const MatrixView<const float> base = embedding().table().view();
      return {base.data, base.rows * base.cols};
    }
    std::vector<std::int32_t> ids(static_cast<std::size_t>(embedding().vocabulary()));
    std::iota(ids.begin(), ids.end(), 0);
    merged_.resize_discard(embedding().vocabulary(), embedding().width());
    embedding().forward({ids.data(), merged_.rows()}, merged_.view(), model_.selection(), peft::default_executor());
    return std::as_const(merged_).flat();
  }
  bool has_changed_bias(const AdaptedLinear<float>* site) const {
    return std::find(changed_biases_.begin(), changed_biases_.end(), site) != changed_biases_.end();
  }
  void add_rope_factors(std::vector<peft::DeferredTensor>& tensors) {
    const RopeScaling& scaling = config().rope_scaling;
    if (scaling.type == RopeScaling::Type::kFactors) rope_factors_ = scaling.frequency_factors;
    if (scaling.type == RopeScaling::Type::kLlama3) {
      rope_factors_ = frequency_factors(config().head_dim, config().rope_theta, scaling);
    }
    if (rope_factors_.empty()) return;
    tensors.push_back({"rope_freqs.weight", peft::StoredType::kF32, {static_cast<Index>(rope_factors_.size())},
                       [this] { return std::as_bytes(std::span<const float>(rope_factors_)); }});
  }

  MatrixView<const float> permuted_rows(MatrixView<const float> values) {
    permuted_.resize_discard(values.rows, values.cols);
    for (Index r = 0; r < values.rows; ++r) {
      std::copy_n(values.row(r), values.cols, permuted_.row(permuted_row(r, config().head_dim)));
    }
    return std::as_const(permuted_).view();
  }

  Llama<float> model_;
  std::span<AdaptedLinear<float>* const> sites_;  // the head last
  peft::AdapterRegistry<float> registry_;
  std::vector<const AdaptedLinear<float>*> changed_biases_;
  // Of the tensor whose turn it is.
  Matrix<float> merged_, permuted_;
  peft::Buffer<float> merged_bias_;
  peft::AdaptedNorm<float>::Values norm_;
  StoredValues stored_;
  std::vector<float> rope_factors_;
};

}  // namespace peft_examples
