#pragma once
/// All AdapterFusion layers of one name in one model: one per site that the adapters it mixes have. Train it over adapters
/// that stay as they are: Pfeiffer et al., "AdapterFusion", 2021 (arXiv 2005.00247).

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapter_fusion.hpp"
#include "peft/adapter_layout.hpp"

PEFT_BEGIN_NAMESPACE

template <Scalar T = float>
class AdapterFusionSet {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = Accumulator<T>;

  /// Over adapters of these names, at both sites of each layer or one of them, as the adapters' configurations say
  /// (has_attention, has_output); `seed` as in AdapterFusion, site by site. Throws ConfigError: fewer than two names or sites.
  AdapterFusionSet(std::vector<std::string> adapter_names, AdapterLayout layout, const AdapterFusionConfig& config,
                   Index hidden_size, Index layers, bool has_attention, bool has_output, std::uint64_t seed = 0,
                   float attention_dropout = 0.0f)
      : adapter_names_(std::move(adapter_names)), layout_(layout), config_(config), hidden_size_(hidden_size) {
    if (adapter_names_.size() < 2 || layers < 1 || (!has_attention && !has_output)) {
      fail<ConfigError>("AdapterFusionSet: {} adapters and {} layers{}; expected at least two that have a site in common, and a layer",
                        adapter_names_.size(), layers, has_attention || has_output ? "" : " without a site that all have");
    }
    for (const std::string& own : adapter_names_) name_ += (name_.empty() ? "" : ",") + own;
    for (Index layer = 0; layer < layers; ++layer) {
      for (const AdapterSite site : {AdapterSite::kAttention, AdapterSite::kOutput}) {
        if (site == AdapterSite::kAttention ? !has_attention : !has_output) continue;
        AdapterFusion<T> fusion(hidden_size, config, attention_dropout);
        entries_.push_back({{layer, site, name_, true}, std::move(fusion)});
        entries_.back().fusion.reset(seed, 2 * static_cast<std::uint64_t>(layer) + static_cast<std::uint64_t>(site));
      }
    }
  }

  /// AdapterHub's: the adapters' names with commas.
  const std::string& name() const noexcept { return name_; }
  const std::vector<std::string>& adapter_names() const noexcept { return adapter_names_; }
  const AdapterFusionConfig& config() const noexcept { return config_; }
  AdapterLayout layout() const noexcept { return layout_; }
  Index hidden_size() const noexcept { return hidden_size_; }

  /// The layer of a site, or nullptr where it has none.
  AdapterFusion<T>* find(Index layer, AdapterSite site) noexcept {
    for (Entry& entry : entries_) {
      if (entry.place.layer == layer && entry.place.site == site) return &entry.fusion;
    }
    return nullptr;
  }
  template <class Visitor>
  void for_each_fusion(Visitor&& visit) {
    for (Entry& entry : entries_) visit(entry.fusion);
  }
  Index parameter_count() {
    Index count = 0;
    for_each_parameter([&count](const ParameterInfo&, VectorView<A> value, VectorView<A>) { count += value.size; });
    return count;
  }
  /// In the order of the layers, with the keys of AdapterHub's files as names (without a body's name in front).
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (Entry& entry : entries_) entry.fusion.for_each_parameter(visit, entry.place.prefix(layout_));
  }

 private:
  struct Entry {
    AdapterPlace place;
    AdapterFusion<T> fusion;
  };

  std::vector<std::string> adapter_names_;
  std::string name_;
  AdapterLayout layout_;
  AdapterFusionConfig config_;
  Index hidden_size_;
  std::vector<Entry> entries_;
};

PEFT_END_NAMESPACE
