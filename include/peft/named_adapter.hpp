#pragma once
/// One adapter of a model: its name, its configuration and its parts: a method's value per module (or site) it adapts. Modules are
/// known by their path ("model.layers.0.self_attn.q_proj"), so an adapter can serve several copies of a model.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/any_config.hpp"
#include "peft/any_part.hpp"
#include "peft/lora.hpp"
#include "peft/lora_config.hpp"

PEFT_BEGIN_NAMESPACE

/// A module's path with its hash (FNV-1a, 64 bits: the same on every machine), by which it is looked up.
class ModuleId {
 public:
  explicit ModuleId(std::string name) : name_(std::move(name)) {
    for (const char c : name_) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  }
  const std::string& name() const noexcept { return name_; }
  std::uint64_t hash() const noexcept { return hash_; }
  friend bool operator==(const ModuleId& x, const ModuleId& y) noexcept {
    return x.hash_ == y.hash_ && x.name_ == y.name_;
  }

 private:
  std::string name_;
  std::uint64_t hash_ = 0xCBF29CE484222325ull;
};

/// The parts of one adapter, in the order of attachment. A module may have parts of several types (a LoRA and a bias), of
/// each type one.
template <Scalar T>
class NamedAdapter {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  NamedAdapter(std::string name, AnyConfig config) : name_(std::move(name)), config_(std::move(config)) {}

  const std::string& name() const noexcept { return name_; }
  /// The configuration of a LoRA adapter. Throws ConfigError where the adapter is of another method.
  const LoraConfig& config() const {
    if (const LoraConfig* config = config_.get_if<LoraConfig>()) return *config;
    fail<ConfigError>("adapter \"{}\": it is of peft_type {}; expected LORA", name_, config_.peft_type());
  }
  const AnyConfig& any_config() const noexcept { return config_; }
  /// The configuration, where it is a C; else nullptr.
  template <class C>
  const C* config_as() const noexcept {
    return config_.get_if<C>();
  }
  void set_config(AnyConfig config) noexcept { config_ = std::move(config); }
  /// Modules that have a part.
  Index module_count() const noexcept {
    Index count = 0;
    for (std::size_t i = 0; i < by_hash_.size(); ++i) {
      bool seen = false;
      for (std::size_t j = i; j-- > 0 && by_hash_[j].first == by_hash_[i].first;) {
        seen = seen || entries_[by_hash_[j].second].module == entries_[by_hash_[i].second].module;
      }
      if (!seen) ++count;
    }
    return count;
  }

  /// Adds a part. Throws ConfigError where the module has one of that type already.
  template <class U>
  U& add(ModuleId module, U value) {
    if (find<U>(module) != nullptr) {
      fail<ConfigError>("adapter \"{}\": module {} is adapted twice; module names must be distinct", name_,
                        module.name());
    }
    const auto place = std::upper_bound(by_hash_.begin(), by_hash_.end(), module.hash(), HashLess{});
    by_hash_.insert(place, {module.hash(), entries_.size()});
    entries_.push_back({std::move(module), AnyPart<T>(std::move(value))});
    return *entries_.back().part.template get_if<U>();
  }

  /// The part of type U on `module`, or nullptr.
  template <class U = Lora<T>>
  U* find(const ModuleId& module) noexcept {
    U* found = nullptr;
    for_each_on(module, [&found](AnyPart<T>& part) {
      if (found == nullptr) found = part.template get_if<U>();
    });
    return found;
  }
  template <class U = Lora<T>>
  const U* find(const ModuleId& module) const noexcept {
    return const_cast<NamedAdapter*>(this)->template find<U>(module);
  }
  /// visit(AnyPart<T>&) for every part on `module`, in the order of attachment.
  template <class Visitor>
  void for_each_on(const ModuleId& module, Visitor&& visit) {
    auto place = std::lower_bound(by_hash_.begin(), by_hash_.end(), module.hash(), HashLess{});
    for (; place != by_hash_.end() && place->first == module.hash(); ++place) {
      Entry& entry = entries_[place->second];
      if (entry.module == module) visit(entry.part);
    }
  }

  /// Visits every parameter under its PEFT key, part by part in the order of attachment.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (Entry& entry : entries_) entry.part.for_each_parameter(visit, prefix_of(entry));
  }
  /// The same without making gradients: their views are empty.
  template <class Visitor>
  void for_each_weight(Visitor&& visit) {
    for (Entry& entry : entries_) entry.part.for_each_weight(visit, prefix_of(entry));
  }
  /// visit(const std::string& module_name, AnyPart<T>&).
  template <class Visitor>
  void for_each_part(Visitor&& visit) {
    for (Entry& entry : entries_) visit(entry.module.name(), entry.part);
  }
  /// visit(const std::string& module_name, U&) for every part of type U.
  template <class U = Lora<T>, class Visitor>
  void for_each_module(Visitor&& visit) {
    for (Entry& entry : entries_) {
      if (U* part = entry.part.template get_if<U>()) visit(entry.module.name(), *part);
    }
  }
  template <class U = Lora<T>, class Visitor>
  void for_each_module(Visitor&& visit) const {
    for (const Entry& entry : entries_) {
      if (const U* part = entry.part.template get_if<U>()) visit(entry.module.name(), *part);
    }
  }

  void zero_grad() noexcept {
    for (Entry& entry : entries_) entry.part.zero_grad();
  }
  /// Trainable numbers.
  Index parameter_count() noexcept {
    Index count = 0;
    for_each_weight([&count](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      if (info.trained) count += value.size;
    });
    return count;
  }

 private:
  struct Entry {
    ModuleId module;
    AnyPart<T> part;
  };
  using Place = std::pair<std::uint64_t, std::size_t>;
  struct HashLess {
    bool operator()(const Place& place, std::uint64_t hash) const noexcept { return place.first < hash; }
    bool operator()(std::uint64_t hash, const Place& place) const noexcept { return hash < place.first; }
  };
  /// A part of the whole model (module "") has no prefix.
  static std::string prefix_of(const Entry& entry) {
    return entry.module.name().empty() ? std::string() : entry.module.name() + ".";
  }

  std::string name_;
  AnyConfig config_;
  std::vector<Entry> entries_;
  std::vector<Place> by_hash_;
};

PEFT_END_NAMESPACE
