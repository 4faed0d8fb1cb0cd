#pragma once
/// One adapter of a model: its name, its configuration and, for every module it adapts, a method's value. Modules are
/// known by their path ("model.layers.0.self_attn.q_proj"), so an adapter can serve several copies of a model.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

/// The methods' values of one adapter, by module, in the order of attachment.
template <Scalar T>
class NamedAdapter {
 public:
  using value_type = T;

  NamedAdapter(std::string name, LoraConfig config) : name_(std::move(name)), config_(std::move(config)) {}

  const std::string& name() const noexcept { return name_; }
  const LoraConfig& config() const noexcept { return config_; }
  Index module_count() const noexcept { return static_cast<Index>(modules_.size()); }

  /// Adds a module's value. Throws ConfigError where the module has one already.
  Lora<T>& add(ModuleId module, Lora<T> value) {
    if (find(module) != nullptr) {
      fail<ConfigError>("adapter \"{}\": module {} is adapted twice; module names must be distinct", name_,
                        module.name());
    }
    const auto place = std::lower_bound(by_hash_.begin(), by_hash_.end(), module.hash(), HashLess{});
    by_hash_.insert(place, {module.hash(), modules_.size()});
    modules_.push_back({std::move(module), std::move(value)});
    return modules_.back().lora;
  }

  /// The value on `module`, or nullptr.
  Lora<T>* find(const ModuleId& module) noexcept {
    auto place = std::lower_bound(by_hash_.begin(), by_hash_.end(), module.hash(), HashLess{});
    for (; place != by_hash_.end() && place->first == module.hash(); ++place) {
      if (modules_[place->second].module == module) return &modules_[place->second].lora;
    }
    return nullptr;
  }
  const Lora<T>* find(const ModuleId& module) const noexcept { return const_cast<NamedAdapter*>(this)->find(module); }

  /// Visits every parameter under its PEFT key, module by module in the order of attachment.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (Entry& entry : modules_) entry.lora.for_each_parameter(visit, entry.module.name() + ".");
  }
  /// visit(const std::string& module_name, Lora<T>&).
  template <class Visitor>
  void for_each_module(Visitor&& visit) {
    for (Entry& entry : modules_) visit(entry.module.name(), entry.lora);
  }
  template <class Visitor>
  void for_each_module(Visitor&& visit) const {
    for (const Entry& entry : modules_) visit(entry.module.name(), entry.lora);
  }

  void zero_grad() noexcept {
    for (Entry& entry : modules_) entry.lora.zero_grad();
  }
  /// Trainable numbers.
  Index parameter_count() const noexcept {
    Index count = 0;
    for (const Entry& entry : modules_) count += entry.lora.a().size() + entry.lora.b().size();
    return count;
  }

 private:
  struct Entry {
    ModuleId module;
    Lora<T> lora;
  };
  using Place = std::pair<std::uint64_t, std::size_t>;
  struct HashLess {
    bool operator()(const Place& place, std::uint64_t hash) const noexcept { return place.first < hash; }
  };

  std::string name_;
  LoraConfig config_;
  std::vector<Entry> modules_;
  std::vector<Place> by_hash_;
};

PEFT_END_NAMESPACE
