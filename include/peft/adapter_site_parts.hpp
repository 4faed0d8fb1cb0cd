#pragma once
/// The adapters and AdapterFusion layers of one site by name, and which of them a setup means.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter.hpp"
#include "peft/adapter_fusion.hpp"
#include "peft/adapter_setup.hpp"

PEFT_BEGIN_NAMESPACE

/// Refers to them: they must outlive it and may not move.
template <Scalar T = float>
class AdapterSiteParts {
 public:
  using NamedAdapters = std::vector<std::pair<std::string, Adapter<T>*>>;
  using NamedFusions = std::vector<std::pair<std::string, AdapterFusion<T>*>>;

  AdapterSiteParts(NamedAdapters adapters, NamedFusions fusions)
      : adapters_(std::move(adapters)), fusions_(std::move(fusions)) {}

  /// Throws ConfigError: adapters of different sizes, a Fuse without its layer, a block whose first adapter (Fuse: last;
  /// Average, Split: any) is not here.
  void check(const AdapterSetup& setup) const {
    for (const auto& [name, adapter] : adapters_) {
      if (adapter->hidden_size() != hidden_size()) {
        fail<ConfigError>("AdapterComposition: {} is for {} units, {} for {}; expected one hidden size", name,
                          adapter->hidden_size(), adapters_.front().first, hidden_size());
      }
    }
    const std::vector<std::string> names = setup.names();
    if (std::none_of(names.begin(), names.end(), [this](const auto& name) { return find(name) != nullptr; })) {
      fail<ConfigError>("AdapterComposition: the site has no adapter of {}: there is nothing to compose", setup.text());
    }
    require_adapters(setup);
  }

  // After check().
  Index hidden_size() const noexcept { return adapters_.front().second->hidden_size(); }
  /// The adapter, or nullptr where the site lacks it.
  Adapter<T>* find(std::string_view name) const noexcept {
    for (const auto& [own, adapter] : adapters_) {
      if (own == name) return adapter;
    }
    return nullptr;
  }
  /// The adapter whose x and a are the block's.
  Adapter<T>& first_of(const AdapterSetup& setup) const noexcept {
    return *find(setup.kind() == Kind::kFuse ? setup.last() : setup.first());
  }
  AdapterFusion<T>& fusion_of(const AdapterSetup& setup) const noexcept {
    for (const auto& [own, fusion] : fusions_) {
      if (own == setup.name()) return *fusion;
    }
    return *fusions_.front().second;  // not reached: check() has looked
  }
  /// The last adapter of the setup that is here: its fields say what follows.
  const Adapter<T>& last_of(const AdapterSetup& whole) const noexcept {
    const Adapter<T>* last = nullptr;
    const auto walk = [&](const auto& self, const AdapterSetup& setup) -> void {
      if (setup.is_single() && find(setup.name()) != nullptr) last = find(setup.name());
      for (const AdapterSetup& child : setup.children()) self(self, child);
    };
    walk(walk, whole);
    return *last;
  }

 private:
  using Kind = AdapterSetup::Kind;

  void require_adapters(const AdapterSetup& setup) const {
    const auto require = [&](const std::string& name) {
      if (find(name) == nullptr) {
        fail<ConfigError>("AdapterComposition: {} needs the adapter \"{}\", which this site does not have", setup.text(),
                          name);
      }
    };
    if (!setup.is_single() && setup.kind() != Kind::kStack) require(setup.kind() == Kind::kFuse ? setup.last() : setup.first());
    for (const AdapterSetup& child : setup.children()) {
      if (child.is_single() && (setup.kind() == Kind::kAverage || setup.kind() == Kind::kSplit || setup.kind() == Kind::kFuse)) {
        require(child.name());
      }
      if (setup.kind() == Kind::kFuse) require(child.last());
      require_adapters(child);
    }
    if (setup.kind() != Kind::kFuse) return;
    const auto found = std::find_if(fusions_.begin(), fusions_.end(), [&](const auto& e) { return e.first == setup.name(); });
    if (found == fusions_.end()) {
      fail<ConfigError>("AdapterComposition: {} needs the AdapterFusion layer \"{}\", which is not here", setup.text(),
                        setup.name());
    }
    if (found->second->hidden_size() != hidden_size()) {
      fail<ConfigError>("AdapterComposition: the AdapterFusion layer \"{}\" is for {} units, its adapters for {}",
                        setup.name(), found->second->hidden_size(), hidden_size());
    }
  }

  NamedAdapters adapters_;
  NamedFusions fusions_;
};

PEFT_END_NAMESPACE
