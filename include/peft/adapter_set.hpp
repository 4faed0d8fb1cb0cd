#pragma once
/// All adapters of one name in one model: one per site that the configuration asks for. What a file holds, an optimizer
/// trains and a host asks at each site: `if (auto* adapter = set.find(layer, AdapterSite::kOutput))`.

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter.hpp"
#include "peft/adapter_layout.hpp"

PEFT_BEGIN_NAMESPACE

/// Movable; loading one while the model runs is making one and handing it over, unloading is dropping it.
template <Scalar T = float>
class AdapterSet {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// Adapters for `layers` layers of `hidden_size`, started from `seed`, site by site. Throws ConfigError.
  AdapterSet(std::string name, AdapterLayout layout, const AdapterConfig& config, Index hidden_size, Index layers,
             std::uint64_t seed = 0)
      : name_(std::move(name)), layout_(layout), config_(config) {
    if (layers < 1) fail<ConfigError>("AdapterSet {}: {} layers; expected at least 1", name_, layers);
    config.validate();
    at_.assign(static_cast<std::size_t>(2 * layers), kNone);
    for (Index layer = 0; layer < layers; ++layer) {
      for (const AdapterSite site : {AdapterSite::kAttention, AdapterSite::kOutput}) {
        if (!config.has_adapter(site, layer)) continue;
        at_[slot(layer, site)] = static_cast<std::ptrdiff_t>(entries_.size());
        Adapter<T> adapter(hidden_size, config, layer, seed);
        entries_.push_back({{layer, site, name_, false}, std::move(adapter)});
        // Of one layer's two the streams differ.
        entries_.back().adapter.reset(seed, 2 * static_cast<std::uint64_t>(layer) + static_cast<std::uint64_t>(site));
      }
    }
    if (entries_.empty()) {
      fail<ConfigError>("AdapterSet {}: leave_out leaves none of the {} layers", name_, layers);
    }
  }

  const std::string& name() const noexcept { return name_; }
  AdapterLayout layout() const noexcept { return layout_; }
  const AdapterConfig& config() const noexcept { return config_; }
  Index layers() const noexcept { return static_cast<Index>(at_.size()) / 2; }
  Index hidden_size() const noexcept { return entries_.front().adapter.hidden_size(); }

  /// The adapter of a site, or nullptr where it has none.
  Adapter<T>* find(Index layer, AdapterSite site) noexcept {
    return const_cast<Adapter<T>*>(std::as_const(*this).find(layer, site));
  }
  const Adapter<T>* find(Index layer, AdapterSite site) const noexcept {
    if (layer < 0 || layer >= layers()) return nullptr;
    const std::ptrdiff_t at = at_[slot(layer, site)];
    return at == kNone ? nullptr : &entries_[static_cast<std::size_t>(at)].adapter;
  }

  Index parameter_count() const noexcept {
    Index count = 0;
    for (const Entry& entry : entries_) count += entry.adapter.parameter_count();
    return count;
  }
  void zero_grad() {
    for (Entry& entry : entries_) entry.adapter.zero_grad();
  }

  /// In the order of the layers, with the keys of AdapterHub's files as names (without a body's name in front).
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (Entry& entry : entries_) entry.adapter.for_each_parameter(visit, entry.place.prefix(layout_));
  }

 private:
  struct Entry {
    AdapterPlace place;
    Adapter<T> adapter;
  };
  static constexpr std::ptrdiff_t kNone = -1;
  static std::size_t slot(Index layer, AdapterSite site) noexcept {
    return 2 * static_cast<std::size_t>(layer) + static_cast<std::size_t>(site);
  }

  std::string name_;
  AdapterLayout layout_;
  AdapterConfig config_;
  std::vector<Entry> entries_;
  std::vector<std::ptrdiff_t> at_;
};

PEFT_END_NAMESPACE
