#pragma once
/// The adapters of a model by name, and which of them are active. Names are Python PEFT's: add_adapter, set_adapter,
/// delete_adapter, disable_adapter. Any number of threads may read and switch at once: readers take a snapshot
/// (selection()), which costs a pointer's copy; switching prepares the new snapshot first and then swaps the pointer.

#include <cstdio>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapted_linear.hpp"
#include "peft/make_adapter.hpp"
#include "peft/named_adapter.hpp"
#include "peft/selection.hpp"
#include "peft/target_modules.hpp"

PEFT_BEGIN_NAMESPACE

template <Scalar T>
class AdapterRegistry {
 public:
  using AdapterPointer = std::shared_ptr<NamedAdapter<T>>;

  /// Makes an adapter and keeps it; it is not active before set_adapter. Throws ConfigError for a name in use or a
  /// configuration that fits no site.
  template <class Config = LoraConfig>
  AdapterPointer add_adapter(std::string name, const Config& config, const AdapterSites<T>& sites, std::uint64_t seed,
                             UnmatchedTargets unmatched = UnmatchedTargets::kRefuse) {
    return add_adapter(make_adapter<T>(std::move(name), config, sites, seed, unmatched));
  }
  /// Keeps a finished adapter (one that was loaded). Throws ConfigError for an empty name or one in use.
  AdapterPointer add_adapter(AdapterPointer adapter) {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (adapter->name().empty()) fail<ConfigError>("AdapterRegistry::add_adapter: the name is empty");
    if (find(adapter->name()) != nullptr) {
      fail<ConfigError>("AdapterRegistry::add_adapter: there is an adapter \"{}\" already; delete it first",
                        adapter->name());
    }
    adapters_.push_back(adapter);
    return adapter;
  }

  /// Forgets the adapter; where it was active, the others stay so. Snapshots that hold it stay valid.
  /// Throws ConfigError for an unknown name.
  void delete_adapter(std::string_view name) {
    AdapterPointer adapter;  // what is dropped is destroyed after the lock is given back
    Selection<T> selection;
    const std::lock_guard<std::mutex> hold(mutex_);
    adapter = get(name);
    std::vector<Active> left = selection_.active();
    std::erase_if(left, [&](const Active& entry) { return entry.adapter == adapter; });
    selection = Selection<T>(std::move(left));
    std::erase(adapters_, adapter);
    std::swap(selection_, selection);
  }

  /// Makes one adapter the active one. Throws ConfigError for an unknown name.
  void set_adapter(std::string_view name) { set_adapters({{std::string(name), 1.0}}); }

  /// Makes several active at once, each update times its weight; none: the base model alone. Throws ConfigError for an
  /// unknown name, one given twice, or a weight that is not finite.
  void set_adapters(const std::vector<std::pair<std::string, double>>& weighted) { select(selection_of(weighted)); }

  /// A snapshot of the active adapters.
  Selection<T> selection() const {
    const std::lock_guard<std::mutex> hold(mutex_);
    return selection_;
  }
  /// A snapshot of these adapters, whatever is active: to keep prepared and to switch by assigning.
  Selection<T> selection_of(const std::vector<std::pair<std::string, double>>& weighted) const {
    std::vector<Active> active;
    active.reserve(weighted.size());
    const std::lock_guard<std::mutex> hold(mutex_);
    for (const auto& [name, weight] : weighted) {
      if (!is_finite(weight)) {
        fail<ConfigError>("AdapterRegistry: the weight of adapter \"{}\" is {}; expected a finite number", name,
                          weight);
      }
      AdapterPointer adapter = get(name);
      for (const Active& entry : active) {
        if (entry.adapter == adapter) fail<ConfigError>("AdapterRegistry: adapter \"{}\" is selected twice", name);
      }
      active.push_back({std::move(adapter), weight});
    }
    return Selection<T>(std::move(active));
  }
  Selection<T> selection_of(std::string_view name) const { return selection_of({{std::string(name), 1.0}}); }
  /// Makes a snapshot the active one.
  void select(Selection<T> selection) {
    const std::lock_guard<std::mutex> hold(mutex_);
    std::swap(selection_, selection);
  }

  /// Switches all adapters off while it lives, then back to what was active.
  class Disabled {
   public:
    explicit Disabled(AdapterRegistry& registry) : registry_(registry), before_(registry.selection()) {
      registry_.select({});
    }
    Disabled(const Disabled&) = delete;
    Disabled& operator=(const Disabled&) = delete;
    ~Disabled() { registry_.select(std::move(before_)); }

   private:
    AdapterRegistry& registry_;
    Selection<T> before_;
  };
  [[nodiscard]] Disabled disable_adapter() { return Disabled(*this); }

  /// The adapter of that name. Throws ConfigError for an unknown one.
  AdapterPointer adapter(std::string_view name) const {
    const std::lock_guard<std::mutex> hold(mutex_);
    return get(name);
  }
  /// Names, in the order of addition.
  std::vector<std::string> names() const {
    const std::lock_guard<std::mutex> hold(mutex_);
    std::vector<std::string> result;
    for (const AdapterPointer& adapter : adapters_) result.push_back(adapter->name());
    return result;
  }
  std::vector<std::string> active_adapters() const {
    std::vector<std::string> result;
    const Selection<T> now = selection();
    for (const Active& entry : now.active()) result.push_back(entry.adapter->name());
    return result;
  }

  /// Visits the parameters of one adapter. Throws ConfigError for an unknown name.
  template <class Visitor>
  void for_each_parameter(std::string_view name, Visitor&& visit) {
    adapter(name)->for_each_parameter(visit);
  }

 private:
  using Active = typename Selection<T>::Active;

  AdapterPointer find(std::string_view name) const {
    for (const AdapterPointer& adapter : adapters_) {
      if (adapter->name() == name) return adapter;
    }
    return nullptr;
  }
  AdapterPointer get(std::string_view name) const {
    if (AdapterPointer adapter = find(name)) return adapter;
    std::string known;
    for (const AdapterPointer& adapter : adapters_) known += (known.empty() ? "" : ", ") + adapter->name();
    fail<ConfigError>("AdapterRegistry: no adapter is named \"{}\"; there {}", name,
                      known.empty() ? "are none" : "are: " + known);
  }

  mutable std::mutex mutex_;  // held for a look-up or a pointer's copy
  std::vector<AdapterPointer> adapters_;
  Selection<T> selection_;
};

/// PEFT's line: "trainable params: 460,800 || all params: 134,975,808 || trainable%: 0.3414".
inline std::string trainable_parameters_text(Index trainable, Index total) {
  const auto grouped = [](Index value) {
    std::string digits = fmt::format("{}", value);
    for (std::ptrdiff_t i = static_cast<std::ptrdiff_t>(digits.size()) - 3; i > 0; i -= 3) {
      digits.insert(static_cast<std::size_t>(i), 1, ',');
    }
    return digits;
  };
  const double percent = total > 0 ? static_cast<double>(100 * trainable) / static_cast<double>(total) : 0.0;
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", grouped(trainable), grouped(total),
                     percent);
}
/// Writes that line to standard output.
inline void print_trainable_parameters(Index trainable, Index total) {
  std::puts(trainable_parameters_text(trainable, total).c_str());
}

PEFT_END_NAMESPACE
